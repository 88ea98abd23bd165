"""Gates that store h as codes in whole step graphs: streams have the bits that the same graph gives with Mul and QuantizeLinear apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import native_library
import zoo
from edgelstm.graph.step import StepModel
from edgelstm.passes.placement import Target
from edgelstm.quantize.qdq import quantize
from edgelstm.runtime import Runner
from edgelstm.runtime.native import cells
from edgelstm.runtime.native.cells import rewrite
from edgelstm.runtime.onnxruntime import OrtProgram
from recordings import all_weights, calibrated, smooth_frames

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


STEPS: dict[str, Callable[[], StepModel]] = {
    "peepholes": lambda: zoo.conv_lstm(2, 3, 7),
    "maps": lambda: zoo.conv_lstm(1, 5, 11, peephole=False),
    "vectors": lambda: zoo.lstm(7, (37, 5)),
}


@cache
def in_codes(name: str, target: Target = "onnxruntime") -> StepModel:
    step = STEPS[name]()
    return quantize(step, calibrated(step), target, weights=all_weights(step))


def with_factors(step: StepModel) -> StepModel:
    """The same, but each channel of h is multiplied by something before its QuantizeLinear."""
    model = onnx.ModelProto()
    model.ParseFromString(step.to_bytes())
    node = model.graph.node[-1]
    assert node.op_type == "QuantizeLinear"
    channels = step.signature.state("h").frame_shape[0]
    factors = np.random.default_rng(5).uniform(0.5, 1.5, (channels, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(factors, "factors"))
    model.graph.node.insert(
        len(model.graph.node) - 1, helper.make_node("Mul", ["factors", node.input[0]], ["times"])
    )
    model.graph.node[-1].input[0] = "times"
    return StepModel(model, step.signature)


def with_scales(step: StepModel) -> StepModel:
    """The same, but each channel of h has a scale of its own in its QuantizeLinear."""
    model = onnx.ModelProto()
    model.ParseFromString(step.to_bytes())
    node = model.graph.node[-1]
    assert node.op_type == "QuantizeLinear"
    rng = np.random.default_rng(5)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    count = step.signature.state("h").frame_shape[0]
    scale = held[node.input[1]] * rng.uniform(0.5, 1.5, count)
    zero = rng.integers(100, 140, count).astype(held[node.input[2]].dtype)
    model.graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), "of_channels"))
    model.graph.initializer.append(numpy_helper.from_array(zero, "zeros_of_channels"))
    node.input[1:] = ["of_channels", "zeros_of_channels"]
    return StepModel(model, step.signature)


def compare(step: StepModel, library: Path, wanted: dict[str, int], steps: int) -> None:
    """Three streams of which one is idle at any time."""
    data = step.to_bytes()
    found = rewrite(data, 1, 3)
    assert found is not None
    assert dict(found.counts) == wanted
    folded = native_library.opened(data, library, streams=3, threads=1)
    with patch.multiple(cells, fold_codes=lambda links: None, fold_two_codes=lambda links: None):
        apart = native_library.opened(data, library, streams=3, threads=1)
    assert folded.native is not None
    assert apart.native is not None
    assert "QuantizeLinear" in str(folded.native)
    assert "QuantizeLinear" not in str(apart.native)
    names = ["a", "b", "c"]
    frames = {n: smooth_frames(step, steps, seed) for seed, n in enumerate(names)}
    with Runner(folded) as one, Runner(apart) as other:
        for name in names:
            one.stream(name), other.stream(name)
        for k in range(steps):
            given = {n: frames[n][k] for j, n in enumerate(names) if (j + k // 5) % 3}
            idle = {n: one.stream(n).snapshot() for n in names if n not in given}
            a, b = one.step(given), other.step(given)
            for name in given:
                for output, value in b[name].items():
                    assert a[name][output].tobytes() == value.tobytes()
            for name in names:
                now, expected = one.stream(name).snapshot(), other.stream(name).snapshot()
                for state, value in expected.items():
                    assert now[state].tobytes() == value.tobytes()
                    assert name not in idle or idle[name][state].tobytes() == value.tobytes()


U8, I8 = "FusedGatesU8QuantizeLinearU8", "FusedGatesQuantizeLinearI8"
CASES: dict[str, tuple[Callable[[], StepModel], dict[str, int]]] = {
    "peepholes on maps": (lambda: in_codes("peepholes"), {U8: 1}),
    "maps": (lambda: in_codes("maps"), {U8: 1, "FusedQuantizeLinearTwiceU8": 1}),
    "scales of channels": (lambda: with_scales(in_codes("peepholes")), {U8: 1}),
    "factors of channels": (lambda: with_factors(in_codes("peepholes")), {U8: 1}),
    "int8": (lambda: in_codes("peepholes", "tensorrt"), {I8: 1}),
    "vectors": (lambda: in_codes("vectors"), {"FusedGatesQuantizeLinearU8": 2}),
}


@pytest.mark.parametrize("name", ["peepholes", "maps"])
def test_convolutions_of_our_codes_run_in_the_layout_that_others_run_in(
    library: Path, name: str, tmp_path: Path
) -> None:
    """ONNX Runtime turns quantised ones to channels last, which is faster, where it knows how many axes their input has."""
    found = rewrite(in_codes(name).to_bytes(), 1, lend=False)
    assert found is not None
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    ort.InferenceSession(found.data, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    convolution = next(n for n in nodes if n.op_type == "QLinearConv")
    if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 22):
        assert any(a.name == "channels_last" and a.i == 1 for a in convolution.attribute)


@pytest.mark.parametrize("case", CASES)
def test_streams_have_the_same_bits(library: Path, case: str) -> None:
    build, wanted = CASES[case]
    compare(build(), library, wanted, 40)


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_long_streams_have_the_same_bits(library: Path, case: str) -> None:
    build, wanted = CASES[case]
    compare(build(), library, wanted, 2000)


def changed(edit: Callable[[onnx.GraphProto, onnx.NodeProto, onnx.NodeProto], None]) -> list[str]:
    """The operators that a quantised graph gets once its last two nodes, the Mul and the QuantizeLinear of h, were edited."""
    model = onnx.ModelProto()
    model.ParseFromString(with_factors(in_codes("peepholes")).to_bytes())
    edit(model.graph, *model.graph.node[-2:])
    found = rewrite(model.SerializeToString(), 1, lend=False)
    assert found is not None
    return list(found.counts)


def axis(graph: onnx.GraphProto, mul: onnx.NodeProto, quantize: onnx.NodeProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.ones(7, np.float32), "rows"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(7, np.uint8), "zeros"))
    quantize.input[1:] = ["rows", "zeros"]
    quantize.attribute.append(helper.make_attribute("axis", 2))


def read_twice(graph: onnx.GraphProto, mul: onnx.NodeProto, quantize: onnx.NodeProto) -> None:
    graph.node.append(helper.make_node("Abs", [mul.output[0]], ["more"]))
    graph.output.append(helper.make_tensor_value_info("more", 1, None))


def fed(graph: onnx.GraphProto, mul: onnx.NodeProto, quantize: onnx.NodeProto) -> None:
    graph.input.append(helper.make_tensor_value_info(quantize.input[1], 1, []))


def squared(graph: onnx.GraphProto, mul: onnx.NodeProto, quantize: onnx.NodeProto) -> None:
    mul.input[0] = mul.input[1]


def of_places(graph: onnx.GraphProto, mul: onnx.NodeProto, quantize: onnx.NodeProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.ones((3, 1, 7), np.float32), "columns"))
    mul.input[0] = "columns"


@pytest.mark.parametrize("edit", [axis, read_twice, fed, squared, of_places])
def test_what_is_no_code_of_h_alone_stays_as_it_is(edit: Any) -> None:
    assert changed(edit) == ["FusedGatesU8"]


@pytest.mark.parametrize(
    ("name", "written"),
    [("vectors", [False, False]), ("peepholes", [True])],
    ids=["states and products alone", "an output too"],
)
def test_h_is_written_where_it_is_read_as_a_number(name: str, written: list[bool]) -> None:
    found = rewrite(in_codes(name).to_bytes(), 1)
    assert found is not None
    nodes = onnx.load_model_from_string(found.data).graph.node
    assert [n.output[0] != "" for n in nodes if n.op_type.startswith("FusedGates")] == written


@pytest.mark.parametrize("name", ["peepholes", "vectors"])
def test_no_frames_of_the_comparison_keep_a_graph_from_our_operators(library: Path, name: str) -> None:
    """Their own sigmoid and ONNX Runtime's differ in the last bit: of many values some lie between two codes."""
    step = in_codes(name)
    for seed in range(8):
        with patch.object(np.random, "default_rng", Mock(return_value=np.random.default_rng(seed))):
            program = native_library.opened(step.to_bytes(), library, threads=1)
        assert isinstance(program, OrtProgram)
        assert program.native is not None
        program.close()
