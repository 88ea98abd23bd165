"""Score the network and persistence on plants that no training saw, at every lead, streaming with carried state.

    python examples/sensor_lstm/evaluate.py

32 plants of 1,200 samples each; every stream begins from zero state, and its first 50 samples are not scored.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from data import CHANNELS, Plants

from edgelstm import nn

HERE = Path(__file__).parent
SAMPLES, PLANTS, WARM_UP, SEED = 1200, 32, 50, 2026


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=HERE / "model.safetensors")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = nn.load(options.weights)
    samples = Plants(PLANTS, SEED).samples(SAMPLES)
    states, outputs = model.initial_states(PLANTS), []
    with torch.inference_mode():
        for sample in samples:
            y, states = model(torch.from_numpy(sample), *states)
            outputs.append(y.view(PLANTS, -1, len(CHANNELS)).numpy())
    ahead = np.stack(outputs, axis=1)  # [plants, time, lead, channel]
    signal = samples.swapaxes(0, 1)
    horizon = ahead.shape[2]
    now = slice(WARM_UP, SAMPLES - horizon)

    print("| samples ahead | MAE model | MAE persistence | " + " | ".join(CHANNELS) + " |")
    print("| ---: " * (3 + len(CHANNELS)) + "|")
    for lead in range(1, horizon + 1):
        truth = signal[:, WARM_UP + lead : SAMPLES - horizon + lead]
        model_error = np.abs(ahead[:, now, lead - 1] - truth).mean(axis=(0, 1))
        same_error = np.abs(signal[:, now] - truth).mean(axis=(0, 1))
        ratios = " | ".join(f"{a / b:.2f}" for a, b in zip(model_error, same_error, strict=True))
        print(f"| {lead} | {model_error.mean():.4f} | {same_error.mean():.4f} | {ratios} |")
    print("\nThe last columns: the model's MAE over persistence's, channel by channel.")


if __name__ == "__main__":
    main()
