"""A value in two codes as one operator: the bits that ONNX Runtime's own operators make of it, in whatever form they stand there."""

from __future__ import annotations

from dataclasses import dataclass
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
from edgelstm.runtime.native.cells import rewrite

Array = npt.NDArray[Any]
U8 = "FusedQuantizeLinearTwiceU8"


@pytest.fixture(scope="module")
def library() -> Path:
    return native_library.built()


@dataclass(frozen=True)
class Case:
    """x [rows, channels, *spatial]; ``rows_below``: the second codes lie below the first. A gate stands beside it, or nothing is rewritten."""

    written: Any = np.uint8
    channels: int = 5
    spatial: tuple[int, ...] = (3, 7)
    rows: int = 2
    factor: bool = True
    worth_factor: bool = True
    rows_below: bool = False

    def model(self) -> onnx.ModelProto:
        rng = np.random.default_rng(0)
        ones = (1,) * len(self.spatial)
        limits = np.iinfo(self.written)
        held: dict[str, Array] = {
            "scale": np.float32(0.02),
            "worth": np.float32(0.02),
            "rest_scale": np.float32(0.02 / 254),
            "zero": np.array(rng.integers(limits.min, limits.max + 1), self.written),
            "factor": rng.uniform(0.3, 3, (self.channels, *ones)).astype(np.float32),
        }
        held["back"] = (1 / held["factor"]).astype(np.float32)
        held["back"] *= np.float32(rng.uniform(0.9, 1.1))
        make = helper.make_node
        scaled = "scaled" if self.factor else "x"
        worth = "worth_of" if self.worth_factor else "dq"
        nodes = [make("Mul", ["factor", "x"], ["scaled"])] if self.factor else []
        nodes += [make("QuantizeLinear", [scaled, "scale", "zero"], ["codes"])]
        nodes += [make("DequantizeLinear", ["codes", "worth", "zero"], ["dq"])]
        nodes += [make("Mul", ["dq", "back"], ["worth_of"])] if self.worth_factor else []
        nodes += [make("Sub", ["x", worth], ["left"])]
        nodes += [make("Mul", ["left", "factor"], ["left_scaled"])] if self.factor else []
        nodes += [
            make("QuantizeLinear", ["left_scaled" if self.factor else "left", "rest_scale", "zero"], ["rest"])
        ]
        outputs = ["codes", "rest"]
        if self.rows_below:
            nodes += [make("Concat", outputs, ["both"], axis=0)]
            outputs = ["both"]
        nodes += [make("FusedGates_lstm", ["z", "c"], ["h", "c_out"], domain="edgelstm")]
        used = {name for node in nodes for name in node.input}
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.written))
        shape: list[int | None] = [None, self.channels, *self.spatial]
        return helper.make_model(
            helper.make_graph(
                nodes,
                "two",
                [
                    helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
                    helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 8]),
                    helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 2]),
                ],
                [helper.make_tensor_value_info(n, kind, None) for n in outputs]
                + [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("h", "c_out")],
                [numpy_helper.from_array(a, n) for n, a in held.items() if n in used],
            ),
            functions=[GateVariant().function(18)],
            opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("edgelstm", 1)],
            ir_version=9,
        )


def compare(case: Case, library: Path, x: Array, threads: int = 1) -> None:
    data = case.model().SerializeToString()
    found = rewrite(data, threads, lend=False)
    assert found is not None
    name = U8 if case.written is np.uint8 else U8.replace("U8", "I8")
    assert dict(found.counts) == {name: 1, "FusedGates": 1}
    frames = {"x": x, "z": np.zeros((1, 8), np.float32), "c": np.zeros((1, 2), np.float32)}
    ours, theirs = (native_library.session(d, library, threads).run(None, frames) for d in (found.data, data))
    for a, b in zip(ours[:-2], theirs[:-2], strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()


@settings(max_examples=40, deadline=None)
@given(
    case=st.builds(
        Case,
        written=st.sampled_from([np.int8, np.uint8]),
        channels=st.sampled_from([1, 2, 5, 16, 17, 37]),
        spatial=st.sampled_from([(), (1,), (5,), (3, 7), (1, 1), (31,), (2, 3, 5)]),
        rows=st.integers(0, 3),
        factor=st.booleans(),
        worth_factor=st.booleans(),
        rows_below=st.booleans(),
    ),
    width=st.sampled_from([0.1, 1, 5]),
)
def test_both_codes_have_the_bits_of_onnx_runtime_s_own(library: Path, case: Case, width: float) -> None:
    shape = (case.rows, case.channels, *case.spatial)
    compare(case, library, np.random.default_rng(1).normal(0, width, shape).astype(np.float32))


def test_on_several_threads_and_of_many_numbers(library: Path) -> None:
    """Where a product and a difference made one instruction, some of so many would be rounded otherwise."""
    rng = np.random.default_rng(2)
    for below in (False, True):
        case = Case(channels=16, spatial=(64, 64), rows=4, rows_below=below)
        compare(case, library, rng.normal(0, 2, (4, 16, 64, 64)).astype(np.float32), threads=2)


def test_what_is_not_finite(library: Path) -> None:
    x = np.float32([[np.nan, np.inf, -np.inf, 3e38, -3e38, 0, -0.0, 1e-45]])
    compare(Case(channels=8, spatial=(), rows=1, factor=False, worth_factor=False), library, x)
    compare(Case(channels=8, spatial=(), rows=1), library, x)


@pytest.mark.parametrize(
    "change", ["zero", "factor", "read", "scales", "sub", "output"], ids=lambda c: f"another {c}"
)
def test_what_is_something_else_stays_as_it_is(change: str) -> None:
    model = Case().model()
    graph = model.graph
    by_output = {node.output[0]: node for node in graph.node}
    if change == "zero":
        graph.initializer.append(numpy_helper.from_array(np.uint8(3), "other"))
        by_output["rest"].input[2] = "other"
    elif change == "factor":
        graph.initializer.append(numpy_helper.from_array(np.float32(3), "other"))
        by_output["left_scaled"].input[1] = "other"
    elif change == "read":
        graph.node.append(helper.make_node("Abs", ["left"], ["more"]))
        graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))
    elif change == "scales":
        graph.initializer.append(numpy_helper.from_array(np.full(5, 0.02, np.float32), "many"))
        graph.initializer.append(numpy_helper.from_array(np.full(5, 3, np.uint8), "zeros"))
        for name in ("codes", "dq", "rest"):
            by_output[name].input[1:] = ["many", "zeros"]
    elif change == "sub":
        by_output["left"].input[:] = reversed(by_output["left"].input)
    else:
        graph.output.append(helper.make_tensor_value_info("dq", TensorProto.FLOAT, None))
    found = rewrite(model.SerializeToString(), 1)
    assert found is not None
    assert dict(found.counts) == {"FusedGates": 1}
