"""What edgelstm.kernels takes on this device: ``python own_times.py WHAT DEVICE [--quick] [--seconds 60]``.

WHAT: ``gates`` (FusedGates as an operator, beside kernels.py's torch rows), ``cell`` (a small LSTM beside cuDNN's, in CUDA graphs), ``conv`` (a
ConvLSTM step: cuDNN's convolution and our gates beside the one fused kernel, by tile). Each row is a line of JSON at once; times are
microseconds of every round, of many launches in one CUDA graph. Figures with an aim come as they are known.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import kernels  # noqa: E402
from edgelstm.kernels import ConvLstmKernel, SmallCell, register_torch  # noqa: E402
from edgelstm.kernels.conv_lstm.kernel import Tile  # noqa: E402

Row = dict[str, Any]
#: Small LSTM: ours over cuDNN's with graphs; fused ConvLSTM: two kernels over one, at 8 streams; 64 streams over one.
CELL_AIM, CONV_AIM, STREAMS_AIM = 0.5, 1.4, 8.0


def main() -> int:
    """Measure and print, for as long as there is time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("gates", "cell", "conv"))
    parser.add_argument("device")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    until, failed = time.monotonic() + arguments.seconds, 0
    rows = {"gates": gates, "cell": cell, "conv": conv}[arguments.what]
    with torch.no_grad():
        for row in rows(arguments.device, arguments.quick):
            print(json.dumps(row), flush=True)
            failed += row.get("status") == "failed"
            if time.monotonic() > until:
                break
    return int(failed > 0)


def timed(name: str, make: Callable[[], Callable[[], Any]], device: str, **more: Any) -> Row:
    """A row of what ``make()`` gives, or of why it fails."""
    try:
        return {"name": name, **more, "microseconds": kernels.measure(make(), device)}
    except Exception as error:
        return {"name": name, **more, "status": "failed", "note": f"{type(error).__name__}: {error}"[:400]}


def median(row: Row) -> float:
    """Of the rounds; infinite where it failed."""
    return statistics.median(row["microseconds"]) if "microseconds" in row else float("inf")


def figure(what: str, measured: float, aim: float, below: bool) -> Iterator[Row]:
    """A figure, where there is one."""
    if measured not in (0.0, float("inf")) and measured == measured:
        yield {"figure": what, "measured": measured, "aim": aim, "below": below}


def gates(device: str, quick: bool) -> Iterator[Row]:
    """The operator in place, on the sizes and types of kernels.py."""
    ops = register_torch()
    for size, shape in (kernels.QUICK if quick else kernels.SIZES).items():
        for name, dtype in kernels.DTYPES.items():
            streams, channels, places = shape
            z = torch.randn(streams, 4 * channels, places, device=device).to(dtype)
            c = torch.randn(*shape, device=device)
            h = torch.empty(shape, dtype=dtype, device=device)
            moved = 5 * h.numel() * h.element_size() + 2 * c.numel() * 4
            yield timed(
                "edgelstm.kernels", lambda z=z, c=c, h=h: lambda: ops.fused_gates_(z, c, h), device, size=size, dtype=name, bytes=moved
            )  # fmt: skip


def cell(device: str, quick: bool) -> Iterator[Row]:
    """One frame, then a window: 16 inputs, one layer; ours cut as the plan says, then in other ways."""
    sizes = (16,) if quick else (256, 512, 64)
    for hidden, dtype, steps in itertools.product(sizes, ("float16", "float32"), (1, 4 if quick else 100)):
        one = float("inf")
        for streams in (1, 3) if quick else (1, 8, 64):
            about = {"hidden": hidden, "dtype": dtype, "steps": steps, "streams": streams}
            kind = getattr(torch, dtype)
            torch.manual_seed(0)
            lstm = torch.nn.LSTM(16, hidden)
            x = torch.randn(steps, streams, 16, device=device).to(kind)
            h = torch.zeros(streams, hidden, device=device).to(kind)
            c = torch.zeros(streams, hidden, device=device)
            y = torch.empty(steps, streams, hidden, device=device).to(kind)
            rows = torch.arange(streams, dtype=torch.int32, device=device)
            with SmallCell.from_torch(lstm, dtype=dtype) as ours:
                mine = timed(
                    "SmallCell",
                    lambda o=ours, x=x, h=h, c=c, r=rows, y=y: lambda: o(x, h, c, rows=r, y=y),
                    device,
                    **about,
                )
                yield mine
                theirs = timed(
                    "cuDNN LSTM",
                    lambda m=lstm, x=x, h=h, c=c, d=device: cudnn(m, x, h, c, d),
                    device,
                    **about,
                )
                yield theirs
                label = f"LSTM {hidden}, {dtype}, {steps} steps, {streams} streams"
                if device != "cpu":
                    yield from figure(
                        f"{label}: ours / cuDNN with graphs", median(mine) / median(theirs), CELL_AIM, True
                    )
                one = median(mine) if streams == 1 else one
                if streams == 64:
                    yield from figure(f"{label}: 64 streams / one", median(mine) / one, STREAMS_AIM, True)
                for units in (1, 2, 4, 8, 16, 32) if device != "cpu" and streams in (1, 64) else ():
                    ours.units = units
                    yield timed(
                        "SmallCell, cut by hand",
                        lambda o=ours, x=x, h=h, c=c, r=rows, y=y: lambda: o(x, h, c, rows=r, y=y),
                        device,
                        units=units,
                        **about,
                    )


def cudnn(lstm: Any, x: Any, h: Any, c: Any, device: str) -> Callable[[], Any]:
    """torch.nn.LSTM on the same frames, in its own types."""
    lstm = lstm.to(device=device, dtype=x.dtype)
    lstm.flatten_parameters()
    state = (h[None].clone(), c[None].to(x.dtype))
    return lambda: lstm(x, state)


TILES = [
    Tile(64, 32, 16, 4, 4), Tile(128, 32, 16, 8, 4), Tile(64, 64, 16, 8, 4), Tile(128, 16, 16, 4, 5), Tile(64, 16, 16, 4, 5),
    Tile(128, 64, 16, 8, 4), Tile(64, 32, 16, 4, 3), Tile(32, 32, 16, 4, 5),
]  # fmt: skip


def conv(device: str, quick: bool) -> Iterator[Row]:
    """ConvLSTM 16 -> 64, 3x3, 64 x 64 in fp16, c in fp32; batch 8 first."""
    inputs, channels, size = (4, 8, (8, 8)) if quick else (16, 64, (64, 64))
    kind = "float32" if device == "cpu" else "float16"
    torch.manual_seed(0)
    weight = torch.randn(4 * channels, inputs + channels, 3, 3) * 0.05
    bias = torch.randn(4 * channels)
    for streams in (2,) if quick else (8, 1, 64):
        about = {"streams": streams, "dtype": kind}
        two = timed(
            "ConvLSTM: convolution and gates",
            lambda s=streams: two_kernels(weight, bias, s, size, kind, device),
            device,
            **about,
        )
        yield two
        best = float("inf")
        for tile in TILES[:1] if quick else TILES if streams == 8 else TILES[:4]:
            row = timed(
                "ConvLSTM: one kernel", lambda s=streams, t=tile: one_kernel(weight, bias, s, size, kind, device, t), device, **about,
                tile=[tile.places, tile.channels, tile.inputs, tile.warps, tile.stages],
            )  # fmt: skip
            yield row
            best = min(best, median(row))
        if device != "cpu":
            aim = CONV_AIM if streams == 8 else 1.0
            yield from figure(
                f"ConvLSTM, {streams} streams: two kernels / one", median(two) / best, aim, False
            )


def two_kernels(
    weight: Any, bias: Any, streams: int, size: tuple[int, int], kind: str, device: str
) -> Callable[[], Any]:
    """cuDNN's convolution of [x, h], channels last, then our gates in place."""
    dtype, last, ops = getattr(torch, kind), torch.channels_last, register_torch()
    w = weight.to(device=device, dtype=dtype).to(memory_format=last)
    b = bias.to(device=device, dtype=dtype)
    joined = torch.randn(streams, weight.shape[1], *size, device=device).to(dtype).to(memory_format=last)
    channels = weight.shape[0] // 4
    h = torch.zeros(streams, channels, *size, device=device).to(dtype)
    if dtype != torch.float32:
        h = h.to(memory_format=last)
    c = torch.zeros(streams, channels, *size, device=device)

    def run() -> None:
        z = torch.nn.functional.conv2d(joined, w, b, padding=1)
        ops.fused_gates_(z if dtype != torch.float32 else z.contiguous(), c, h)

    return run


def one_kernel(
    weight: Any, bias: Any, streams: int, size: tuple[int, int], kind: str, device: str, tile: Tile
) -> Callable[[], Any]:
    """The fused kernel, h from one tensor to another."""
    kernel = ConvLstmKernel(weight, bias, dtype=kind, device=device, tile=tile)
    h, other, c = kernel.new_state(streams, *size)
    x = (
        torch.randn(streams, kernel.inputs, *size, device=device)
        .to(h.dtype)
        .to(memory_format=torch.channels_last)
    )
    return lambda: kernel(x, h, c, other)


if __name__ == "__main__":
    sys.exit(main())
