"""Our GPU runner over an engine of one kernel: on a real driver without TensorRT, and on the stand-in where there is no GPU.

What other runtimes got wrong in steps captured as CUDA graphs, each once: the graph and the side of the state switched apart
(microsoft/onnxruntime-genai#2446, #2564), the runs of a capture left in the state (#2452), rows that nobody asked for written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from contract.backends import no_gpu
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
    if driver is not None:
        # The stand-in's streams are no threads' business; two runners that take turns are.
        pairs = [(0, 1)] * 100
    with Runner(open_kernel(driver, 2)) as one, Runner(open_kernel(driver, 2)) as two:
        errors: list[BaseException] = []

        def drive(runner: Runner, seed: int, turns: Any) -> None:
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
            for _ in zip(*(drive(r, k, pairs) for k, r in enumerate((one, two))), strict=True):
                pass
        assert not errors, errors


def test_a_thousand_times_open_and_closed_gives_the_memory_back(driver: Any) -> None:
    keep = Cuda()
    free = []
    for _ in range(1000):
        with Runner(open_kernel(driver, 4)) as runner:
            for _ in range(3):
                runner.stream("a").step(np.ones(WIDTH, np.float32))
        with keep:
            free.append(keep.free_memory())
    keep.close()
    assert max(free[20:]) - min(free[20:]) < 8 << 20, (free[20], free[-1])


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
