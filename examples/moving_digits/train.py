"""Train the encoding-forecasting ConvLSTM on moving digits and write model.safetensors.

    python examples/moving_digits/train.py --threads 2

The network runs as it will live: streams go on from chunk to chunk with their state carried (truncated
back-propagation through time), and now and then one ends and another begins from zero state.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from data import SIDE, Streams, digit_images

from edgelstm import nn

HERE = Path(__file__).parent
PREPROCESSING = {"x": [{"op": "scale", "factor": 1 / 255, "offset": 0.0}]}
HORIZON = 10
CHUNK = 10  # frames between two updates
MEAN_LIFE = 200  # frames before a stream ends


def build() -> nn.EncoderForecaster:
    """The untrained network."""
    return nn.EncoderForecaster(1, [40, 40], size=(SIDE, SIDE), horizon=HORIZON, patch=4, stem=16)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    model = build()
    if options.resume:
        model.load_state_dict(nn.load(options.resume).state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=options.rate)
    streams = Streams(digit_images("train"), options.batch, options.seed)
    states = model.initial_states(options.batch)
    started, smooth = time.monotonic(), 0.0

    for update in range(1, options.updates + 1):
        minutes = (time.monotonic() - started) / 60
        progress = max(update / options.updates, minutes / options.minutes)
        for group in optimizer.param_groups:
            group["lr"] = options.rate * annealing(update, progress)

        frames = torch.from_numpy(streams.frames(update * CHUNK, CHUNK + HORIZON))
        asked = set(random.choice(CHUNK, size=2, replace=False).tolist())
        loss = torch.zeros(())
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            for step in range(CHUNK):
                states = model.encode(frames[step], states)
                if step in asked:
                    truth = frames[step + 1 : step + 1 + HORIZON].transpose(0, 1)
                    error = model.forecast(frames[step], states) - truth
                    loss = loss + (error.abs() + error.square()).mean() / len(asked)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        ended = random.random(options.batch) < CHUNK / MEAN_LIFE
        streams.restart(ended)
        going = torch.from_numpy(~ended).float()[:, None, None, None]
        states = tuple(state.detach() * going for state in states)
        smooth = loss.item() if update == 1 else 0.99 * smooth + 0.01 * loss.item()
        if update % 100 == 0:
            print(f"update {update:5d}  loss {smooth:.5f}  {minutes:.1f} min", flush=True)
        if update % 500 == 0 or progress >= 1:
            nn.save(model, options.out, PREPROCESSING)
        if progress >= 1:
            break


def annealing(update: int, progress: float) -> float:
    """Share of the peak learning rate: up over the first 100 updates, then down along a cosine."""
    return min(1.0, update / 100) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=8000)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="anneal and stop after this time at the latest"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", type=Path, help="start from these weights")
    parser.add_argument(
        "--bfloat16", action="store_true", help="convolutions in bfloat16: faster where the CPU has it"
    )
    parser.add_argument("--out", type=Path, default=HERE / "model.safetensors")
    return parser.parse_args()


if __name__ == "__main__":
    main()
