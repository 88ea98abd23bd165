"""The ConvLSTM kernel without a GPU: interpreted by Triton against float64, compiled ahead for a Hopper and a Jetson Orin, and the same
class on the CPU. Without triton the first two skip."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.kernels import ConvLstmKernel

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton"
)


def child(code: list[str]) -> list[dict[str, Any]]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@needs_triton
def test_interpreted_it_gives_what_float64_gives() -> None:
    found = child([str(ROOT / "tests" / "kernels" / "interpreted.py")])
    assert len(found) == 9
    for case in found:
        assert case["h"] <= 1, case
        assert case["c"] <= 1, case
        assert case["idle kept"], case


@needs_triton
@pytest.mark.parametrize(("capability", "instruction"), [((9, 0), "wgmma"), ((8, 7), "mma.sync")])
def test_it_compiles_ahead_for_tensor_cores(
    capability: tuple[int, int], instruction: str, tmp_path: Path
) -> None:
    code = (
        "import json, torch; from edgelstm.kernels import ConvLstmKernel;"
        "k = ConvLstmKernel(torch.zeros(256, 80, 3, 3), torch.zeros(256));"
        f"k.compile_ahead({capability}, 7, 5, active=True); a = k.compile_ahead({capability}, 64, 64); assert a.cubin[:4] == b'\\x7fELF';"
        f"print(json.dumps({{'tensor cores': a.ptx.count('{instruction}'), 'local': '.local' in a.ptx, 'shared': a.shared}}))"
    )
    (found,) = child(["-c", code])
    assert found["tensor cores"] >= 4
    assert not found["local"], "registers go to memory"
    assert found["shared"] <= 99 * 1024


def cell(**options: Any) -> ConvLstmKernel:
    torch.manual_seed(0)
    return ConvLstmKernel(torch.randn(28, 10, 3, 3), torch.randn(28), **options)


def test_on_the_cpu_it_is_the_cell_of_torch() -> None:
    from edgelstm import nn

    torch.manual_seed(0)
    module = nn.ConvLSTMCell(3, 7, peephole=True, size=(5, 11))
    for name in ("p_i", "p_f", "p_o"):
        torch.nn.init.normal_(getattr(module, name))
    peepholes = [module.p_i, module.p_f, module.p_o]
    kernel = ConvLstmKernel(
        module.weight, module.bias, peepholes, variant=GateVariant(peephole=True), dtype="float32"
    )
    h, other, c = kernel.new_state(2, 5, 11)
    wanted = (h.clone(), c.clone())
    for _ in range(5):
        x = torch.randn(2, 3, 5, 11).to(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = module(x, wanted)
        kernel(x, h, c, other)
        h, other = other, h
    torch.testing.assert_close((h, c), wanted, rtol=1e-5, atol=1e-5)


def test_idle_streams_are_copied_bit_for_bit() -> None:
    kernel = cell()
    h, other, c = kernel.new_state(3, 4, 5)
    h.normal_(), c.normal_()
    h[1], c[1] = float("nan"), float("inf")
    x = torch.randn(3, 3, 4, 5).half().to(memory_format=torch.channels_last)
    kernel(x, h, c, other, active=torch.tensor([1, 0, 1], dtype=torch.int32))
    assert torch.equal(other[1].view(torch.int16), h[1].view(torch.int16))
    assert c[1].isinf().all()
    assert other[[0, 2]].isfinite().all()
    assert not torch.equal(other[0], h[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": None}, "x of a ConvLSTM step"),
        ({"h_out": "h"}, "h_out is h"),
        ({"c": torch.zeros(2, 7, 4, 5)}, "c of a ConvLSTM step.*not channels last"),
        ({"active": torch.ones(2)}, "active"),
        ({"h": torch.zeros(2, 7, 4, 6).half()}, "h_out of a ConvLSTM step"),
    ],
)
def test_what_does_not_fit_is_said(change: dict[str, Any], words: str) -> None:
    kernel = cell()
    h, other, c = kernel.new_state(2, 4, 5)
    last = {"memory_format": torch.channels_last}
    given = {"x": torch.zeros(2, 3, 4, 5).half().to(**last), "h": h, "c": c, "h_out": other, "active": None}
    for name, value in change.items():
        given[name] = h if isinstance(value, str) else value.to(**last) if name == "h" else value
    with pytest.raises(EdgeLstmError, match=words):
        kernel(given.pop("x"), given.pop("h"), given.pop("c"), given.pop("h_out"), **given)


def test_weights_that_are_none_are_refused() -> None:
    for weight, words in (
        (torch.zeros(27, 10, 3, 3), "weights"),
        (torch.zeros(28, 10, 2, 2), "odd K"),
        (torch.zeros(28, 6, 3, 3), "weights"),
    ):
        with pytest.raises(EdgeLstmError, match=words):
            ConvLstmKernel(weight, torch.zeros(28))
    with pytest.raises(EdgeLstmError, match="float64"):
        cell(dtype="float64")
