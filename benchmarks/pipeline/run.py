"""What the service adds to a step, and its frames per second: ``python benchmarks/pipeline/run.py [--readme] [--scale 0.2]``.

Every contestant lives in a process of its own and all take turns; a figure is the median over rounds of the ratio of two turns of
one round. Writes benchmarks/pipeline/result.json; ``--readme`` puts the tables into README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import models  # noqa: E402

from edgelstm import machine  # noqa: E402
from edgelstm.files import write_text  # noqa: E402
from edgelstm.frontends.described.graph import load_described, to_step  # noqa: E402

KINDS = ("bare", "guard", "serve", "hand")
#: (model, streams, frames of every stream in a turn, rounds). In a turn of few frames one would measure how memory is taken: ONNX Runtime
#: takes some for each number of streams that it meets, and while sources begin there are several.
CASES = (
    ("LSTM 2 x 32", 1, 10000, 7),
    ("LSTM 2 x 32", 4, 3000, 7),
    ("LSTM 2 x 32", 16, 1500, 7),
    ("LSTM 2 x 32", 64, 800, 7),
    ("ConvLSTM 16 -> 64", 1, 100, 7),
    ("ConvLSTM 16 -> 64", 16, 60, 3),
)
THREADS = 1


class Contestant:
    """A process that runs a turn when it is told."""

    def __init__(self, kind: str, model: Path, streams: int, frames: int) -> None:
        numbers = map(str, (streams, THREADS, frames))
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "contestant.py"), kind, str(model), *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contestant ended with code {self._process.wait()}")
        return line

    def turn(self) -> tuple[float, float]:
        """Seconds by the clock, and of processors."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        wall, used = self._line().split()
        return float(wall), float(used)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(model: Path, streams: int, frames: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Microseconds a frame of one stream, by the clock and of processors, round by round."""
    contestants = {kind: Contestant(kind, model, streams, frames) for kind in KINDS}
    took: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    try:
        for number in range(rounds + 1):  # the first is for caches
            for kind, contestant in contestants.items():
                wall, used = (1e6 * s / frames / streams for s in contestant.turn())
                if number:
                    took[kind].append((wall, used))
    finally:
        for contestant in contestants.values():
            contestant.close()
    return took


def row(name: str, streams: int, took: dict[str, list[tuple[float, float]]]) -> str:
    """A line of the table."""

    def median(values: Any) -> float:
        return statistics.median(values)

    def each(kind: str, column: int = 0) -> list[float]:
        return [t[column] for t in took[kind]]

    def apart(a: str, b: str, column: int = 0) -> list[float]:
        return [x - y for x, y in zip(each(a, column), each(b, column), strict=True)]

    adds, base = apart("serve", "bare", 1), each("bare", 1)
    cells = (
        name,
        streams,
        f"{median(base):.1f} us",
        f"{median(adds):.1f} us ({median([d / b for d, b in zip(adds, base, strict=True)]):.0%})",
        f"{median([more / step for more, step in took['guard']]):.1%}",
        f"{1e6 / median(each('serve')):,.0f}",
        f"{1e6 / median(each('hand')):,.0f}",
        f"{median([h / s for h, s in zip(each('hand'), each('serve'), strict=True)]):.2f}",
        f"{median([h / s for h, s in zip(each('hand', 1), each('serve', 1), strict=True)]):.2f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


HEAD = (
    "| model | streams | Runner alone | the service adds | the state guard | frames/s | by hand | ratio | ratio by processor time |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--readme", action="store_true")
    given = parser.parse_args()
    kept = HERE / "result.json"
    known = {(r["model"], r["streams"]): r for r in json.loads(kept.read_text())} if kept.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {}
        for what, source in (
            ("LSTM 2 x 32", models.lstm(folder, 32)),
            ("ConvLSTM 16 -> 64", models.conv_lstm(folder)),
        ):
            files[what] = source.with_suffix(".onnx")
            to_step(load_described(source)).save(files[what])
        for what, streams, frames, rounds in [c for c in CASES if given.only in c[0]]:
            took = measure(files[what], streams, frames, max(2, round(rounds * given.scale)))
            print(row(what, streams, took), flush=True)
            known[what, streams] = {"model": what, "streams": streams, "frames": frames, "microseconds": took}
    results = [known[what, streams] for what, streams, *_ in CASES if (what, streams) in known]
    rows = [HEAD, *(row(r["model"], r["streams"], r["microseconds"]) for r in results)]
    text = (
        f"{machine.cpu().model}, {machine.cpu().usable} processors, {date.today().isoformat()}, {THREADS} thread of ONNX Runtime each.\n\n"
        + "\n".join(rows)
    )
    print("\n" + text)
    write_text(kept, json.dumps(results) + "\n")
    if given.readme:
        page = HERE / "README.md"
        before, _, rest = page.read_text(encoding="utf-8").partition("<!-- figures -->\n")
        _, _, after = rest.partition("<!-- end of figures -->")
        write_text(page, f"{before}<!-- figures -->\n{text}\n\n<!-- end of figures -->{after}")


if __name__ == "__main__":
    main()
