"""Proposed state pairs follow the graph; what is not beyond doubt is never taken silently. What states start at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_zoo as zoo
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import edgelstm
from edgelstm import EdgeLstmError
from edgelstm.cli import app
from edgelstm.frontends.onnx.importer import import_onnx
from edgelstm.frontends.onnx.state_pairs import Pair
from tolerances import assert_close

H = 4
CELLS = {
    "lstm": (
        """xh = Concat <axis = 1> ({x}, {h}) z = MatMul (xh, W) zi, zf, zg, zo = Split <axis = 1> (z)
        i = Sigmoid (zi) f = Sigmoid (zf) o = Sigmoid (zo) g = Tanh (zg) k = Mul (f, {c}) w = Mul (i, g)
        {c_next} = Add (k, w) t = Tanh ({c_next}) {h_next} = Mul (o, t)""",
        4,
    ),
    "gru": (
        """xh = Concat <axis = 1> ({x}, {h}) z = MatMul (xh, W) zz, zr = Split <axis = 1> (z)
        z_ = Sigmoid (zz) r = Sigmoid (zr) rh = Mul (r, {h}) s = Add (rh, {x}) n = Tanh (s)
        dd = Sub ({h}, n) m = Mul (z_, dd) {h_next} = Add (m, n)""",
        2,
    ),
    "light gru": (
        """xh = Concat <axis = 1> ({x}, {h}) z = MatMul (xh, W) zz, zn = Split <axis = 1> (z)
        z_ = Sigmoid (zz) n = Relu (zn) aa = Mul (z_, {h}) q_ = Sub (one, z_) bb = Mul (q_, n)
        {h_next} = Add (aa, bb)""",
        2,
    ),
}


def cell(kind: str, names: dict[str, str], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """A cell with x, h and (LSTM) c of one shape, its inputs and outputs in the given order."""
    body, gates = CELLS[kind]
    if kind != "lstm":
        inputs, outputs = [n for n in inputs if n != "c"], [n for n in outputs if n != "c_next"]
    weights = np.random.default_rng(0).normal(0, 0.5, (2 * H, gates * H)).astype("f4")
    listed = ", ".join(f"{v:.4f}" for v in weights.ravel())
    shape = f"float[N, {H}] "
    text = zoo.text(
        ", ".join(shape + names[n] for n in inputs),
        ", ".join(shape + names[n] for n in outputs),
        body.format(**names) + f" {names['y']} = Mul ({names['h_next']}, two)",
        f"<float[{2 * H}, {gates * H}] W = {{{listed}}}, float[1] two = {{2}}, float[1] one = {{1}}>",
    )
    return text


def proposed(path: Path) -> list[Pair]:
    """What would be proposed, whatever is said to it."""
    seen: list[Pair] = []

    def look(pairs: Sequence[Pair]) -> bool:
        seen.extend(pairs)
        return False

    with pytest.raises(EdgeLstmError):
        import_onnx(path, None, confirm=look)
    return seen


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(sorted(CELLS)),
    ins=st.sampled_from(
        [("x", "u", "v"), ("x", "h_in", "c_in"), ("a", "b", "d"), ("frame", "hidden", "cell")]
    ).flatmap(st.permutations),
    outs=st.sampled_from([("y", "p", "q"), ("y", "h_out", "c_out"), ("y", "new_hidden", "new_cell")]).flatmap(
        st.permutations
    ),
    order=st.permutations(["x", "h", "c"]),
    given_back=st.permutations(["y", "h_next", "c_next"]),
)
def test_no_wrong_pair_is_without_doubt(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    ins: list[str],
    outs: list[str],
    order: list[str],
    given_back: list[str],
) -> None:
    """Whatever the tensors are called and however they are ordered, names that lie included: h called c, c called x, h_next called y."""
    names = dict(zip(("x", "h", "c"), ins, strict=True)) | dict(
        zip(("y", "h_next", "c_next"), outs, strict=True)
    )
    path = tmp_path_factory.mktemp("pairs") / "cell.onnx"
    path.write_bytes(cell(kind, names, order, given_back))
    right = {names["h"]: names["h_next"], names["c"]: names["c_next"]}
    pairs = proposed(path)
    # A frame that is called hidden and goes where h goes can't be told from h by anything.
    if names["x"] not in ("h_in", "c_in", "hidden", "cell") and not any(pair.doubt for pair in pairs):
        assert all(right.get(pair.input) == pair.output for pair in pairs), pairs
    # What a gate multiplies and something is added to has no other reading.
    state = "c" if kind == "lstm" else "h"
    assert names[f"{state}_next"] in [p.output for p in pairs if p.input == names[state]], pairs


HONEST = {"x": "x", "h": "h_in", "c": "c_in", "y": "y", "h_next": "h_out", "c_next": "c_out"}
NEUTRAL = {"x": "x", "h": "u", "c": "v", "y": "y", "h_next": "q", "c_next": "p"}
CROSSED = {**HONEST, "h_next": "c_out", "c_next": "h_out"}


def test_yes_takes_what_the_graph_and_the_names_say(tmp_path: Path) -> None:
    path, out = tmp_path / "cell.onnx", tmp_path / "out.onnx"
    path.write_bytes(cell("lstm", HONEST, ("x", "h", "c"), ("y", "c_next", "h_next")))
    done = CliRunner().invoke(app, ["export", str(path), "--yes", "-o", str(out), "--limit", "5"])
    assert done.exit_code == 0, done.output
    pairs = {s.input: s.output for s in edgelstm.inspect(out).signature.states}
    assert pairs == {"h_in": "h_out", "c_in": "c_out"}


def test_h_is_doubtful_where_the_frame_goes_the_same_way(tmp_path: Path) -> None:
    """x and u of one shape, both into the gates: which of them is h the graph can't tell, and x = f(x, u) is a convention."""
    path, out = tmp_path / "cell.onnx", tmp_path / "out.onnx"
    path.write_bytes(cell("lstm", NEUTRAL, ("x", "h", "c"), ("y", "c_next", "h_next")))
    h, c = proposed(path)
    assert (h.input, h.output, h.doubt) == ("u", "q", "x could be it as well")
    assert (c.input, c.output, c.doubt) == ("v", "p", None)
    done = CliRunner().invoke(app, ["export", str(path), "--yes", "-o", str(out), "--limit", "5"])
    assert done.exit_code != 0
    assert not out.exists()


def test_yes_does_not_take_names_that_contradict_the_graph(tmp_path: Path) -> None:
    path, out = tmp_path / "cell.onnx", tmp_path / "out.onnx"
    path.write_bytes(cell("lstm", CROSSED, ("x", "h", "c"), ("y", "h_next", "c_next")))
    with pytest.raises(EdgeLstmError) as caught:
        import_onnx(path, None)
    assert "the name says c_out, the graph h_out" in str(caught.value)
    assert "--state h_in=c_out --state c_in=h_out" in str(caught.value), "by the graph"
    assert "--yes" not in str(caught.value)
    done = CliRunner().invoke(app, ["export", str(path), "--yes", "-o", str(out)])
    assert done.exit_code != 0
    assert not out.exists()


def test_a_dtype_that_differs_is_no_pair(tmp_path: Path) -> None:
    data = zoo.text(
        "float[1, 3] x, float[1, 3] state",
        "float[1, 3] y, double[1, 3] new_state, float[1, 3] other",
        "other = Add (x, state) y = Tanh (other) new_state = Cast <to = 11> (other)",
    )
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(EdgeLstmError) as caught:
        import_onnx(tmp_path / "m.onnx", None, confirm=lambda pairs: True)
    assert "no recurrence" in str(caught.value)


def test_a_gain_with_no_part_in_a_cell_is_known_by_its_name(tmp_path: Path) -> None:
    data = zoo.text(
        "float[N, 3] x, float[N, 1] gain",
        "float[N, 3] y, float[N, 1] gain_next",
        "y = Mul (x, gain) m = ReduceMean <axes = [1], keepdims = 1> (x) gain_next = Add (gain, m)",
    )
    (tmp_path / "m.onnx").write_bytes(data)
    (pair,) = proposed(tmp_path / "m.onnx")
    assert (pair.input, pair.output, pair.doubt) == ("gain", "gain_next", None)


# -- what states start at ---------------------------------------------------------------------------------------------

AGC = zoo.text(
    "float[N, 3] x, float[N, 2] gain",
    "float[N, 3] y, float[N, 2] gain_next",
    """first = Slice (gain, none, one, one) y = Mul (x, first) m = ReduceMean <axes = [1], keepdims = 1> (y)
    gain_next = Add (gain, m)""",
    "<int64[1] none = {0}, int64[1] one = {1}>",
)


def run_file(first: np.ndarray, frames: np.ndarray) -> np.ndarray:
    session, gain, rows = ort.InferenceSession(AGC), first[None].astype("f4"), []
    for x in frames:
        y, gain = session.run(None, {"x": x[None], "gain": gain})
        rows.append(y[0])
    return np.stack(rows)


@pytest.mark.parametrize("form", ["number", "text", "array", "file", "file's axes"])
def test_a_state_starts_where_it_is_said_to(tmp_path: Path, form: str) -> None:
    (tmp_path / "f.onnx").write_bytes(AGC)
    first = np.float32([1, 1]) if form in ("number", "text") else np.float32([1.5, -2])
    np.save(tmp_path / "first.npy", first)
    said: Any = {
        "number": ("gain_next", 1.0),
        "text": "gain_next:1.0",
        "array": ("gain_next", first),
        "file": f"gain_next:{tmp_path / 'first.npy'}",
        "file's axes": ("gain_next", first[None]),
    }[form]
    done = edgelstm.export(
        tmp_path / "f.onnx", tmp_path / "m.onnx", states={"gain": said}, limit=5, threads=1
    )
    np.testing.assert_array_equal(done.step.signature.state("gain").initial_value(), first)
    frames = np.random.default_rng(0).normal(size=(9, 3)).astype("f4")
    with edgelstm.Runner.open(tmp_path / "m.onnx", streams=2, threads=1) as runner:
        runner.stream("other")
        stream = runner.stream("a")
        got = np.stack([stream.step(x)["y"].copy() for x in frames])
    assert_close(got, run_file(first, frames), "float32")


def test_the_command_line_takes_it_and_inspect_shows_it(tmp_path: Path) -> None:
    (tmp_path / "f.onnx").write_bytes(AGC)
    out = str(tmp_path / "m.onnx")
    run = CliRunner().invoke
    done = run(
        app, ["export", str(tmp_path / "f.onnx"), "--state", "gain=gain_next:1", "-o", out, "--limit", "5"]
    )
    assert done.exit_code == 0, done.output
    assert "starts at 1" in run(app, ["inspect", out], env={"COLUMNS": "160"}).output
    np.save(tmp_path / "first.npy", np.float32([1.5, -2]))
    said = f"gain=gain_next:{tmp_path / 'first.npy'}"
    done = run(app, ["export", str(tmp_path / "f.onnx"), "--state", said, "-o", out, "--limit", "5"])
    assert done.exit_code == 0, done.output
    assert "starts at -2 to 1.5" in run(app, ["inspect", out], env={"COLUMNS": "160"}).output


def test_an_output_whose_name_has_a_colon_is_an_output(tmp_path: Path) -> None:
    """TensorFlow's names: Identity:0."""
    v = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["x", "s:0"], ["s:1"]), helper.make_node("Tanh", ["s:1"], ["y:0"])]
    f, shape = TensorProto.FLOAT, ["N", 2]
    graph = helper.make_graph(
        nodes, "g", [v("x", f, shape), v("s:0", f, shape)], [v("y:0", f, shape), v("s:1", f, shape)]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "f.onnx").write_bytes(made.SerializeToString())
    done = edgelstm.export(tmp_path / "f.onnx", None, states={"s:0": "s:1"}, limit=5, threads=1)
    assert done.step.signature.states[0].initial is None
    done = edgelstm.export(tmp_path / "f.onnx", None, states={"s:0": "s:1:2.5"}, limit=5, threads=1)
    np.testing.assert_array_equal(done.step.signature.states[0].initial_value(), [2.5, 2.5])


def test_a_default_of_the_file_is_where_its_state_starts(tmp_path: Path) -> None:
    v = helper.make_tensor_value_info
    f = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "s"], ["s_next"]), helper.make_node("Tanh", ["s_next"], ["y"])],
        "g",
        [v("x", f, [1, 2]), v("s", f, [1, 2])],
        [v("y", f, [1, 2]), v("s_next", f, [1, 2])],
        [numpy_helper.from_array(np.float32([[3, 4]]), "s")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "f.onnx").write_bytes(made.SerializeToString())
    done = edgelstm.export(tmp_path / "f.onnx", None, states={"s": "s_next"}, limit=5, threads=1)
    np.testing.assert_array_equal(done.step.signature.states[0].initial_value(), [3, 4])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (("gain_next", np.zeros(3)), "one stream's state"),
        (("gain_next", np.nan), "finite"),
        (("gain_next", "no.npy"), "no.npy"),
        ("gain_next:one", "a number or a .npy file"),
        (("gain_next", "first.txt"), "a number or a .npy file"),
        (5, "OUTPUT:1.0"),
        (("gain_next", 1e39), "float32"),
        (("gain_next", [["a"]]), "numbers"),
    ],
)
def test_first_values_that_do_not_fit(tmp_path: Path, said: Any, words: str) -> None:
    (tmp_path / "f.onnx").write_bytes(AGC)
    with pytest.raises(EdgeLstmError) as caught:
        edgelstm.export(tmp_path / "f.onnx", tmp_path / "m.onnx", states={"gain": said}, limit=5)
    assert words in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()
