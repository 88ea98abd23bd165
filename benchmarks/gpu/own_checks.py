"""edgelstm.kernels on this device against float64: ``python own_checks.py DEVICE [--quick] [--seconds 60]``.

A line of JSON for each check at once: name, status, the largest error as a share of what may be. What comes first tells most. On the
processor (DEVICE cpu) the same checks run on the CPU's forms, which shows that the checks themselves work. Exit code 1 where one failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from edgelstm.graph.gates import GateVariant  # noqa: E402
from edgelstm.kernels import ConvLstmKernel, ConvLstmStep, SmallCell, fused_gates, register_torch  # noqa: E402
from edgelstm.kernels.conv_lstm import naive as conv_naive  # noqa: E402
from edgelstm.kernels.gates import naive as gates_naive  # noqa: E402
from edgelstm.kernels.small_cell import naive as cell_naive  # noqa: E402

VARIANTS = [
    GateVariant(),
    GateVariant(peephole=True),
    GateVariant(peephole=True, coupled=True, cell_clip=0.75),
    GateVariant(gate="hard_sigmoid", candidate="relu", output="relu"),
]
TINY = float(np.finfo(np.float32).eps)


def main() -> int:
    """Run the checks, for as long as there is time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("device")
    parser.add_argument("--quick", action="store_true", help="a few of each kind")
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    until, failed = time.monotonic() + arguments.seconds, 0
    for name, check in checks(arguments.device, arguments.quick):
        if time.monotonic() > until:
            print(json.dumps({"name": "time is over", "status": "passed", "next": name}), flush=True)
            break
        start = time.monotonic()
        row: dict[str, Any] = {"name": name, "status": "passed"}
        try:
            share = check()
            row["of_allowed"] = round(share, 3)
            if not share <= 1:
                row["status"] = "failed"
        except Exception as error:
            row |= {"status": "failed", "note": f"{type(error).__name__}: {error}"[:400]}
        failed += row["status"] == "failed"
        print(json.dumps({**row, "seconds": round(time.monotonic() - start, 2)}), flush=True)
    return int(failed > 0)


def checks(device: str, quick: bool) -> Iterator[tuple[str, Callable[[], float]]]:
    """Name and what gives the largest error over what may be."""
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    yield (
        "gates: fp16, linear",
        lambda: gates(device, VARIANTS[0], torch.float16, torch.float32, (3, 16, 8, 8), False),
    )
    yield "cell: LSTM, one step", lambda: cell(device, VARIANTS[0], 16, 64, 3, 1, "float32")
    yield "cell: LSTM, window", lambda: cell(device, VARIANTS[0], 16, 256, 3, 20, "float16")
    yield "conv: 3x3, fp16", lambda: conv(device, VARIANTS[0], "float16", 16, 64, (16, 16))
    yield "step: one graph", lambda: step(device, VARIANTS[0], 16, 32, (9, 8))
    yield "gates: in place, idle streams", lambda: gates_in_place(device)
    yield "gates: captured in a graph, on a side stream", lambda: gates_on_streams(device)
    yield "gates: CuPy", lambda: gates_cupy(device)
    sizes = [(3, 16, 8, 8), (5, 7, 11, 3), (2, 24, 1, 1), (1, 64, 64, 64)]
    for variant, kind, c_kind, shape, last in itertools.product(
        VARIANTS, kinds, kinds[:2], sizes, (False, True)
    ):
        if last and (kind == torch.float32 or shape[1] % 8):
            continue
        if quick and shape != sizes[1]:
            continue
        name = f"gates: {variant.op_type}, z {kind}, c {c_kind}, {list(shape)}{', channels last' if last else ''}"
        yield (
            name.replace("torch.", ""),
            lambda v=variant, k=kind, ck=c_kind, s=shape, la=last: gates(device, v, k, ck, s, la),
        )  # type: ignore[misc]
    cells = [
        (16, 37, 1, 1),
        (0, 64, 5, 3),
        (16, 256, 1, 1),
        (16, 256, 64, 7),
        (64, 512, 8, 5),
        (5, 512, 64, 1),
        (16, 1024, 2, 3),
        (33, 100, 13, 40),
    ]
    for (inputs, hidden, n, t), dtype, v in itertools.product(
        cells[: 2 if quick else None], ("float32", "float16"), [VARIANTS[0], None, VARIANTS[1]]
    ):
        name = f"cell: {'GRU' if v is None else v.op_type}, {inputs} -> {hidden}, {n} streams, {t} steps, {dtype}"
        yield name, lambda v=v, i=inputs, h=hidden, n=n, t=t, d=dtype: cell(device, v, i, h, n, t, d)  # type: ignore[misc]
    if not quick:
        yield "cell: a long window", lambda: cell(device, VARIANTS[0], 16, 512, 4, 2000, "float32", once=True)
    for v, dtype, (inputs, channels, size) in itertools.product(
        VARIANTS, ("float16", "bfloat16", "float32"), [(3, 5, (7, 5)), (16, 64, (64, 64)), (19, 23, (11, 13))]
    ):
        if quick and channels != 5:
            continue
        name = f"conv: {v.op_type}, {dtype}, {inputs} -> {channels}, {size}"
        yield name, lambda v=v, d=dtype, i=inputs, c=channels, s=size: conv(device, v, d, i, c, s)  # type: ignore[misc]


def off(found: torch.Tensor, exact: torch.Tensor, more: float = 0.0) -> float:
    """The largest error, in units of what storing it and float32's arithmetic may cost; infinite where NaN lie elsewhere."""
    if not torch.equal(found.isnan(), exact.isnan()):
        return float("inf")
    may = 2 * torch.finfo(found.dtype).eps + (16 + more) * TINY
    return float(
        ((found.double() - exact.double()).abs() / (1 + exact.double().abs()) / may).nan_to_num(0).max()
    )


def tensors(
    device: str, v: GateVariant, kind: Any, c_kind: Any, shape: tuple[int, ...], last: bool
) -> tuple[Any, ...]:
    """z, c, peepholes; one NaN."""
    torch.manual_seed(0)
    n, channels, *places = shape
    z = torch.randn(n, len(v.gates) * channels, *places, device=device).to(kind) * 2
    z.view(-1)[1] = float("nan")
    c = torch.randn(shape, device=device).to(c_kind)
    names = [name for name in v.inputs if name.startswith("p_")]
    weights = [
        torch.randn((channels, *places) if k % 2 else (channels,), device=device).to(c_kind)
        for k, _ in enumerate(names)
    ]
    return z.to(memory_format=torch.channels_last) if last else z, c, weights


def gates(device: str, v: GateVariant, kind: Any, c_kind: Any, shape: tuple[int, ...], last: bool) -> float:
    """The operator, each element against float64."""
    z, c, weights = tensors(device, v, kind, c_kind, shape, last)
    h, c_out = fused_gates(z, c, *weights, variant=v)
    exact = gates_naive.fused_gates(v, z.double(), c.double(), [w.double() for w in weights])
    assert h.dtype == kind
    assert c_out.dtype == c_kind
    return max(off(h, exact[0]), off(c_out, exact[1]))


def gates_in_place(device: str) -> float:
    """c and h replaced; idle streams keep NaN and all bit for bit."""
    z, c, _ = tensors(device, VARIANTS[0], torch.float16, torch.float32, (7, 8, 5, 3), False)
    h = torch.randn(c.shape, device=device).half()
    active = torch.tensor([1, 0, 1, 1, 0, 0, 1], dtype=torch.int32, device=device)
    idle = active == 0
    h[idle], c[idle] = float("nan"), float("nan")
    before = h.clone(), c.clone()
    exact = gates_naive.fused_gates(VARIANTS[0], z.double(), c.double(), [])
    register_torch().fused_gates_(z, c, h, active=active)
    assert torch.equal(h[idle].view(torch.int16), before[0][idle].view(torch.int16))
    assert torch.equal(c[idle].view(torch.int32), before[1][idle].view(torch.int32))
    return max(off(h[~idle], exact[0][~idle]), off(c[~idle], exact[1][~idle]))


def gates_on_streams(device: str) -> float:
    """Work before and after on the same side stream; then a graph of it, replayed on new values."""
    z, c, _ = tensors(device, VARIANTS[0], torch.float16, torch.float32, (4, 16, 16, 16), False)
    if device == "cpu":
        return gates(device, VARIANTS[0], torch.float16, torch.float32, (4, 16, 16, 16), False)
    exact = gates_naive.fused_gates(VARIANTS[0], z.double() * 2, c.double(), [])
    side, ops, worst = torch.cuda.Stream(), register_torch(), 0.0
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.ones(1 << 26, device=device).cumsum(0)  # the stream is busy when z is doubled
        found = ops.fused_gates(z * 2, c)
        worst = max(off(a * 1, b) for a, b in zip(found, exact, strict=True))
    torch.cuda.current_stream().wait_stream(side)
    graph, held = torch.cuda.CUDAGraph(), torch.zeros_like(z)
    with torch.cuda.graph(graph):
        captured = ops.fused_gates(held, c)
    held.copy_(z * 2)
    graph.replay()
    return max(worst, *(off(a, b) for a, b in zip(captured, exact, strict=True)))


def gates_cupy(device: str) -> float:
    """CuPy's arrays on CuPy's stream; DLPack with a stream that is given."""
    z, c, _ = tensors(device, VARIANTS[0], torch.float16, torch.float32, (4, 16, 5, 3), False)
    exact = gates_naive.fused_gates(VARIANTS[0], z.double(), c.double(), [])
    if device == "cpu":
        found: Any = fused_gates(z.numpy(), c.numpy())
    else:
        import cupy

        arrays = [cupy.from_dlpack(t) for t in (z, c)]
        stream = cupy.cuda.Stream()
        torch.cuda.synchronize()
        with stream:
            found = [cupy.asnumpy(a, stream=stream) for a in fused_gates(*arrays)]
        stream.synchronize()
    return max(off(torch.from_numpy(np.asarray(a)).to(device), b) for a, b in zip(found, exact, strict=True))


def cell(
    device: str,
    v: GateVariant | None,
    inputs: int,
    hidden: int,
    n: int,
    t: int,
    dtype: str,
    once: bool = False,
) -> float:
    """A cell over a pool with idle rows of NaN: a window, then the same again frame by frame, one workspace for both."""
    rng = np.random.default_rng(0)
    rows_of = 3 if v is None or v.coupled else 4
    width = inputs + hidden
    weight = (rng.uniform(-1, 1, (rows_of * hidden, width)) * width**-0.5).astype(dtype)
    bias = rng.normal(size=rows_of * hidden).astype(np.float32)
    recurrent = rng.normal(size=hidden).astype(np.float32)
    weights = (
        [rng.normal(size=hidden).astype(np.float32) for _ in range(3)] if v is not None and v.peephole else []
    )
    projected = None if inputs else rng.normal(size=(t, n, rows_of * hidden)).astype(dtype)
    x = rng.normal(size=(t, n, inputs)).astype(dtype)
    rows = rng.permutation(n + 3)[:n].astype(np.int32)
    rows[n // 2 :: 5] = -1 if n > 1 else rows[n // 2 :: 5]
    lives = rows >= 0
    h0 = np.full((n + 3, hidden), np.nan, dtype)
    c0 = np.full((n + 3, hidden), np.nan, np.float32)
    h0[rows[lives]], c0[rows[lives]] = rng.normal(size=(2, int(lives.sum()), hidden))
    frames, matrix = x, weight
    if projected is not None:
        frames, matrix = projected, np.concatenate([np.eye(rows_of * hidden, dtype=dtype), weight], 1)
    exact_h, exact_c = h0.copy(), None if v is None else c0.copy()
    wide = tuple(w.astype(float) for w in weights)
    exact_y = cell_naive.run(v, matrix, bias, recurrent, wide, frames, exact_h, exact_c, rows, dtype)
    options: dict[str, Any] = {"dtype": dtype, "streams": n}
    made = (
        SmallCell.gru(weight, bias, recurrent, **options)
        if v is None
        else SmallCell.lstm(weight, bias, variant=v, peepholes=weights, **options)
    )
    worst = 0.0
    with made:
        for size in (t,) if once or t == 1 else (t, 1):
            h, c, order = (torch.from_numpy(a.copy()).to(device) for a in (h0, c0, rows))
            y = torch.full((t, n, hidden), 7.0, device=device).to(h.dtype)
            for k in range(0, t, size):
                given = torch.from_numpy(x[k : k + size]).to(device) if inputs else None
                more = None if projected is None else torch.from_numpy(projected[k : k + size]).to(device)
                made(given, h, None if v is None else c, rows=order, projected=more, y=y[k : k + size])
            assert bool((y[:, ~torch.from_numpy(lives)] == 7).all()), "an idle stream's y was written"
            more_error = float(np.sqrt(t)) * 8 + width * 0.5
            worst = max(
                worst,
                off(h.cpu(), torch.from_numpy(exact_h), more_error),
                off(y.cpu()[:, lives], torch.from_numpy(exact_y[:, lives]), more_error),
            )
            if exact_c is not None:
                worst = max(
                    worst,
                    off(
                        c.cpu(),
                        torch.from_numpy(exact_c),
                        more_error + (t * 8192 if dtype == "float16" else 0),
                    ),
                )
            idle = np.setdiff1d(np.arange(n + 3), rows[lives])
            assert torch.equal(
                c.cpu()[idle].view(torch.int32), torch.from_numpy(c0[idle]).view(torch.int32)
            ), "an idle row changed"
    return worst


def conv(device: str, v: GateVariant, dtype: str, inputs: int, channels: int, size: tuple[int, int]) -> float:
    """Three streams, one idle and NaN: one step against float64."""
    torch.manual_seed(0)
    count, joined = len(v.gates), inputs + channels
    weight = torch.randn(count * channels, joined, 3, 3) * (joined * 9) ** -0.5
    weights = [
        torch.randn(channels, *size) if k % 2 else torch.randn(channels) for k, _ in enumerate(v.inputs[2:])
    ]
    kernel = ConvLstmKernel(
        weight, torch.randn(count * channels), weights, variant=v, dtype=dtype, device=device
    )
    h, out, c = kernel.new_state(3, *size)
    h.copy_(torch.randn(h.shape))
    c.copy_(torch.randn(c.shape))
    h[1] = c[1] = float("nan")
    x = torch.randn(3, inputs, *size).to(device=device, dtype=h.dtype).to(memory_format=torch.channels_last)
    active = torch.tensor([1, 0, 1], dtype=torch.int32, device=device)
    wide = [p.double() for p in kernel.peepholes]
    exact = conv_naive.step(
        v, kernel.weight.double(), kernel.bias.double(), wide, x.double(), h.double(), c.double(), active
    )
    kernel(x, h, c, out, active=active)
    return max(off(out, exact[0], 64), off(c, exact[1], 64))


def step(device: str, v: GateVariant, inputs: int, channels: int, size: tuple[int, int]) -> float:
    """20 steps of one graph, streams resting now and then, against float64 that starts each step from the same state."""
    torch.manual_seed(0)
    weight, bias = torch.randn(4 * channels, inputs + channels, 3, 3) * 0.1, torch.randn(4 * channels)
    worst = 0.0
    with ConvLstmStep(weight, bias, streams=3, size=size, variant=v, device=device) as run:
        kind = run.h.dtype
        exact_weight, exact_bias = (
            weight.to(device=device, dtype=kind).double(),
            bias.to(device=device, dtype=kind).double(),
        )
        for t in range(20):
            run.x.copy_(torch.randn(3, inputs, *size))
            run.active.copy_(torch.tensor([1, t % 2, (t + 1) % 3]))
            exact = conv_naive.step(
                v, exact_weight, exact_bias, [], run.x.double(), run.h.double(), run.c.double(), run.active
            )
            run.step()
            # z is rounded to the convolution's dtype on its way.
            z = 0 if kind == torch.float32 else 16 * torch.finfo(kind).eps / TINY
            worst = max(worst, off(run.h, exact[0], z + 64), off(run.c, exact[1], z + 64))
    return worst


if __name__ == "__main__":
    sys.exit(main())
