"""FusedGates as others compute it, and the bandwidth it is held against: ``python kernels.py WHAT DEVICE [--quick]``.

One process for each WHAT: ``copy`` (torch's copy on the device, as many bytes), ``eager`` (the equations as PyTorch
operators), ``compile`` (the same through ``torch.compile``, which fuses them into one kernel). Prints one line of JSON for each
size and type: bytes that have to be moved, microseconds of every round, largest error against float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgelstm.frontends.torch.nn import lstm_update

#: [streams, channels, positions]: 64 streams are past the L2 of every GPU there is, one stream is within it.
SIZES = {"64 streams": (64, 64, 64 * 64), "1 stream": (1, 64, 64 * 64)}
QUICK = {"64 streams": (8, 8, 16 * 16), "1 stream": (1, 8, 16 * 16)}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROUNDS = 10
#: Microseconds of work in one round, so that the clock's resolution does not matter.
ROUND = 20_000.0


def fused_gates(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """h in the type of z, new c in float32; arithmetic in float32, as the plugin's kernel does it."""
    h, c = lstm_update(z.float(), c)
    return h.to(z.dtype), c


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("copy", "eager", "compile"))
    parser.add_argument("device")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    for size, shape in (QUICK if arguments.quick else SIZES).items():
        for dtype_name, dtype in DTYPES.items():
            torch.manual_seed(0)
            streams, channels, positions = shape
            z = torch.randn(streams, 4 * channels, positions, device=arguments.device).to(dtype)
            c = torch.randn(*shape, device=arguments.device)
            moved = 5 * channels * streams * positions * dtype.itemsize + 2 * c.numel() * 4
            line: dict[str, Any] = {"name": f"torch {arguments.what}", "size": size, "dtype": dtype_name}
            run, error = prepared(arguments.what, z, c, moved)
            line |= {"bytes": moved, "microseconds": measure(run, arguments.device), "error": error}
            print(json.dumps(line), flush=True)


def prepared(what: str, z: Tensor, c: Tensor, moved: int) -> tuple[Callable[[], Any], float | None]:
    """What is to be timed, and its error."""
    if what == "copy":
        # A copy of half the bytes reads and writes as many as the gates do.
        source = torch.zeros(moved // 2, dtype=torch.uint8, device=z.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source), None
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = fused_gates
    if what == "compile":
        # Sizes are compiled for as they come.
        torch._dynamo.reset()
        mode = "max-autotune-no-cudagraphs" if z.is_cuda else None
        function = torch.compile(fused_gates, dynamic=False, mode=mode)
    with torch.no_grad():
        found = function(z, c)
        truth = lstm_update(z.double(), c.double())
        error = max(
            float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, truth, strict=True)
        )

    @torch.no_grad()
    def run() -> None:
        function(z, c)

    return run, error


def measure(run: Callable[[], Any], device: str) -> list[float]:
    """Microseconds of one run, of :data:`ROUNDS` rounds."""
    run()
    once = timed(run, 3, device)
    repeats = max(3, min(10_000, int(ROUND / max(once, 1e-3))))
    if device != "cpu":
        # One graph of many launches: what the host needs to launch them is not the kernel's time.
        repeats = min(repeats, 200)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                run()
        graph.replay()
        return [timed(graph.replay, 1, device) / repeats for _ in range(ROUNDS)]
    return [timed(run, repeats, device) for _ in range(ROUNDS)]


def timed(run: Callable[[], Any], repeats: int, device: str) -> float:
    """Microseconds of one of ``repeats`` runs, by the device's clock where it has one."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats * 1e6
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) * 1e3 / repeats


def bandwidth(line: dict[str, Any]) -> float:
    """GB/s: bytes moved over the median of the rounds."""
    return float(line["bytes"]) / statistics.median(line["microseconds"]) / 1e3


if __name__ == "__main__":
    main()
