"""Train the encoding-forecasting ConvLSTM on radar frames before 05:30 and write model.safetensors.

    python examples/nowcast_radar/train.py --radar DIR --updates 4000 --threads 2

Every stream of the batch follows one 192 km square through the night, turned and mirrored at random, with its state
carried from chunk to chunk (truncated back-propagation through time), until it reaches 05:30.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from data import PREPROCESSING, SIDE, SPLIT, rain, read, to_network

from edgelstm import nn

HERE = Path(__file__).parent
HORIZON = 6  # 30 minutes
CHUNK = 6  # frames between two updates
CROP = 96  # 2 km pixels
SHORTEST = 3 * CHUNK  # frames of a stream


def build() -> nn.EncoderForecaster:
    """The untrained network."""
    return nn.EncoderForecaster(
        1, [32, 32], size=(SIDE, SIDE), horizon=HORIZON, patch=4, stem=16, kernel=3, residual=True
    )


class Streams:
    """A batch of squares followed in time; ``next`` gives each one's next frames."""

    def __init__(self, frames: np.ndarray, known: np.ndarray, streams: int, seed: int) -> None:
        self.frames, self.known = frames, known
        self.random = np.random.default_rng(seed)
        self.squares = [self._square() for _ in range(streams)]
        # Out of step with each other, so that a batch holds early and late frames of a stream.
        for square in self.squares:
            square["at"] = int(self.random.integers(square["at"], len(frames) - HORIZON - CHUNK + 1))

    def next(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Frames and their known pixels [CHUNK+HORIZON, B, 1, CROP, CROP], and which streams begin [B, 1, 1, 1]."""
        begins = np.zeros(len(self.squares), bool)
        pieces = []
        for n, square in enumerate(self.squares):
            if square["at"] + CHUNK + HORIZON > len(self.frames):
                square = self.squares[n] = self._square()
                begins[n] = True
            times = slice(square["at"], square["at"] + CHUNK + HORIZON)
            square["at"] += CHUNK
            pieces.append([self._cut(array[times], square) for array in (self.frames, self.known)])
        x, known = (
            torch.from_numpy(np.stack(part, axis=1)[:, :, None]) for part in zip(*pieces, strict=True)
        )
        return x, known, torch.from_numpy(begins)[:, None, None, None]

    def _square(self) -> dict[str, int]:
        while True:
            row, column = (int(self.random.integers(0, side - CROP + 1)) for side in self.frames.shape[1:])
            if self.known[0, row : row + CROP, column : column + CROP].mean() > 0.5:
                break
        start = int(self.random.integers(0, len(self.frames) - SHORTEST - HORIZON + 1))
        return {"at": start, "row": row, "column": column, "turn": int(self.random.integers(8))}

    @staticmethod
    def _cut(array: np.ndarray, square: dict[str, int]) -> np.ndarray:
        row, column = square["row"], square["column"]
        cut = np.rot90(array[:, row : row + CROP, column : column + CROP], square["turn"] % 4, axes=(1, 2))
        return np.ascontiguousarray(cut[:, ::-1] if square["turn"] >= 4 else cut)


def balanced_loss(
    forecast: torch.Tensor, truth: torch.Tensor, known: torch.Tensor, rainy: float
) -> torch.Tensor:
    """Mean of |e| + e² over known pixels, pixels with 1 mm/h or more counting twice (Shi et al. 2017, section 4.2).

    Under |e| the network says rain where its probability passes 1/2; the weight moves that to 1/3, which is where
    saying rain begins to raise a CSI of about 1/2.
    """
    error = forecast - truth
    weight = known * (1.0 + (truth >= rainy))
    return ((error.abs() + error.square()) * weight).sum() / weight.sum().clamp(min=1.0)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    counts, times = read(options.radar)
    rate, known = rain(counts[[time < SPLIT for time in times]])
    print(f"training on {len(rate)} frames before {SPLIT} UTC", flush=True)
    streams = Streams(to_network(rate), known, options.batch, options.seed)
    rainy = float(to_network(np.float32(1.0)))
    model = build()
    if options.resume:
        model.load_state_dict(nn.load(options.resume).state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=options.rate)
    states = model.initial_states(options.batch, size=(CROP, CROP))
    started, smooth = time.monotonic(), 0.0

    for update in range(1, options.updates + 1):
        minutes = (time.monotonic() - started) / 60
        progress = max(update / options.updates, minutes / options.minutes)
        for group in optimizer.param_groups:
            group["lr"] = options.rate * annealing(update, progress)

        frames, valid, begins = streams.next()
        states = tuple(state.detach() * ~begins for state in states)
        asked = set(random.choice(CHUNK, size=2, replace=False).tolist())
        loss = torch.zeros(())
        for step in range(CHUNK):
            states = model.encode(frames[step], states)
            if step in asked:
                ahead = slice(step + 1, step + 1 + HORIZON)
                forecast = model.forecast(frames[step], states).transpose(0, 1)
                loss = loss + balanced_loss(forecast, frames[ahead], valid[ahead], rainy) / len(asked)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        smooth = loss.item() if update == 1 else 0.99 * smooth + 0.01 * loss.item()
        if update % 100 == 0:
            print(f"update {update:5d}  loss {smooth:.5f}  {minutes:.1f} min", flush=True)
        if update % 250 == 0 or progress >= 1:
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
    parser.add_argument("--radar", type=Path, required=True, help="folder of KNMI .h5 composites")
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="anneal and stop after this time at the latest"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", type=Path, help="start from these weights")
    parser.add_argument("--out", type=Path, default=HERE / "model.safetensors")
    return parser.parse_args()


if __name__ == "__main__":
    main()
