"""Where the Runner's own time goes: ``python benchmarks/own_cost.py MODEL STEPS ROUNDS THREADS``.

One process, one session: the same engine call bare, through the Program and through the Runner, and as a user would
make it by hand, in alternating blocks of STEPS steps. Prints JSON: microseconds of each block's median, by layer.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort

from edgelstm.runtime import Runner
from edgelstm.runtime.onnxruntime import OrtProgram

WARM_UP = 3


def layers(program: OrtProgram) -> dict[str, Callable[[], Any]]:
    """One step of each layer, the lowest first."""
    signature = program.signature
    rng = np.random.default_rng(0)
    frame = {t.name: rng.normal(size=t.frame_shape).astype(t.dtype) for t in signature.inputs}
    session = program._session  # a second session would fight this one for the processors

    feeds = {name: x[None] for name, x in frame.items()}
    for s in signature.states:
        feeds[s.input] = s.initial_value()[None]
    names = [o.name for o in session.get_outputs()]

    binding = session.io_binding()
    for name, x in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(x))
    results = [ort.OrtValue.ortvalue_from_numpy(y) for y in session.run(None, feeds)]
    for name, value in zip(names, results, strict=True):
        binding.bind_ortvalue_output(name, value)
    keep = (feeds, results)  # the binding holds addresses only

    def by_hand(feeds: dict[str, Any] = dict(feeds)) -> None:  # noqa: B006
        outputs = dict(zip(names, session.run(None, feeds), strict=True))
        feeds.update({s.input: outputs[s.output] for s in signature.states})

    state = program.new_state()
    stream = Runner(program).stream("only")
    return {
        "session": lambda keep=keep: session.run_with_iobinding(binding),
        "program": lambda: program.step((frame,), state, (0,)),
        "runner": lambda: stream.step(frame, copy=False),
        "by hand": by_hand,
    }


def main(model: str, steps: int, rounds: int, threads: int) -> None:
    """Measure and print."""
    program = OrtProgram(model, threads=threads)
    clock = time.perf_counter_ns
    steppers = layers(program)
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(rounds):
        for name, step in steppers.items():
            for _ in range(WARM_UP):
                step()
            block = []
            for _ in range(steps):
                start = clock()
                step()
                block.append(clock() - start)
            times[name].append(statistics.median(block) / 1000)
    print(json.dumps(times))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
