"""Gates that store h as codes: the bits that ONNX Runtime's own Mul and QuantizeLinear make of the same h."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import native_library
from edgelstm.graph.gates import GateVariant
from edgelstm.runtime.native.cells import variant_attributes

Array = npt.NDArray[Any]
SUFFIX = {None: "", np.int8: "I8", np.uint8: "U8"}
LEAST = np.float32(2.0**-126)


@pytest.fixture(scope="module")
def library() -> Path:
    return native_library.built()


@dataclass(frozen=True)
class Case:
    """FusedGates over z [rows, gates * channels, *spatial], read as codes of ``read`` (None: floats), whose h is stored as ``written``.

    factors: one a channel before the codes. scales: one a channel, with zero points of their own.
    """

    variant: GateVariant = field(default_factory=GateVariant)
    read: Any = np.uint8
    written: Any = np.uint8
    channels: int = 5
    spatial: tuple[int, ...] = (3, 7)
    rows: int = 2
    factors: bool = True
    scales: bool = False

    def arrays(self, seed: int = 0) -> tuple[dict[str, Array], dict[str, Array]]:
        """Frames, and constants."""
        rng = np.random.default_rng(seed)
        gates = len(self.variant.gates)
        shape = (self.rows, gates * self.channels, *self.spatial)
        ones = (1,) * len(self.spatial)
        constants: dict[str, Array] = {
            name: rng.normal(size=(self.channels, *ones)).astype(np.float32)
            for name in self.variant.inputs[2:]
        }
        if self.read is None:
            z = rng.normal(0, 2, shape).astype(np.float32)
        else:
            limits = np.iinfo(self.read)
            z = rng.integers(limits.min, limits.max + 1, shape).astype(self.read)
            constants["z_scale"] = rng.uniform(0.01, 0.05, gates).astype(np.float32)
            constants["z_zero"] = rng.integers(limits.min, limits.max + 1, gates).astype(self.read)
        limits = np.iinfo(self.written)
        count = self.channels if self.scales else ()
        constants["scale"] = rng.uniform(0.002, 0.01, count).astype(np.float32)
        constants["zero"] = rng.integers(limits.min, limits.max + 1, count).astype(self.written)
        if self.factors:
            constants["factor"] = rng.uniform(0.1, 3, (self.channels, *ones)).astype(np.float32)
        return {
            "z": z,
            "c": rng.normal(size=(self.rows, self.channels, *self.spatial)).astype(np.float32),
        }, constants

    def models(self, seed: int = 0) -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, Array]]:
        """One whose gates make the codes, one in which Mul and QuantizeLinear do, and frames."""
        frames, constants = self.arrays(seed)
        attributes = variant_attributes(self.variant.op_type) or {}
        names = ["z", "c", *(n if n in constants else "" for n in ("p_i", "p_f", "p_o"))]
        names += ["z_scale", "z_zero"] if self.read is not None else []
        factor = "factor" if self.factors else ""
        op = f"FusedGates{SUFFIX[self.read]}"
        one = helper.make_node(
            f"{op}QuantizeLinear{SUFFIX[self.written]}", [*names, factor, "scale", "zero"], ["h", "c_out", "codes"],
            domain="edgelstm", factor=int(self.factors), **attributes,
        )  # fmt: skip
        apart = [helper.make_node(op, names, ["h", "c_out"], domain="edgelstm", **attributes)]
        if self.factors:
            apart.append(helper.make_node("Mul", ["h", "factor"], ["scaled"]))
        apart.append(
            helper.make_node(
                "QuantizeLinear", ["scaled" if self.factors else "h", "scale", "zero"], ["codes"]
            )
        )
        return (
            made([one], frames, constants, self.written),
            made(apart, frames, constants, self.written),
            frames,
        )


def made(
    nodes: list[onnx.NodeProto],
    frames: dict[str, Array],
    constants: dict[str, Array],
    written: Any,
    opset: int = 18,
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    kind = helper.np_dtype_to_tensor_dtype
    return helper.make_model(
        helper.make_graph(
            nodes,
            "gates",
            [
                helper.make_tensor_value_info(n, kind(a.dtype), [None, *a.shape[1:]])
                for n, a in frames.items()
            ],
            [
                helper.make_tensor_value_info("h", TensorProto.FLOAT, None),
                helper.make_tensor_value_info("c_out", TensorProto.FLOAT, None),
                helper.make_tensor_value_info("codes", kind(np.dtype(written)), None),
            ],
            [numpy_helper.from_array(a, n) for n, a in constants.items() if n in used],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("edgelstm", 1)],
        ir_version=9,
    )


def compare(case: Case, library: Path, steps: int = 3, threads: int = 1) -> None:
    """Several steps, c carried: same bits of h, c and codes."""
    one, apart, frames = case.models()
    a, b = (native_library.session(m, library, threads) for m in (one, apart))
    rng = np.random.default_rng(1)
    for _ in range(steps):
        found, expected = a.run(None, frames), b.run(None, frames)
        for x, y in zip(found, expected, strict=True):
            assert x.dtype == y.dtype
            assert x.tobytes() == y.tobytes()
        z = frames["z"]
        frames = {"z": rng.permutation(z.reshape(-1)).reshape(z.shape), "c": expected[1]}


VARIANTS = st.sampled_from(
    [
        GateVariant(),
        GateVariant(peephole=True),
        GateVariant(coupled=True, peephole=True),
        GateVariant(gate="hard_sigmoid", output="relu"),
        GateVariant(cell_clip=0.5, candidate="relu"),
    ]
)


@settings(max_examples=40, deadline=None)
@given(
    case=st.builds(
        Case,
        variant=VARIANTS,
        read=st.sampled_from([None, np.int8, np.uint8]),
        written=st.sampled_from([np.int8, np.uint8]),
        channels=st.sampled_from([1, 2, 5, 16, 17, 37]),
        spatial=st.sampled_from([(), (1,), (5,), (3, 7), (1, 1), (31,), (2, 3, 5)]),
        rows=st.integers(0, 3),
        factors=st.booleans(),
        scales=st.booleans(),
    )
)
def test_codes_have_the_bits_of_onnx_runtime_s_own(library: Path, case: Case) -> None:
    compare(case, library)


def test_on_several_threads(library: Path) -> None:
    compare(Case(channels=13, spatial=(31, 37)), library, threads=2)


@pytest.mark.parametrize("written", [np.int8, np.uint8])
@pytest.mark.parametrize("zero", [-128, -1, 0, 1, 127])
def test_ties_ends_and_what_is_not_finite(library: Path, written: Any, zero: int) -> None:
    """h is relu(c) times an open gate: any float there is."""
    variant = GateVariant(gate="hard_sigmoid", output="relu")
    zero += 128 if written is np.uint8 else 0
    scale = np.float32(0.25)
    bits = np.random.default_rng(0).integers(0, 2**31, 3000, np.uint32).view(np.float32)
    halves = (np.arange(600, dtype=np.float32) / 2) * scale
    c = np.concatenate(
        [
            bits,
            halves,
            np.nextafter(halves, 0),
            np.nextafter(halves, 100),
            np.float32([np.nan, np.inf, 1e-45, 3e38]),
        ]
    )[None, None]
    c[np.abs(c) < LEAST] = 0  # sums of denormals are the processor's affair
    z = np.zeros((1, 4, c.shape[2]), np.float32)
    z[:, 1] = z[:, 3] = 10  # keep it, show it
    constants = {
        "scale": scale,
        "zero": np.array(zero, written),
        "factor": np.float32([[1]]),
        "minus": np.float32([[-1]]),
    }
    attributes = variant_attributes(variant.op_type) or {}
    seen: set[int] = set()
    for factor in ("factor", "minus"):
        names = ["z", "c", "", "", ""]
        kind = SUFFIX[written]
        one = helper.make_node(
            f"FusedGatesQuantizeLinear{kind}", [*names, factor, "scale", "zero"], ["h", "c_out", "codes"],
            domain="edgelstm", factor=1, **attributes,
        )  # fmt: skip
        apart = [
            helper.make_node("FusedGates", names, ["h", "c_out"], domain="edgelstm", **attributes),
            helper.make_node("Mul", ["h", factor], ["scaled"]),
            helper.make_node("QuantizeLinear", ["scaled", "scale", "zero"], ["codes"]),
        ]
        frames = {"z": z, "c": c}
        found, expected = (
            native_library.session(made(nodes, frames, constants, written), library).run(None, frames)
            for nodes in ([one], apart)
        )
        assert np.isnan(expected[0]).any()
        assert np.isinf(expected[0]).any()
        seen |= set(expected[2].ravel().tolist())
        assert found[2].tobytes() == expected[2].tobytes()
        assert found[0].tobytes() == expected[0].tobytes()
    assert len(seen) > 100
