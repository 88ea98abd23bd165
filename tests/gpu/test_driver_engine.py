"""Our GPU runner over an engine of one kernel: on a real driver without TensorRT, and on the stand-in where there is no GPU.

What other runtimes got wrong in steps captured as CUDA graphs, each once: the graph and the side of the state switched apart
(microsoft/onnxruntime-genai#2446, #2564), the runs of a capture left in the state (#2452), rows that nobody asked for written.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contract.backends import no_gpu
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime import Runner
from edgelstm.runtime.cuda import Cuda
from standins.kernel_engine import kernel_machine, open_kernel, reference

WIDTH = 96
needs_gpu = pytest.mark.skipif(no_gpu() is not None, reason=no_gpu() or "a GPU is here")


@pytest.fixture
def driver() -> Iterator[Any]:
    with kernel_machine() as found:
        yield found


def draw(rng: np.random.Generator, width: int = WIDTH) -> np.ndarray:
    return rng.normal(size=width).astype(np.float32)


@pytest.mark.parametrize("outputs", ["host", "device"])
def test_any_schedule_equals_numpy(driver: Any, outputs: str, caplog: pytest.LogCaptureFixture) -> None:
    """Graphs, both sides, gathered rows, aligned rows, resets: 400 steps of 8 streams, bit by bit."""
    rng = np.random.default_rng(0)
    with caplog.at_level(logging.WARNING), Runner(open_kernel(driver, 8, outputs=outputs)) as runner:
        names = [runner.stream(str(k)).name for k in range(8)]
        truth = {n: np.zeros(WIDTH, np.float32) for n in names}
        for k in range(400):
            active = names if k % 3 else sorted(rng.choice(names, rng.integers(1, 9), replace=False))
            frames = {n: draw(rng) for n in active}
            got = runner.step(frames)
            for n in active:
                truth[n], y = reference(truth[n], frames[n])
                np.testing.assert_array_equal(np.asarray(got[n]["y"].copy()), y)
            for n in set(names) - set(active):
                assert runner.stream(n).snapshot()["s"].tobytes() == truth[n].tobytes(), "an idle row moved"
            if k % 50 == 49:
                n = names[k // 50 % 8]
                np.testing.assert_array_equal(runner.stream(n).snapshot()["s"], truth[n])
                runner.stream(n).reset()
                truth[n][:] = 0
        assert sum(len(c.graphs) for c in runner._program._memory._calls) > 0, "no graph was captured"  # type: ignore[attr-defined]
    assert "no CUDA graphs" not in caplog.text


@pytest.mark.parametrize("outputs", ["host", "device"])
def test_one_array_of_all_frames_equals_frames_by_name(driver: Any, outputs: str) -> None:
    """Any streams that joined and left in between: in the order in which they joined, whatever rows they have."""
    rng = np.random.default_rng(1)
    with (
        Runner(open_kernel(driver, 6, outputs=outputs)) as runner,
        Runner(open_kernel(driver, 6)) as other,
    ):
        for k in range(120):
            if k % 10 == 0:
                for r in (runner, other):
                    if k % 30 and len(r.streams) > 1:
                        r.stream(r.streams[1 + k // 10 % (len(r.streams) - 1)]).close()  # never the first
                    for n in range(k // 10 % 3):
                        if len(r.streams) < 6:
                            r.stream(f"{k}-{n}")
                    r.stream("always") if k == 0 else None
            frames = rng.normal(size=(len(runner.streams), WIDTH)).astype(np.float32)
            if k % 7 == 3:  # sides that differ from row to row
                only = {other.streams[0]: frames[0]}
                runner.step(only), other.step(only)
            got = np.asarray(runner.step_all(frames)["y"].copy())
            wanted = other.step(dict(zip(other.streams, frames, strict=True)))
            np.testing.assert_array_equal(got, np.stack([wanted[n]["y"] for n in other.streams]))
        assert runner.stream("always").frames == other.stream("always").frames


def test_what_steps_need_is_made_before_the_first(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No capture, no allocation inside a live step, as streams join one after the other; and it left no trace in any state."""
    with Runner(open_kernel(driver, 4, width=64)) as runner:
        monkeypatch.setattr(Cuda, "capture", None)
        monkeypatch.setattr(Cuda, "allocate", None)
        names: list[str] = []
        truth: dict[str, np.ndarray] = {}
        rng = np.random.default_rng(2)
        for name in "abcd":
            names.append(runner.stream(name).name)
            assert not runner.stream(name).snapshot()["s"].any(), "warming up was a step of this stream"
            truth[name] = np.zeros(64, np.float32)
            for _ in range(5):
                frames = {n: draw(rng, 64) for n in names}
                got = runner.step(frames)
                for n in names:
                    truth[n], y = reference(truth[n], frames[n])
                    np.testing.assert_array_equal(got[n]["y"], y)


def test_padded_and_idle_rows_never_write_a_live_streams_slot(driver: Any) -> None:
    """Every subset of six streams, twice, on both sides: whoever had no frame keeps every bit."""
    rng = np.random.default_rng(3)
    with Runner(
        open_kernel(driver, 6, width=32)
    ) as runner:  # 128 bytes a row: runs begin at every second one
        names = [runner.stream(str(k)).name for k in range(6)]
        for mask in [*range(1, 64), *range(63, 0, -1)]:
            active = [n for k, n in enumerate(names) if mask >> k & 1]
            before = {n: runner.stream(n).snapshot()["s"] for n in names}
            frames = {n: draw(rng, 32) for n in active}
            runner.step(frames)
            for n in names:
                after = runner.stream(n).snapshot()["s"]
                wanted = reference(before[n], frames[n])[0] if n in active else before[n]
                assert after.tobytes() == wanted.tobytes(), (mask, n)


class OnTheGpu:
    """Frames of another library: a buffer of its own, shown through the CUDA array interface."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.cuda, self.shape = Cuda(), shape
        with self.cuda as cuda:
            self.pointer = cuda.allocate(int(np.prod(shape)) * 4)

    def holds(self, values: np.ndarray) -> Any:
        values = np.ascontiguousarray(values, np.float32)
        with self.cuda as cuda:
            cuda.copy(self.pointer, values.ctypes.data, values.nbytes)
        told = {"version": 3, "shape": values.shape, "typestr": "<f4", "data": (self.pointer, False)}
        told |= {"strides": None, "stream": self.cuda.stream}
        return type("Array", (), {"__cuda_array_interface__": told})()


@pytest.mark.parametrize("outputs", ["host", "device"])
@pytest.mark.parametrize("pattern", ["hd", "dh", "hhd", "ddh", "hdd", "d", "hhhdddhd"])
def test_the_graph_and_the_side_switch_together(driver: Any, outputs: str, pattern: str) -> None:
    """Frames of the host and of the GPU run different graphs, of two sides each: whatever the turns, an odd number of them too."""
    rng = np.random.default_rng(4)
    other = OnTheGpu((3, WIDTH))
    with Runner(open_kernel(driver, 3, outputs=outputs), on_bad_frame="pass") as runner:
        for n in "abc":
            runner.stream(n)
        truth = np.zeros((3, WIDTH), np.float32)
        for k in range(31):
            frames = rng.normal(size=(3, WIDTH)).astype(np.float32)
            on_gpu = pattern[k % len(pattern)] == "d"
            truth, wanted = reference(truth, frames)
            y = runner.step_all(other.holds(frames) if on_gpu else frames)["y"]
            np.testing.assert_array_equal(np.asarray(y.copy()), wanted)
            if k % 5 == 0:  # one alone: its side is now another than the others'
                x = draw(rng)
                truth[1], y1 = reference(truth[1], x)
                got = runner.stream("b").step(x)["y"]
                np.testing.assert_array_equal(np.asarray(got.copy()), y1)
    other.cuda.close()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_odd_and_even_steps_then_reset_and_restore(driver: Any, steps: int) -> None:
    """The graph of one side must never run on the other's turn: reset and restore land on whichever is current."""
    rng = np.random.default_rng(steps)
    with Runner(open_kernel(driver, 2)) as runner:
        a, b = runner.stream("a"), runner.stream("b")
        for _ in range(3):
            state = np.zeros(WIDTH, np.float32)
            a.reset()
            for _ in range(steps):
                x = draw(rng)
                state, y = reference(state, x)
                np.testing.assert_array_equal(a.step(x)["y"], y)
            kept = a.snapshot()
            b.restore(kept)
            for _ in range(steps):
                x = draw(rng)
                state, y = reference(state, x)
                both = runner.step({"a": x, "b": x})
                np.testing.assert_array_equal(both["a"]["y"], y)
                np.testing.assert_array_equal(both["b"]["y"], y)
            assert a.snapshot()["s"].tobytes() == b.snapshot()["s"].tobytes() == state.tobytes()


def test_two_runners_on_one_gpu_from_two_threads(driver: Any) -> None:
    with Runner(open_kernel(driver, 2)) as one, Runner(open_kernel(driver, 2)) as two:
        errors: list[BaseException] = []

        def drive(runner: Runner, seed: int, turns: Any) -> Iterator[None]:
            rng, state = np.random.default_rng(seed), np.zeros(WIDTH, np.float32)
            try:
                stream = runner.stream(str(seed))
                for _ in turns:
                    x = draw(rng)
                    state, y = reference(state, x)
                    np.testing.assert_array_equal(stream.step(x, copy=True)["y"], y)
                    yield
            except BaseException as error:
                errors.append(error)

        if driver is None:
            threads = [
                threading.Thread(target=lambda r=r, k=k: list(drive(r, k, range(2000))))
                for k, r in enumerate((one, two))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            # Threads are nothing the stand-in knows; two runners that take turns are.
            for _ in zip(*(drive(r, k, range(100)) for k, r in enumerate((one, two))), strict=True):
                pass
        assert not errors, errors


@pytest.mark.parametrize("times", [300, pytest.param(1000, marks=pytest.mark.thorough)])
def test_often_opened_and_closed_gives_the_memory_back(driver: Any, times: int) -> None:
    keep = Cuda()
    free = []
    for _ in range(times):
        with Runner(open_kernel(driver, 4)) as runner:
            for _ in range(3):
                runner.stream("a").step(np.ones(WIDTH, np.float32))
        with keep:
            free.append(keep.free_memory())
    keep.close()
    # As much for each opening as 8 MiB of a thousand.
    assert max(free[20:]) - min(free[20:]) < times * (8 << 20) // 1000, (free[20], free[-1])


@needs_gpu
def test_tensors_of_torch_on_a_side_stream(driver: Any) -> None:
    torch = pytest.importorskip("torch")
    with Runner(open_kernel(driver, 2, outputs="device"), on_bad_frame="pass") as runner:
        stream, s = runner.stream("a"), np.zeros(WIDTH, np.float32)
        side = torch.cuda.Stream()
        for k in range(200):
            x = np.full(WIDTH, k % 7, np.float32)
            with torch.cuda.stream(side):
                busy = torch.ones(1 << 24, device="cuda").cumsum(0)  # the side stream has enough to do
                t = torch.from_numpy(x).cuda(non_blocking=True) * 1
                y = torch.from_dlpack(stream.step(t)["y"]).clone()
            s, wanted = reference(s, x)
            np.testing.assert_array_equal(y.cpu().numpy(), wanted)
        del busy


@needs_gpu
def test_time_of_a_step(driver: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Says it, judges nothing."""
    for streams in (1, 8, 64):
        with Runner(open_kernel(driver, streams)) as runner:
            frames = {runner.stream(str(k)).name: np.ones(WIDTH, np.float32) for k in range(streams)}
            for _ in range(50):
                runner.step(frames)
            start = time.perf_counter()
            for _ in range(2000):
                runner.step(frames)
            took = (time.perf_counter() - start) / 2000 * 1e6
        with capsys.disabled():
            print(
                f'\n{{"name": "step, empty kernel, host frames", "streams": {streams}, "microseconds": [{took:.2f}]}}'
            )


class Streams(RuleBasedStateMachine):
    """Join, leave, step some, step all, reset, snapshot, restore, a bad frame: in every order, against NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        driver = self.stack.enter_context(kernel_machine())
        self.runner = self.stack.enter_context(Runner(open_kernel(driver, 4, width=32)))
        self.truth: dict[str, np.ndarray] = {}
        self.kept = np.zeros(32, np.float32)
        self.seed = 0

    def frame(self) -> np.ndarray:
        self.seed += 1
        return draw(np.random.default_rng(self.seed), 32)

    def check(self, name: str, x: np.ndarray, y: np.ndarray) -> None:
        self.truth[name], wanted = reference(self.truth[name], x)
        np.testing.assert_array_equal(y, wanted)

    @precondition(lambda self: len(self.truth) < 4)
    @rule(name=st.sampled_from("abcdefg"))
    def join(self, name: str) -> None:
        self.runner.stream(name)
        self.truth.setdefault(name, np.zeros(32, np.float32))

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.truth)))
        self.runner.stream(name).close()
        del self.truth[name]

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), times=st.integers(1, 3))
    def step_some(self, data: st.DataObject, times: int) -> None:
        names = data.draw(st.lists(st.sampled_from(sorted(self.truth)), min_size=1, unique=True))
        for _ in range(times):
            frames = {n: self.frame() for n in names}
            got = self.runner.step(frames)
            for n in names:
                self.check(n, frames[n], got[n]["y"])

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def step_one(self, data: st.DataObject) -> None:
        name, x = data.draw(st.sampled_from(sorted(self.truth))), self.frame()
        self.check(name, x, self.runner.stream(name).step(x)["y"])

    @precondition(lambda self: self.truth)
    @rule()
    def step_all(self) -> None:
        frames = np.stack([self.frame() for _ in self.truth])
        got = self.runner.step_all(frames)["y"]
        for k, name in enumerate(self.runner.streams):
            self.check(name, frames[k], got[k])

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.truth)))
        self.runner.stream(name).reset()
        self.truth[name] = np.zeros(32, np.float32)

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.truth)))
        self.kept = self.runner.stream(name).snapshot()["s"]
        assert self.kept.tobytes() == self.truth[name].tobytes()

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.truth)))
        self.runner.stream(name).restore({"s": self.kept})
        self.truth[name] = self.kept

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), all_streams=st.booleans())
    def a_bad_frame(self, data: st.DataObject, all_streams: bool) -> None:
        frames = {n: self.frame() for n in self.runner.streams}
        frames[data.draw(st.sampled_from(sorted(frames)))][3] = np.nan
        together = np.stack(list(frames.values()))
        with pytest.raises(EdgeLstmError, match="NaN"):
            _ = self.runner.step_all(together) if all_streams else self.runner.step(frames)

    @invariant()
    def every_state_is_what_it_should_be(self) -> None:
        for name, wanted in self.truth.items():
            assert self.runner.stream(name).snapshot()["s"].tobytes() == wanted.tobytes(), name

    def teardown(self) -> None:
        self.stack.close()


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
