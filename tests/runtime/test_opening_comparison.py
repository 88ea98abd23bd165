"""What the comparison at opening lets pass and what it refuses, where values are rounded to codes: faults are put into the graph that our
operators are opened from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import native_library
import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.passes.placement import Target
from edgelstm.quantize.qdq import quantize
from edgelstm.runtime.native import prepare as preparing
from edgelstm.runtime.native import trial
from edgelstm.runtime.native.alone import Alone
from edgelstm.runtime.native.cells import Rewritten, rewrite
from edgelstm.runtime.native.library import read_native_library
from edgelstm.runtime.native.trial import Trial
from edgelstm.runtime.session import open_session, read_signature
from recordings import all_weights, calibrated

Array = np.ndarray[Any, Any]
CELL = "FusedConvLSTMCellU8QuantizeLinearU8"
Fault = Callable[[onnx.GraphProto, dict[int, Array]], None]


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


@cache
def in_codes(units: int = 64, target: Target = "onnxruntime") -> bytes:
    step = zoo.conv_lstm(9, units, 12)
    return quantize(step, calibrated(step), target, weights=all_weights(step)).to_bytes()


def opened(data: bytes, library: Path, bytes_slow: bool, fault: Fault | None = None) -> dict[str, int]:
    """The operators that a model runs with, of which ``fault`` changes what they are opened from. EdgeLstmError where they are refused."""

    def changed(*args: Any, **options: Any) -> Rewritten | None:
        found = rewrite(*args, **options)
        if found is None or fault is None:
            return found
        model = onnx.load_model_from_string(found.data)
        matrices = {number: matrix.copy() for number, matrix in found.matrices.items()}
        fault(model.graph, matrices)
        return replace(found, data=model.SerializeToString(), matrices=matrices)

    kernels = (read_native_library(library).instructions(),) if bytes_slow else ()
    with patch.multiple(preparing, NO_PRODUCTS_OF_BYTES=kernels, rewrite=changed):
        program = native_library.opened(data, library, native=True, threads=2)
    assert program.native is not None
    program.close()
    return dict(program.native.counts)


def edit(name: str, change: Callable[[Array], Any]) -> Fault:
    """Another constant in place of the one whose name ends so."""

    def fault(graph: onnx.GraphProto, matrices: dict[int, Array]) -> None:
        (tensor,) = (t for t in graph.initializer if t.name.endswith(name))
        values = numpy_helper.to_array(tensor).copy()
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(values)).astype(values.dtype), tensor.name))

    return fault


def cell(graph: onnx.GraphProto) -> onnx.NodeProto:
    return next(n for n in graph.node if n.op_type.startswith(("FusedConvLSTMCell", "FusedGatesU8")))


def zero_of_what_is_read(graph: onnx.GraphProto, matrices: dict[int, Array]) -> None:
    next(a for a in cell(graph).attribute if a.name == "zero").i += 1


def one_unit_does_not_see_h(graph: onnx.GraphProto, matrices: dict[int, Array]) -> None:
    (matrix,) = matrices.values()
    matrix[5, 9 * 9 :] = 0


def gates_swapped_in_one_unit(graph: onnx.GraphProto, matrices: dict[int, Array]) -> None:
    (matrix,) = matrices.values()
    units = len(matrix) // 4
    matrix[[3, 3 + units]] = matrix[[3 + units, 3]]


def h_in_other_codes(graph: onnx.GraphProto, matrices: dict[int, Array]) -> None:
    scale = cell(graph).input[-2]
    values = next(numpy_helper.to_array(t) for t in graph.initializer if t.name == scale)
    graph.initializer.append(numpy_helper.from_array(np.float32(values * 1.02), "other"))
    cell(graph).input[-2] = "other"


def add(value: float, places: Any) -> Callable[[Array], Array]:
    def change(values: Array) -> Array:
        values.reshape(-1)[places] += value
        return values

    return change


ALL = [True, False]
SMALL = "the bias of one unit's gate is two codes off"
FAULTS: dict[str, tuple[Fault, list[bool]]] = {
    "zero of what is read": (zero_of_what_is_read, [True]),
    "one unit does not see h": (one_unit_does_not_see_h, [True]),
    "gates swapped in one unit": (gates_swapped_in_one_unit, [True]),
    SMALL: (edit("edgelstm.bias", add(2, 7)), [True]),
    "a gate's scale is 1% off": (edit("edgelstm.gate_codes", add(0.0007, 1)), [True]),
    "a gate's zero is one off": (edit("edgelstm.gate_codes", add(1, 4)), [True]),
    "a peephole of one unit": (edit("p_f", add(0.3, 2)), ALL),
    "codes of h of another scale": (h_in_other_codes, ALL),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_is_small_or_rare_keeps_a_model_from_our_operators(library: Path, fault: str) -> None:
    change, ways = FAULTS[fault]
    for bytes_slow in ways:
        with pytest.raises(EdgeLstmError, match="our operators are not used"):
            opened(in_codes(), library, bytes_slow, change)


@pytest.mark.parametrize("bytes_slow", ALL)
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_right_operators_are_taken(library: Path, target: Target, bytes_slow: bool) -> None:
    for units in (11, 16, 64):
        assert any("QuantizeLinear" in op for op in opened(in_codes(units, target), library, bytes_slow))


def test_weights_of_h_are_compared_in_float32_too(library: Path) -> None:
    with pytest.raises(EdgeLstmError, match="our operators are not used"):
        opened(zoo.conv_lstm(9, 16, 12).to_bytes(), library, False, one_unit_does_not_see_h)


@pytest.mark.parametrize("fault", [None, SMALL])
def test_each_operator_alone_says_the_same_where_the_whole_step_does_not_tell(
    library: Path, fault: str | None
) -> None:
    """As where what one layer rounds another way has moved what the next one reads."""
    whole = Alone.trouble
    seen: list[str | None] = []

    def second(self: Alone, *args: Any) -> str | None:
        seen.append(whole(self, *args))
        return "not told" if len(seen) == 1 else seen[-1]

    with patch.object(Alone, "trouble", second):
        if fault is None:
            assert opened(in_codes(11), library, True) == {CELL: 1}
        else:
            with pytest.raises(EdgeLstmError, match="alone gives"):
                opened(in_codes(11), library, True, FAULTS[fault][0])
    assert len(seen) == 2
    assert (seen[1] is None) == (fault is None)


def test_states_are_those_that_steps_before_have_made() -> None:
    data = in_codes()
    session = open_session(data, 1, spin=False)
    signature = read_signature(session, "model")
    found = Trial.of(session, signature)
    h = found.feeds["h"]
    assert len(np.unique(h)) > 100
    with patch.object(trial, "CARRIED", 3):
        later = Trial.of(session, signature).feeds["h"]
    assert (later != h).any()


def test_a_code_may_be_another_only_where_it_lies_between_two(library: Path) -> None:
    """h's codes: one off by one is no rounding where its value is not near a tie."""
    data = in_codes(11)
    found = rewrite(data, 1, bytes_slow=True)
    assert found is not None
    alone = Alone(data, found.data)
    session = open_session(alone.tapped(), 1, spin=False, unfused=True)
    seen = Trial.of(session, read_signature(session, "model", alone.taps), alone)
    values = seen.feeds | seen.results
    codes = next(n for n in alone.outputs if values[n].dtype == np.uint8)
    given = {name: values[name].copy() for name in alone.outputs}
    assert alone.trouble(values, given) is None
    rounded = alone._rounded(codes)
    assert rounded is not None
    exact = alone._in_codes(rounded, values[rounded.inputs[0]])
    near = alone._near(alone._ours[0], values)
    assert near is not None
    apart = np.where(near | (exact <= 1) | (exact >= 254), np.inf, np.abs(exact - np.floor(exact) - 0.5))
    tie, plain = (
        np.unravel_index(apart.argmin(), apart.shape),
        np.argwhere(np.isfinite(apart) & (apart > 0.1))[0],
    )
    assert apart[tie] < 0.01
    given[codes][tie] = 2 * np.floor(exact[tie]) + 1 - values[codes][tie]  # the other neighbour
    assert alone.trouble(values, given) is None
    given[codes][tuple(plain)] += 1
    assert "1 of" in str(alone.trouble(values, given))


def test_whole_steps_are_compared_too() -> None:
    zeros = np.zeros((1, 400), np.uint8)
    assert "1 of 400 codes differ" in str(trial._apart("h", zeros, np.eye(1, 400, dtype=np.uint8)))
    assert "400 of 400" in str(trial._apart("h", zeros, zeros + 1, coded=True))
    y = np.random.default_rng(0).normal(size=(1, 400)).astype(np.float32)
    near = y.copy()
    near[0, 7] += 0.05
    assert trial._apart("y", y, near, coded=True) is None
    assert "off by 0.05" in str(trial._apart("y", y, near))
    assert "off by" in str(trial._apart("y", y, np.roll(y, 1), coded=True))
