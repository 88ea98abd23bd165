"""The TensorRT backend beyond the contract, on stand-ins for driver and TensorRT: graphs, bounds, and each thing refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.quantize.precision import to_half
from edgelstm.runtime import Runner, device_memory, open_program
from edgelstm.runtime.tensorrt import TensorRtProgram
from standins import cuda_driver, tensorrt_module
from standins.cuda_driver import StandInDriver, stand_in_driver
from standins.plugin import stand_in_plugin
from standins.tensorrt_module import CONTEXTS, stand_in_tensorrt, write_plan

pytestmark = pytest.mark.skipif(
    cuda_driver.missing() is not None, reason=cuda_driver.missing() or "the stand-in is there"
)


@pytest.fixture
def driver() -> Iterator[StandInDriver]:
    with stand_in_driver() as driver, stand_in_tensorrt(driver):
        yield driver


def engine(folder: Path, step: StepModel, streams: tuple[int, int, int] = (1, 4, 4), **sidecar: Any) -> Path:
    write_plan(step, folder / "model.plan", streams, **sidecar)
    step.save(folder / "model.onnx")
    return folder / "model.plan"


def x(rng: np.random.Generator, size: int = 3) -> np.ndarray:
    return rng.normal(size=size).astype(np.float32)


def test_a_long_stream_equals_the_cpu_and_frees_what_it_takes(
    driver: StandInDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two graphs, one for each side, are all that a stream needs; nothing grows while it runs."""
    plan = engine(tmp_path, zoo.lstm())
    rng = np.random.default_rng(0)
    with Runner.open(plan) as runner, Runner.open(tmp_path / "model.onnx", threads=1) as cpu:
        stream, reference = runner.stream("a"), cpu.stream("a")
        live = []
        for _ in range(300):
            frame = x(rng)
            np.testing.assert_array_equal(stream.step(frame)["y"], reference.step(frame)["y"])
            live.append(driver.live())
        assert len(set(live)) == 1, "what the steps need was made before the first"
        assert len(CONTEXTS) == 3, "one for the graph of each side, and the shared one"
    assert not caplog.records


def test_where_capturing_fails_the_stream_goes_on(
    driver: StandInDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = tensorrt_module.Context.execute_async_v3

    def refuses(context: tensorrt_module.Context, stream: int) -> bool:
        if driver.is_capturing(stream):
            context.log(tensorrt_module.ILogger.Severity.ERROR, "a loop can't be captured")
            return False
        return real(context, stream)

    monkeypatch.setattr(tensorrt_module.Context, "execute_async_v3", refuses)
    plan = engine(tmp_path, zoo.lstm())
    rng = np.random.default_rng(0)
    with Runner.open(plan) as runner, Runner.open(tmp_path / "model.onnx", threads=1) as cpu:
        for _ in range(10):
            frame = x(rng)
            expected = cpu.stream("a").step(frame)["y"]
            np.testing.assert_array_equal(runner.stream("a").step(frame)["y"], expected)
    told = [r.getMessage() for r in caplog.records if "no CUDA graphs" in r.getMessage()]
    assert len(told) == 1
    assert "a loop can't be captured" in told[0]


def test_graphs_are_few_however_many_streams_come_and_go(
    driver: StandInDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_memory, "MAX_GRAPHS", 3)
    monkeypatch.setattr(device_memory, "IDLE_STEPS", 4)
    step = zoo.lstm(32, (64,), head=64)  # rows of 128 and 256 bytes: runs begin at every second row
    plan = engine(tmp_path, step, (1, 9, 9))
    rng = np.random.default_rng(0)
    with Runner.open(plan, streams=9) as runner, Runner.open(tmp_path / "model.onnx", streams=9) as cpu:
        start = driver.live()
        for k in range(200):
            names = [str(j) for j in range(9) if rng.random() < (0.3, 0.6, 1)[k // 5 % 3]] or ["0"]
            for r in (runner, cpu):
                for name in names:
                    r.stream(name)
            frames = {name: x(rng, 32) for name in names}
            got, expected = runner.step(frames), cpu.step(frames)
            for name in names:
                np.testing.assert_allclose(got[name]["y"], expected[name]["y"], rtol=1e-5, atol=1e-6)
            # Scratch to gather in (8 buffers), graphs, and nothing else.
            assert driver.live() <= start + 3 + 8
            assert len(CONTEXTS) <= 1 + 3


@pytest.mark.parametrize("streams", [(4, 4, 4), (3, 4, 8), (1, 1, 1)])
@pytest.mark.parametrize("places", [1, 2, 6])
@pytest.mark.parametrize("width", [3, 32, 64])
def test_engines_of_other_sizes_than_asked_for(
    driver: StandInDriver, tmp_path: Path, width: int, streams: tuple[int, int, int], places: int
) -> None:
    """One that takes at least four rows serves one stream; one that takes one row serves six, one by one.

    Rows of 12, 128 and 256 bytes: runs begin at row 0 only, at every second row, anywhere.
    """
    if 1 < streams[2] < places:
        places = streams[2]
    plan = engine(tmp_path, zoo.lstm(width, (width,), head=width), streams)
    rng = np.random.default_rng(0)
    with (
        Runner.open(plan, streams=places) as runner,
        Runner.open(tmp_path / "model.onnx", streams=places) as cpu,
    ):
        for r in (runner, cpu):
            for j in range(places):
                r.stream(str(j))
        for k in range(18):
            frames = {str(j): x(rng, width) for j in range(k % places, places)}
            got, expected = runner.step(frames), cpu.step(frames)
            for name in frames:
                np.testing.assert_allclose(got[name]["y"], expected[name]["y"], rtol=1e-5, atol=1e-6)


def test_each_number_of_streams_has_the_profile_tuned_for_it(driver: StandInDriver, tmp_path: Path) -> None:
    options = {"profiles": [[1, 1, 1], [2, 4, 4], [5, 8, 8]]}
    plan = engine(tmp_path, zoo.lstm(64, (64,), head=64), (1, 4, 8), options=options)
    rng = np.random.default_rng(0)
    with Runner.open(plan, streams=8) as runner, Runner.open(tmp_path / "model.onnx", streams=8) as cpu:
        for k in range(60):
            for r in (runner, cpu):
                for j in range(k % 8 + 1):
                    r.stream(str(j))
            frames = {str(j): x(rng, 64) for j in range(k % 8 + 1)}
            got, expected = runner.step(frames), cpu.step(frames)
            for name in frames:
                np.testing.assert_allclose(got[name]["y"], expected[name]["y"], rtol=1e-5, atol=1e-6)
        assert {c.active_optimization_profile for c in CONTEXTS} == {0, 1, 2}


@pytest.mark.parametrize("in_place", [True, False, None])
def test_idle_streams_lie_in_a_call_where_the_plugin_writes_over_nothing(
    driver: StandInDriver, tmp_path: Path, in_place: bool | None
) -> None:
    options = {} if in_place is None else {"in_place": in_place}
    plan = engine(tmp_path, zoo.lstm(), gates="plugin", options=options)
    with stand_in_plugin(tmp_path):
        program = TensorRtProgram(plan)
    assert program._size.overwrites == (in_place is not False)
    program.close()


def test_an_engine_of_another_name_is_refused(
    driver: StandInDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the plan's bytes do not tell, the opened engine does."""
    plan = engine(tmp_path, zoo.lstm())
    real = tensorrt_module.Engine.__init__

    def renamed(self: Any, *arguments: Any) -> None:
        real(self, *arguments)
        self.name = "edgelstm-0"

    monkeypatch.setattr(tensorrt_module.Engine, "__init__", renamed)
    with pytest.raises(
        EdgeLstmError, match="is not the plan that its sidecar tells of: found engine edgelstm-0"
    ):
        open_program(plan)


def test_a_program_that_nobody_closes_gives_its_memory_back(driver: StandInDriver, tmp_path: Path) -> None:
    import gc

    plan = engine(tmp_path, zoo.lstm())
    start = driver.live()
    y = Runner.open(plan).stream("a").step(np.zeros(3, np.float32))["y"]
    with pytest.warns(ResourceWarning, match="was never closed; it is closed now"):
        gc.collect()
    assert driver.live() == start
    assert not CONTEXTS
    assert np.isfinite(y).all(), "an output outlives its program"
    runner = Runner.open(plan, outputs="device")
    y = runner.stream("a").step(np.zeros(3, np.float32))["y"]
    memory = runner._program._memory  # type: ignore[attr-defined]
    del runner
    with pytest.warns(ResourceWarning, match="stays taken, since its outputs lie there"):
        gc.collect()
    assert np.isfinite(y.copy()).all(), "what may be shared with others is not taken away"
    memory.close()


def test_a_stream_moves_between_backends_and_precisions(driver: StandInDriver, tmp_path: Path) -> None:
    """A snapshot of the float32 graph on the CPU goes on in a float16 engine, and back."""
    step = zoo.lstm()
    plan = engine(tmp_path, to_half(step, "fp16"), precision=("fp16",))
    step.save(tmp_path / "float.onnx")
    rng = np.random.default_rng(0)
    with Runner.open(tmp_path / "float.onnx") as cpu, Runner.open(plan) as runner:
        there, here = cpu.stream("a"), runner.stream("b")
        for _ in range(20):
            there.step(x(rng))
        here.restore(there.snapshot(), any_model=True)
        assert here.snapshot()["z9_h"].dtype == np.float16
        for _ in range(20):
            frame = x(rng)
            expected = there.step(frame)["y"]
            np.testing.assert_allclose(here.step(frame)["y"], expected, rtol=5e-3, atol=5e-3)
        there.restore(here.snapshot(), any_model=True)
        frame = x(rng)
        np.testing.assert_allclose(there.step(frame)["y"], here.step(frame)["y"], rtol=5e-3, atol=5e-3)


def test_a_failure_of_the_gpu_is_told_and_everything_is_freed(driver: StandInDriver, tmp_path: Path) -> None:
    with Runner.open(engine(tmp_path, zoo.lstm())) as runner:
        stream = runner.stream("a")
        stream.step(np.zeros(3, np.float32))
        driver.fail()
        with pytest.raises(EdgeLstmError, match="the GPU failed: found CUDA_ERROR_LAUNCH_FAILED"):
            stream.step(np.zeros(3, np.float32))


def test_an_output_outlives_the_program(driver: StandInDriver, tmp_path: Path) -> None:
    with Runner.open(engine(tmp_path, zoo.lstm())) as runner:
        y = runner.stream("a").step(np.zeros(3, np.float32))["y"]
        kept = y.copy()
    np.testing.assert_array_equal(y, kept)


def test_the_command_line_runs_and_verifies_an_engine(
    driver: StandInDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from edgelstm.cli import app

    monkeypatch.chdir(tmp_path)
    plan = engine(tmp_path, zoo.conv_lstm())
    frames = np.random.default_rng(0).normal(size=(12, 2, 5, 5)).astype(np.float32)
    np.save("frames.npy", frames)
    outputs = {}
    for arguments in ([str(plan), "--device", "cuda"], [str(plan)], ["model.onnx"]):
        result = CliRunner().invoke(app, ["run", *arguments, "--source", "frames.npy", "--out", "out.npz"])
        assert result.exit_code == 0, result.output
        with np.load("out.npz") as got:
            outputs[" ".join(arguments)] = got["h_next"]
    plain = outputs["model.onnx"]
    assert plain.shape[0] == 12
    for got in outputs.values():
        np.testing.assert_array_equal(got, plain)
    result = CliRunner().invoke(app, ["verify", "model.onnx", str(plan), "--source", "frames.npy"])
    assert result.exit_code == 0, result.output


# ---- what is refused ----


def other_gpu(folder: Path) -> Path:
    return engine(folder, zoo.lstm(), targets=("8.7",), gpu="Orin")


def not_a_plan(folder: Path) -> Path:
    plan = engine(folder, zoo.lstm())
    plan.write_bytes(plan.read_bytes().replace(b"stand-in", b"some-one"))
    return plan


def without_sidecar(folder: Path) -> Path:
    plan = engine(folder, zoo.lstm())
    (folder / "model.plan.json").unlink()
    return plan


REFUSED: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "no sidecar": (without_sidecar, {}, r"model\.plan has no sidecar"),
    "no plan": (lambda folder: folder / "none.plan", {}, r"none\.plan does not exist"),
    "version": (
        lambda folder: engine(folder, zoo.lstm(), version="10.3.0.26"),
        {},
        r"built by another version of TensorRT: found 10\.13\.0\.35; expected TensorRT 10\.3\.0\.26",
    ),
    "older than it was made for": (
        lambda folder: engine(folder, zoo.lstm(), version="10.14.1", options={"version_compatible": True}),
        {},
        r"expected TensorRT 10\.14\.1 or later",
    ),
    "gpu": (
        other_gpu,
        {},
        r"built for another GPU: found stand-in, no GPU \(compute capability 8\.6\); expected compute "
        r"capability 8\.7 on Orin\. Build the engine again",
    ),
    "precision": (
        lambda folder: engine(folder, zoo.lstm(), precision=("fp16", "fp8")),
        {},
        r"multiplies in fp8, which this GPU does not have: .*expected compute capability 8\.9 or later",
    ),
    "streams": (
        lambda folder: engine(folder, zoo.lstm()),
        {"streams": 5},
        r"built for at most 4 streams: found streams=5.*build-engine --streams 5",
    ),
    "fixed streams": (
        lambda folder: engine(folder, zoo.lstm(axis=2), (2, 2, 2)),
        {"streams": 3},
        r"takes 2 streams in every call: found streams=3; expected streams=2",
    ),
    "no streams": (lambda folder: engine(folder, zoo.lstm()), {"streams": 0}, "streams: found 0"),
    "not a plan": (
        not_a_plan,
        {},
        r"TensorRT 10\.13\.0\.35 can't open .*model\.plan: found the plan's magic tag does not match\. Build",
    ),
    "no such gpu": (
        lambda folder: engine(folder, zoo.lstm()),
        {"device": "cuda:2"},
        r"device cuda:2: found 1 GPU: stand-in, no GPU; expected cuda:0",
    ),
    "on the cpu": (
        lambda folder: engine(folder, zoo.lstm()),
        {"device": "cpu"},
        r"model\.plan is an engine for a GPU: found device cpu; expected cuda or cuda:N",
    ),
    "device": (
        lambda folder: engine(folder, zoo.lstm()),
        {"device": "gpu"},
        r"device: found gpu; expected cpu, cuda or cuda:N",
    ),
    "threads": (
        lambda folder: engine(folder, zoo.lstm()),
        {"threads": 2},
        r"threads for .*model\.plan: found 2; expected none: a GPU",
    ),
    "outputs": (
        lambda folder: engine(folder, zoo.lstm()),
        {"outputs": "gpu"},
        "outputs: found gpu; expected host or device",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_refused(driver: StandInDriver, tmp_path: Path, case: str) -> None:
    """Whatever is refused leaves nothing on the GPU: the stand-in counts."""
    make, options, message = REFUSED[case]
    with pytest.raises(EdgeLstmError, match=message):
        open_program(make(tmp_path), **options)


def test_an_engine_with_other_tensors_than_its_sidecar(driver: StandInDriver, tmp_path: Path) -> None:
    plan = engine(tmp_path, zoo.lstm())
    for step, message in (
        (
            zoo.lstm(hidden=(4, 6)),
            r"tensor 'z8_h' of the engine and its sidecar disagree: found float32\[-1, 6\]; expected float32",
        ),
        (
            zoo.running_sum(),
            r"the engine's tensors and its sidecar disagree: found engine \['s', 's_next', 'x', 'y'\]",
        ),
    ):
        folder = tmp_path / step.signature.states[0].name
        folder.mkdir(exist_ok=True)
        other = engine(folder, step)
        # What stands in the plan is the other's, the sidecar is ours: only someone who edits both gets that far.
        told = plan.read_bytes().split(b"\n")[1]
        _, _, model = other.read_bytes().split(b"\n", 2)
        forged = tensorrt_module.HEAD + told + b"\n" + model
        sidecar = Path(f"{plan}.json").read_text()
        other.write_bytes(forged)
        Path(f"{other}.json").write_text(
            sidecar.replace(f'"plan_bytes": {plan.stat().st_size}', f'"plan_bytes": {len(forged)}')
        )
        with pytest.raises(EdgeLstmError, match=message):
            open_program(other)


def test_a_plan_for_later_versions_and_gpus_opens_there(driver: StandInDriver, tmp_path: Path) -> None:
    options = {"version_compatible": True, "hardware_compatible": True}
    plan = engine(tmp_path, zoo.lstm(), version="10.3.0", targets=("8.0",), options=options)
    with Runner.open(plan) as runner:
        runner.stream("a").step(np.zeros(3, np.float32))


def test_memory_that_is_too_small_says_how_much_is_needed(tmp_path: Path) -> None:
    step = zoo.conv_lstm(2, 64, 32)  # 64 * 32 * 32 numbers in each of two states
    plan = engine(tmp_path, step, (1, 40, 40))
    with stand_in_driver(memory=32 * 2**20) as driver, stand_in_tensorrt(driver):
        with Runner.open(plan) as runner:
            runner.stream("a").step(np.zeros((2, 32, 32), np.float32))
        message = (
            r"the memory of stand-in, no GPU is too small: found 32\.0 MiB free; expected \d+\.\d MiB: .* "
            r"engine \(its file's size\), 50\.3 MiB states and buffers\. Use fewer streams"
        )
        with pytest.raises(EdgeLstmError, match=message):
            open_program(plan, streams=40)


def test_without_tensorrt_a_gpu_or_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    plan = engine(tmp_path, zoo.lstm())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        EdgeLstmError, match=r"TensorRT is not installed\. pip install 'edgelstm\[tensorrt\]'"
    ):
        open_program(plan)
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "tensorrt").mkdir()  # not the one that is meant
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EdgeLstmError, match="TensorRT is not installed"):
        open_program(plan)
    monkeypatch.delitem(sys.modules, "tensorrt")
    with ExitStack() as stack:
        with stand_in_driver() as driver:
            stack.enter_context(stand_in_tensorrt(driver))
        with pytest.raises(EdgeLstmError, match="there is no NVIDIA GPU here"):  # the stand-in is gone
            open_program(plan)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with stand_in_driver() as driver, stand_in_tensorrt(driver):
        with pytest.raises(EdgeLstmError, match="needs cuda-bindings, which is not installed"):
            open_program(plan)
        monkeypatch.delitem(sys.modules, "cuda.bindings")
        plan = engine(tmp_path, zoo.lstm(), gates="plugin")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.delenv("EDGELSTM_PLUGIN_LIBRARY", raising=False)
        with pytest.raises(EdgeLstmError, match="the FusedGates plugin's library is not here"):
            open_program(plan)
        with (
            stand_in_plugin(tmp_path, tensorrt="8.6.0"),
            pytest.raises(EdgeLstmError, match="was built for another TensorRT"),
        ):
            open_program(plan)


def test_a_plugin_is_loaded_before_the_plan(
    driver: StandInDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    plan = engine(tmp_path, zoo.lstm(), gates="plugin", overwrites=True)
    with stand_in_plugin(tmp_path) as library, caplog.at_level(logging.WARNING):
        program = TensorRtProgram(plan)
        program.close()
        assert sys.modules["tensorrt"].loaded == [str(library)]
    assert "is not the plugin library the engine was built with" in caplog.text


def test_closing_frees_the_engine_whoever_keeps_the_state(driver: StandInDriver, tmp_path: Path) -> None:
    program = TensorRtProgram(engine(tmp_path, zoo.lstm()))
    state = program.new_state()
    for _ in range(4):
        program.step([{"x": np.zeros(3, np.float32)}], state, [0])
    assert len(CONTEXTS) == 3, "one for each side, and the shared one"
    program.close()
    assert not CONTEXTS
    with pytest.raises(EdgeLstmError, match="this program is closed"):
        program.step([{"x": np.zeros(3, np.float32)}], state, [0])


def test_opening_and_closing_many_times_leaves_nothing(driver: StandInDriver, tmp_path: Path) -> None:
    plan = engine(tmp_path, zoo.lstm())
    start = driver.live()
    for _ in range(5):
        with Runner.open(plan, streams=2) as runner:
            for _ in range(3):
                runner.step({"a": np.zeros(3, np.float32)} if "a" in runner.streams else {})
                runner.stream("a")
        assert driver.live() == start
