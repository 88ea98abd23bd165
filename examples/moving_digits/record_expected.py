"""Write test_stream.npz (with ``--stream``) and expected.npz: what PyTorch gives for the committed stream.

    python examples/moving_digits/record_expected.py

expected.npz: ``steps``, every tenth step and the last; ``output`` [len(steps), 2, 1, 64, 64] float32, the first and
the last predicted frame after each of them (``leads``: 1 and 10; stream axis left out); the states after the last
step as ``state_h0``, ``state_c0``, ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from data import TEST_STREAM, Streams, digit_images, test_stream

from edgelstm import nn

HERE = Path(__file__).parent
STEPS, SEED = 200, 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stream", action="store_true", help="draw test_stream.npz anew (needs scikit-learn)"
    )
    if parser.parse_args().stream:
        drawn = Streams(digit_images("test"), 1, SEED).frames(0, STEPS)[:, 0, 0]
        np.savez_compressed(TEST_STREAM, frames=np.rint(drawn * 255).astype(np.uint8))
    torch.set_num_threads(1)
    model = nn.load(HERE / "model.safetensors")
    leads = np.array([1, model.architecture.horizon])
    kept = sorted({*range(0, STEPS, 10), STEPS - 1})
    states, outputs = model.initial_states(), []
    with torch.inference_mode():
        for step, frame in enumerate(test_stream()):
            x = torch.from_numpy(frame * np.float32(1 / 255))[None, None]
            forecast, states = model(x, *states)
            if step in kept:
                outputs.append(forecast[0].numpy()[leads - 1])
    names = [f"state_{part}{layer}" for layer in range(len(states) // 2) for part in "hc"]
    last = {name: state[0].numpy() for name, state in zip(names, states, strict=True)}
    np.savez_compressed(
        HERE / "expected.npz", steps=np.array(kept), leads=leads, output=np.stack(outputs), **last
    )


if __name__ == "__main__":
    main()
