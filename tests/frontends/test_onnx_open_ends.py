"""ONNX files that leave things open: sizes without names, scalars, old opsets. What has to be said is said at once, tried."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_zoo as zoo
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import edgelstm
from edgelstm import EdgeLstmError
from edgelstm.cli import app
from tolerances import assert_close

X, U = 5, 4


def keeping_lstm(opset: int) -> bytes:
    """An LSTM of one sequence over rows: x [n1, 5], h [n2, 4], c [n3, 4], each size free and called by another name."""
    r = np.random.default_rng(0)
    shapes = {"W": (1, 4 * U, X), "R": (1, 4 * U, U), "B": (1, 8 * U)}
    weights = [numpy_helper.from_array(r.normal(size=s).astype("f4"), n) for n, s in shapes.items()]
    weights.append(numpy_helper.from_array(np.array([-1, 1, X], np.int64), "shape"))
    axes: dict[str, Any] = {"axes": [0]} if opset < 13 else {}
    zero = [] if opset < 13 else ["zero"]
    if zero:
        weights.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["seq"]),
        helper.make_node("Unsqueeze", ["h", *zero], ["h0"], **axes),
        helper.make_node("Unsqueeze", ["c", *zero], ["c0"], **axes),
        helper.make_node("LSTM", ["seq", "W", "R", "B", "", "h0", "c0"], ["Y", "Yh", "Yc"], hidden_size=U),
        helper.make_node("Squeeze", ["Yh", *zero], ["h_out"], **axes),
        helper.make_node("Squeeze", ["Yc", *zero], ["c_out"], **axes),
        helper.make_node("Relu", ["h_out"], ["y"]),
    ]
    v = helper.make_tensor_value_info
    f = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [v("x", f, ["n1", X]), v("h", f, ["n2", U]), v("c", f, ["n3", U])],
        [v("y", f, ["n4", U]), v("h_out", f, ["n5", U]), v("c_out", f, ["n6", U])],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("opset", [7, 9, 10, 17])
@pytest.mark.parametrize("named", [True, False])
def test_sizes_that_can_only_be_1_are_and_it_is_said(tmp_path: Path, opset: int, named: bool) -> None:
    (tmp_path / "f.onnx").write_bytes(keeping_lstm(opset))
    done = edgelstm.export(
        tmp_path / "f.onnx",
        tmp_path / "m.onnx",
        states={"h": "h_out", "c": "c_out"} if named else None,
        confirm=lambda pairs: True,
        limit=10,
        threads=1,
    )
    assert done.step.signature.stream_axis == 1
    assert {s.input: s.output for s in done.step.signature.states} == {"h": "h_out", "c": "c_out"}
    assert any("n1 = n2 = n3 = 1" in note for note in done.notes)
    with edgelstm.Runner.open(tmp_path / "m.onnx", streams=2, threads=1) as runner:
        a, b = runner.stream("a"), runner.stream("b")
        x = np.ones(X, "f4")
        first = a.step(x)["y"].copy()
        b.step(100 * x)
        a.reset()
        np.testing.assert_array_equal(a.step(x)["y"], first)


def test_a_free_size_beside_a_fixed_one(tmp_path: Path) -> None:
    data = zoo.text("float[N, 3] x, float[1, 3] s", "float[N, 3] n", "n = Add (x, s)")
    (tmp_path / "f.onnx").write_bytes(data)
    done = edgelstm.export(tmp_path / "f.onnx", None, states={"s": "n"}, limit=5, threads=1)
    assert done.step.signature.stream_axis == 1
    assert any("N = 1" in note for note in done.notes)


SCALAR = zoo.text(
    "float[batch, width] x, float[batch, 2] state, int64 rate",
    "float[batch, 2] y, float[batch, 2] new_state",
    """fits = Equal (rate, wanted) f = Cast <to = 1> (fits) folded = Reshape (x, blocks) m = ReduceMean <axes = [2], keepdims = 0> (folded)
    new_state = Add (state, m) y = Mul (new_state, f)""",
    "<int64 wanted = {16000}, int64[3] blocks = {0, 2, 80}>",
)


def test_everything_is_said_in_one_command_which_works(tmp_path: Path) -> None:
    (tmp_path / "f.onnx").write_bytes(SCALAR)
    with pytest.raises(EdgeLstmError) as caught:
        edgelstm.export(tmp_path / "f.onnx", tmp_path / "m.onnx", limit=5)
    text = str(caught.value)
    assert "open are rate (a number), width (a size)" in text
    command = text[text.index("edgelstm export") :].split(" (or ")[0].split("; ")[0]
    words = shlex.split(command)
    assert "--fix rate=16000 --fix width=160 --state state=new_state" in command, (
        "16000 is what the graph compares with"
    )
    words[words.index("step.onnx")] = str(tmp_path / "m.onnx")
    done = CliRunner().invoke(app, [*words[1:], "--limit", "5"])
    assert done.exit_code == 0, done.output
    assert edgelstm.inspect(tmp_path / "m.onnx").signature.inputs[0].shape == ("N", 160)


def test_one_name_for_sizes_that_differ(tmp_path: Path) -> None:
    """The file calls x's width and the layers of h "d": each is fixed by INPUT.AXIS."""
    data = zoo.text(
        "float[N, d] x, float[N, d, 3] h",
        "float[N, 3] y, float[N, d, 3] h_out",
        """all = Unsqueeze (x, middle) two = Concat <axis = 1> (all, all) h_out = Add (h, two) y = ReduceMean <axes = [1], keepdims = 0> (h_out)""",
        "<int64[1] middle = {1}>",
    )
    (tmp_path / "f.onnx").write_bytes(data)
    done = edgelstm.export(
        tmp_path / "f.onnx", None, states={"h": "h_out"}, fix={"x.1": 3, "h.1": 2}, limit=5, threads=1
    )
    assert done.step.signature.inputs[0].shape == ("N", 3)
    assert done.step.signature.states[0].shape == ("N", 2, 3)


# -- files without an axis for the streams ----------------------------------------------------------------------------


W = "float[4, 3] W = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}"
BARE = {
    "no batch": (
        "float[4] x, float[3] s",
        "float[3] y, float[3] n",
        "t = MatMul (x, W) n = Add (t, s) y = Tanh (n)",
        W,
        (4,),
        (3,),
    ),
    "a running mean": (
        "float[N, 3] x, float[3] s",
        "float[N, 3] y, float[3] n",
        "t = ReduceMean <axes = [0], keepdims = 0> (x) n = Add (t, s) y = Sub (x, n)",
        "",
        (3,),
        (3,),
    ),
    "a scalar": (
        "float[N, 3] x, float s",
        "float[N, 3] y, float n",
        "t = ReduceMean <keepdims = 0> (x) n = Add (t, s) y = Sub (x, n)",
        "",
        (3,),
        (),
    ),
    "a batch of four": (
        "float[4, 3] x, float[4, 3] s",
        "float[4, 3] y, float[4, 3] n",
        "n = Add (x, s) y = Tanh (n)",
        "",
        (4, 3),
        (4, 3),
    ),
}


@pytest.mark.parametrize("name", sorted(BARE))
def test_files_without_an_axis_for_streams_get_one(tmp_path: Path, name: str) -> None:
    inputs, outputs, body, weights, frame, state = BARE[name]
    data = zoo.text(inputs, outputs, body, f"<{weights}>" if weights else "")
    (tmp_path / "f.onnx").write_bytes(data)
    done = edgelstm.export(
        tmp_path / "f.onnx", tmp_path / "m.onnx", states={"s": ("n", 0.5)}, limit=5, threads=1
    )
    s = done.step.signature
    assert (s.inputs[0].shape, s.states[0].shape) == ((1, *frame), (1, *state))
    assert any("written for one stream" in note and "got one" in note for note in done.notes)
    session = ort.InferenceSession(data)
    x = np.random.default_rng(0).normal(size=(6, *frame)).astype("f4")
    before, want = np.full(state, 0.5, "f4"), []
    for value in x:
        y, before = session.run(
            ["y", "n"], {"x": value.reshape(-1, *frame[-1:]) if "N" in inputs else value, "s": before}
        )
        want.append(y.reshape(s.outputs[0].frame_shape))
    with edgelstm.Runner.open(tmp_path / "m.onnx", streams=2, threads=1) as runner:
        a, b = runner.stream("a"), runner.stream("b")
        got = []
        for value in x:
            b.step(100 * value)
            got.append(a.step(value)["y"].copy())
    assert_close(np.stack(got), np.stack(want), "float32")


# -- opsets 7 to 10 ---------------------------------------------------------------------------------------------------

OLD: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "slice": ("y = Slice <axes = [1, 2], starts = [1, -4], ends = [3, 9]> (v)", "1, 2, 4, 6", (7, 9)),
    "slice without axes": ("y = Slice <starts = [0, 1], ends = [1, 3]> (v)", "1, 2, 6, 6", (7, 9)),
    "clip": ("y = Clip <min = -0.25, max = 0.5> (v)", "1, 4, 6, 6", (7, 10)),
    "clip above": ("y = Clip <max = 0.5> (v)", "1, 4, 6, 6", (9,)),
    "pad": ('y = Pad <mode = "constant", pads = [0,0,1,1,0,0,2,0], value = 0.5> (v)', "1, 4, 9, 7", (7, 10)),
    "pad reflected": ('y = Pad <mode = "reflect", pads = [0,0,1,0,0,0,1,0]> (v)', "1, 4, 8, 6", (9,)),
    "largest": ("y, i = TopK <axis = 1, k = 2> (v)", "1, 2, 6, 6", (7, 9)),
    "upsample": (
        'y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (v)',
        "1, 4, 12, 12",
        (7, 8),
    ),
    "upsample 9": ('y = Upsample <mode = "linear"> (v, scales)', "1, 4, 12, 12", (9,)),
    "resize 10": ('y = Resize <mode = "linear"> (v, scales)', "1, 4, 12, 12", (10,)),
    "scatter": ("y = Scatter <axis = 2> (v, places, new)", "1, 4, 6, 6", (9, 10)),
    "norm": ("y = BatchNormalization (v, four, four, four, four)", "1, 4, 6, 6", (7, 9)),
    "norm of 7": ("y = BatchNormalization <spatial = 1> (v, four, four, four, four)", "1, 4, 6, 6", (7, 8)),
    "pooled": ("y = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (v)", "1, 4, 3, 3", (7, 10)),
    "split": ("a, b = Split <axis = 1> (v) y = Concat <axis = 1> (b, a)", "1, 4, 6, 6", (7, 10)),
    "softmax": ("y = Softmax <axis = 1> (v)", "1, 4, 6, 6", (7, 10)),
    "dropout": ("y = Dropout <ratio = 0.5> (v)", "1, 4, 6, 6", (7, 10)),
}
WEIGHTS = (
    "<float[4] scales = {1, 1, 2, 2}, int64[1, 4, 1, 1] places = {0, 1, 2, 3}, "
    "float[1, 4, 1, 1] new = {9, 8, 7, 6}, float[4] four = {1, 2, 3, 4}>"
)


@pytest.mark.parametrize(("name", "opset"), [(n, o) for n, (_, _, many) in OLD.items() for o in many])
def test_old_operators_compute_what_the_file_does(tmp_path: Path, name: str, opset: int) -> None:
    body, shape, _ = OLD[name]
    data = zoo.text(
        "float[1, 4, 6, 6] x, float[1, 4, 6, 6] s",
        f"float[{shape}] y, float[1, 4, 6, 6] v",
        f"v = Add (x, s) {body}",
        WEIGHTS,
        opset=opset,
    )
    model = onnx.load_from_string(data)
    used = {i for n in model.graph.node for i in n.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    (tmp_path / "f.onnx").write_bytes(model.SerializeToString())
    done = edgelstm.export(tmp_path / "f.onnx", tmp_path / "m.onnx", states={"s": "v"}, limit=8, threads=1)
    assert done.step.opset >= 11
    assert done.comparison.worst.worst <= 1e-6


def test_what_opset_11_can_not_say_is_refused(tmp_path: Path) -> None:
    data = zoo.text(
        "float[1, 4] x, float[1, 4] s",
        "float[1, 4] y, float[1, 4] v",
        "v = Add (x, s) y = BatchNormalization <spatial = 0> (v, four, four, four, four)",
        "<float[4] four = {1, 2, 3, 4}>",
        opset=8,
    )
    (tmp_path / "f.onnx").write_bytes(data)
    with pytest.raises(
        EdgeLstmError, match=r"BatchNormalization 'y' has no form in opset 11: found spatial=0"
    ):
        edgelstm.export(tmp_path / "f.onnx", tmp_path / "m.onnx", states={"s": "v"}, limit=5)
