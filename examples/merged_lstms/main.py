"""An LSTM for each variable, merged, beside one LSTM over all: trained on one plant's signals, exported, streamed.

    python examples/merged_lstms/main.py            # a minute or two; prints the table of the README
    python examples/merged_lstms/main.py --quick    # seconds

The plant is that of ``examples/sensor_lstm``. The graphs go to ``build/merged_lstms``.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from model import Joint, Merged

import edgelstm

Array = npt.NDArray[Any]
VARIABLES, AHEAD, WARM_UP = 6, 8, 50
FLOW, PRESSURE, TEMPERATURE = 1, 3, 4


def plants(count: int, samples: int, seed: int) -> Array:
    """Signals [samples, count, 6]."""
    path = Path(__file__).parents[1] / "sensor_lstm" / "data.py"
    spec = importlib.util.spec_from_file_location("sensor_lstm_data", path)
    assert spec is not None
    assert spec.loader is not None
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    signals: Array = data.Plants(count, seed).samples(samples)
    return signals


def targets(signals: Array) -> tuple[Array, Array, Array]:
    """Of each sample but the last AHEAD [samples, plants]: the next pressure; whether the flow passes 0.5 within AHEAD samples;
    whether the temperature falls, stays or rises until then (0, 1, 2)."""
    now = signals[:-AHEAD]
    later = np.stack([signals[k : len(signals) - AHEAD + k] for k in range(1, AHEAD + 1)])
    moved = later[-1, :, :, TEMPERATURE] - now[:, :, TEMPERATURE]
    classes = 1 + (moved > 0.02).astype(np.int64) - (moved < -0.02).astype(np.int64)
    return later[0, :, :, PRESSURE], (later[..., FLOW].max(0) > 0.5).astype(np.float32), classes


def train(net: Merged | Joint, updates: int, streams: int = 32, span: int = 32) -> None:
    """Truncated back-propagation, the state carried; the three losses add up."""
    signals = plants(streams, updates * span + AHEAD, seed=1)
    x = torch.from_numpy(signals)
    value, rises, classes = (torch.from_numpy(t) for t in targets(signals))
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    h = c = torch.zeros(streams, *net.shape)
    for update in range(updates):
        h, c = h.detach(), c.detach()
        loss: Tensor = torch.tensor(0.0)
        for t in range(update * span, (update + 1) * span):
            read, h, c = net.recur(x[t], h, c)
            foretold, probability, kinds = net.head.logits(read)
            loss = loss + 10 * nn.functional.mse_loss(foretold[:, 0], value[t])
            loss = loss + nn.functional.binary_cross_entropy_with_logits(probability[:, 0], rises[t])
            loss = loss + nn.functional.cross_entropy(kinds, classes[t])
        optimiser.zero_grad()
        (loss / span).backward()
        optimiser.step()


@dataclass(frozen=True)
class Outcome:
    """Of one network, streamed: weights, median microseconds a sample, mean absolute error of the value, and the share of right
    answers of the other two outputs."""

    parameters: int
    microseconds: float
    value_error: float
    probability_right: float
    classes_right: float


def stream(net: Merged | Joint, path: Path, signals: Array) -> Outcome:
    """Export, stream one plant's ``signals`` [samples, 6], judge the outputs."""
    states = {"h": net.shape, "c": net.shape}
    edgelstm.export(net.eval(), path, frame=(VARIABLES,), states=states)
    outputs, times = [], []
    with edgelstm.Runner.open(path, threads=1) as runner:
        plant = runner.stream("plant")
        for sample in signals:
            started = time.perf_counter()
            out = plant.step(sample)
            times.append(time.perf_counter() - started)
            outputs.append({name: v.copy() for name, v in out.items()})
    value, rises, classes = (t[WARM_UP:, 0] for t in targets(signals[:, None]))
    used = outputs[WARM_UP:-AHEAD]
    return Outcome(
        parameters=sum(p.numel() for p in net.parameters()),
        microseconds=statistics.median(times) * 1e6,
        value_error=float(np.mean([abs(o["value"][0] - v) for o, v in zip(used, value, strict=True)])),
        probability_right=float(
            np.mean([(o["probability"][0] > 0.5) == r for o, r in zip(used, rises, strict=True)])
        ),
        classes_right=float(
            np.mean([o["classes"].argmax() == k for o, k in zip(used, classes, strict=True)])
        ),
    )


def run(folder: Path, *, quick: bool = False) -> dict[str, Outcome]:
    """Both networks, of about as many weights, on a plant no training saw."""
    torch.set_num_threads(1)  # small networks: threads cost more than they bring
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    live = plants(1, 600 if quick else 5000, seed=3)[:, 0]
    done = {}
    for name, net in {
        "an LSTM a variable, merged": Merged(VARIABLES, 12),
        "one LSTM": Joint(VARIABLES, 28),
    }.items():
        train(net, 15 if quick else 250)
        done[name] = stream(net, folder / f"{type(net).__name__.lower()}.onnx", live)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="trained less")
    parser.add_argument("--folder", type=Path, default=Path("build/merged_lstms"))
    options = parser.parse_args()
    print("| network | weights | a sample | pressure, MAE | flow passes 0.5 | temperature |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, o in run(options.folder, quick=options.quick).items():
        print(
            f"| {name} | {o.parameters:,} | {o.microseconds:.0f} us | {o.value_error:.4f} | {o.probability_right:.1%} | "
            f"{o.classes_right:.1%} |"
        )


if __name__ == "__main__":
    main()
