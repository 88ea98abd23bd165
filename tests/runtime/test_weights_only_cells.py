"""Step graphs whose weights alone have fewer bits: which cells of ours they get, the same numbers, and the C library."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from test_native import AFTER, BEFORE, BLEND_TURNED, MOVE, SPELT_OUT, TORCH, compare_streamed, counts, gru

import c_library
import native_library
import zoo
from edgelstm.graph.step import StepModel
from edgelstm.passes.unroll import unroll
from edgelstm.quantize.weights_only import weights_only
from edgelstm.runtime import Runner
from edgelstm.runtime.native.cells import rewrite
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.workflows.lower import lower
from tolerances import assert_close

Array = np.ndarray[Any, Any]
SUFFIX = {"int8-weights": "I8", "bf16-weights": "BF16"}


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


@pytest.mark.parametrize("precision", list(SUFFIX))
@pytest.mark.parametrize(
    ("step", "cells"),
    [(zoo.lstm(), 2), (zoo.lstm(7, (37, 5)), 2), (unroll(zoo.lstm(7, (37,)), 3), 3)],
    ids=["lstm", "prime sizes", "window"],
)
def test_lstm_cells_take_the_weights_as_they_are(
    library: Path, step: StepModel, cells: int, precision: Any
) -> None:
    made = weights_only(step, precision)
    assert counts(made) == {f"FusedLSTMCell{SUFFIX[precision]}": cells}
    compare_streamed(made, library)


@pytest.mark.parametrize("precision", list(SUFFIX))
@pytest.mark.parametrize(
    ("start", "after", "end"),
    [(BEFORE, False, MOVE), (AFTER, True, BLEND_TURNED), (TORCH, True, MOVE)],
)
def test_gru_cells_too_however_they_are_written(
    library: Path, start: str, after: bool, end: str, precision: Any
) -> None:
    made = weights_only(gru(f"{start}\n{end}", after, units=13), precision)
    assert counts(made) == {f"FusedGRUCell{SUFFIX[precision]}": 1}
    compare_streamed(made, library)


def test_rows_that_share_weights_and_change_sign_are_right_too(library: Path) -> None:
    step = gru(f"{SPELT_OUT}\n{BLEND_TURNED}", False)
    made = weights_only(step, "int8-weights")
    assert sum(counts(made).values()) == 1
    compare_streamed(made, library)


def edited(made: StepModel, edit: Any) -> StepModel:
    model = made.copy_model()
    edit(model.graph)
    return StepModel(model, made.signature)


def code_128(graph: onnx.GraphProto) -> None:
    """Other people's codes reach -128, whose negative no code has."""
    for k, t in enumerate(graph.initializer):
        if t.data_type == onnx.TensorProto.INT8:
            codes = numpy_helper.to_array(t).copy()
            codes[:, 0] = -128
            graph.initializer[k].CopyFrom(numpy_helper.from_array(codes, t.name))


def zeros_written_down(graph: onnx.GraphProto) -> None:
    sizes = {t.name: t.dims[0] for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            name = f"{node.input[0]}/zero"
            graph.initializer.append(numpy_helper.from_array(np.zeros(sizes[node.input[1]], np.int8), name))
            node.input.append(name)


def zeros_that_are_none(graph: onnx.GraphProto) -> None:
    zeros_written_down(graph)
    for k, t in enumerate(graph.initializer):
        if t.name.endswith("/zero"):
            graph.initializer[k].CopyFrom(numpy_helper.from_array(np.ones(t.dims[0], np.int8), t.name))


def numbers_one_by_one(graph: onnx.GraphProto) -> None:
    """As onnx.helper.make_tensor stores them."""
    for k, t in enumerate(graph.initializer):
        if t.data_type == onnx.TensorProto.INT8:
            codes = numpy_helper.to_array(t)
            graph.initializer[k].CopyFrom(
                helper.make_tensor(t.name, t.data_type, codes.shape, codes.ravel().tolist())
            )


def scales_of_columns(graph: onnx.GraphProto) -> None:
    sizes = {t.name: tuple(t.dims) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            (attribute,) = node.attribute
            attribute.i = 1 - attribute.i
            scale = np.linspace(0.001, 0.01, sizes[node.input[0]][attribute.i], dtype=np.float32)
            graph.initializer.append(numpy_helper.from_array(scale, f"{node.input[0]}/other"))
            node.input[1] = f"{node.input[0]}/other"


@pytest.mark.parametrize(
    ("edit", "op"),
    [
        (code_128, "FusedLSTMCellI8"),
        (zeros_written_down, "FusedLSTMCellI8"),
        (numbers_one_by_one, "FusedLSTMCellI8"),
        (zeros_that_are_none, "FusedGates"),
        (scales_of_columns, "FusedLSTMCell"),
    ],
)
def test_codes_that_others_wrote_are_taken_or_left_but_never_wrong(library: Path, edit: Any, op: str) -> None:
    made = edited(weights_only(zoo.lstm(5, (7,), head=None), "int8-weights"), edit)
    assert counts(made) == {op: 1}
    compare_streamed(made, library)


def test_a_code_without_a_negative_is_not_negated(library: Path) -> None:
    text = f"{BEFORE}\n{BLEND_TURNED}"
    made = edited(weights_only(gru(text, False), "int8-weights"), code_128)
    assert sum(counts(made).values()) == 1
    compare_streamed(made, library)


@pytest.mark.parametrize("precision", list(SUFFIX))
def test_a_file_that_is_whole_by_itself_has_the_codes(precision: Any) -> None:
    step = zoo.lstm(5, (37,))
    made = weights_only(step, precision)
    found = rewrite(made.to_bytes(), 1, lend=False)
    assert found is not None
    assert found.matrices == {}
    assert len(found.data) < len(step.to_bytes()) * (0.5 if precision == "int8-weights" else 0.7)


def test_without_our_operators_weights_are_dequantised_once(library: Path) -> None:
    """In every step it takes several times as long as the step; what shows is that the numbers are those of float weights."""
    made = weights_only(zoo.lstm(5, (67,)), "int8-weights")
    values = {t.name: numpy_helper.to_array(t) for t in made.model.graph.initializer}

    def fold(graph: onnx.GraphProto) -> None:
        kept = []
        for node in graph.node:
            if node.op_type != "DequantizeLinear":
                kept.append(node)
                continue
            codes, scale = (values[n] for n in node.input)
            value = codes * np.expand_dims(scale, 1 - node.attribute[0].i)
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
        del graph.node[:]
        graph.node.extend(kept)

    with (
        Runner(OrtProgram(made.to_bytes(), threads=1)) as a,
        Runner(OrtProgram(edited(made, fold).to_bytes(), threads=1)) as b,
    ):
        one, other = a.stream("s"), b.stream("s")
        for k in range(3):
            frame = np.sin(k + np.arange(5, dtype=np.float32))
            assert one.step(frame)["y"].tobytes() == other.step(frame)["y"].tobytes()


def test_the_c_library_runs_the_same_file_and_the_one_with_our_operators(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELSTM_NATIVE_LIBRARY", str(library))
    operators = tmp_path / "operators.so"
    shutil.copyfile(library, operators)  # a file serves one ONNX Runtime of a process
    made = weights_only(zoo.lstm(7, (37, 5)), "int8-weights")
    made.save(tmp_path / "plain.onnx")
    lower(tmp_path / "plain.onnx", tmp_path / "ours.onnx", runtime="native")
    monkeypatch.delenv("EDGELSTM_NATIVE_LIBRARY")  # of which the C library would take the file itself
    with (
        Runner.open(tmp_path / "plain.onnx", threads=1, native=False) as runner,
        c_library.Program(tmp_path / "plain.onnx") as plain,
        c_library.Program(tmp_path / "ours.onnx", operators=str(operators)) as ours,
    ):
        stream, one, other = runner.stream("s"), plain.stream(), ours.stream()
        for k in range(5):
            frame = np.sin(k + np.arange(7, dtype=np.float32))
            expected = stream.step(frame, copy=True)["y"]
            assert one.step(frame)["y"].tobytes() == expected.tobytes()
            assert_close(other.step(frame)["y"], expected, np.float32, k=500)
        for each in (one, other):
            each.free()


def test_for_many_streams_large_cells_are_left_to_onnx_runtime(library: Path) -> None:
    made = weights_only(zoo.lstm(3, (67, 131)), "int8-weights")
    program = native_library.opened(made.to_bytes(), library, streams=5, threads=1)
    assert program.native is not None
    assert dict(program.native.counts) == {"FusedLSTMCellI8": 1, "FusedGates": 1}
    compare_streamed(made, library, streams=7, steps=3)
