"""What a step of our GPU runner takes of the host: ``python host_time.py [--steps 5000] [--width 16]``.

The engine does nothing, so that all that is timed is the runner's own Python and the driver's calls. Without a GPU it runs on the
stand-in for the driver of the tests, whose calls cost next to nothing. Prints a line of JSON for each way to step.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from edgelstm.runtime import Runner  # noqa: E402
from standins.kernel_engine import kernel_machine, open_kernel  # noqa: E402

#: Microseconds a step may take of the host, by streams.
AIMS = {1: 5.0, 64: 30.0}
ROUNDS = 7


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000, help="steps of a round, of one stream")
    parser.add_argument("--width", type=int, default=16, help="float32 numbers in a frame")
    arguments = parser.parse_args()
    with kernel_machine() as driver:
        for streams in (1, 8, 64):
            for way, run in ways(driver, streams, arguments.width):
                steps = max(20, arguments.steps // streams)
                # The stand-in never waits, so what others do on the machine is left out; a real driver's waits count.
                clock = time.perf_counter if driver is None else time.thread_time
                rounds = sorted(timed(run, steps, clock) for _ in range(ROUNDS))
                aim = AIMS.get(streams)
                line = {
                    "name": f"host time, {way}",
                    "driver": "stand-in" if driver is not None else "real",
                    "streams": streams,
                    "microseconds": [round(r, 2) for r in rounds],
                    "aim": aim,
                    # The fastest round: what else the machine does only adds.
                    "reached": aim is None or rounds[0] <= aim,
                }
                print(json.dumps(line), flush=True)


def ways(driver: Any, streams: int, width: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each way to advance all streams by a frame."""
    frame = np.zeros(width, np.float32)
    for outputs in ("host", "device"):
        with Runner(open_kernel(driver, streams, width=width, outputs=outputs, idle=True)) as runner:
            names = [runner.stream(str(k)).name for k in range(streams)]
            if streams == 1:
                stream = runner.stream("0")
                yield f"one frame, outputs on the {outputs}", lambda s=stream: s.step(frame, copy=False)
            else:
                frames = dict.fromkeys(names, frame)
                yield (
                    f"frames by name, outputs on the {outputs}",
                    lambda r=runner, f=frames: r.step(f, copy=False),
                )
                if outputs == "host" and streams > 8:
                    few = dict.fromkeys(names[:: streams // 8], frame)
                    yield "eight streams far apart, gathered", lambda r=runner, f=few: r.step(f, copy=False)
                if hasattr(runner, "step_all"):
                    batch = np.zeros((streams, width), np.float32)
                    yield (
                        f"one array of all frames, outputs on the {outputs}",
                        lambda r=runner, b=batch: r.step_all(b, copy=False),
                    )


def timed(run: Callable[[], Any], steps: int, clock: Callable[[], float]) -> float:
    """Microseconds of a step."""
    for _ in range(20):
        run()
    start = clock()
    for _ in range(steps):
        run()
    return (clock() - start) / steps * 1e6


if __name__ == "__main__":
    main()
