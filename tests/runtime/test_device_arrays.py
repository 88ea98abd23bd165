"""Frames that are on the GPU already, and outputs that stay there, on the stand-in for the driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime import Runner
from edgelstm.runtime.cuda import Cuda
from edgelstm.runtime.device_memory import DeviceMemory
from standins import cuda_driver
from standins.cuda_driver import StandInDriver, stand_in_driver
from standins.tensorrt_module import stand_in_tensorrt, write_plan

pytestmark = pytest.mark.skipif(
    cuda_driver.missing() is not None, reason=cuda_driver.missing() or "the stand-in is there"
)


@pytest.fixture(params=[False, True], ids=["memory of its own", "shared memory"])
def driver(request: pytest.FixtureRequest) -> Iterator[StandInDriver]:
    with stand_in_driver(devices=2, integrated=request.param) as driver, stand_in_tensorrt(driver):
        yield driver


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    step = zoo.conv_lstm()
    write_plan(step, tmp_path / "model.plan", (1, 4, 4))
    step.save(tmp_path / "model.onnx")
    return tmp_path / "model.plan"


class Other:
    """Another library on the same GPU: it makes arrays, on a stream of its own, and reads them."""

    def __init__(self, index: int = 0) -> None:
        self.cuda = Cuda(index)

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        self.cuda.close()

    def array(self, values: np.ndarray, **interface: Any) -> Any:
        """Not there yet: the copy to the GPU is only on the stream."""
        with self.cuda as cuda:
            pointer = cuda.allocate(values.nbytes)
            cuda.copy(pointer, values.ctypes.data, values.nbytes)
        cai = {
            "version": 3,
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (pointer, False),
            "strides": None,
            "stream": self.cuda.stream,
        }
        return type("Array", (), {"__cuda_array_interface__": cai | interface})()

    def read(self, array: Any) -> np.ndarray:
        from cuda.core.utils import StridedMemoryView

        with self.cuda as cuda:
            view = StridedMemoryView.from_any_interface(array, stream_ptr=cuda.stream)
            values = np.empty(view.shape, view.dtype)
            cuda.copy(values.ctypes.data, view.ptr, values.nbytes)
            cuda.wait()
        return values


class OnlyDLPack:
    """Hides the CUDA array interface."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class OnlyInterface:
    """Hides DLPack."""

    def __init__(self, array: Any) -> None:
        self.__cuda_array_interface__ = array.__cuda_array_interface__


def frames(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(count, 2, 5, 5)).astype(np.float32))


def test_frames_and_outputs_that_stay_on_the_gpu(driver: StandInDriver, plan: Path) -> None:
    with (
        Other() as other,
        Runner.open(plan, on_bad_frame="pass", outputs="device") as runner,
        Runner.open(plan.with_suffix(".onnx")) as cpu,
    ):
        for k, frame in enumerate(frames(12)):
            expected = cpu.stream("a").step(frame)["h_next"]
            # On the GPU, or not: a stream may change from one to the other.
            given = frame if k % 3 == 2 else other.array(frame)
            got = runner.stream("a").step(given)["h_next"]
            assert got.shape == expected.shape
            assert got.dtype == expected.dtype
            for view in (got, OnlyDLPack(got), OnlyInterface(got)):
                np.testing.assert_array_equal(other.read(view), expected)
            np.testing.assert_array_equal(got.copy(), expected)
        kept = runner.stream("a").step(frames(1)[0], copy=True)["h_next"]
        assert isinstance(kept, np.ndarray)


def test_an_output_goes_back_in_as_a_frame(driver: StandInDriver, plan: Path, tmp_path: Path) -> None:
    """Without a way by the host: through DLPack, and as it is."""
    step = zoo.persistence(leads=1)
    write_plan(step, tmp_path / "p.plan", (1, 1, 1))
    frame = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    with Runner.open(tmp_path / "p.plan", on_bad_frame="pass", outputs="device") as runner:
        stream = runner.stream("a")
        first = stream.step(frame)["forecast"]
        from edgelstm.runtime.device_array import DeviceArray

        again = DeviceArray(first._cuda, first.pointer, (1, 4, 4), first.dtype)
        for given in (again, OnlyDLPack(again), OnlyInterface(again)):
            np.testing.assert_array_equal(stream.step(given)["forecast"].copy()[0], frame)


def test_some_streams_on_the_gpu_and_some_not(driver: StandInDriver, plan: Path) -> None:
    with (
        Other() as other,
        Runner.open(plan, streams=3, on_bad_frame="pass") as runner,
        Runner.open(plan.with_suffix(".onnx"), streams=3) as cpu,
    ):
        for r in (runner, cpu):
            for name in "abc":
                r.stream(name)
        for k in range(10):
            given = dict(zip("abc", frames(3), strict=True))
            expected = cpu.step(given)
            mixed = {n: other.array(f) if (k + j) % 3 else f for j, (n, f) in enumerate(given.items())}
            got = runner.step(mixed)
            for name in "abc":
                np.testing.assert_allclose(
                    got[name]["h_next"], expected[name]["h_next"], rtol=1e-5, atol=1e-6
                )


def test_one_array_of_all_frames_on_the_gpu(driver: StandInDriver, plan: Path) -> None:
    """One import and one copy, however many streams; also when a gap was left, and in turns with arrays of the host."""
    with (
        Other() as other,
        Runner.open(plan, streams=4, on_bad_frame="pass", outputs="device") as runner,
        Runner.open(plan.with_suffix(".onnx"), streams=4) as cpu,
    ):
        for k in range(16):
            for r in (runner, cpu):
                for name in "abcd" if k < 10 else "bcd":
                    r.stream(name)
                if k == 10:
                    r.stream("a").close()
                if k == 12:
                    r.stream("e")  # where a was: not in the order of rows
            batch = np.stack(frames(len(cpu.streams)))
            expected = cpu.step(dict(zip(cpu.streams, batch, strict=True)))
            got = runner.step_all(batch if k % 4 == 3 else other.array(batch))["h_next"]
            np.testing.assert_allclose(
                got.copy(), np.stack([expected[n]["h_next"] for n in cpu.streams]), rtol=1e-5, atol=1e-6
            )
        with pytest.raises(
            EdgeLstmError, match=r"frames of all streams.*found float32\[1, 2, 5, 5\]; expected"
        ):
            runner.step_all(other.array(batch[:1]))
    with Other() as other, Runner.open(plan) as runner:
        runner.stream("a")
        with pytest.raises(EdgeLstmError, match="not looked at for NaN"):
            runner.step_all(other.array(batch[:1]))


def test_states_written_do_not_touch_an_output(driver: StandInDriver, plan: Path) -> None:
    with Runner.open(plan, outputs="device") as runner:
        stream = runner.stream("a")
        y = stream.step(frames(1)[0])["h_next"]
        before = y.copy()
        stream.reset()
        np.testing.assert_array_equal(y.copy(), before)


def test_the_next_step_waits_for_whoever_reads_on_another_stream(driver: StandInDriver, plan: Path) -> None:
    """A reader whose stream waits for nothing of ours: without ``used_on`` the step after next writes under its hands."""
    with Other() as other, Runner.open(plan, on_bad_frame="pass", outputs="device") as runner:
        stream, given = runner.stream("a"), frames(6)
        late = np.empty((3, 5, 5), np.float32)
        for k, frame in enumerate(given):
            y = stream.step(frame)["h_next"]
            if k == 1:
                expected = y.copy()
                late = np.empty(y.shape, np.float32)
                with other.cuda as cuda:
                    target = cuda.allocate(y.nbytes)
                    cuda.copy(target, y.pointer, y.nbytes)  # on the other stream; nobody waits for it yet
                y.used_on(other.cuda.stream)
        with other.cuda as cuda:
            cuda.copy(late.ctypes.data, target, late.nbytes)
            cuda.wait()
        np.testing.assert_array_equal(late, expected)


def test_bfloat16_of_torch_is_seen_as_its_bits(driver: StandInDriver) -> None:
    torch = pytest.importorskip("torch")
    from edgelstm.runtime.device_array import as_device_array

    values = torch.tensor([1.0, -2.5, 3e38]).to(torch.bfloat16)
    with Other() as other, Other() as ours:

        class OnTheGpu:
            """What a torch tensor on the GPU does: no interface for bfloat16, a view of other types of as many bits."""

            dtype = torch.bfloat16

            def view(self, dtype: Any) -> Any:
                assert dtype == torch.int16
                return other.array(values.view(torch.int16).numpy())

            def __dlpack__(self, **_: Any) -> Any:
                raise BufferError("bfloat16 has no DLPack type in NumPy")

            def __dlpack_device__(self) -> tuple[int, int]:
                return 2, 0

        got = as_device_array(ours.cuda, OnTheGpu())
        assert got is not None
        assert got.dtype == np.uint16
        np.testing.assert_array_equal(got.copy(), values.view(torch.int16).numpy().view(np.uint16))


def refused(other: Other) -> dict[str, tuple[Any, str]]:
    good = frames(1)[0]
    return {
        "shape": (other.array(good[0]), r"found float32\[5, 5\]; expected .* float32\[2, 5, 5\]"),
        "dtype": (other.array(good.astype(np.float64)), r"found float64\[2, 5, 5\]"),
        "strides": (
            other.array(good, strides=(4, 8, 40)),
            r"frame on the GPU is not contiguous: found strides \(1, 2, 10\); expected \(25, 5, 1\)",
        ),
        "list": ([1.0], "found list; expected a NumPy array"),
        "broken": (OnlyDLPack(Broken()), r"a frame on the GPU can't be read: found OnlyDLPack: out of order"),
    }


class Broken:
    def __dlpack__(self, **_: Any) -> Any:
        raise RuntimeError("out of order")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@pytest.mark.parametrize("case", ["shape", "dtype", "strides", "list", "broken"])
def test_a_wrong_frame_on_the_gpu_is_named_and_no_state_moves(
    driver: StandInDriver, plan: Path, case: str
) -> None:
    with Other() as other, Runner.open(plan, on_bad_frame="pass") as runner:
        stream = runner.stream("a")
        stream.step(frames(1)[0])
        before = stream.snapshot()
        frame, message = refused(other)[case]
        with pytest.raises(EdgeLstmError, match=message):
            stream.step(frame)
        after = stream.snapshot()
        assert all(before[n].tobytes() == after[n].tobytes() for n in before)


def test_on_another_gpu(driver: StandInDriver, plan: Path) -> None:
    with (
        Other(1) as other,
        Runner.open(plan, on_bad_frame="pass") as runner,
        pytest.raises(EdgeLstmError, match="frame on another GPU: found cuda:1; expected cuda:0"),
    ):
        runner.stream("a").step(other.array(frames(1)[0]))


def test_a_frame_that_is_not_looked_at_has_to_be_allowed(driver: StandInDriver, plan: Path) -> None:
    with (
        Other() as other,
        Runner.open(plan) as runner,
        pytest.raises(EdgeLstmError, match=r"not looked at for NaN: .*expected on_bad_frame='pass'"),
    ):
        runner.stream("a").step(other.array(frames(1)[0]))
    bad = np.full((2, 5, 5), np.nan, np.float32)
    with Runner.open(plan, on_bad_frame="pass") as runner:
        assert np.isnan(runner.stream("a").step(bad)["h_next"]).any()


def test_after_the_program_is_closed(driver: StandInDriver, plan: Path) -> None:
    with Runner.open(plan, outputs="device") as runner:
        y = runner.stream("a").step(frames(1)[0])["h_next"]
    for use in (y.copy, y.__dlpack__, lambda: y.__cuda_array_interface__):
        with pytest.raises(EdgeLstmError, match="the program of this array is closed"):
            use()


def test_tensors_of_torch_on_the_cpu_are_no_arrays_on_the_gpu(driver: StandInDriver, plan: Path) -> None:
    torch = pytest.importorskip("torch")
    with (
        Runner.open(plan, on_bad_frame="pass") as runner,
        pytest.raises(EdgeLstmError, match="found Tensor; expected a NumPy array"),
    ):
        runner.stream("a").step(torch.zeros(2, 5, 5))


def test_the_cpu_keeps_outputs_on_the_host(plan: Path) -> None:
    with pytest.raises(
        EdgeLstmError, match="outputs: found device; expected host, since the device is the CPU"
    ):
        Runner.open(plan.with_suffix(".onnx"), outputs="device")


def test_a_step_that_failed_leaves_no_frame_for_the_next(
    driver: StandInDriver, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame from the host, laid ready beside one on the GPU, would lie over the stream's next one from there."""
    rng = np.random.default_rng(7)
    with Other() as other, Runner.open(plan, streams=2, on_bad_frame="pass") as runner, Runner.open(
        plan.with_suffix(".onnx"), streams=2, native=False
    ) as cpu:  # fmt: skip
        shape = runner.signature.inputs[0].frame_shape
        frames = rng.normal(size=(4, *shape)).astype(np.float32)
        for each in (runner, cpu):
            each.step({"a": frames[0], "b": frames[0]} if each.stream("a") and each.stream("b") else {})
        run = DeviceMemory.run

        def failing(*_: Any) -> Any:
            raise EdgeLstmError("the GPU failed")

        for step in (
            lambda r, one, two: r.step({"a": one, "b": two}),
            lambda r, one, two: [r.stream("a").step(one)],
            lambda r, one, two: [r.stream("a").step({"x": one})],
        ):
            monkeypatch.setattr(DeviceMemory, "run", failing)
            with pytest.raises(EdgeLstmError, match="the GPU failed"):
                runner.step({"a": frames[1], "b": other.array(frames[1])})
            monkeypatch.setattr(DeviceMemory, "run", run)
            step(runner, other.array(frames[2]), other.array(frames[3]))
            step(cpu, frames[2], frames[3])
            for name in ("a", "b"):
                found, wanted = runner.stream(name).snapshot(), cpu.stream(name).snapshot()
                for state in wanted:
                    np.testing.assert_allclose(found[state], wanted[state], rtol=1e-5, atol=1e-6)
