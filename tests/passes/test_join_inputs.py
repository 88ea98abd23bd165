"""join_inputs: sums of products in front of the gates become one product; anything else stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from edgelstm.gates import GateVariant
from edgelstm.passes.join_inputs import join_inputs
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.signature import Signature, StateSpec, TensorSpec
from edgelstm.step import StepModel
from tolerances import assert_close

H, X = 3, 2
DENSE = {
    "wx": (4 * H, X),
    "wh": (4 * H, H),
    "wxt": (X, 4 * H),
    "wht": (H, 4 * H),
    "b": (4 * H,),
    "b2": (4 * H,),
}
MAPS = {"wx": (4 * H, X, 3, 3), "wh": (4 * H, H, 3, 3), "b": (4 * H,), "b2": (4 * H,), "b3": (1, 4 * H, 1, 1), "map": (4 * H, 4, 4)}  # fmt: skip


def build(body: str, grid: tuple[int, ...] = ()) -> StepModel:
    """A step graph from ONNX text that makes z of x and h; seeded weights."""
    dims = "".join(f",{d}" for d in grid)
    text = f"""<ir_version: 9, opset_import: ["" : 18, "edgelstm" : 1]>
    step (float[N,{X}{dims}] x, float[N,{H}{dims}] h, float[N,{H}{dims}] c)
      => (float[N,{H}{dims}] h_next, float[N,{H}{dims}] c_next)
    {{ {body}
       h_next, c_next = edgelstm.FusedGates_lstm (z, c) }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (MAPS if grid else DENSE).items():
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype("f4"), name))
    model.functions.append(GateVariant().function(18))
    shape = ("N", H, *grid)
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("N", X, *grid)),),
        outputs=(TensorSpec("h_next", "float32", shape),),
        states=(
            StateSpec("h", "h", "h_next", "float32", shape),
            StateSpec("c", "c", "c_next", "float32", shape),
        ),
    )
    step = StepModel(model, signature)
    step.check()
    return step


def stream(step: StepModel) -> list[np.ndarray]:
    program = OrtProgram(step.to_bytes(), threads=1, streams=2)
    state = program.new_state()
    rng = np.random.default_rng(1)
    shape = step.signature.inputs[0].frame_shape
    results = []
    for _ in range(5):
        frames = [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(2)]
        results += [o["h_next"].copy() for o in program.step(frames, state, [0, 1])]
    return results


DENSE_SUMS = {
    "two Gemms": "a = Gemm <transB = 1> (x, wx, b)  r = Gemm <transB = 1> (h, wh, b2)  z = Add (a, r)",
    "MatMul and Add": "a = MatMul (x, wxt)  r = MatMul (h, wht)  s = Add (r, a)  z = Add (b, s)",
    "bias between": "a = MatMul (x, wxt)  ab = Add (a, b)  r = Gemm (h, wht)  rb = Add (b2, r)  z = Add (rb, ab)",
    "Gemm's third input": "a = Gemm <transB = 1> (x, wx, b)  z = Gemm <transB = 1> (h, wh, a)",
}


@pytest.mark.parametrize("name", sorted(DENSE_SUMS))
def test_dense_sums_become_one_gemm(name: str) -> None:
    step = build(DENSE_SUMS[name])
    before = step.to_bytes()
    joined = join_inputs(step)
    assert joined.op_types() == ["Concat", "Gemm", "FusedGates_lstm"]
    assert step.to_bytes() == before
    joined.check()
    for found, wanted in zip(stream(joined), stream(step), strict=True):
        assert_close(found, wanted, "float32", k=64)


MAP_SUMS = {
    "two convolutions": "a = Conv <pads = [1,1,1,1]> (x, wx, b)  r = Conv <pads = [1,1,1,1]> (h, wh)  z = Add (a, r)",
    "both with bias": "a = Conv <pads = [1,1,1,1]> (x, wx, b)  r = Conv <pads = [1,1,1,1]> (h, wh, b2)  z = Add (r, a)",
    "bias added": "a = Conv <pads = [1,1,1,1]> (x, wx)  r = Conv <pads = [1,1,1,1]> (h, wh)  s = Add (a, r)  z = Add (s, b3)",
}


@pytest.mark.parametrize("name", sorted(MAP_SUMS))
def test_sums_of_convolutions_become_one(name: str) -> None:
    step = build(MAP_SUMS[name], (4, 4))
    joined = join_inputs(step)
    assert joined.op_types() == ["Concat", "Conv", "FusedGates_lstm"]
    for found, wanted in zip(stream(joined), stream(step), strict=True):
        assert_close(found, wanted, "float32", k=256)


def test_two_products_of_one_value_share_a_slot() -> None:
    step = build("a = Gemm <transB = 1> (h, wh, b)  r = Gemm <transB = 1> (h, wh)  z = Add (a, r)")
    joined = join_inputs(step)
    assert joined.op_types() == ["Gemm", "FusedGates_lstm"]
    for found, wanted in zip(stream(joined), stream(step), strict=True):
        assert_close(found, wanted, "float32", k=64)


LEFT_ALONE = {
    "one product": "z = Gemm <transB = 1> (h, wh, b)",
    "scaled": "a = Gemm <transB = 1, alpha = 0.5> (x, wx, b)  r = Gemm <transB = 1> (h, wh)  z = Add (a, r)",
    "a term that is no product": "a = Gemm <transB = 1> (x, wx, b)  r = Gemm <transB = 1> (h, wh)  t = Tanh (r)  z = Add (a, t)",
}


@pytest.mark.parametrize("name", sorted(LEFT_ALONE))
def test_other_dense_sums_stay(name: str) -> None:
    step = build(LEFT_ALONE[name])
    assert join_inputs(step).op_types() == step.op_types()


MAPS_LEFT_ALONE = {
    "other padding": 'p = Pad <mode = "reflect"> (x, pads)  a = Conv (p, wx)  r = Conv <pads = [1,1,1,1]> (h, wh)  z = Add (a, r)',
    "dilation": "a = Conv <pads = [2,2,2,2], dilations = [2,2]> (x, wx)  r = Conv <pads = [1,1,1,1]> (h, wh)  z = Add (a, r)",
    "a bias that is a map": "a = Conv <pads = [1,1,1,1]> (x, wx)  r = Conv <pads = [1,1,1,1]> (h, wh)  s = Add (a, map)  z = Add (s, r)",
    "read elsewhere": "a = Conv <pads = [1,1,1,1]> (x, wx)  r = Conv <pads = [1,1,1,1]> (h, wh)  s = Add (a, r)  t = Tanh (a)  z = Add (s, t)",
}


@pytest.mark.parametrize("name", sorted(MAPS_LEFT_ALONE))
def test_other_sums_of_convolutions_stay(name: str) -> None:
    body = MAPS_LEFT_ALONE[name].replace(
        "p = Pad", "pads = Constant <value_ints = [0,0,1,1,0,0,1,1]> ()  p = Pad"
    )
    step = build(body, (4, 4))
    joined = join_inputs(step)
    assert sorted(joined.op_types()) == sorted(step.op_types())
    for found, wanted in zip(stream(joined), stream(step), strict=True):
        np.testing.assert_array_equal(found, wanted)
