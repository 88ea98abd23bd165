"""Quantised ConvLSTMs on processors without products of bytes: their convolutions become ours, in float32, and the numbers stay."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import native_library
import zoo
from edgelstm.graph.step import StepModel
from edgelstm.passes.placement import Target
from edgelstm.quantize.qdq import quantize
from edgelstm.runtime import Runner
from edgelstm.runtime.native import prepare as preparing
from edgelstm.runtime.native.cells import rewrite
from edgelstm.runtime.native.library import read_native_library
from edgelstm.runtime.onnxruntime import OrtProgram
from recordings import all_weights, calibrated, smooth_frames

U8 = "FusedConvLSTMCellU8QuantizeLinearU8"


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


@cache
def in_codes(peephole: bool = True, target: Target = "onnxruntime") -> StepModel:
    step = zoo.conv_lstm(9, 11, 8, peephole=peephole)
    return quantize(step, calibrated(step), target, weights=all_weights(step))


def counts(step: StepModel, bytes_slow: bool) -> dict[str, int]:
    found = rewrite(step.to_bytes(), 1, bytes_slow=bytes_slow)
    return {} if found is None else dict(found.counts)


def opened(step: StepModel, library: Path, streams: int = 1) -> OrtProgram:
    """As a processor without products of bytes opens it."""
    here = read_native_library(library).instructions()
    with patch.object(preparing, "NO_PRODUCTS_OF_BYTES", (here,)):
        return native_library.opened(step.to_bytes(), library, streams=streams, threads=2)


@pytest.mark.parametrize("peephole", [True, False])
def test_where_bytes_are_slow_a_quantised_convolution_and_its_gates_become_one_operator(
    library: Path, peephole: bool
) -> None:
    step = in_codes(peephole)
    assert U8 in counts(step, True)
    assert U8 not in counts(step, False)
    assert "FusedGatesU8QuantizeLinearU8" in counts(step, False)
    names = ["a", "b", "c"]
    frames = {n: smooth_frames(step, 30, seed) for seed, n in enumerate(names)}
    ours, graph = opened(step, library, 3), OrtProgram(step.to_bytes(), native=False, streams=3)
    assert U8 in str(ours.native)
    with Runner(ours) as one, Runner(graph) as other:
        for name in names:
            one.stream(name), other.stream(name)
        for k in range(30):
            given = {n: frames[n][k] for j, n in enumerate(names) if (j + k // 5) % 3}
            idle = {n: one.stream(n).snapshot() for n in names if n not in given}
            a, b = one.step(given), other.step(given)
            for name in given:
                for output, value in b[name].items():
                    # Biases of ONNX Runtime's own are whole numbers, so that some pre-activations become the next code.
                    assert (np.abs(a[name][output] - value) > 1e-5).mean() < 0.05
                    assert np.linalg.norm(a[name][output] - value) < 0.01 * np.linalg.norm(value)
            for name, before in idle.items():
                for state, value in one.stream(name).snapshot().items():
                    assert value.tobytes() == before[state].tobytes()
            for name in given:
                one.stream(name).restore(other.stream(name).snapshot())


def test_what_no_gates_read_as_codes_is_computed_from_codes_too(library: Path) -> None:
    """Graphs for TensorRT leave pre-activations as they are; there ONNX Runtime computes in float32 anyway."""
    step = in_codes(target="tensorrt")
    for slow in (True, False):
        assert any(op.startswith("FusedConvLSTMCell") for op in counts(step, slow))
    ours, graph = opened(step, library), OrtProgram(step.to_bytes(), native=False)
    assert "FusedConvLSTMCell" in str(ours.native)
    with Runner(ours) as one, Runner(graph) as other:
        for frame in smooth_frames(step, 20):
            a, b = one.stream("a").step(frame), other.stream("a").step(frame)
            a, b = (v if isinstance(v, np.ndarray) else v["h_next"] for v in (a, b))
            assert np.linalg.norm(a - b) < 0.01 * np.linalg.norm(b)


def test_a_frame_of_nan_does_what_it_does_in_the_graph(library: Path) -> None:
    step = in_codes()
    frames = smooth_frames(step, 3)
    frames[1]["x"][2, 3:5] = np.nan
    found = []
    for program in (opened(step, library), OrtProgram(step.to_bytes(), native=False)):
        state = program.new_state()
        for frame in frames:
            (outputs,) = program.step([frame], state, [0])
        found.append(outputs)
        program.close()
    for name, value in found[1].items():
        assert np.isfinite(value).all() == np.isfinite(found[0][name]).all()
        assert np.linalg.norm(found[0][name] - value) < 0.01 * np.linalg.norm(value)


def test_cells_that_read_the_same_weights_with_codes_of_other_worth_have_their_own() -> None:
    """Of each: what its codes are worth lies in the weights that are lent."""
    model = onnx.ModelProto()
    model.ParseFromString(in_codes(target="tensorrt").to_bytes())
    graph = model.graph
    reader = next(n for n in graph.node if n.op_type == "Conv")
    cell = next(n for n in graph.node if n.domain == "edgelstm")
    codes = next(n for n in graph.node if n.output[0] == reader.input[0])
    assert codes.op_type == "DequantizeLinear"
    again = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (codes, reader, cell)]
    scale = next(t for t in graph.initializer if t.name == codes.input[1])
    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(scale) * 2, "other_scale"))
    again[0].input[1], again[0].output[0] = "other_scale", "again/dq"
    again[1].input[0], again[1].output[0] = "again/dq", "again/z"
    again[2].input[0] = "again/z"
    again[2].output[:] = ["again/h", "again/c"]
    graph.node.extend(again)
    graph.output.append(helper.make_tensor_value_info("again/h", 1, None))
    both = rewrite(model.SerializeToString(), 1, bytes_slow=True)
    assert both is not None
    assert len(both.matrices) == 2
    one, other = both.matrices.values()
    np.testing.assert_allclose(2 * one, other, rtol=1e-6)
