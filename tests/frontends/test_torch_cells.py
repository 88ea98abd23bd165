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

from edgelstm.frontends.torch.program import TorchProgram  # noqa: E402
from edgelstm.frontends.torch.recognise import as_step  # noqa: E402
from edgelstm.frontends.torch.torch_step import TorchStep  # noqa: E402
from edgelstm.frontends.torch.trace import trace  # noqa: E402
from edgelstm.graph.step import StepModel  # noqa: E402
from edgelstm.passes.graph import Graph  # noqa: E402
from edgelstm.runtime.onnxruntime import OrtProgram  # noqa: E402
from edgelstm.verify.compare import Comparison, compare  # noqa: E402

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


class Together(nn.Module):
    """All cells on the same frames, one beside the other: one export instead of one a cell."""

    def __init__(self, steps: dict[str, TorchStep]) -> None:
        super().__init__()
        self.cells = nn.ModuleList(steps.values())
        self.names = [f"cell{k}" for k in range(len(steps))]

    @property
    def states(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        pairs = zip(self.names, self.cells, strict=True)
        return {f"{name}_{s.name}": s.frame_shape for name, cell in pairs for s in cell.signature.states}

    def forward(self, x: Any, *states: Any) -> Any:
        given, outputs, following = list(states), {}, []
        for name, cell in zip(self.names, self.cells, strict=True):
            count = len(cell.signature.states)
            ys, after = cell(x, *given[:count])
            del given[:count]
            outputs[name] = ys[0]
            following += after
        return outputs, tuple(following)


@pytest.fixture(scope="module")
def exported(request: pytest.FixtureRequest) -> tuple[StepModel, Comparison, list[str]]:
    """The graph of all cells that are asked for, how it compares with torch over 200 frames, and their names."""
    asked = {i.callspec.params["name"] for i in request.session.items if i.path == request.path}  # type: ignore[attr-defined]
    torch.manual_seed(0)
    steps = {}
    for name in (n for n in CASES if n in asked):
        module = CASES[name][0]()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(std=0.4)
        steps[name] = as_step(module, cells.FRAME)
    together = Together(steps)
    step = as_step(together, cells.FRAME, states=together.states)
    graph = trace(step)
    rng = np.random.default_rng(1)
    frames = [{"x": rng.normal(size=cells.FRAME).astype(np.float32)} for _ in range(200)]
    return graph, compare(TorchProgram(step), OrtProgram(graph.to_bytes(), threads=1), frames), list(steps)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.thorough if k % 3 else ()) for k, n in enumerate(CASES)]
)
def test_a_cell_streams_as_in_torch(name: str, exported: tuple[StepModel, Comparison, list[str]]) -> None:
    step, comparison, names = exported
    graph, cell = Graph(step), f"cell{names.index(name)}"
    states = [s.output for s in step.signature.states if s.name.startswith(f"{cell}_")]
    behind = graph.alive([cell, *states])
    found = [node.op_type for node in graph.nodes if id(node) in behind]
    operators = CASES[name][1]
    assert found == operators if isinstance(operators, list) else operators <= set(found)
    assert not {"Shape", "Gather", "Expand", "ConstantOfShape"} & set(found)
    own = [t for t in comparison.tensors if t.name == cell or t.name.startswith(f"{cell}_")]
    assert len(own) == 1 + len(states)
    assert max(t.worst for t in own) < 1e-5, own
