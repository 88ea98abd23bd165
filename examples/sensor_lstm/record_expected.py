"""Write test_stream.npz (with ``--stream``) and expected.npz: what PyTorch gives for the committed stream.

    python examples/sensor_lstm/record_expected.py

expected.npz: ``steps`` [200], ``output`` [200, 48] float32 (stream axis left out), and the states after the last step
as ``state_h0``, ``state_c0``, ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from data import TEST_STREAM, Plants, test_stream

from edgelstm import nn

HERE = Path(__file__).parent
STEPS, SEED = 200, 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stream", action="store_true", help="generate test_stream.npz anew")
    if parser.parse_args().stream:
        np.savez_compressed(TEST_STREAM, frames=Plants(1, SEED).samples(STEPS)[:, 0])
    torch.set_num_threads(1)
    model = nn.load(HERE / "model.safetensors")
    states, outputs = model.initial_states(), []
    with torch.inference_mode():
        for frame in test_stream():
            y, states = model(torch.from_numpy(frame)[None], *states)
            outputs.append(y[0].numpy())
    names = [f"state_{part}{layer}" for layer in range(len(states) // 2) for part in "hc"]
    last = {name: state[0].numpy() for name, state in zip(names, states, strict=True)}
    np.savez_compressed(HERE / "expected.npz", steps=np.arange(STEPS), output=np.stack(outputs), **last)


if __name__ == "__main__":
    main()
