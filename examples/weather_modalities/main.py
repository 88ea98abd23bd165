"""Train a forecaster of four weather maps with every combination of three normalisations, export the best, stream it.

    python examples/weather_modalities/main.py            # about two minutes; prints the table of the README
    python examples/weather_modalities/main.py --quick    # seconds

Rain, cloud and the two parts of the wind, each in its own unit, are the channels of one frame. The graph goes to
``build/weather_modalities``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).parent))
from data import MAPS, SIDE, Weather
from model import Forecaster, Normalise

import edgelstm

Array = npt.NDArray[Any]
AHEAD, WARM_UP = 5, 10
SETTINGS = tuple(Normalise(*switches) for switches in itertools.product((False, True), repeat=3))


def train(net: Forecaster, frames: Array, span: int = 6) -> None:
    """Truncated back-propagation over ``span`` frames, the state carried; forecasts from two frames of each span."""
    x = torch.from_numpy(frames)
    updates = (len(x) - AHEAD) // span
    random = np.random.default_rng(0)
    optimiser = torch.optim.Adam(net.parameters(), 4e-3)
    h = c = torch.zeros(x.shape[1], *net.shape)
    for update in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * min(1.0, 2 * (1 - update / updates))
        h, c = h.detach(), c.detach()
        asked = set(random.choice(span, size=2, replace=False).tolist())
        loss = torch.tensor(0.0)
        for t in range(update * span, (update + 1) * span):
            h, c = net.encode(x[t], h, c)
            if t - update * span in asked:
                error = net.forecast(x[t], h, c) - x[t + 1 : t + 1 + AHEAD].transpose(0, 1)
                loss = loss + (error / net.spread).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()


@dataclass(frozen=True)
class Outcome:
    """Mean absolute error of each map AHEAD frames ahead, as a share of persistence's (which repeats the last frame)."""

    shares: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the maps."""
        return float(np.mean(self.shares))


def judge(forecasts: Array, frames: Array) -> Outcome:
    """``forecasts`` [T, areas, maps, side, side], AHEAD frames ahead of each of ``frames`` [T, areas, maps, side, side]."""
    made, now, then = forecasts[WARM_UP:-AHEAD], frames[WARM_UP:-AHEAD], frames[WARM_UP + AHEAD :]
    axes = (0, 1, 3, 4)
    shares = np.abs(made - then).mean(axes) / np.abs(now - then).mean(axes)
    return Outcome(tuple(float(v) for v in shares))


def validate(net: Forecaster, frames: Array) -> Outcome:
    """The network's forecasts in PyTorch, side by side over the areas."""
    h = c = torch.zeros(frames.shape[1], *net.shape)
    made = []
    with torch.inference_mode():
        for x in torch.from_numpy(frames):
            out, (h, c) = net(x, h, c)
            made.append(out["forecast"][:, -1].numpy())
    return judge(np.stack(made), frames)


def stream(net: Forecaster, path: Path, frames: Array) -> Outcome:
    """Export, and stream ``frames`` [T, areas, maps, side, side]: every area is a stream of one runner."""
    edgelstm.export(
        net,
        path,
        frame=(len(MAPS), SIDE, SIDE),
        states={"h": net.shape, "c": net.shape},
        source=list(frames[:, 0]),
    )
    areas = [f"area {n}" for n in range(frames.shape[1])]
    made = np.empty_like(frames)
    with edgelstm.Runner.open(path, streams=len(areas), threads=1) as runner:
        for area in areas:
            runner.stream(area)
        for t, x in enumerate(frames):
            out = runner.step(dict(zip(areas, x, strict=True)))
            made[t] = np.stack([out[area]["forecast"][-1] for area in areas])
    return judge(made, frames)


@dataclass(frozen=True)
class Result:
    """Of every setting on areas that no training saw; which was best there; and that one, streamed on yet other areas."""

    outcomes: dict[Normalise, Outcome]
    best: Normalise
    live: Outcome


def run(folder: Path, *, quick: bool = False) -> Result:
    """Train all settings on the same frames, export and stream the best."""
    torch.set_num_threads(1)  # small networks: threads cost more than they bring
    folder.mkdir(parents=True, exist_ok=True)
    frames = Weather(4 if quick else 16, seed=1).frames(6 * (24 if quick else 130) + AHEAD)
    spread = torch.from_numpy((frames[AHEAD:] - frames[:-AHEAD]).std((0, 1, 3, 4)))
    held_back = Weather(4 if quick else 16, seed=2).frames(60)
    nets, outcomes = {}, {}
    for setting in SETTINGS:
        torch.manual_seed(0)
        nets[setting] = Forecaster(spread, SIDE, 6 if quick else 12, AHEAD, setting)
        train(nets[setting], frames)
        outcomes[setting] = validate(nets[setting].eval(), held_back)
    best = min(SETTINGS, key=lambda setting: outcomes[setting].mean)
    live = stream(nets[best], folder / "weather.onnx", Weather(4, seed=3).frames(50 if quick else 300))
    return Result(outcomes, best, live)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smaller network, trained less")
    parser.add_argument("--folder", type=Path, default=Path("build/weather_modalities"))
    options = parser.parse_args()
    result = run(options.folder, quick=options.quick)
    print(f"| frame | hidden | output | {' | '.join(MAPS)} | mean |")
    print("| --- | --- | --- | " + " | ".join(["---:"] * (len(MAPS) + 1)) + " |")
    for setting, o in result.outcomes.items():
        print(row((setting.frame, setting.hidden, setting.output), o))
    print(f"\nThe best of them, {result.best}, streamed:")
    print(row((result.best.frame, result.best.hidden, result.best.output), result.live))


def row(switches: tuple[bool, ...], outcome: Outcome) -> str:
    """A line of the table."""
    marks = ["yes" if on else "no" for on in switches]
    return "| " + " | ".join([*marks, *(f"{v:.3f}" for v in (*outcome.shares, outcome.mean))]) + " |"


if __name__ == "__main__":
    main()
