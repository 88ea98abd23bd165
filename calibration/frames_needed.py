"""How many frames a calibration needs: ``python calibration/frames_needed.py`` writes frames_needed.json and .svg here.

Each example model is calibrated on the first 4, 8, ... frames of sequences, quantised to INT8 for ONNX Runtime, and
streamed over 300 frames it has not seen; drift is ||h_q - h|| / ||h|| over all hidden states, mean of the last 100.
The frames are those of benchmarks/quantisation/data.py. Then, at 128 frames: each method, and a second round.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks" / "quantisation"))

from cases import available, step_graph  # noqa: E402
from data import frames as stream  # noqa: E402

from edgelstm.graph.step import StepModel  # noqa: E402
from edgelstm.quantize.ranges import METHODS  # noqa: E402
from edgelstm.runtime.onnxruntime import OrtProgram  # noqa: E402
from edgelstm.runtime.protocol import Frame  # noqa: E402
from edgelstm.verify.compare import compare  # noqa: E402
from edgelstm.workflows.calibrate import calibrate  # noqa: E402
from edgelstm.workflows.quantize import quantize  # noqa: E402

MODELS = ("moving_digits", "nowcast_radar", "sensor_lstm")
COUNTS = (4, 8, 16, 32, 64, 128, 256)
TEST = 300


def sequences(case: str, frames: int, count: int) -> list[list[Frame]]:
    """``count`` sequences of ``frames / count`` frames, none of them in the test."""
    return [
        [
            {n: v.copy() for n, v in f.items()}
            for f in islice(stream(case, 10_000, seed, part="calibration"), frames // count)
        ]
        for seed in range(count)
    ]


def drift(case: str, step: StepModel, quantised: StepModel) -> float:
    """Of h over the end of the test frames."""
    programs = [OrtProgram(s.to_bytes()) for s in (step, quantised)]
    found = compare(*programs, _copies(stream(case, TEST, 1)))
    for program in programs:
        program.close()
    hidden = [t for t in found.tensors if t.kind == "state" and t.name.startswith("h")]
    return float(np.mean([np.mean(t.norms[-100:]) for t in hidden]))


def _copies(frames: Iterator[Frame]) -> Iterator[Frame]:
    return ({n: v.copy() for n, v in f.items()} for f in frames)


def measure(case: str, step: StepModel, frames: int, count: int = 1, **options: Any) -> float:
    """Drift after a calibration on ``count`` sequences of ``frames`` frames together."""
    import edgelstm.workflows.calibrate as q

    q.MIN_FRAMES = 1  # fewer than the command takes, to show why
    found = calibrate(step, sequences(case, frames, count), **options).calibration
    return drift(case, step, quantize(step, found).step)


def main() -> None:
    """Measure and draw."""
    folder = ROOT / "build" / "quantisation"
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for case in (c for c in MODELS if c in available()):
        step = StepModel.load(step_graph(case, folder))
        one = {n: measure(case, step, n) for n in COUNTS}
        four = {n: measure(case, step, n, 4) for n in COUNTS if n >= 16}
        methods = {m: measure(case, step, 128, 4, method=m) for m in METHODS}
        results[case] = {
            "one sequence": one,
            "four sequences": four,
            "methods at 128 frames": methods,
            "second round at 128 frames": measure(case, step, 128, 4, rounds=2),
        }
        print(case, json.dumps(results[case]), flush=True)
    here = Path(__file__).parent
    (here / "frames_needed.json").write_text(json.dumps(results, indent=1) + "\n")
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for k, (case, found) in enumerate(results.items()):
        for style, name in (("-o", "one sequence"), ("--s", "four sequences")):
            axes.plot(
                list(found[name]),
                list(found[name].values()),
                style,
                color=f"C{k}",
                label=f"{case}, {name}",
                ms=4,
            )
    axes.set(xlabel="calibration frames", ylabel="drift of h", xscale="log", yscale="log")
    axes.set_xticks(COUNTS, [str(c) for c in COUNTS])
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(here / "frames_needed.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
