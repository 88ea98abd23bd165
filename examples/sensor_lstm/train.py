"""Train a two-layer LSTM to forecast a plant's sensors and write model.safetensors.

    python examples/sensor_lstm/train.py --updates 3000 --threads 2

Signals are generated as they are needed and never end: the state is carried from chunk to chunk (truncated
back-propagation through time); now and then a stream begins again from zero state in the middle of its signal.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from data import CHANNELS, Plants

from edgelstm import nn

HERE = Path(__file__).parent
HORIZON = 8  # samples ahead
CHUNK = 48  # samples between two updates
MEAN_LIFE = 1000  # samples before a stream begins again


def build() -> nn.LSTM:
    """The untrained network: y [N, HORIZON * 6], all channels one sample ahead first."""
    return nn.LSTM(len(CHANNELS), [64, 64], outputs=HORIZON * len(CHANNELS), residual=True)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=options.rate)
    plants = Plants(options.batch, options.seed)
    samples = torch.from_numpy(plants.samples(CHUNK + HORIZON))
    states = model.initial_states(options.batch)
    started, smooth = time.monotonic(), 0.0

    for update in range(1, options.updates + 1):
        minutes = (time.monotonic() - started) / 60
        progress = max(update / options.updates, minutes / options.minutes)
        for group in optimizer.param_groups:
            group["lr"] = options.rate * annealing(update, progress)

        loss = torch.zeros(())
        for step in range(CHUNK):
            y, states = model(samples[step], *states)
            forecast = y.view(options.batch, HORIZON, len(CHANNELS)).transpose(0, 1)
            loss = loss + (forecast - samples[step + 1 : step + 1 + HORIZON]).abs().mean() / CHUNK
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        samples = torch.cat([samples[CHUNK:], torch.from_numpy(plants.samples(CHUNK))])
        going = torch.from_numpy(random.random((options.batch, 1)) >= CHUNK / MEAN_LIFE)
        states = tuple(state.detach() * going for state in states)
        smooth = loss.item() if update == 1 else 0.99 * smooth + 0.01 * loss.item()
        if update % 100 == 0:
            print(f"update {update:5d}  loss {smooth:.5f}  {minutes:.1f} min", flush=True)
        if update % 500 == 0 or progress >= 1:
            nn.save(model, options.out)
        if progress >= 1:
            break


def annealing(update: int, progress: float) -> float:
    """Share of the peak learning rate: up over the first 50 updates, then down along a cosine."""
    return min(1.0, update / 50) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="anneal and stop after this time at the latest"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "model.safetensors")
    return parser.parse_args()


if __name__ == "__main__":
    main()
