"""StepModel files: they hold graph and Signature, agree with them, and old ones load for ever."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import StateSpec, TensorSpec
from edgelstm.graph.step import METADATA_KEY, StepModel
from edgelstm.runtime.onnxruntime import OrtProgram

GOLDEN = Path(__file__).parents[1] / "golden" / "step-schema-1.onnx"


def test_round_trip(tmp_path: Path) -> None:
    step = zoo.conv_lstm()
    step.save(tmp_path / "m.onnx")
    again = StepModel.load(tmp_path / "m.onnx")
    assert again.signature == step.signature
    assert again.op_types() == ["Concat", "Conv", "FusedGates_peephole"]
    assert again.to_bytes() == step.to_bytes() == (tmp_path / "m.onnx").read_bytes()
    onnx.checker.check_model(tmp_path / "m.onnx")


def test_the_golden_file_loads_and_computes_what_it_did() -> None:
    """Written by version 0.1.0; it must load for ever."""
    step = StepModel.load(GOLDEN)
    assert [s.name for s in step.signature.states] == ["z9_h", "a0_c", "z8_h", "a1_c"]
    program = OrtProgram(GOLDEN, threads=1)
    state = program.new_state()
    for n in range(3):
        y = program.step([{"x": np.array([0.1, -0.2, 0.3], np.float32) * n}], state, [0])[0]["y"]
    np.testing.assert_allclose(y, EXPECTED, rtol=1e-5)


EXPECTED = [0.030927054584026337, -0.012892651371657848]


def test_saving_checks_first(tmp_path: Path) -> None:
    step = zoo.lstm()
    wrong = replace(step, signature=replace(step.signature, outputs=(TensorSpec("q", "float32", ("N", 2)),)))
    with pytest.raises(
        EdgeLstmError, match=r"the graph's outputs and its Signature disagree: found graph y, "
    ):
        wrong.save(tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_shape_and_dtype_must_agree() -> None:
    step = zoo.lstm()
    first = step.signature.states[0]
    longer = StateSpec(first.name, first.input, first.output, first.dtype, ("N", 9))
    wrong = replace(step.signature, states=(longer, *step.signature.states[1:]))
    with pytest.raises(
        EdgeLstmError, match=r"tensor 'z9_h' .* found float32\['N', 4\]; expected float32\['N', 9\]"
    ):
        StepModel(step.model, wrong).check()
    double = replace(step.signature, inputs=(TensorSpec("x", "float64", ("N", 3)),))
    with pytest.raises(EdgeLstmError, match=r"tensor 'x' .* found float32\['N', 3\]; expected float64"):
        StepModel(step.model, double).check()


def test_a_graph_that_is_no_valid_onnx() -> None:
    model = zoo.lstm().copy_model()
    model.graph.node[1].input[0] = "nowhere"
    with pytest.raises(EdgeLstmError, match=r"m\.onnx: not valid ONNX"):
        StepModel(model, zoo.lstm().signature).check("m.onnx")


def test_without_a_signature_the_message_says_how_to_declare_one() -> None:
    model = zoo.lstm().copy_model()
    with pytest.raises(
        EdgeLstmError, match=r"m\.onnx has no Signature.*inputs x, z9_h, a0_c.*--state INPUT=OUTPUT"
    ):
        StepModel.from_bytes(model.SerializeToString(), "m.onnx")


def test_weights_in_another_file_are_refused() -> None:
    model = zoo.lstm().copy_model()
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(EdgeLstmError, match="keeps its weights in another file"):
        StepModel.from_bytes(model.SerializeToString(), "m.onnx")


def test_the_signature_lies_in_the_metadata_any_runtime_shows() -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(zoo.lstm().to_bytes())
    assert session.get_modelmeta().custom_metadata_map[METADATA_KEY] == zoo.lstm().signature.dumps()


BYTES = zoo.lstm().to_bytes()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_read(data: st.DataObject) -> None:
    """Cut or changed bytes: an EdgeLstmError or a model, never anything else."""
    damaged = bytearray(BYTES[: data.draw(st.integers(0, len(BYTES)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(EdgeLstmError):
        StepModel.from_bytes(bytes(damaged), "m.onnx")


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(EdgeLstmError, match=r"none\.onnx does not exist"):
        StepModel.load(tmp_path / "none.onnx")
    with pytest.raises(EdgeLstmError, match="found a folder; expected a file"):
        StepModel.load(tmp_path)
    with pytest.raises(EdgeLstmError, match=r"can't write .*: found No such file or directory"):
        zoo.lstm().save(tmp_path / "none" / "m.onnx")
