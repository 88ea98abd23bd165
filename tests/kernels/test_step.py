"""ConvLstmStep on the CPU: what its graph will hold, streams that join, rest and start anew."""

from __future__ import annotations

import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.kernels import ConvLstmStep

torch = pytest.importorskip("torch")


def test_streams_that_rest_and_start_anew() -> None:
    from edgelstm import nn

    torch.manual_seed(0)
    module = nn.ConvLSTMCell(3, 8, peephole=True, size=(5, 7))
    for name in ("p_i", "p_f", "p_o"):
        torch.nn.init.normal_(getattr(module, name))
    weights = [module.p_i, module.p_f, module.p_o]
    variant = GateVariant(peephole=True)
    with ConvLstmStep(
        module.weight, module.bias, weights, streams=4, size=(5, 7), variant=variant, device="cpu"
    ) as run:
        wanted = [(torch.zeros(1, 8, 5, 7), torch.zeros(1, 8, 5, 7)) for _ in range(4)]
        for t in range(12):
            x = torch.randn(4, 3, 5, 7)
            live = [k for k in range(4) if (t + k) % 3]
            run.x.copy_(x)
            run.active.copy_(torch.tensor([int(k in live) for k in range(4)]))
            idle = [k for k in range(4) if k not in live]
            run.x[idle] = float("nan")
            before = run.h[idle].clone(), run.c[idle].clone()
            run.step()
            with torch.no_grad():
                for k in live:
                    wanted[k] = module(x[k : k + 1], wanted[k])
            assert torch.equal(run.h[idle], before[0])
            assert torch.equal(run.c[idle], before[1])
            if t == 6:
                run.reset(2)
                wanted[2] = (torch.zeros(1, 8, 5, 7), torch.zeros(1, 8, 5, 7))
        for k, (h, c) in enumerate(wanted):
            torch.testing.assert_close(run.h[k : k + 1], h, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(run.c[k : k + 1], c, rtol=1e-5, atol=1e-5)


def test_weights_that_are_none_are_refused() -> None:
    with pytest.raises(EdgeLstmError, match="odd K"):
        ConvLstmStep(torch.zeros(32, 11, 2, 2), torch.zeros(32), streams=1, size=(3, 3), device="cpu")
