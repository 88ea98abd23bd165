"""One contestant in a process of its own: ``python benchmarks/pipeline/contestant.py KIND MODEL STREAMS THREADS FRAMES``.

For every line on standard input it runs ``FRAMES`` frames of every stream and answers with one line: seconds from the first
frame to the last, and seconds of processors. Between two turns it sleeps in a read.

- ``bare``: the Runner alone, all streams in one call, frames at hand.
- ``serve``: a pipeline file with as many streams, sources of arrays, no sink.
- ``guard``: steps with the look at the states, and without; answers with the difference, and the latter.
- ``hand``: what one writes by hand: an ONNX Runtime session a stream, states fed back in a dictionary, stream after stream.
- ``hand-threads``: the same with a thread a stream.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DIFFERENT = 16  # frames
FIRST = 5  # calls
BLOCK = 0.02  # seconds


def frames_of(shape: tuple[int, ...], streams: int) -> list[np.ndarray[Any, Any]]:
    """[streams, ...] arrays."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(streams, *shape)).astype(np.float32) for _ in range(DIFFERENT)]


def bare(model: str, streams: int, threads: int, frames: int) -> Callable[[], float]:
    """The Runner alone."""
    from edgelstm import Runner

    runner = Runner.open(model, streams=streams, threads=threads)
    names = [f"s{k}" for k in range(streams)]
    for name in names:
        runner.stream(name)
    given = [
        dict(zip(names, f, strict=True)) for f in frames_of(runner.signature.inputs[0].frame_shape, streams)
    ]

    def turn() -> float:
        began = time.perf_counter()
        for k in range(frames):
            runner.step(given[k % DIFFERENT], copy=False)
        return time.perf_counter() - began

    return turn


def serve(model: str, streams: int, threads: int, frames: int) -> Callable[[], tuple[float, float]]:
    """The service, opened once a turn; the clock runs from the second call to the last."""
    from edgelstm import Pipeline, Runner
    from edgelstm.pipeline.service.loop import Loop

    with Runner.open(model) as runner:
        shape = runner.signature.inputs[0].frame_shape
    folder = Path(tempfile.mkdtemp(prefix="edgelstm-bench-"))
    made = np.stack(frames_of(shape, streams), axis=1)  # [streams, frames, ...]
    text = f'[service]\nthreads = {threads}\nreport = 0\n[models.m]\npath = "{model}"\n'
    for k in range(streams):
        # A file of one round of frames, over and over: as large as the frames of the others, so as near to the processor.
        np.save(folder / f"s{k}.npy", made[k])
        text += f'[streams.s{k}]\nsource = "s{k}.npy"\n'
    pipeline = Pipeline.from_text(text, folder)
    over_and_over(frames)

    def turn() -> tuple[float, float]:
        marks: list[tuple[int, float, float]] = []
        run, step = Loop.run, Loop._step

        def mark(self: Loop) -> None:
            done = sum(m.counts.stepped for m in self.members)
            marks.append((done, time.perf_counter(), time.process_time()))

        def stepped(self: Loop, due: Any) -> None:
            step(self, due)
            if self.calls == FIRST:
                mark(self)

        def timed(self: Loop) -> None:
            run(self)
            mark(self)

        Loop.run, Loop._step = timed, stepped  # type: ignore[method-assign]
        try:
            report = pipeline.run()
        finally:
            Loop.run, Loop._step = run, step  # type: ignore[method-assign]
        assert all(c["stepped"] == frames for c in report.streams.values()), report
        (first, began, used), (_, ended, in_all) = marks
        # All that lies behind the first calls, in which memory is taken and threads begin, as if there had been no others; not every
        # stream has a frame in these.
        share = frames * streams / (frames * streams - first)
        return (ended - began) * share, (in_all - used) * share

    return turn


def over_and_over(frames: int) -> None:
    """Sources of arrays give their frames again and again, ``frames`` in all."""
    from dataclasses import replace

    from edgelstm.pipeline.service import service
    from edgelstm.pipeline.sources import Source

    real = service.open_section

    def opened(*args: Any, **more: Any) -> Source:
        kept = list(real(*args, **more))
        again = [replace(kept[k % len(kept)], index=k) for k in range(frames)]
        return Source("frames at hand", lambda: iter(again))

    service.open_section = opened  # type: ignore[assignment]


def guard(model: str, streams: int, threads: int, frames: int) -> Callable[[], tuple[float, float]]:
    """Seconds that the look at the states adds to a call, and seconds of a call without it.

    Calls in blocks of 50, with it and without in turn; each block begins with calls that are not counted, for what switching the look
    on and off leaves in the caches. Each call is timed by itself, and the fifth that is fastest ends where the figure is: others on the
    machine disturb the rest.
    """
    from edgelstm import Runner
    from edgelstm.pipeline.service.guard import glance

    runner = Runner.open(model, streams=streams, threads=threads)
    names = [f"s{k}" for k in range(streams)]
    for name in names:
        runner.stream(name)
    shape = runner.signature.inputs[0].frame_shape
    given = [dict(zip(names, f, strict=True)) for f in frames_of(shape, streams)]
    look = glance(runner)
    clock = time.perf_counter

    def block(looked: bool, count: int) -> list[float]:
        """Seconds of each call."""
        state = runner._state
        for call in state.calls.values() if state.watch is not None else ():  # they look themselves
            state.watch.add(call) if looked else call.steps.look([])
        taken = []
        first = min(FIRST, count)
        for j in range(first + count):
            began = clock()
            runner.step(given[j % DIFFERENT], copy=False)
            if looked:
                look()
            taken.append(clock() - began)
        return taken[first:]

    def turn() -> tuple[float, float]:
        count = max(1, min(50, round(BLOCK / statistics.median(block(False, 3)))))
        without: list[float] = []
        with_it: list[float] = []
        for _ in range(max(8, frames // count // 2)):
            without += block(False, count)
            with_it += block(True, count)
        fast, more = (statistics.quantiles(taken, n=5)[0] for taken in (without, with_it))
        return more - fast, fast

    return turn


def hand(model: str, streams: int, threads: int, frames: int, parallel: bool = False) -> Callable[[], float]:
    """Sessions of ONNX Runtime, one a stream."""
    import onnxruntime as ort

    from edgelstm.graph.signature import Signature

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = [
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for _ in range(streams)
    ]
    signature = Signature.loads(sessions[0].get_modelmeta().custom_metadata_map["edgelstm.signature"], model)
    given = frames_of(signature.inputs[0].frame_shape, streams)
    name = signature.inputs[0].name
    outputs = [t.name for t in signature.outputs] + [
        s.output for s in signature.states if s.output not in {t.name for t in signature.outputs}
    ]
    states = [{s.input: s.initial_value()[None] for s in signature.states} for _ in range(streams)]
    places = {s.input: outputs.index(s.output) for s in signature.states}

    def step(k: int, n: int) -> None:
        out = sessions[k].run(outputs, {name: given[n % DIFFERENT][k : k + 1], **states[k]})
        states[k] = {state: out[place] for state, place in places.items()}

    def turn() -> float:
        began = time.perf_counter()
        for n in range(frames):
            for k in range(streams):
                step(k, n)
        return time.perf_counter() - began

    def turn_parallel() -> float:
        workers = [
            threading.Thread(target=lambda k=k: [step(k, n) for n in range(frames)]) for k in range(streams)
        ]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return time.perf_counter() - began

    return turn_parallel if parallel else turn


KINDS: dict[str, Callable[[str, int, int, int], Callable[[], Any]]] = {
    "bare": bare,
    "serve": serve,
    "hand": hand,
    "hand-threads": lambda *given: hand(*given, parallel=True),
}

if __name__ == "__main__":
    kind, model_file, *numbers = sys.argv[1:]
    take = (guard if kind == "guard" else KINDS[kind])(model_file, *map(int, numbers))
    print("ready", flush=True)
    for _ in sys.stdin:
        used = time.process_time()
        taken = take()
        print(*(taken if isinstance(taken, tuple) else (taken, time.process_time() - used)), flush=True)
