"""Convolutions and then an LSTM beside a ConvLSTM: which way does the blob move? Trained, exported, streamed.

    python examples/cnn_lstm/main.py            # a minute or two; prints the table of the README
    python examples/cnn_lstm/main.py --quick    # seconds

A blurred blob crosses a noisy picture in one of eight directions, which a single frame does not tell. The graphs go to ``build/cnn_lstm``.
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
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from model import SIZE, ConvLstm, ConvThenLstm

import edgelstm

Array = npt.NDArray[Any]
DIRECTIONS, FRAMES = 8, 8


def clips(count: int, seed: int) -> tuple[Array, Array]:
    """Frames [FRAMES, count, 1, SIZE, SIZE] and the direction [count] of each."""
    random = np.random.default_rng(seed)
    way = random.integers(DIRECTIONS, size=count)
    angle = 2 * np.pi * way / DIRECTIONS
    speed = random.uniform(0.6, 1.2, count)
    middle = SIZE / 2 + random.uniform(-2, 2, (count, 2))
    grid = np.arange(SIZE) + 0.5
    frames = np.empty((FRAMES, count, 1, SIZE, SIZE))
    for t in range(FRAMES):
        moved = (t - FRAMES / 2) * speed
        x, y = middle[:, 0] + moved * np.cos(angle), middle[:, 1] + moved * np.sin(angle)
        across = np.exp(-0.5 * ((grid - x[:, None]) / 1.5) ** 2)
        down = np.exp(-0.5 * ((grid - y[:, None]) / 1.5) ** 2)
        frames[t, :, 0] = down[:, :, None] * across[:, None, :]
    frames += 0.3 * random.normal(size=frames.shape)
    return frames.astype(np.float32), way


def train(net: ConvThenLstm | ConvLstm, updates: int) -> None:
    """Clips of FRAMES frames from zero state; the answer counts at their end."""
    optimiser = torch.optim.Adam(net.parameters(), 4e-3)
    for update in range(updates):
        x, way = clips(32, 1000 + update)
        h = c = torch.zeros(32, *net.shape)
        for frame in torch.from_numpy(x):
            logits, (h, c) = net(frame, h, c)
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(way))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@dataclass(frozen=True)
class Outcome:
    """Of one network: weights, multiplications and median microseconds of a frame, bytes of state, right answers after each
    frame of a clip."""

    parameters: int
    multiplications: int
    microseconds: float
    state_bytes: int
    right: tuple[float, ...]


def multiplications(net: ConvThenLstm | ConvLstm) -> int:
    """Of one frame, in convolutions and matrix products."""
    half, quarter = (SIZE // 2) ** 2, (SIZE // 4) ** 2
    if isinstance(net, ConvThenLstm):
        places = {"first": half, "second": quarter}
    else:
        places = {"first": half, "gates": half}
    weights = [(n.split(".")[0], p) for n, p in net.named_parameters() if p.dim() > 1]
    return sum(p.numel() * places.get(name, 1) for name, p in weights)


def stream(net: ConvThenLstm | ConvLstm, path: Path, count: int) -> Outcome:
    """Export, and stream clips that no training saw, each from the initial state."""
    edgelstm.export(net.eval(), path, frame=(1, SIZE, SIZE), states={"h": net.shape, "c": net.shape})
    x, way = clips(count, 1)
    right, times = np.zeros(FRAMES), []
    with edgelstm.Runner.open(path, threads=1) as runner:
        camera = runner.stream("camera")
        for k in range(count):
            camera.reset()
            for t in range(FRAMES):
                started = time.perf_counter()
                out = camera.step(x[t, k])
                times.append(time.perf_counter() - started)
                right[t] += next(iter(out.values())).argmax() == way[k]
    return Outcome(
        parameters=sum(p.numel() for p in net.parameters()),
        multiplications=multiplications(net),
        microseconds=statistics.median(times) * 1e6,
        state_bytes=2 * 4 * int(np.prod(net.shape)),
        right=tuple(float(v) for v in right / count),
    )


def run(folder: Path, *, quick: bool = False) -> dict[str, Outcome]:
    """Both networks, of about as many weights."""
    torch.set_num_threads(1)  # small networks: threads cost more than they bring
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    done = {}
    for name, net in {
        "Conv2D, then LSTM": ConvThenLstm(DIRECTIONS, units=14),
        "ConvLSTM2D": ConvLstm(DIRECTIONS),
    }.items():
        train(net, 200 if quick else 800)
        done[name] = stream(net, folder / f"{type(net).__name__}.onnx", 60 if quick else 500)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="trained less")
    parser.add_argument("--folder", type=Path, default=Path("build/cnn_lstm"))
    options = parser.parse_args()
    print("| network | weights | multiplications | state | a frame | right after 2 | 4 | 8 frames |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, o in run(options.folder, quick=options.quick).items():
        shown = " | ".join(f"{o.right[t - 1]:.1%}" for t in (2, 4, 8))
        print(
            f"| {name} | {o.parameters:,} | {o.multiplications:,} | {o.state_bytes:,} B | {o.microseconds:.0f} us | {shown} |"
        )


if __name__ == "__main__":
    main()
