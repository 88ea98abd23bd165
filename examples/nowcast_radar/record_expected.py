"""Write test_stream.npz (with ``--stream``) and expected.npz: what PyTorch gives for made-up radar frames.

    python examples/nowcast_radar/record_expected.py

The radar archive is not part of this project, so the stream is drawn: rain cells that drift over composites of the
archive's size and coding, with no data outside the radars' range. It checks an export, not the forecasts.

test_stream.npz: ``frames`` [24, 765, 700] uint16. expected.npz: ``steps``, every sixth step and the last; ``output``
[len(steps), 2, 1, 128, 128] float32, the first and the last predicted frame after each of them (``leads``: 1 and 6;
stream axis left out); the states after the last step as ``state_h0``, ``state_c0``, ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from data import NO_DATA, live_square, rain, to_network

from edgelstm import nn

HERE = Path(__file__).parent
TEST_STREAM = HERE / "test_stream.npz"
STEPS, CELLS, SEED = 24, 12, 200


def drifting_cells() -> np.ndarray:
    """Composites [24, 765, 700] uint16 of Gaussian rain cells that drift to the north-east."""
    random = np.random.default_rng(SEED)
    rows, columns = np.mgrid[:765, :700].astype(np.float32)
    place = random.uniform((270, 300), (500, 530), (CELLS, 2))
    drift = random.normal((-2.0, 3.0), 0.5, (CELLS, 2))
    radius, peak = random.uniform(5, 14, CELLS), random.uniform(20, 120, CELLS)
    frames = np.zeros((STEPS, 765, 700), np.uint16)
    for step, frame in enumerate(frames):
        for (row, column), size, height in zip(place + step * drift, radius, peak, strict=True):
            cell = height * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * size**2))
            frame += np.rint(cell).astype(np.uint16)
    frames[:, np.hypot(rows - 400, columns - 390) > 180] = NO_DATA
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stream", action="store_true", help="draw test_stream.npz anew")
    if parser.parse_args().stream:
        np.savez_compressed(TEST_STREAM, frames=drifting_cells())
    with np.load(TEST_STREAM) as file:
        frames = to_network(rain(live_square(file["frames"]))[0])
    torch.set_num_threads(1)
    model = nn.load(HERE / "model.safetensors")
    leads = np.array([1, model.architecture.horizon])
    kept = sorted({*range(0, STEPS, 6), STEPS - 1})
    states, outputs = model.initial_states(), []
    with torch.inference_mode():
        for step, frame in enumerate(frames):
            forecast, states = model(torch.from_numpy(frame)[None, None], *states)
            if step in kept:
                outputs.append(forecast[0].numpy()[leads - 1])
    names = [f"state_{part}{layer}" for layer in range(len(states) // 2) for part in "hc"]
    last = {name: state[0].numpy() for name, state in zip(names, states, strict=True)}
    np.savez_compressed(
        HERE / "expected.npz", steps=np.array(kept), leads=leads, output=np.stack(outputs), **last
    )


if __name__ == "__main__":
    main()
