"""ONNX files made elsewhere become step graphs that stream what the file computes over the whole sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_zoo as zoo
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import edgelstm
from edgelstm import EdgeLstmError
from edgelstm.frontends.onnx.state_pairs import Pair, name_likeness
from edgelstm.graph.step import StepModel
from edgelstm.runtime.runner import Runner
from tolerances import assert_close


def yes(pairs: Sequence[Pair]) -> bool:
    return True


def write(folder: Path, data: bytes) -> str:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return str(path)


def session(data: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def streamed(step: StepModel, frames: np.ndarray, tmp_path: Path) -> np.ndarray:
    """Frames [streams, T, ...] one by one through a Runner of so many streams: the first output, [streams, T, ...]."""
    path = tmp_path / "step.onnx"
    step.save(path)
    streams, length = frames.shape[:2]
    axis = step.signature.stream_axis
    with Runner.open(path, streams=axis if isinstance(axis, int) else streams, threads=1) as runner:
        rows = [runner.stream(f"s{k}") for k in range(streams)]
        name, output = step.signature.inputs[0].name, step.signature.outputs[0].name
        shape = step.signature.inputs[0].frame_shape
        return np.stack(
            [
                np.stack([row.step({name: frame[t].reshape(shape)})[output].copy() for t in range(length)])
                for row, frame in zip(rows, frames, strict=True)
            ]
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


# -- states of the file -----------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(sorted(zoo.GATES)),
    axis=st.sampled_from([0, 1]),
    batch=st.sampled_from(["batch", None, 1]),
    opset=st.sampled_from([13, 17, 21, 25]),
)
def test_states_with_their_streams_on_axis_1(
    folder: Path, kind: str, axis: int, batch: str | int | None, opset: int
) -> None:
    """PyTorch's [layers, N, H]: one state tensor for all layers, its streams in front; any number where the file says so."""
    data = zoo.stateful(kind, axis=axis, batch=batch, opset=opset)
    result = edgelstm.export(write(folder, data), confirm=yes, limit=10, threads=1)
    s = result.step.signature
    free = batch != 1
    assert [(x.input, x.output, x.shape) for x in s.states] == [
        (f"{n}_in", f"{n}_out", ("N" if free else 1, 2, zoo.H)) for n in ("hc" if kind == "LSTM" else "h")
    ]
    assert kind not in result.step.op_types()
    # Two streams at once through the file, one by one through the runner.
    if free:
        rng = np.random.default_rng(0)
        frames = rng.normal(size=(2, 5, zoo.X)).astype("f4")
        states = {f"{x.input}": np.zeros((2, 2, zoo.H), "f4") for x in s.states}
        source, want = session(data), []
        for t in range(5):
            x = frames[:, t][None] if axis else frames[:, t][:, None]
            y, *after = source.run(["y", *(n.replace("_in", "_out") for n in states)], {"x": x, **states})
            states = dict(zip(states, after, strict=True))
            want.append(y)
        assert_close(streamed(result.step, frames, folder), np.stack(want, 1), "float32")


def test_pairs_may_be_named(tmp_path: Path) -> None:
    result = edgelstm.export(
        write(tmp_path, zoo.stateful()), states={"h_in": "h_out", "c_in": "c_out"}, limit=5, threads=1
    )
    assert [s.name for s in result.step.signature.states] == ["h_in", "c_in"]


PACKED = zoo.text(
    "float[1, 3] x, float[1, 2, 3, 2] packed",
    "float[1, 3] y, float[1, 2, 3, 2] after",
    """first = Gather <axis = 1> (packed, zero) second = Gather <axis = 1> (packed, one)
    h0 = Gather <axis = 2> (first, zero) c0 = Gather <axis = 2> (first, one)
    z = Add (x, h0) f = Sigmoid (z) fc = Mul (f, c0) c1 = Add (fc, x) h1 = Tanh (c1)
    other = Neg (second) hu = Unsqueeze (h1, last) cu = Unsqueeze (c1, last)
    pair = Concat <axis = -1> (hu, cu) pairs = Unsqueeze (pair, layer) others = Unsqueeze (other, layer)
    after = Concat <axis = 1> (pairs, others) y = Identity (h1)""",
    "<int64 zero = {0}, int64 one = {1}, int64[1] last = {-1}, int64[1] layer = {1}>",
)


def test_a_packed_state_stays_one_tensor(tmp_path: Path) -> None:
    result = edgelstm.export(write(tmp_path, PACKED), confirm=yes, limit=20, threads=1)
    state = result.step.signature.state("packed")
    assert (state.output, state.shape) == ("after", (1, 2, 3, 2))


# -- proposals --------------------------------------------------------------------------------------------------------


def test_proposed_pairs_are_listed_ready_to_paste(tmp_path: Path) -> None:
    path = write(tmp_path, zoo.stateful())
    with pytest.raises(EdgeLstmError) as caught:
        edgelstm.export(path, limit=5)
    assert "no state pairs are named" in str(caught.value)
    assert "--state h_in=h_out --state c_in=c_out" in str(caught.value)
    seen: list[str] = []

    def no(pairs: Sequence[Pair]) -> bool:
        seen.extend(pair.option for pair in pairs)
        return False

    with pytest.raises(EdgeLstmError, match="no state pairs"):
        edgelstm.export(path, confirm=no, limit=5)
    assert seen == ["--state h_in=h_out", "--state c_in=c_out"]


def test_names_that_say_nothing_are_paired_by_what_the_operator_does(tmp_path: Path) -> None:
    """h and c have one shape: which is which is told by the operator that they start and that they come from."""
    model = onnx.load_from_string(zoo.stateful())
    names = {"h_in": "a", "c_in": "b", "h_out": "p", "c_out": "q"}
    for node in model.graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    outputs = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in reversed(model.graph.output)]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    result = edgelstm.export(write(tmp_path, model.SerializeToString()), confirm=yes, limit=5, threads=1)
    assert {s.input: s.output for s in result.step.signature.states} == {"a": "p", "b": "q"}


def test_a_mask_is_no_state(tmp_path: Path) -> None:
    """y = x * sigmoid(...): the frame is multiplied by a gate and comes out in its shape, yet nothing is carried."""
    data = zoo.text(
        "float[1, 3] x, float[1, 3] c",
        "float[1, 3] y, float[1, 3] c_next",
        "f = Sigmoid (x) kept = Mul (f, c) c_next = Add (kept, x) m = Sigmoid (c_next) y = Mul (x, m)",
    )
    result = edgelstm.export(write(tmp_path, data), confirm=yes, limit=5, threads=1)
    assert {s.input: s.output for s in result.step.signature.states} == {"c": "c_next"}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("h_in", "h_out"),
        ("h0", "hn"),
        ("state", "stateN"),
        ("prev_cell", "next_cell"),
        ("hx", "h"),
    ],
)
def test_names_alike(a: str, b: str) -> None:
    assert name_likeness(a, b) >= 0.6
    assert name_likeness(a, b) > name_likeness(a, "logits")


# -- states inside ----------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(sorted(zoo.GATES)),
    initial=st.sampled_from(["none", "zeros", "constant"]),
    layers=st.integers(1, 2),
    layout=st.booleans(),
    opset=st.sampled_from([13, 17, 22]),
    batch=st.sampled_from(["batch", 1]),
    last_only=st.booleans(),
)
def test_a_model_over_sequences_streams_what_it_computes_whole(
    folder: Path,
    kind: str,
    initial: str,
    layers: int,
    layout: bool,
    opset: int,
    batch: str | int,
    last_only: bool,
) -> None:
    options: dict[str, Any] = {"kind": kind, "initial": initial, "layers": layers, "opset": max(opset, 14)}
    options |= {"batch": batch, "last_only": last_only}
    path = write(folder, zoo.forgetful(**options, layout=int(layout)))
    result = edgelstm.export(path, fix={"time": 1}, limit=6, threads=1)
    names = [f"{s}{k}" for k in range(layers) for s in ("hc" if kind == "LSTM" else "h")]
    assert [s.name for s in result.step.signature.states] == names
    assert kind not in result.step.op_types()
    streams = 2 if batch == "batch" else 1
    frames = np.random.default_rng(0).normal(size=(streams, 7, zoo.X)).astype("f4")
    # ONNX Runtime has no layout 1: the same weights in layout 0 are the truth.
    source = session(zoo.forgetful(**options))
    if last_only:
        want = np.stack([source.run(None, {"x": frames[:, : t + 1]})[0] for t in range(7)], 1)
    else:
        want = source.run(None, {"x": frames})[0]
    assert_close(streamed(result.step, frames, folder).reshape(want.shape), want, "float32", k=128)


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
@pytest.mark.parametrize("opset", [13, 21])
def test_a_cell_in_a_loop_over_frames(folder: Path, kind: str, opset: int) -> None:
    """What the loop carries from frame to frame becomes the state."""
    data = zoo.looping(kind, opset=opset)
    result = edgelstm.export(write(folder, data), fix={"T": 1}, limit=6, threads=1)
    assert "FusedGates_lstm" in result.step.op_types()
    assert [s.shape for s in result.step.signature.states] == [("N", 2, 4, 4)] * 2
    frames = np.random.default_rng(0).normal(size=(2, 6, 1, 4, 4)).astype("f4")
    want = session(zoo.looping(kind, opset=opset, named=True)).run(None, {"x": frames})[0]
    assert_close(streamed(result.step, frames, folder).reshape(want.shape), want, "float32", k=128)


def test_half_precision(folder: Path) -> None:
    model = onnx.load_from_string(zoo.forgetful(initial="zeros"))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    result = edgelstm.export(write(folder, model.SerializeToString()), fix={"time": 1}, limit=20, threads=1)
    assert {s.dtype for s in result.step.signature.states} == {"float16"}
    assert "FusedGates_lstm" in result.step.op_types()


# -- fixing -----------------------------------------------------------------------------------------------------------


RATED = zoo.text(
    "float[batch, n] x, float[2, batch, n] s, int64 rate",
    "float[batch, n] y, float[2, batch, n] s_next",
    """wanted = Constant <value_int = 16000> () fast = Equal (rate, wanted)
    now = Gather <axis = 0> (s, zero)
    y = If (fast) <then_branch = a () => (float[batch, n] o) { t = Add (x, now) o = Tanh (t) },
                   else_branch = b () => (float[batch, n] o) { o = Neg (x) }>
    up = Unsqueeze (y, axis) s_next = Concat <axis = 0> (up, up)""",
    "<int64 zero = {0}, int64[1] axis = {0}>",
)


def test_an_input_that_decides_a_branch_is_fixed(tmp_path: Path) -> None:
    path = write(tmp_path, RATED)
    pair = {"s": "s_next"}
    fast = edgelstm.export(path, states=pair, fix={"rate": 16000, "n": 3}, limit=5, threads=1).step
    slow = edgelstm.export(path, states=pair, fix={"rate": 8000, "n": 3}, limit=5, threads=1).step
    assert ("Tanh" in fast.op_types(), "Tanh" in slow.op_types()) == (True, False)
    assert "If" not in fast.op_types()
    assert [t.name for t in fast.signature.inputs] == ["x"]


def test_lengths_of_sequences_are_fixed_for_any_number_of_streams(tmp_path: Path) -> None:
    model = onnx.load_from_string(zoo.forgetful())
    node = next(n for n in model.graph.node if n.op_type == "LSTM")
    node.input.append("lengths")
    model.graph.input.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]))
    path = write(tmp_path, model.SerializeToString())
    result = edgelstm.export(path, fix={"time": 1, "lengths": 1}, limit=1, threads=1)
    assert "Where" not in result.step.op_types()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"h_in": "c_out", "c_in": "h_out"}, ["state h_in: the graph says h_in=h_out", "--state c_in=c_out"]),
        ({"h_in": "h_out"}, ["c_in is no state", "--state c_in=c_out"]),
        ({"h_in": "h_out", "c_in": "c_out"}, []),
    ],
    ids=["crossed", "one", "right"],
)
def test_pairs_that_the_graph_speaks_against_are_said(
    tmp_path: Path, named: dict[str, str], said: list[str]
) -> None:
    done = edgelstm.export(write(tmp_path, zoo.stateful()), states=named, limit=5, threads=1)
    notes = " ".join(done.notes)
    assert all(text in notes for text in said)
    assert ("the graph says" in notes) == bool(said)


def test_a_sequence_of_one_stream_is_compared_over_all_frames(tmp_path: Path) -> None:
    """PyTorch's usual export: x [time, 1, X], time alone is free."""
    rng = np.random.default_rng(0)
    weights = {**zoo.recurrent_weights("LSTM", zoo.X, rng, ""), "axis": np.array([1])}
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["all"], hidden_size=zoo.H),
        helper.make_node("Squeeze", ["all", "axis"], ["y"]),
    ]
    path = write(tmp_path, zoo.model(nodes, {"x": ("time", 1, zoo.X)}, {"y": ("time", 1, zoo.H)}, weights))
    done = edgelstm.export(path, fix={"time": 1}, limit=8, threads=1)
    assert any("carried from frame to frame" in note for note in done.notes)
    # The same where the free size is the streams': three of them are not three frames.
    other = edgelstm.export(write(tmp_path, zoo.forgetful(time=1)), fix={"batch": 1}, limit=8, threads=1)
    assert any("itself can't tell" in note for note in other.notes)
