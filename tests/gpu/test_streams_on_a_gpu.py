"""On a real GPU, beside the contract suite (which runs on it too: ``pytest tests/gpu tests/contract``)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import zoo
from contract.backends import BACKENDS, backend, built_engine, no_gpu
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.quantize.precision import to_half
from edgelstm.runtime import Runner
from edgelstm.runtime.onnxruntime import OrtProgram
from tolerances import assert_close

pytestmark = pytest.mark.skipif(no_gpu() is not None, reason=no_gpu() or "a GPU is here")

ON_GPU = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
ENGINES = ("tensorrt", "tensorrt-rtx")
MODELS: dict[str, Callable[[], StepModel]] = {
    "lstm": lambda: zoo.lstm(16, (64, 64), head=16),
    "conv_lstm": lambda: zoo.conv_lstm(4, 16, 32),
}


def frames(step: StepModel, count: int) -> list[np.ndarray]:
    shape = step.signature.inputs[0].frame_shape
    return list(np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32))


def need(name: str) -> None:
    if reason := BACKENDS[name][1]():
        pytest.skip(reason)


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("name", ON_GPU)
def test_a_long_stream_equals_the_cpu(name: str, model: str, caplog: pytest.LogCaptureFixture) -> None:
    """1,000 frames: what is wrong in a state would have grown by then."""
    step = MODELS[model]()
    with backend(name) as open_program, Runner(OrtProgram(step.to_bytes())) as cpu:
        runner = Runner(open_program(step, 2))
        stream, other, reference = runner.stream("a"), runner.stream("b"), cpu.stream("a")
        output = step.signature.outputs[0].name
        for k, frame in enumerate(frames(step, 1000)):
            expected = reference.step(frame)[output]
            both = {"a": frame, "b": frame} if k % 7 == 0 else {"a": frame}
            assert_close(runner.step(both)["a"][output], expected, np.float32, k=1024)
        assert other.frames == 143
        assert stream.frames == 1000
    assert "no CUDA graphs" not in caplog.text


@pytest.mark.parametrize("name", ENGINES)
def test_a_stream_moves_between_backends_and_precisions(name: str) -> None:
    """From float32 on the CPU to a float16 engine, and back; the stream goes on."""
    need(name)
    step = MODELS["lstm"]()
    plan = built_engine(to_half(step, "fp16").to_bytes(), name)
    given = frames(step, 60)
    with Runner(OrtProgram(step.to_bytes())) as cpu, Runner.open(plan) as gpu:
        there, here = cpu.stream("a"), gpu.stream("a")
        for frame in given[:20]:
            there.step(frame)
        here.restore(there.snapshot(), any_model=True)
        for frame in given[20:40]:
            np.testing.assert_allclose(here.step(frame)["y"], there.step(frame)["y"], rtol=2e-2, atol=2e-2)
        there.restore(here.snapshot(), any_model=True)
        for frame in given[40:]:
            np.testing.assert_allclose(there.step(frame)["y"], here.step(frame)["y"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ENGINES)
def test_tensors_of_torch_go_in_and_out(name: str, tmp_path: Path) -> None:
    need(name)
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs PyTorch for GPUs")
    step = MODELS["conv_lstm"]()
    plan = built_engine(step.to_bytes(), name)
    with (
        Runner(OrtProgram(step.to_bytes())) as cpu,
        Runner.open(plan, outputs="device", on_bad_frame="pass") as gpu,
    ):
        for k, frame in enumerate(frames(step, 50)):
            expected = cpu.stream("a").step(frame)["h_next"]
            tensor = torch.from_numpy(frame).cuda() * 1  # on the way, on the default stream
            y = gpu.stream("a").step(tensor)["h_next"]
            seen = torch.from_dlpack(y) if k % 2 else torch.as_tensor(y, device="cuda")
            assert seen.is_cuda
            assert_close(seen.cpu().numpy(), expected, np.float32, k=1024)


@pytest.mark.parametrize("name", ENGINES)
def test_the_command_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(name)
    from typer.testing import CliRunner

    from edgelstm.cli import app

    step = MODELS["conv_lstm"]()
    plan = built_engine(step.to_bytes(), name)
    monkeypatch.chdir(tmp_path)
    np.save("frames.npy", np.stack(frames(step, 10)))
    for arguments in (["--device", "cuda"], []):
        result = CliRunner().invoke(app, ["run", str(plan), *arguments, "--source", "frames.npy"])
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ENGINES)
def test_more_than_the_memory_holds(name: str, caplog: pytest.LogCaptureFixture) -> None:
    need(name)
    from dataclasses import replace

    from edgelstm.runtime.sidecar import load_sidecar
    from edgelstm.runtime.tensorrt import TensorRtProgram

    step = MODELS["conv_lstm"]()
    plan = built_engine(step.to_bytes(), name)
    sidecar = load_sidecar(plan)
    with caplog.at_level(logging.ERROR), pytest.MonkeyPatch.context() as patch:
        import edgelstm.runtime.tensorrt as module

        # As if it had been built for so many streams.
        most = 10_000_000
        patch.setattr(module, "load_sidecar", lambda _: replace(sidecar, streams=(1, 1, most)))
        with pytest.raises(EdgeLstmError, match=r"is too small: found .* free; expected"):
            TensorRtProgram(plan, streams=most)
