"""A ConvLSTM's step that reads codes, rounds its pre-activations to codes and stores h as codes, against the definition in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from test_native_operators import VARIANTS, attributes

import native_library
from edgelstm.graph.gates import GateVariant
from native_library import naive
from tolerances import assert_close

Array = np.ndarray[Any, Any]
SUFFIX = {np.float32: "", np.int8: "I8", np.uint8: "U8"}
#: Pre-activations nearer than this to the middle between two codes may become either.
TIE = 2e-3
#: The share of results that may hang on such a one and are then not compared.
MOST_NEAR = 0.05


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


class Coded:
    """One cell; x, h of ``read``, codes of h of ``written``. joined: all of it is x."""

    def __init__(
        self,
        variant: GateVariant = GateVariant(),  # noqa: B008
        read: Any = np.uint8,
        written: Any = np.uint8,
        channels: tuple[int, int] = (3, 17),
        rows: int = 2,
        size: tuple[int, int] = (5, 7),
        factors: bool = True,
        joined: bool = False,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        inputs, units = channels
        gates = len(variant.gates)
        self.variant, self.read, self.written, self.joined = variant, read, written, joined
        limits = np.iinfo(read if read is not np.float32 else np.int8)
        self.zero = 0 if read is np.float32 else int(rng.integers(limits.min, limits.max + 1))
        x, h = (rng.integers(limits.min, limits.max + 1, (rows, n, *size)).astype(read) for n in channels)
        # Pre-activations of some 60 codes; some are clipped.
        shape = (gates * units, inputs + units, 3, 3)
        self.w = rng.normal(0, 0.8 / np.sqrt(9 * (inputs + units)), shape).astype(np.float32)
        self.p = [rng.normal(0, 0.5, (units, 1, 1)).astype(np.float32) for _ in variant.inputs[2:]]
        self.scale = rng.uniform(0.02, 0.05, gates).astype(np.float32)
        self.zeros = rng.integers(-20, 20, gates).astype(np.float32)
        self.frames = {"x": x, "h": h, "c": rng.normal(size=(rows, units, *size)).astype(np.float32)}
        made = np.iinfo(written)
        self.code_scale = rng.uniform(0.004, 0.01, ()).astype(np.float32)
        self.code_zero = np.array(rng.integers(made.min, made.max + 1), written)
        self.factor = rng.uniform(0.3, 2, (units, 1, 1)).astype(np.float32) if factors else None
        # Biases with which hardly anything lies between two codes, so that nearly all values are compared, of a map of one place too.
        for _ in range(100):
            self.b = rng.normal(0, 20, gates * units).astype(np.float32)
            if self.near().mean() < MOST_NEAR:
                break

    def model(self, threads: int = 1) -> onnx.ModelProto:
        names = ["i", "f", "o"]
        constants: dict[str, Array] = {"w": self.w.reshape(len(self.w), -1), "b": self.b}
        constants |= dict(zip(self.variant.inputs[2:], self.p, strict=True))
        ends = np.float32([-128, 127])
        constants["codes"] = np.concatenate([self.scale, self.zeros, ends])
        constants |= {"scale": self.code_scale, "zero": self.code_zero}
        if self.factor is not None:
            constants["factor"] = self.factor
        present = {n: f"p_{n}" if f"p_{n}" in constants else "" for n in names}
        frames = self.given()
        inputs = [*(["x", ""] if self.joined else ["x", "h"]), "c", "w", "b", *present.values(), "codes"]
        node = helper.make_node(
            f"FusedConvLSTMCell{SUFFIX[self.read]}QuantizeLinear{SUFFIX[self.written]}",
            [*inputs, "factor" if self.factor is not None else "", "scale", "zero"],
            ["h_next", "c_next", "h_codes"],
            domain="edgelstm", rounded=1, zero=self.zero, factor=int(self.factor is not None), recurrent=int(not self.joined),
            threads=threads, **attributes(self.variant),
        )  # fmt: skip
        kind = helper.np_dtype_to_tensor_dtype
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info(n, kind(a.dtype), [None] * 4) for n, a in frames.items()],
            [
                helper.make_tensor_value_info("h_next", 1, None),
                helper.make_tensor_value_info("c_next", 1, None),
                helper.make_tensor_value_info("h_codes", kind(np.dtype(self.written)), None),
            ],
            [numpy_helper.from_array(a, n) for n, a in constants.items()],
        )
        domains = [helper.make_opsetid("", 18), helper.make_opsetid("edgelstm", 1)]
        return helper.make_model(graph, opset_imports=domains, ir_version=9)

    def given(self) -> dict[str, Array]:
        """What the operator gets."""
        f = self.frames
        return {"x": np.concatenate([f["x"], f["h"]], axis=1), "c": f["c"]} if self.joined else f

    def pre_activations(self) -> Array:
        x, h = (self.frames[n].astype(float) - self.zero for n in ("x", "h"))
        z: Array = naive.pre_activations(x, h, self.w.astype(float), self.b.astype(float))
        return z

    def near(self) -> Array:
        """Which units, where, have a pre-activation near the middle between two codes."""
        z = self.pre_activations()
        near: Array = np.abs(z - np.floor(z) - 0.5) < TIE
        return near.reshape(len(z), len(self.scale), -1, *z.shape[2:]).any(1)

    def check(self, found: list[Array]) -> None:
        z, near = self.pre_activations(), self.near()
        read = naive.gate_codes(z, self.scale.astype(float), self.zeros.astype(float), -128, 127)
        peepholes = [p.astype(float) for p in self.p]
        expected = naive.fused_gates(self.variant, read, self.frames["c"].astype(float), *peepholes)
        assert near.mean() < MOST_NEAR
        for a, b in zip(found[:2], expected, strict=True):
            assert_close(a[~near], b[~near], np.float32)
        scaled = found[0] if self.factor is None else found[0] * self.factor
        codes = naive.quantised(scaled, self.code_scale, self.code_zero, self.written)
        assert found[2].tobytes() == codes.tobytes()


@settings(max_examples=30, deadline=None)
@given(
    cell=st.builds(
        Coded,
        variant=VARIANTS,
        read=st.sampled_from([np.float32, np.int8, np.uint8]),
        written=st.sampled_from([np.int8, np.uint8]),
        channels=st.tuples(st.sampled_from([1, 3, 8, 16, 33]), st.sampled_from([1, 5, 8, 17])),
        rows=st.sampled_from([1, 3]),
        size=st.sampled_from([(1, 1), (3, 5), (8, 12), (13, 11), (2, 69)]),
        factors=st.booleans(),
        joined=st.booleans(),
        seed=st.integers(0, 5),
    )
)
def test_codes_in_between_and_out(library: Path, cell: Coded) -> None:
    cell.check(native_library.session(cell.model(), library).run(None, cell.given()))


def test_a_stream_has_the_same_bits_alone_beside_others_and_on_threads(library: Path) -> None:
    cell = Coded(rows=3, size=(40, 41))
    cell.frames["c"][1, :, 7:9] = np.nan
    session = native_library.session(cell.model(), library)
    together = session.run(None, cell.frames)
    divided = native_library.session(cell.model(threads=3), library, threads=3)
    assert np.isnan(together[0][1]).any()
    for _ in range(10):
        for a, b in zip(divided.run(None, cell.frames), together, strict=True):
            assert a.tobytes() == b.tobytes()
    for row in range(3):
        for a, b in zip(
            session.run(None, {n: f[row : row + 1] for n, f in cell.frames.items()}), together, strict=True
        ):
            assert a[0].tobytes() == b[row].tobytes()
        assert np.isfinite(together[1][row]).all() == (row != 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_weights_that_codes_cannot_be_multiplied_with_are_refused(library: Path, value: float) -> None:
    cell = Coded()
    cell.w[3, 2, 1, 1] = value
    with pytest.raises(Exception, match="have to be finite, and below 1e24"):
        native_library.session(cell.model(), library)
