"""Train a forecaster of a simulated plant, make two detectors of it, and stream a plant whose sensors fail.

    python examples/anomaly_detection/main.py            # about two minutes; prints the table of the README
    python examples/anomaly_detection/main.py --quick    # seconds

The plant is that of ``examples/sensor_lstm``. The graphs go to ``build/anomaly_detection``.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from model import WARM_UP, Forecaster, GaussianDetector, WindowDetector

import edgelstm

Array = npt.NDArray[Any]
AHEAD, SENSORS, WINDOW = 3, 6, 20
#: Share of normal samples that may raise an alarm; the threshold is set by it.
FALSE_ALARMS = 1e-3


def plants(count: int, samples: int, seed: int) -> Array:
    """Signals [samples, count, 6] of ``count`` sound plants."""
    path = Path(__file__).parents[1] / "sensor_lstm" / "data.py"
    spec = importlib.util.spec_from_file_location("sensor_lstm_data", path)
    assert spec is not None
    assert spec.loader is not None
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    signals: Array = data.Plants(count, seed).samples(samples)
    return signals


def broken(signal: Array, seed: int) -> tuple[Array, Array]:
    """``signal`` [samples, 6] with faults of 30 to 60 samples, and which samples are faulty [samples]."""
    random = np.random.default_rng(seed)
    x, faulty = signal.copy(), np.zeros(len(signal), bool)
    at = WARM_UP + 100
    while at + 160 < len(x):
        length, sensor = int(random.integers(30, 60)), int(random.integers(1, SENSORS))
        part = slice(at, at + length)
        kind = int(random.integers(4))
        if kind == 0:  # stuck
            x[part, sensor] = x[at, sensor]
        elif kind == 1:  # drifts away
            x[part, sensor] += np.linspace(0, random.choice([-0.8, 0.8]), length)
        elif kind == 2:  # noisy
            x[part, sensor] += random.normal(0, 0.25, length)
        else:  # swings
            x[part, sensor] += 0.3 * np.sin(np.arange(length))
        faulty[part] = True
        at += length + int(random.integers(150, 250))
    return x.astype(np.float32), faulty


def train(net: Forecaster, updates: int, streams: int = 32, span: int = 32) -> None:
    """Truncated back-propagation over ``span`` samples, the state carried from one to the next."""
    signals = torch.from_numpy(plants(streams, updates * span + AHEAD, seed=1))
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    state = net.zeros(streams)
    for update in range(updates):
        state, loss = tuple(s.detach() for s in state), torch.tensor(0.0)
        for t in range(update * span, (update + 1) * span):
            ahead, state = net(signals[t], *state)
            loss = loss + nn.functional.mse_loss(ahead, signals[t + 1 : t + 1 + AHEAD].transpose(0, 1))
        optimiser.zero_grad()
        (loss / span).backward()
        optimiser.step()


def fit(gaussian: GaussianDetector, window: WindowDetector, samples: int) -> None:
    """Errors and scores on sound plants that no training saw: the Gaussian, then both thresholds."""
    signals = torch.from_numpy(plants(16, samples, seed=2))
    net = gaussian.forecaster
    state, made = net.zeros(16), torch.zeros(16, AHEAD, AHEAD, SENSORS)
    errors, single = [], []
    with torch.inference_mode():
        for t, x in enumerate(signals):
            if t >= WARM_UP:
                errors.append(gaussian.errors(x, made))
                single.append(window.errors(x, made[:, 0, 0]))
            new, state = net(x, *state)
            made = torch.cat([new[:, None], made[:, :-1]], 1)
        gaussian.fit(torch.cat(errors).clone())
        window.usual = torch.cat(single).std(0).clone()
        for detector, extra in (
            (gaussian, (torch.zeros(16, AHEAD, AHEAD, SENSORS),)),
            (window, (torch.zeros(16, SENSORS), torch.zeros(16, WINDOW))),
        ):
            states, scores = (*net.zeros(16), *extra, torch.zeros(16, 1)), []
            for t, x in enumerate(signals):
                (score, _), states = detector(x, *states)
                if t >= WARM_UP + WINDOW:
                    scores.append(score)
            detector.threshold = torch.quantile(torch.cat(scores), 1 - FALSE_ALARMS).clone()


@dataclass(frozen=True)
class Outcome:
    """Of one detector on a live stream: faults that raised an alarm, of how many; samples until it, in the median; false alarms, as
    a share of the samples that are neither faulty nor just behind a fault; area under the ROC curve of the samples."""

    found: int
    faults: int
    delay: float
    false_alarms: float
    area: float


def judge(scores: Array, alarms: Array, faulty: Array) -> Outcome:
    """What the streamed ``scores`` and ``alarms`` [samples] are worth."""
    starts = np.flatnonzero(np.diff(faulty.astype(int)) == 1) + 1
    ends = np.flatnonzero(np.diff(faulty.astype(int)) == -1) + 1
    delays = []
    behind = np.zeros(len(faulty), bool)
    for start, end in zip(starts, ends, strict=True):
        raised = np.flatnonzero(alarms[start:end])
        delays += [int(raised[0])] if len(raised) else []
        behind[end : end + 2 * WINDOW] = True
    sound = ~faulty & ~behind
    sound[:WARM_UP] = False
    ranks = np.empty(len(scores))
    used = faulty | sound
    ranks[used] = scores[used].argsort().argsort()
    positives, negatives = int(faulty.sum()), int(sound.sum())
    area = (ranks[faulty].sum() - positives * (positives - 1) / 2) / (positives * negatives)
    delay = float(np.median(delays)) if delays else float("nan")
    return Outcome(len(delays), len(starts), delay, float(alarms[sound].mean()), float(area))


def run(folder: Path, *, quick: bool = False) -> dict[str, Outcome]:
    """Train, export both detectors, stream one failing plant through both."""
    torch.set_num_threads(1)  # small networks: threads cost more than they bring
    torch.manual_seed(0)
    net = Forecaster(SENSORS, 16 if quick else 48, AHEAD)
    train(net, 30 if quick else 300)
    detectors = {"LSTM-AD, Gaussian": GaussianDetector(net), "window of errors": WindowDetector(net, WINDOW)}
    fit(*detectors.values(), samples=300 if quick else 2000)
    x, faulty = broken(plants(1, 1200 if quick else 20_000, seed=3)[:, 0], seed=4)
    units = {f"{kind}{k}": (net.units,) for k in (1, 2) for kind in "hc"}
    rings: dict[str, dict[str, tuple[int, ...]]] = {
        "LSTM-AD, Gaussian": {"made": (AHEAD, AHEAD, SENSORS)},
        "window of errors": {"made": (SENSORS,), "recent": (WINDOW,)},
    }
    done = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, detector in detectors.items():
        path = folder / f"{type(detector).__name__}.onnx"
        states = {**units, **rings[name], "age": (1,)}
        edgelstm.export(detector.eval(), path, frame=(SENSORS,), states=states)
        with edgelstm.Runner.open(path) as runner:
            plant = runner.stream("plant")
            outputs = [[float(v[0]) for v in plant.step(sample).values()] for sample in x]
        scores, alarms = np.array(outputs).T
        done[name] = judge(scores, alarms > 0, faulty)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smaller network, trained less")
    parser.add_argument("--folder", type=Path, default=Path("build/anomaly_detection"))
    options = parser.parse_args()
    print("| detector | faults found | samples until the alarm | false alarms | area under ROC |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, o in run(options.folder, quick=options.quick).items():
        print(f"| {name} | {o.found} of {o.faults} | {o.delay:.0f} | {o.false_alarms:.2%} | {o.area:.3f} |")


if __name__ == "__main__":
    main()
