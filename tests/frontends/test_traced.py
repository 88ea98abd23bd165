"""Every form of torch module through the traced door: the graph it becomes, and that it computes the same."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import torch_zoo as zoo  # noqa: E402

import edgelstm  # noqa: E402
from edgelstm.errors import EdgeLstmError  # noqa: E402
from edgelstm.frontends.torch import nn as ours  # noqa: E402
from edgelstm.frontends.torch.program import TorchProgram  # noqa: E402
from edgelstm.frontends.torch.recognise import as_step  # noqa: E402
from edgelstm.frontends.torch.trace import trace, trace_raw  # noqa: E402
from edgelstm.graph.step import StepModel  # noqa: E402
from edgelstm.runtime.onnxruntime import OrtProgram  # noqa: E402
from edgelstm.verify.proof import prove  # noqa: E402

tnn = torch.nn
CELL = ["Concat", "Gemm", "FusedGates_lstm"]
CONV = ["Concat", "Conv", "FusedGates_lstm"]


@dataclass(frozen=True)
class Case:
    make: Callable[[], Any]
    frame: Any
    ops: list[str] | None
    states: dict[str, str]  # name -> the graph output that holds its next value
    options: dict[str, Any] | None = None


LAYERS = {"h0": "h0_next", "c0": "c0_next", "h1": "y", "c1": "c1_next"}
CASES = {
    "LSTMCell": Case(lambda: tnn.LSTMCell(3, 4), (3,), CELL, {"h0": "y", "c0": "c0_next"}),
    "GRUCell": Case(lambda: tnn.GRUCell(3, 4), (3,), None, {"h0": "y"}),
    "LSTM": Case(lambda: tnn.LSTM(3, 4, 2), (3,), CELL * 2, LAYERS),
    "LSTM, batch first, no bias": Case(
        lambda: tnn.LSTM(3, 4, 2, batch_first=True, bias=False), (3,), CELL * 2, LAYERS
    ),
    "LSTM, projected": Case(lambda: tnn.LSTM(3, 4, 2, proj_size=2), (3,), [*CELL, "Gemm"] * 2, LAYERS),
    "GRU": Case(lambda: tnn.GRU(3, 4, 2, batch_first=True), (3,), None, {"h0": "h0_next", "h1": "y"}),
    "our LSTM": Case(
        lambda: ours.LSTM(3, [5, 4], peephole=True, outputs=2),
        (3,),
        ["Concat", "Gemm", "FusedGates_peephole"] * 2 + ["Gemm"],
        {k: f"{k}_next" for k in LAYERS},
    ),
    "our ConvLSTM cell": Case(lambda: ours.ConvLSTMCell(2, 3), (2, 5, 4), CONV, {"h0": "y", "c0": "c0_next"}),
    "our ConvLSTM": Case(
        lambda: ours.ConvLSTM(2, [4, 3], size=(5, 4), peephole=True),
        (2, 5, 4),
        ["Concat", "Conv", "FusedGates_peephole"] * 2,
        LAYERS,
    ),
    "our forecaster": Case(
        lambda: ours.EncoderForecaster(1, [4], size=(8, 8), horizon=2, residual=True),
        (1, 8, 8),
        None,
        {"h0": "h0_next", "c0": "c0_next"},
    ),
    "a user's ConvLSTM cell, gates i f o g": Case(
        zoo.UserConvLSTMCell, (2, 5, 4), CONV, {"h0": "y", "c0": "c0_next"}
    ),
    "a user's cell with two convolutions": Case(
        zoo.TwoConvolutions, (2, 5, 4), CONV, {"h0": "y", "c0": "c0_next"}
    ),
    "a user's step": Case(
        zoo.Step,
        (3,),
        [*CELL, "Gemm"],
        {"hidden": "hidden_out", "memory": "memory_next"},
        {"states": ((4,), (4,))},
    ),
    "a user's sequence": Case(
        zoo.Forecaster, (3,), [*CELL * 2, "MatMul", "Add"], {k: f"{k}_next" for k in LAYERS}
    ),
    "a user's sequence, time first": Case(
        lambda: zoo.Forecaster(batch_first=False),
        (3,),
        [*CELL * 2, "MatMul", "Add"],
        {k: f"{k}_next" for k in LAYERS},
    ),
    "a user's nested states": Case(zoo.NestedStates, (3,), CELL * 2, LAYERS),
    "two inputs, an integer state": Case(
        zoo.Counter, {"x": (2,), "gain": (1,)}, None, {"seen": "seen_next", "mean": "mean_next"}
    ),
    "a learned start, given": Case(
        zoo.Learned, (2,), None, {"h0": "y"}, {"states": np.array([0.3, -0.2], np.float32)}
    ),
}
#: What exporters compute shapes with, or take stacked states apart with.
DEBRIS = {"Shape", "Gather", "Slice", "Squeeze", "Identity", "Expand", "Constant", "ConstantOfShape"}


@cache
def open_case(name: str) -> tuple[TorchProgram, StepModel]:
    torch.manual_seed(0)
    case = CASES[name]
    module = case.make()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name != "start":
                parameter.normal_(std=0.4)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    step = as_step(module, case.frame, **(case.options or {}))
    graph = trace(step)
    assert module.training, "the user's module keeps its mode"
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    return TorchProgram(step, streams=3), graph


#: Near others: `make thorough`.
NEAR = (
    "LSTM, batch first, no bias",
    "LSTM, projected",
    "our ConvLSTM cell",
    "a user's cell with two convolutions",
    "a user's sequence, time first",
    "a user's nested states",
    "our LSTM",
    "our forecaster",
    "GRU",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.thorough if name in NEAR else ()) for name in CASES]
)
def test_source_and_export_agree(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    source, graph = open_case(name)
    assert capfd.readouterr() == ("", ""), "the exporter is quiet"
    graph.check()
    assert {s.name: s.output for s in graph.signature.states} == case.states
    assert graph.signature.stream_axis == "N"
    if case.ops is not None:
        assert graph.op_types() == case.ops
    assert not DEBRIS & set(graph.op_types())
    rng = np.random.default_rng(1)
    frames = [
        {t.name: rng.normal(size=t.frame_shape).astype(np.float32) for t in graph.signature.inputs}
        for _ in range(50)
    ]
    proof = prove(source.exact(), source, OrtProgram(graph.to_bytes(), threads=1), frames)
    assert len(proof.tensors) == len(graph.signature.outputs) + len(case.states)
    assert proof.holds, proof.worst
    assert proof.graph < 1e-4, proof.worst


@pytest.mark.parametrize(
    "name",
    [
        "LSTM",
        "a user's ConvLSTM cell, gates i f o g",
        pytest.param("our forecaster", marks=pytest.mark.thorough),
    ],
)
def test_one_graph_for_any_number_of_streams(name: str) -> None:
    source, graph = open_case(name)
    rng = np.random.default_rng(2)
    frames = [
        [{"x": rng.normal(size=graph.signature.inputs[0].frame_shape).astype(np.float32)} for _ in range(3)]
        for _ in range(20)
    ]
    program = OrtProgram(graph.to_bytes(), streams=3, threads=1)
    a, b = source.new_state(), program.new_state()
    for step, rows in zip(frames, [[0, 1, 2], [1], [0, 2]] * 7, strict=False):
        some = [step[row] for row in rows]
        for x, y in zip(source.step(some, a, rows), program.step(some, b, rows), strict=True):
            for key in x:
                np.testing.assert_allclose(y[key], x[key], rtol=1e-4, atol=1e-6)


def test_no_trace_of_the_machine() -> None:
    """The exporter notes source files and stack traces; none of that leaves with the model."""
    _, graph = open_case("a user's sequence")
    data = graph.to_bytes()
    for text in (str(Path(__file__).parent), sys.prefix, "torch_zoo", "pkg.torch"):
        assert text.encode() not in data
    raw = trace_raw(zoo.UserConvLSTMCell(), (2, 5, 4))
    assert all(not n.metadata_props and not n.doc_string for n in raw.model.graph.node)


def test_the_same_export_twice() -> None:
    torch.manual_seed(0)
    module = zoo.UserConvLSTMCell()
    assert trace(module, (2, 5, 4)).to_bytes() == trace(module, (2, 5, 4)).to_bytes()


@pytest.mark.parametrize(
    ("module", "frame", "message"),
    [
        (zoo.Branches(), (2,), r"torch can't export Branches\.forward: found .*data-dependent"),
        (zoo.FixedBatch(), (2,), r"FixedBatch\.forward fixes the number of streams"),
    ],
)
def test_what_torch_cannot_export(
    module: Any, frame: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EdgeLstmError, match=message):
        trace(module, frame, states=((2,),))
    assert capfd.readouterr() == ("", "")


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EdgeLstmError, match=r"pip install 'edgelstm\[torch\]'"):
        trace(zoo.UserConvLSTMCell(), (2, 5, 4))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EdgeLstmError, match=r"pip install 'edgelstm\[torch\]'"):
        as_step(None, (3,))  # type: ignore[arg-type]


class Chaos(tnn.Module):
    """A random network whose rounding errors double every few steps."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = tnn.Parameter(0.6 * torch.randn(32, 32, generator=generator))

    def forward(self, x, h):
        h = torch.tanh(h @ self.w + x)
        return h, h


def test_a_model_that_amplifies_rounding_is_held_to_its_single_steps() -> None:
    made = edgelstm.export(Chaos(), frame=(32,), states={"h": (32,)})
    assert made.comparison.worst.worst > 0.01
    (note,) = made.notes
    assert "amplifies rounding" in note
    assert "from equal states every step is near" in note


def test_single_steps_find_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network with one weight off by a thousandth: refused, however chaotic it is."""
    from edgelstm import frontends

    load = frontends.load

    def off(*arguments, **options):
        loaded = load(*arguments, **options)
        model = loaded.step.copy_model()
        (weight,) = [t for t in model.graph.initializer if list(t.dims) == [32, 32]]
        values = onnx.numpy_helper.to_array(weight).copy()
        values[3, 4] *= 1.001
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return dataclasses.replace(loaded, step=StepModel(model, loaded.step.signature))

    monkeypatch.setattr(frontends, "load", off)
    with pytest.raises(EdgeLstmError, match="does not match its source"):
        edgelstm.export(Chaos(), frame=(32,), states={"h": (32,)})
