"""States of any type, shape, name and value: their bytes in C are those in Python, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from c_library import Program
from edgelstm.dtypes import DTYPES, np_dtype
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step
from edgelstm.runtime import Runner
from edgelstm.runtime.snapshot import Snapshot

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="/\\"),
    min_size=1,
    max_size=12,
)


@st.composite
def states(draw: st.DrawFn) -> tuple[StateSpec, ...]:
    """Each with a first value of any bits; a bool has two."""
    found = []
    for k, name in enumerate(draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))):
        dtype = draw(st.sampled_from(sorted({*DTYPES} - {"float8e4m3fn"})))  # which Identity does not take
        shape = draw(st.lists(st.integers(1, 4), max_size=3))
        size = int(np.prod(shape, dtype=int)) * np_dtype(dtype).itemsize
        bits = draw(st.none() | st.binary(min_size=size, max_size=size))
        if bits is not None and dtype == "bool":
            bits = bytes(b & 1 for b in bits)
        found.append(StateSpec(name, f"in{k}", f"out{k}", dtype, ("N", *shape), bits))
    return tuple(found)


def model(specs: tuple[StateSpec, ...]) -> StepModel:
    """States stay what they are, whatever they are."""
    nodes = [helper.make_node("Identity", [s.input], [s.output]) for s in specs]
    nodes.append(helper.make_node("Neg", ["x"], ["y"]))
    frame = ("N", 2)
    signature = Signature((TensorSpec("x", "float32", frame),), (TensorSpec("y", "float32", frame),), specs)
    return make_step(nodes, signature, [])


@settings(max_examples=40, deadline=None)
@given(specs=states(), data=st.data())
def test_bytes_of_any_state_are_pythons(
    tmp_path_factory: Any, specs: tuple[StateSpec, ...], data: st.DataObject
) -> None:
    folder: Path = tmp_path_factory.getbasetemp()
    path, npz = folder / "any.onnx", folder / "any.npz"
    model(specs).save(path)

    def python(snapshot: Snapshot) -> bytes:
        snapshot.save(npz)
        return npz.read_bytes()

    x = np.ones(2, np.float32)
    with (
        Runner.open(path, streams=2, threads=1, native=False, on_bad_frame="pass") as runner,
        Program(path, streams=2) as program,
    ):
        theirs, ours = runner.stream("s"), program.stream()
        assert ours.save() == python(theirs.snapshot())
        values = {}
        for s in specs:
            kind = np_dtype(s.dtype)
            size = int(np.prod(s.frame_shape, dtype=int)) * kind.itemsize
            bits = data.draw(st.binary(min_size=size, max_size=size))
            bits = bytes(b & 1 for b in bits) if s.dtype == "bool" else bits
            values[s.name] = np.frombuffer(bits, kind).reshape(s.frame_shape)
        given_ = python(Snapshot(values, model=theirs.snapshot().model))
        ours.load(given_)
        assert ours.save() == given_
        ours.step(x)  # to the other side of its buffers
        assert ours.save() == given_
        npz.write_bytes(ours.save())
        theirs.restore(Snapshot.load(npz))
        assert python(theirs.snapshot()) == given_
        ours.reset()
        theirs.reset()
        assert ours.save() == python(theirs.snapshot())
