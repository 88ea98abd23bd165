"""`edgelstm lower`: what it writes is read by runtimes that know nothing of FusedGates, and gives the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from onnx.reference import ReferenceEvaluator

import edgelstm
import zoo
from command_line import Run
from edgelstm.errors import EdgeLstmError
from stepping import Stepper, some_frames
from tolerances import assert_close

Values = dict[str, npt.NDArray[np.float32]]
STEPS = {"lstm": zoo.lstm, "conv_lstm": zoo.conv_lstm}


def reference_evaluator(path: Path, feeds: Values) -> Values:
    evaluator = ReferenceEvaluator(str(path))
    return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


def openvino(path: Path, feeds: Values) -> Values:
    ov = pytest.importorskip("openvino")
    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(feeds)
    return {port.any_name: found[port] for port in compiled.outputs}


def tract(path: Path, feeds: Values) -> Values:
    tract = pytest.importorskip("tract")
    model = tract.onnx().load(str(path))
    names = [model.input_name(k) for k in range(model.input_count())]
    for k, name in enumerate(names):
        model.set_input_fact(k, ",".join(map(str, feeds[name].shape)) + ",f32")
    outputs = [model.output_name(k) for k in range(model.output_count())]
    found = model.into_model().into_runnable().run([feeds[name] for name in names])
    return dict(zip(outputs, (value.to_numpy() for value in found), strict=True))


@pytest.mark.parametrize("runtime", [reference_evaluator, openvino, tract])
@pytest.mark.parametrize("name", STEPS)
def test_other_runtimes_stream_it(name: str, runtime: object, tmp_path: Path) -> None:
    step = STEPS[name]()
    path = tmp_path / "plain.onnx"
    assert not [o for o in edgelstm.lower(step, path).operators if o.startswith("FusedGates")]
    ours = Stepper(step)
    states = ours.initial(1)
    for k in range(5):
        x = {n: v[:, 0] for n, v in some_frames(step, 1, 1, seed=k).items()}
        feeds = x | {s.input: states[s.name] for s in step.signature.states}
        outputs, states = ours(x, states)
        got = runtime(path, feeds)  # type: ignore[operator]
        for t in step.signature.outputs:
            assert_close(got[t.name], outputs[t.name], np.float32)
        for s in step.signature.states:
            assert_close(got[s.output], states[s.name], np.float32)


def test_it_is_still_a_step_graph_of_ours(tmp_path: Path) -> None:
    step = zoo.lstm()
    edgelstm.lower(step, tmp_path / "plain.onnx")
    assert edgelstm.StepModel.load(tmp_path / "plain.onnx").signature == step.signature
    with edgelstm.Runner.open(tmp_path / "plain.onnx") as runner:
        assert runner.stream("a").step(np.zeros(3, np.float32))


def test_export_writes_the_form_that_is_asked_for(run: Run, tmp_path: Path) -> None:
    zoo.lstm().save(tmp_path / "m.onnx")
    code, _, error = run("export", "m.onnx", "-o", "p.onnx", "--runtime", "plain", "--limit", 5)
    assert code == 0, error
    assert edgelstm.inspect(tmp_path / "p.onnx").operators.keys() >= {"Sigmoid", "Tanh"}
    code, text, error = run("lower", "m.onnx", "-o", "q.onnx", "--runtime", "openvino")
    assert (code, error) == (0, "")
    assert "Sigmoid" in text


def test_an_unknown_runtime(run: Run, tmp_path: Path) -> None:
    zoo.lstm().save(tmp_path / "m.onnx")
    code, _, error = run("lower", "m.onnx", "-o", "q.onnx", "--runtime", "tflite")
    assert code == 2
    assert "found tflite; expected onnxruntime or openvino or plain" in error
    with pytest.raises(EdgeLstmError, match=r"expected a path ending with \.onnx"):
        edgelstm.lower(zoo.lstm(), tmp_path / "m.tflite")
