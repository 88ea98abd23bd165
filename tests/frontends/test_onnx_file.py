from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.onnx.file import declare
from edgelstm.graph.step import StepModel


def graph(inputs: str, outputs: str, body: str) -> bytes:
    """The bytes of a plain ONNX file, as another exporter would write it."""
    text = f'<ir_version: 8, opset_import: ["" : 17]>\ng ({inputs}) => ({outputs})\n{{\n{body}\n}}'
    return bytes(onnx.parser.parse_model(text).SerializeToString())


ADD = "n = Add (x, s) y = Neg (n)"
FREE = graph("float[batch, 3] x, float[batch, 3] s", "float[batch, 3] y, float[batch, 3] n", ADD)


def test_a_pair_becomes_a_state_and_the_rest_frames_and_outputs() -> None:
    step = declare(FREE, "m.onnx", {"s": "n"})
    assert step.signature.to_json() == {
        "schema": 1,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 3]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["N", 3]}],
        "states": [
            {
                "name": "s",
                "input": "s",
                "output": "n",
                "dtype": "float32",
                "shape": ["N", 3],
                "initial": "zeros",
            }
        ],
    }
    assert step.op_types() == ["Add", "Neg"]
    assert StepModel.from_bytes(step.to_bytes()).signature == step.signature


def test_a_state_can_get_a_name_of_its_own() -> None:
    assert declare(FREE, "m.onnx", {"s": "n"}, names={"s": "sum"}).signature.state("sum").input == "s"


def test_when_every_output_is_a_state_the_states_are_the_outputs() -> None:
    data = graph("float[1, 3] x, float[1, 3] s", "float[1, 3] n", "n = Add (x, s)")
    assert [t.name for t in declare(data, "m.onnx", {"s": "n"}).signature.outputs] == ["n"]


def test_weights_listed_as_inputs_are_no_frames() -> None:
    """ONNX files of IR version 3 and earlier list every weight among the inputs."""
    text = """<ir_version: 3, opset_import: ["" : 11]>
    g (float[1, 2] x, float[1, 2] s, float[1, 2] w) => (float[1, 2] n)
    <float[1, 2] w = {1, 2}>
    { p = Mul (x, w) n = Add (p, s) }"""
    data = bytes(onnx.parser.parse_model(text).SerializeToString())
    assert [t.name for t in declare(data, "m.onnx", {"s": "n"}).signature.inputs] == ["x"]


def test_outputs_declared_wider_than_they_are() -> None:
    """Some exporters write [N, ...] on outputs that the inputs' fixed sizes determine."""
    data = graph("float[1, 3] x, float[1, 3] s", "float[N, k] y, float[N, k] n", ADD)
    assert declare(data, "m.onnx", {"s": "n"}).signature.output("y").shape == (1, 3)


def test_a_dynamic_dimension_can_be_fixed() -> None:
    data = graph("float[b, width] x, float[b, width] s", "float[b, width] y, float[b, width] n", ADD)
    with pytest.raises(
        EdgeLstmError,
        match=r"m\.onnx: 'x' is dynamic on axis 1: found float32\['b', 'width'\]; expected fixed sizes .* Fix it: width=SIZE",
    ):
        declare(data, "m.onnx", {"s": "n"})
    step = declare(data, "m.onnx", {"s": "n"}, fix={"width": 7})
    assert step.signature.state("s").shape == ("N", 7)
    assert declare(data, "m.onnx", {"s": "n"}, fix={"width": 7, "b": 2}).signature.stream_axis == 2


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ({}, {}, "m.onnx: no state declared: expected pairs INPUT=OUTPUT of inputs x, s and outputs y, n"),
        ({"h": "n"}, {}, "m.onnx: no such input: found h; expected one of x, s"),
        ({"s": "h"}, {}, "m.onnx: no such output: found h; expected one of y, n"),
        ({"x": "y", "s": "n"}, {}, "m.onnx: a Signature without inputs: expected at least one"),
        ({"s": "n"}, {"names": {"x": "sum"}}, "m.onnx: no such input of a state: found x; expected one of s"),
        (
            {"s": "n"},
            {"fix": {"time": 3}},
            "m.onnx: no such dynamic dimension: found time; expected one of batch",
        ),
        ({"s": "n"}, {"fix": {"batch": 0}}, "m.onnx: dimension 'batch': found 0; expected at least 1"),
    ],
)
def test_declarations_that_are_refused(pairs: dict[str, str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeLstmError) as caught:
        declare(FREE, "m.onnx", pairs, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("data", "pairs", "message"),
    [
        (b"not a model", {"s": "n"}, "m.onnx is not an ONNX file, or is truncated"),
        (FREE[:40], {"s": "n"}, "m.onnx is not an ONNX file, or is truncated"),
        (
            graph("float[1, 3] x, float[1, 4] s", "float[1, 3] n", "n = Neg (x)"),
            {"s": "n"},
            "m.onnx: output 'n' can't feed state input 's': found float32[1, 3]; expected float32[1, 4], as the input",
        ),
        (
            graph("float[1, 3] x, double[1, 3] s", "float[1, 3] n", "n = Neg (x)"),
            {"s": "n"},
            "m.onnx: output 'n' can't feed state input 's': found float32[1, 3]; expected float64[1, 3], as the input",
        ),
        (
            graph("float[1, 3] x, float s", "float n", "n = Neg (s)"),
            {"s": "n"},
            "m.onnx: 's' has no stream axis: found a scalar; expected a tensor whose axis 0 is the stream",
        ),
        (
            graph("float[1, 3] x, float[2, 3] s", "float[2, 3] n", "n = Neg (s)"),
            {"s": "n"},
            "m.onnx: tensors of one Signature differ in their stream axis (axis 0)",
        ),
        (
            graph("seq(float[1, 3]) x, float[1, 3] s", "float[1, 3] n", "n = Neg (s)"),
            {"s": "n"},
            "m.onnx: 'x': found sequence_type; expected a tensor",
        ),
        (
            graph("uint32[1, 3] x, float[1, 3] s", "float[1, 3] n", "n = Neg (s)"),
            {"s": "n"},
            "m.onnx: dtype of 'x': found uint32; expected one of float32",
        ),
    ],
)
def test_graphs_that_are_refused(data: bytes, pairs: dict[str, str], message: str) -> None:
    with pytest.raises(EdgeLstmError) as caught:
        declare(data, "m.onnx", pairs)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("file", "frame", "state", "shapes"),
    [
        ("model_1.onnx", "input_2", ("input_3", "tf_op_layer_stack_2"), ((1, 1, 257), (1, 2, 128, 2))),
        ("model_2.onnx", "input_4", ("input_5", "tf_op_layer_stack_5"), ((1, 1, 512), (1, 2, 128, 2))),
    ],
)
def test_a_published_speech_model(
    shared_dir: Path, file: str, frame: str, state: tuple[str, str], shapes: Sequence[tuple[int, ...]]
) -> None:
    """DTLN's streaming graphs: one fixed stream, outputs declared with a free axis 0."""
    ort = pytest.importorskip("onnxruntime")
    path = shared_dir / "models" / "dtln" / file
    if not path.exists():
        pytest.skip(f"the DTLN model is not here: {file}")
    data = path.read_bytes()
    step = declare(data, file, dict([state]))
    assert [t.name for t in step.signature.inputs] == [frame]
    assert (step.signature.inputs[0].shape, step.signature.states[0].shape) == tuple(shapes)

    rng = np.random.default_rng(0)
    sessions = [ort.InferenceSession(d, providers=["CPUExecutionProvider"]) for d in (data, step.to_bytes())]
    states = [np.zeros(shapes[1], np.float32)] * 2
    for _ in range(5):
        x = rng.standard_normal(shapes[0], np.float32)
        found = []
        for n, session in enumerate(sessions):
            y, states[n] = session.run(
                [step.signature.outputs[0].name, state[1]], {frame: x, state[0]: states[n]}
            )
            found.append(y)
        np.testing.assert_array_equal(*found)
