"""Step graphs with ConvGRU cells: which become an operator of ours, and that the numbers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_native import BLEND, BLEND_TURNED, MOVE, MOVE_TURNED, compare_streamed, counts

import native_library
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step

SIZE, CHANNELS, UNITS = (12, 12), 8, 10
CONV = "Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
#: RobustVideoMatting's: gates of one convolution over both, split behind the sigmoid.
BEFORE = f"""xh = Concat <axis = 1> (x, h)
    zr = {CONV} (xh, w_zr, b_zr)
    gates = Sigmoid (zr)
    r, z = Split <axis = 1, num_outputs = 2> (gates)
    rh = Mul (r, h)
    xrh = Concat <axis = 1> (x, rh)
    s = {CONV} (xrh, w_n, b_n)
    n = Tanh (s)"""
#: All of x in one convolution, all of h in another, biases beside them.
AFTER = f"""wx = {CONV} (x, w_x, b_x)
    uh = {CONV} (h, w_h)
    uhb = Add (uh, b_h)
    xr, xz, xn = Split <axis = 1, num_outputs = 3> (wx)
    hr, hz, hn = Split <axis = 1, num_outputs = 3> (uhb)
    sr = Add (xr, hr)
    sz = Add (hz, xz)
    r = Sigmoid (sr)
    z = Sigmoid (sz)
    rhn = Mul (r, hn)
    s = Add (xn, rhn)
    n = Tanh (s)"""


def conv_gru(text: str) -> StepModel:
    """A ConvGRU of one cell, from ONNX text."""
    rng = np.random.default_rng(0)
    shapes = {
        "w_zr": (2 * UNITS, CHANNELS + UNITS, 3, 3),
        "b_zr": (2 * UNITS,),
        "w_n": (UNITS, CHANNELS + UNITS, 3, 3),
        "b_n": (UNITS,),
        "w_x": (3 * UNITS, CHANNELS, 3, 3),
        "b_x": (3 * UNITS,),
        "w_h": (3 * UNITS, UNITS, 3, 3),
        "b_h": (1, 3 * UNITS, 1, 1),
    }
    tensors = {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in shapes.items() if n in text}
    if "one" in text:
        tensors["one"] = np.ones((), np.float32)
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[N, C, H, W] x, float[N, U, H, W] h) => (float[N, U, H, W] y) {{\n{text}\n}}'
    )
    shape = ("N", UNITS, *SIZE)
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("N", CHANNELS, *SIZE)),),
        outputs=(TensorSpec("y", "float32", shape),),
        states=(StateSpec("h", "h", "y", "float32", shape),),
    )
    given = [numpy_helper.from_array(v, n) for n, v in tensors.items()]
    return make_step(list(made.graph.node), signature, given)


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


@pytest.mark.parametrize("end", [MOVE, BLEND, MOVE_TURNED, BLEND_TURNED])
@pytest.mark.parametrize("start", [BEFORE, AFTER])
def test_a_conv_gru_is_found_however_it_is_written(library: Path, start: str, end: str) -> None:
    step = conv_gru(f"{start}\n{end}")
    assert counts(step) == {"FusedConvGRUCell": 1}
    compare_streamed(step, library)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("n = Tanh (s)", "n = Softsign (s)"),
        ("gates = Sigmoid (zr)", "gates = Tanh (zr)"),
        ("rh = Mul (r, h)", "rh = Mul (r, r)"),
        ("d = Sub (h, n)", "d = Sub (h, x)"),
        (
            f"zr = {CONV} (xh",
            "zr = Conv <kernel_shape = [3, 3], pads = [2, 2, 2, 2], dilations = [2, 2]> (xh",
        ),
        ("Split <axis = 1", "Split <axis = 2"),
    ],
)
def test_what_is_no_conv_gru_of_the_common_kind_stays_as_it_is(old: str, new: str) -> None:
    text = f"{BEFORE}\n{MOVE}"
    assert old in text
    assert counts(conv_gru(text.replace(old, new))) == {}
