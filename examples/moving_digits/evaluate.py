"""Score the network and persistence on digits that no training saw, at every lead, streaming with carried state.

    python examples/moving_digits/evaluate.py [--picture FILE.png]

32 streams of 400 frames each, from zero state; the first 10 frames are not scored. A second table shows that a
stream stays good for as long as it runs.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from data import Streams, digit_images

from edgelstm import nn

HERE = Path(__file__).parent
FRAMES, STREAMS, WARM_UP, SEED = 400, 32, 10, 2026


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=HERE / "model.safetensors")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument(
        "--picture", type=Path, help="draw one forecast: truth above, prediction below (needs Pillow)"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = nn.load(options.weights)
    horizon = model.architecture.horizon
    frames = Streams(digit_images("test"), STREAMS, SEED).frames(0, options.frames + horizon)
    states = model.initial_states(STREAMS)
    model_error, same_error = np.zeros((2, options.frames, horizon))
    with torch.inference_mode():
        for step, frame in enumerate(frames[: options.frames]):
            forecast, states = model(torch.from_numpy(frame), *states)
            ahead = forecast.numpy().swapaxes(0, 1)
            truth = frames[step + 1 : step + 1 + horizon]
            model_error[step] = np.abs(ahead - truth).mean(axis=(1, 2, 3, 4))
            same_error[step] = np.abs(frame - truth).mean(axis=(1, 2, 3, 4))

    print("| frames ahead | MAE model | MAE persistence |\n| ---: | ---: | ---: |")
    for lead in range(horizon):
        print(
            f"| {lead + 1} | {model_error[WARM_UP:, lead].mean():.4f} | {same_error[WARM_UP:, lead].mean():.4f} |"
        )
    print(f"| mean | {model_error[WARM_UP:].mean():.4f} | {same_error[WARM_UP:].mean():.4f} |\n")
    print("| frames of the stream | MAE model, all leads | MAE persistence |\n| --- | ---: | ---: |")
    bounds = [WARM_UP, *range(100, options.frames + 1, 100)]
    for first, last in itertools.pairwise(bounds):
        part = slice(first, last)
        print(f"| {first} to {last - 1} | {model_error[part].mean():.4f} | {same_error[part].mean():.4f} |")
    if options.picture:
        draw(np.stack([truth[:, 0, 0], ahead[:, 0, 0]]), options.picture)


def draw(rows: np.ndarray, path: Path) -> None:
    """Rows [R, T, H, W] of frames in 0..1 as one grey picture."""
    from PIL import Image

    pixels = np.concatenate(list(np.concatenate(list(rows.swapaxes(0, 1)), axis=2)), axis=0)
    Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).resize(pixels.shape[::-1], 0).save(path)


if __name__ == "__main__":
    main()
