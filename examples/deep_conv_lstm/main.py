"""Train DeepConvLSTM on simulated wearable sensors, then stream it sample by sample: window recomputed, and with rings.

    python examples/deep_conv_lstm/main.py            # about two minutes; prints the tables of the README
    python examples/deep_conv_lstm/main.py --quick    # seconds

Writes nothing but the two step graphs into ``build/deep_conv_lstm``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from model import DeepConvLSTM, RecomputeStep, RingStep, ring_shapes

import edgelstm

Array = npt.NDArray[Any]
ACTIVITIES = ("stand", "walk", "run", "stairs")
#: Steps a second, size of the swing, tilt of the body: what tells the activities apart.
_GAITS = ((0.0, 0.02, 0.0), (1.8, 0.4, 0.1), (2.8, 1.0, 0.2), (1.5, 0.5, 0.5))
RATE = 30  # samples a second


def wearer(seconds: int, sensors: int, seed: int) -> tuple[Array, Array]:
    """Signals [samples, sensors] and activity [samples] of one person, who changes activity every few seconds."""
    random = np.random.default_rng(seed)
    own = random.normal(1, 0.1, 2)
    phase = random.uniform(0, 2 * np.pi, sensors)
    gain, lean = random.normal(1, 0.2, sensors), np.cos(np.linspace(0, np.pi, sensors))
    signals, labels, turned = [], [], 0.0
    while len(labels) < seconds * RATE:
        kind = int(random.integers(len(ACTIVITIES)))
        pace, swing, tilt = _GAITS[kind]
        for _ in range(int(random.integers(2, 6)) * RATE):
            turned += 2 * np.pi * pace * own[0] / RATE
            wave = np.sin(turned + phase) + 0.4 * np.sin(2 * turned + 2 * phase)
            signals.append(gain * swing * own[1] * wave + tilt * lean)
            labels.append(kind)
    x = np.array(signals[: seconds * RATE]) + 0.25 * random.normal(size=(seconds * RATE, sensors))
    return x.astype(np.float32), np.array(labels[: seconds * RATE])


def train(net: DeepConvLSTM, updates: int, sensors: int, seed: int = 0) -> None:
    """Windows of 20 people; the label is the activity at the window's end."""
    people = [wearer(60, sensors, 100 + k) for k in range(20)]
    random = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(updates):
        xs, ys = [], []
        for _ in range(32):
            x, y = people[int(random.integers(len(people)))]
            end = int(random.integers(net.window, len(x)))
            xs.append(x[end - net.window : end])
            ys.append(y[end - 1])
        loss = F.cross_entropy(net(torch.from_numpy(np.stack(xs))), torch.tensor(ys))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@dataclass(frozen=True)
class Outcome:
    """Of one network: weights, the steps' times in microseconds (median), how far apart they are, and what they foretell."""

    parameters: int
    recompute_us: float
    ring_us: float
    apart: float
    accuracy: float | None

    @property
    def saving(self) -> float:
        """How many times cheaper a sample is with rings."""
        return self.recompute_us / self.ring_us


def stream(net: DeepConvLSTM, folder: Path, x: Array, y: Array | None, rounds: int = 5) -> Outcome:
    """Export both steps, stream ``x`` through both in turn, and compare numbers and times."""
    net.eval()
    frame = (net.sensors,)
    folder.mkdir(parents=True, exist_ok=True)
    past = {"past": (net.window - 1, net.sensors)}
    edgelstm.export(
        RecomputeStep(net), folder / "recompute.onnx", frame=frame, states=past, limit=2 * net.window
    )
    edgelstm.export(
        RingStep(net), folder / "ring.onnx", frame=frame, states=ring_shapes(net), limit=2 * net.window
    )
    times: dict[str, list[float]] = {"recompute": [], "ring": []}
    logits: dict[str, list[Array]] = {"recompute": [], "ring": []}
    runners = {name: edgelstm.Runner.open(folder / f"{name}.onnx", threads=1) for name in times}
    streams = {name: runner.stream("wrist") for name, runner in runners.items()}
    try:
        for block in np.array_split(x, rounds):  # in turn, so that both meet the same disturbances
            for name, one in streams.items():
                for sample in block:
                    started = time.perf_counter()
                    out = one.step(sample)
                    times[name].append(time.perf_counter() - started)
                    logits[name].append(next(iter(out.values())).copy())
    finally:
        for runner in runners.values():
            runner.close()
    # Rings begin with zeros where the paper's window has none yet: compare once a whole window was seen.
    a, b = (np.stack(logits[name])[net.window :] for name in ("recompute", "ring"))
    accuracy = None if y is None else float((b.argmax(1) == y[net.window :]).mean())
    return Outcome(
        parameters=sum(p.numel() for p in net.parameters()),
        recompute_us=statistics.median(times["recompute"]) * 1e6,
        ring_us=statistics.median(times["ring"]) * 1e6,
        apart=float(np.abs(a - b).max() / np.abs(a).max()),
        accuracy=accuracy,
    )


def run(folder: Path, *, quick: bool = False) -> dict[str, Outcome]:
    """The trained network on a person no training saw, and one of the paper's size with random weights for the times."""
    torch.set_num_threads(1)  # small networks: threads cost more than they bring
    torch.manual_seed(0)
    small = DeepConvLSTM(sensors=9, classes=len(ACTIVITIES), filters=16 if quick else 32, units=64)
    train(small, 40 if quick else 400, 9)
    x, y = wearer(10 if quick else 60, 9, 999)
    done = {"trained, 9 sensors": stream(small, folder / "trained", x, y)}
    if not quick:
        paper = DeepConvLSTM(sensors=113, classes=18)
        done["the paper's size, 113 sensors"] = stream(paper, folder / "paper", wearer(20, 113, 998)[0], None)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smaller network, trained less")
    parser.add_argument("--folder", type=Path, default=Path("build/deep_conv_lstm"))
    options = parser.parse_args()
    print(
        "| network | weights | window recomputed | rings | times cheaper | relative difference | accuracy |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, o in run(options.folder, quick=options.quick).items():
        accuracy = "" if o.accuracy is None else f"{o.accuracy:.1%}"
        print(
            f"| {name} | {o.parameters:,} | {o.recompute_us:.0f} us | {o.ring_us:.0f} us | {o.saving:.1f} | "
            f"{o.apart:.1e} | {accuracy} |"
        )


if __name__ == "__main__":
    main()
