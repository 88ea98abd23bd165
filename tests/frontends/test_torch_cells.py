"""Cells as public PyTorch code writes them: what they become, and that they stream as in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import torch_cells as cells  # noqa: E402

from edgelstm.frontends.adapters import as_step  # noqa: E402
from edgelstm.frontends.torch_program import TorchProgram  # noqa: E402
from edgelstm.frontends.traced import trace  # noqa: E402
from edgelstm.runtime.onnxruntime import OrtProgram  # noqa: E402
from edgelstm.verify import compare  # noqa: E402

nn = torch.nn
C = cells.HIDDEN
JOINED = ["Concat", "Conv", "FusedGates_lstm"]
PEEPHOLE = ["Concat", "Conv", "FusedGates_peephole"]

#: The module, and its operators: all of them as a list, or those that must be there (as a set).
CASES: dict[str, tuple[Callable[[], Any], list[str] | set[str]]] = {
    "gates i, f, o, g": (lambda: cells.OrderedCell("ifog"), JOINED),
    "gates i, f, g, o; states nested, given back flat": (
        lambda: cells.CellWithOutput(True, "ifgo"),
        [*JOINED, "Conv"],
    ),
    "gates f, i, o, g; states flat": (lambda: cells.CellWithOutput(False, "fiog"), [*JOINED, "Conv"]),
    "eight convolutions, full-map peepholes": (lambda: cells.EightConvolutions("map"), PEEPHOLE),
    "eight convolutions, peepholes per channel in buffers": (
        lambda: cells.EightConvolutions("channel buffer"),
        PEEPHOLE,
    ),
    "peepholes made at the first frame": (cells.LazyPeepholes, PEEPHOLE),
    "GroupNorm on the gates": (
        lambda: cells.NormOnGates(nn.GroupNorm(4, 4 * C)),
        {"InstanceNormalization", "FusedGates_lstm"},
    ),
    "LayerNorm per gate": (
        lambda: cells.NormPerGate(lambda: nn.LayerNorm([C, 6, 5])),
        {"LayerNormalization", "FusedGates_lstm"},
    ),
    # Another h than o * tanh(c'): these equations are no FusedGates, and stay as they are.
    "LayerNorm on the cell state too": (
        lambda: cells.NormPerGate(lambda: nn.LayerNorm([C, 6, 5]), norm_cell=True),
        {"LayerNormalization", "Sigmoid", "Tanh"},
    ),
    "forget bias": (cells.ForgetBias, JOINED),
    "a coarser state": (cells.HiddenStride, ["Conv", "Conv", "Add", "FusedGates_lstm"]),
    "ConvGRU, reset before": (lambda: cells.ConvGRU(False), {"Conv", "Sigmoid", "Tanh"}),
    "ConvGRU, reset after": (lambda: cells.ConvGRU(True), {"Conv", "Sigmoid", "Tanh"}),
    "convolved peepholes, reflected borders": (
        cells.ConvolvedPeepholes,
        {"Pad", "Conv", "FusedGates_lstm"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_cell_streams_as_in_torch(name: str) -> None:
    make, operators = CASES[name]
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    step = as_step(module, cells.FRAME)
    graph = trace(step)
    found = graph.op_types()
    assert found == operators if isinstance(operators, list) else operators <= set(found)
    assert not {"Shape", "Gather", "Expand", "ConstantOfShape"} & set(found)
    rng = np.random.default_rng(1)
    frames = [{"x": rng.normal(size=cells.FRAME).astype(np.float32)} for _ in range(200)]
    comparison = compare(TorchProgram(step), OrtProgram(graph.to_bytes(), threads=1), frames)
    assert comparison.worst.worst < 1e-5, comparison.worst
