"""Products of codes are exact on every processor: on x86 without VNNI ONNX Runtime's own of uint8 and int8 saturate at 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

from contract import backends
from contract.backends import Open
from stepping import from_text

#: Frames and states of ones are codes of 255, weights 127 throughout: two such products side by side do not fit 16 bits.
CODES = "float s = {0.00392156862}, uint8 z = {0}, float v = {0.01}, int8 o = {0}"
SEVENS = "{" + ", ".join(["127"] * 64) + "}"
PRODUCTS = {
    "matrices": f"""g (float[N, 16] x, float[N, 4] h) => (float[N, 4] y, float[N, 4] t)
        <{CODES}, int8[16, 4] w = {SEVENS}>
        {{ q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  u = DequantizeLinear (w, v, o)
           m = MatMul (d, u)  t = Identity (m)  y = Add (m, h) }}""",
    "weights that two read": f"""g (float[N, 16] x, float[N, 16] h) => (float[N, 4] y, float[N, 16] t)
        <{CODES}, int8[16, 4] w = {SEVENS}>
        {{ q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  u = DequantizeLinear (w, v, o)  m = MatMul (d, u)
           r = QuantizeLinear (h, s, z)  e = DequantizeLinear (r, s, z)  n = MatMul (e, u)  y = Add (m, n)  t = Identity (x) }}""",
    "frames of no fixed range": f"""g (float[N, 16] x, float[N, 4] h) => (float[N, 4] y, float[N, 4] t)
        <float v = {{0.01}}, int8 o = {{0}}, int8[16, 4] w = {SEVENS}>
        {{ q, s, z = DynamicQuantizeLinear (x)  i = MatMulInteger (q, w, z, o)  f = Cast <to = 1> (i)  r = Mul (f, s)  m = Mul (r, v)
           t = Identity (m)  y = Add (m, h) }}""",
    "convolutions": f"""g (float[N, 16, 4, 4] x, float[N, 4, 4, 4] h) => (float[N, 4, 4, 4] y, float[N, 4, 4, 4] t)
        <{CODES}, int8[4, 16, 1, 1] w = {SEVENS}, float g = {{0.5}}>
        {{ q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  u = DequantizeLinear (w, v, o)  m = Conv (d, u)
           a = QuantizeLinear (m, g, z)  b = DequantizeLinear (a, g, z)  t = Identity (b)  y = Add (b, h) }}""",
}


@pytest.mark.parametrize("backend", [backends.onnxruntime, backends.c_library])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_large_codes_do_not_saturate(kind: str, backend: Callable[[], AbstractContextManager[Open]]) -> None:
    step = from_text(PRODUCTS[kind], h="t")
    frame: dict[str, Any] = {t.name: np.ones(t.frame_shape, np.float32) for t in step.signature.inputs}
    with backend() as opened:
        program = opened(step, 1)
        (outputs,) = program.step([frame], program.new_state(), [0])
        np.testing.assert_allclose(outputs["y"], 16 * 1.27, atol=0.3)
