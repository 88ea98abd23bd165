"""The Triton kernel of a ConvLSTM step in Triton's interpreter against float64: a line of JSON for each case.

A process of its own, since what is interpreted is settled when the kernel is defined.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
warnings.simplefilter("ignore")

import torch  # noqa: E402

from edgelstm.graph.gates import GateVariant  # noqa: E402
from edgelstm.kernels.conv_lstm import naive  # noqa: E402
from edgelstm.kernels.conv_lstm.kernel import ConvLstmKernel, Tile  # noqa: E402

WHOLE = Tile(64, 32, 16)
CASES: list[dict[str, Any]] = [
    {"inputs": 3, "channels": 19, "size": (5, 5), "tile": Tile(16, 16, 16)},
    {"inputs": 3, "channels": 5, "size": (7, 5)},
    {"inputs": 1, "channels": 17, "size": (5, 11), "kernel": 5, "c_dtype": "float16"},
    {"inputs": 0, "channels": 7, "size": (3, 13), "kernel": 1},
    {"inputs": 19, "channels": 23, "size": (11, 3), "dtype": "float32"},
    {"inputs": 5, "channels": 7, "size": (7, 7), "variant": GateVariant(peephole=True, cell_clip=0.7)},
    {"inputs": 5, "channels": 7, "size": (7, 7), "variant": GateVariant(coupled=True, peephole=True)},
    {"inputs": 5, "channels": 7, "size": (7, 7), "variant": GateVariant(gate="hard_sigmoid", candidate="relu", output="relu")},
    {"inputs": 16, "channels": 32, "size": (5, 16)},
]  # fmt: skip


def case(
    inputs: int, channels: int, size: tuple[int, int], kernel: int = 3, dtype: str = "float16", c_dtype: str = "float32",
    variant: GateVariant | None = None, tile: Tile = WHOLE,
) -> dict[str, Any]:  # fmt: skip
    """Two steps of four streams: one idle and full of NaN, one with a NaN in one place."""
    torch.manual_seed(0)
    variant = variant or GateVariant()
    gates, joined = len(variant.gates), inputs + channels
    weight = torch.randn(gates * channels, joined, kernel, kernel) * (joined * kernel**2) ** -0.5 * 2
    weights = [
        torch.randn(channels, *size) if k % 2 else torch.randn(channels)
        for k, n in enumerate(variant.inputs[2:])
    ]
    cell = ConvLstmKernel(
        weight, torch.randn(gates * channels), weights, variant=variant, dtype=dtype, tile=tile
    )
    h, other, c = cell.new_state(4, *size, c_dtype=getattr(torch, c_dtype))
    h.copy_(torch.randn(h.shape))
    c.copy_(torch.randn(c.shape))
    h[1], c[1] = float("nan"), float("nan")
    idle = h[1].clone(), c[1].clone()
    active = torch.tensor([1, 0, 5, 1], dtype=torch.int32)
    exact_h, exact_c = h.double(), c.double()
    error, steps = [0.0, 0.0], 2
    for step in range(steps):
        x = (
            torch.randn(4, inputs, *size).to(cell.dtype).to(memory_format=torch.channels_last)
            if inputs
            else None
        )
        if x is not None and step:
            x[3, 0, -1, -1] = float("nan")
        wide = [p.double() for p in cell.peepholes]
        exact_h, exact_c = naive.step(
            variant, cell.weight.double(), cell.bias.double(), wide, None if x is None else x.double(), exact_h, exact_c, active
        )  # fmt: skip
        cell._launch(x, h, c, other, c, active)
        h, other = other, h
        # Errors of one step: what comes next starts from the same h and c.
        for k, (found, exact) in enumerate(((h, exact_h), (c, exact_c))):
            assert torch.equal(found.isnan(), exact.isnan()), f"NaN in other places, step {step}"
            scale = torch.finfo(found.dtype).eps + 32 * torch.finfo(torch.float32).eps
            off = ((found.double() - exact).abs() / (1 + exact.abs()) / scale).nan_to_num()
            error[k] = max(error[k], float(off.max()))
        exact_h, exact_c = h.double(), c.double()
    bits = {2: torch.int16, 4: torch.int32}
    kept = all(
        torch.equal(now.view(bits[now.element_size()]), before.view(bits[now.element_size()]))
        for now, before in zip((h[1], c[1]), idle, strict=True)
    )
    return {"h": error[0], "c": error[1], "idle kept": kept}


if __name__ == "__main__":
    for k in map(int, sys.argv[1:] or range(len(CASES))):
        print(json.dumps({"case": k, **case(**CASES[k])}), flush=True)
