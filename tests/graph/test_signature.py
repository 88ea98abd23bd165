"""Signatures: their JSON, and what they refuse."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelstm.dtypes import DTYPES, np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec

GOOD: dict[str, Any] = {
    "schema": 1,
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 1, 64, 64]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["N", 1, 64, 64]}],
    "states": [
        {
            "name": "h0",
            "input": "h0",
            "output": "h0_next",
            "dtype": "float32",
            "shape": ["N", 64, 64, 64],
            "initial": "zeros",
        }
    ],
}

shapes = st.lists(st.integers(1, 5), max_size=3)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    axis = draw(st.one_of(st.just("N"), st.integers(1, 3)))
    unique = draw(st.lists(names, min_size=6, max_size=12, unique=True))
    dtypes = st.sampled_from(DTYPES)
    states = []
    for place in range(draw(st.integers(0, 2))):
        dtype, shape = draw(dtypes), tuple(draw(shapes))
        size = int(np.prod(shape)) * np_dtype(dtype).itemsize
        initial = draw(st.one_of(st.none(), st.binary(min_size=size, max_size=size)))
        name = unique[2 + 2 * place]
        states.append(StateSpec(name, name, unique[3 + 2 * place], dtype, (axis, *shape), initial))
    return Signature(
        inputs=(TensorSpec(unique[0], draw(dtypes), (axis, *draw(shapes))),),
        outputs=(TensorSpec(unique[1], draw(dtypes), (axis, *draw(shapes))),),
        states=tuple(states),
        preprocessing=draw(st.sampled_from([{}, {unique[0]: ({"op": "grey"},)}])),
    )


@given(signatures())
def test_json_round_trip(signature: Signature) -> None:
    again = Signature.loads(signature.dumps())
    assert again == signature
    assert again.dumps() == signature.dumps()


def test_the_documented_json_is_read() -> None:
    signature = Signature.from_json(GOOD)
    assert signature.stream_axis == "N"
    assert signature.input("x").frame_shape == (1, 64, 64)
    assert signature.state("h0").initial_value().shape == (64, 64, 64)
    assert signature.to_json() == GOOD


def test_keys_of_later_versions_are_passed_over() -> None:
    assert Signature.from_json({**GOOD, "note": "added later"}) == Signature.from_json(GOOD)


def changed(**changes: Any) -> dict[str, Any]:
    return {**GOOD, **changes}


def state(**changes: Any) -> dict[str, Any]:
    return changed(states=[{**GOOD["states"][0], **changes}])


BAD = {
    "no object": ([], "not a Signature: found list; expected a JSON object"),
    "schema": (
        changed(schema=2),
        "Signature schema: found 2; expected 1. A newer edgelstm may have written it",
    ),
    "no inputs": (changed(inputs=[]), "a Signature without inputs"),
    "missing key": ({"schema": 1, "inputs": []}, "malformed Signature: found KeyError 'outputs'"),
    "dtype": (state(dtype="complex64"), "dtype of 'h0': found complex64; expected one of float32"),
    "dimension": (
        state(shape=["N", 0]),
        r"shape of 'h0': found \['N', 0\]; expected axis 0 a name or a size",
    ),
    "free dimension": (state(shape=["N", "H"]), r"shape of 'h0': found \['N', 'H'\]"),
    "too large": (state(shape=["N", 2**20, 2**20]), "shape of 'h0' is too large"),
    "initial": (
        state(initial={"base64": "AAAA"}),
        "initial value of state 'h0': found 3 bytes; expected 1048576",
    ),
    "not base64": (state(initial={"base64": "?"}), "malformed Signature"),
    "named twice": (state(input="x"), "graph input named twice: found x"),
    "stream axes": (state(shape=[1, 64, 64, 64]), "differ in their stream axis"),
    "preprocessing": (
        changed(preprocessing={"z": []}),
        "preprocessing for an input the Signature does not have",
    ),
    "window": (changed(window=3), "expected time, 3, on axis 1"),
    "window of none": (changed(window="3"), "window: found 3; expected a whole number"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_what_is_refused(case: str) -> None:
    data, message = BAD[case]
    with pytest.raises(EdgeLstmError, match=message) as error:
        Signature.from_json(data, "model.onnx")
    assert str(error.value).startswith("model.onnx: ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_any_json_is_a_signature_or_refused(data: st.DataObject) -> None:
    mutated = json.loads(json.dumps(GOOD))
    target = data.draw(st.sampled_from([mutated, mutated["inputs"][0], mutated["states"][0]]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(json_values)
    with contextlib.suppress(EdgeLstmError):
        Signature.from_json(mutated)
    with contextlib.suppress(EdgeLstmError):
        Signature.loads(data.draw(st.text()))


@pytest.mark.parametrize("name", ["", "a\0b", 1, None, ["x"]])
def test_a_name_is_text_without_zero_bytes(name: Any) -> None:
    with pytest.raises(EdgeLstmError, match="a tensor's name"):
        TensorSpec(name, "float32", ("N", 2))
    data = {
        "schema": 1,
        "inputs": [],
        "outputs": [{"name": name, "dtype": "float32", "shape": ["N", 2]}],
        "states": [],
    }
    with pytest.raises(EdgeLstmError, match="where: a tensor's name"):
        Signature.from_json(data, "where")


def test_unknown_names_are_told() -> None:
    signature = Signature.from_json(GOOD)
    for look, message in (
        (signature.input, r"no input 'q': expected one of \['x'\]"),
        (signature.output, r"no output 'q': expected one of \['y'\]"),
        (signature.state, r"no state 'q': expected one of \['h0'\]"),
    ):
        with pytest.raises(EdgeLstmError, match=message):
            look("q")


def test_an_input_that_is_an_output_as_well_is_refused() -> None:
    """A delay line without a node: ONNX Runtime would never write the bound output, and say nothing."""
    frame = TensorSpec("x", "float32", ("N", 2))
    with pytest.raises(
        EdgeLstmError, match=r"graph inputs that are outputs as well: x.*Put an Identity between"
    ):
        Signature((frame,), (), (StateSpec("last", "last", "x", "float32", ("N", 2)),))
