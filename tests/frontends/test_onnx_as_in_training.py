"""ONNX files whose float64 says nothing of them, that draw random numbers, or that give one value under two names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgelstm
from edgelstm.errors import EdgeLstmError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def saved(path: Path, text: str, **weights: np.ndarray) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in weights.items())
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("drawn", "what"),
    [
        ("Dropout(x, half, yes)", "Dropout 'd' in training mode"),
        ("RandomNormalLike(x)", "RandomNormalLike 'd'"),
    ],
)
def test_what_draws_numbers_is_refused_by_its_operator(tmp_path: Path, drawn: str, what: str) -> None:
    text = f"g (float[N,4] x, float[N,4] s) => (float[N,4] y, float[N,4] t) {{ d = {drawn}  a = Add(d, s)  y = Tanh(a)  t = Identity(y) }}"
    path = saved(tmp_path / "m.onnx", text, half=np.float32(0.5), yes=np.array(True))
    with pytest.raises(EdgeLstmError, match=f"draws random numbers in every call: found {what}.*model.eval"):
        edgelstm.export(path, None, states={"s": "t"})


def test_statistics_that_go_on_being_counted_are_refused_by_their_operator(tmp_path: Path) -> None:
    text = """g (float[N,4] x, float[N,4] s) => (float[N,4] y, float[N,4] t) {
        b, m2, v2 = BatchNormalization<training_mode = 1>(x, one, nil, nil, one)  a = Add(b, s)  y = Tanh(a)  t = Identity(y) }"""
    path = saved(tmp_path / "m.onnx", text, one=np.ones(4, np.float32), nil=np.zeros(4, np.float32))
    with pytest.raises(EdgeLstmError, match=r"found BatchNormalization 'b' in training mode.*model\.eval"):
        edgelstm.export(path, None, states={"s": "t"})


COUNTED = """g (float[T,1,3] x) => (float[T,1,2] y) {
    n = Shape(x)  t = Gather(n, zero)
    last, y = Loop(t, yes, h0) <body = body (int64 it, bool go, float[1,2] h) => (bool on, float[1,2] after, float[1,2] out) {
        on = Identity(go)  f = Gather<axis = 0>(x, it)  z = MatMul(f, w)  k = Cast<to = 1>(it)
        p = Mul(h, half)  q = Add(p, z)  k2 = Mul(k, by)  after = Add(q, k2)  out = Identity(after) }> }"""


@pytest.mark.parametrize("by", [1.0, 0.0])
def test_a_loop_that_goes_by_the_number_of_its_iteration_is_no_step(tmp_path: Path, by: float) -> None:
    """Over one frame that number is 0: only three frames in one call show it."""
    rng = np.random.default_rng(0)
    path = saved(
        tmp_path / "m.onnx",
        COUNTED,
        zero=np.array(0),
        yes=np.array(True),
        h0=np.zeros((1, 2), np.float32),
        w=rng.normal(size=(3, 2)).astype(np.float32),
        half=np.float32(0.5),
        by=np.float32(by),
    )
    if by:
        with pytest.raises(EdgeLstmError, match="three frames in one call give other results"):
            edgelstm.export(path, None, fix={"T": 1}, limit=4)
        return
    done = edgelstm.export(path, None, fix={"T": 1}, limit=4)
    assert [s.name for s in done.step.signature.states] == ["s0"]


def test_a_float64_of_another_function_is_no_judge(tmp_path: Path) -> None:
    """onnx's evaluator passes over input_forget, which the first frame, c being 0, does not show."""
    rng = np.random.default_rng(0)
    text = """g (float[1,N,4] x, float[1,N,6] h, float[1,N,6] c) => (float[1,1,N,6] y, float[1,N,6] hn, float[1,N,6] cn) {
        y, hn, cn = LSTM <hidden_size = 6, input_forget = 1> (x, W, R, B, "", h, c)
    }"""
    weights = {
        n: rng.normal(size=s).astype("f4") for n, s in (("W", (1, 24, 4)), ("R", (1, 24, 6)), ("B", (1, 48)))
    }
    path = saved(tmp_path / "m.onnx", text.replace('""', ""), **weights)
    result = edgelstm.export(path, None, states={"h": "hn", "c": "cn"})
    assert result.proof is None
    assert result.comparison.worst.worst < 1e-5
    assert any("no float64 of the source could be had" in note for note in result.notes)


def test_one_value_under_two_names_with_the_streams_on_the_last_axis(tmp_path: Path) -> None:
    text = "g (float[4,N] x, float[6,N] s) => (float[6,N] y, float[6,N] t) { m = MatMul(W, x)  a = Add(m, s)  y = Tanh(a)  t = Identity(y) }"
    weight = np.random.default_rng(0).normal(size=(6, 4)).astype("f4")
    path = saved(tmp_path / "m.onnx", text, W=weight)
    edgelstm.export(path, tmp_path / "step.onnx", states={"s": "t"})
    frames = np.random.default_rng(1).normal(size=(20, 4)).astype("f4")
    state = np.zeros(6, "f4")
    with edgelstm.Runner.open(tmp_path / "step.onnx", streams=2) as runner:
        a, b = runner.stream("a"), runner.stream("b")
        for frame in frames:
            state = np.tanh(weight @ frame + state)
            both = runner.step({"a": frame, "b": -frame})
            np.testing.assert_allclose(both["a"]["y"], state, atol=1e-5)
        assert a.frames == b.frames == 20
