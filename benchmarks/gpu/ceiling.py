"""What is here, and how fast it is at best: ``python ceiling.py DEVICE [--quick]``. A line of JSON for each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import metadata
from typing import Any

NAMES = (
    "torch",
    "triton",
    "cuda-bindings",
    "cuda-core",
    "cupy-cuda13x",
    "onnx",
    "onnxruntime",
    "numpy",
    "pytest",
    "hypothesis",
)
PROGRAMS = (
    ["nvidia-smi"],
    ["nvcc", "--version"],
    ["cmake", "--version"],
    ["ncu", "--version"],
    ["compute-sanitizer", "--version"],
)


def main() -> None:
    """Print."""
    device, quick = sys.argv[1], "--quick" in sys.argv
    for command in PROGRAMS:
        try:
            said = (
                subprocess.run(command, capture_output=True, text=True, timeout=20)
                .stdout.strip()
                .splitlines()
            )
            tell(program=command[0], said=said if command[0] == "nvidia-smi" else said[-2:])
        except (OSError, subprocess.SubprocessError) as error:
            tell(program=command[0], missing=str(error))
    versions = {}
    for name in NAMES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    tell(packages=versions)
    try:
        import torch
    except ImportError as error:
        tell(name="torch", missing=str(error))
        return
    tell(torch=torch.__version__, cuda=torch.version.cuda, sees=torch.cuda.is_available())
    size = 2**20 if quick else 2**30
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = best(lambda: target.copy_(source), device)
    tell(
        name="torch copy, 1 GiB",
        microseconds=[seconds * 1e6],
        bytes=2 * size,
        gb_per_s=2 * size / seconds / 1e9,
    )
    side = 256 if quick else 8192
    for dtype in (torch.float16, torch.float32):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = best(lambda a=a, b=b: a @ b, device)
        name = f"torch product, {side} x {side}, {str(dtype).removeprefix('torch.')}"
        tell(name=name, microseconds=[seconds * 1e6], tflops=2 * side**3 / seconds / 1e12)


def best(run: Any, device: str) -> float:
    """Seconds of the fastest of ten."""
    import torch

    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    times = []
    for _ in range(13):
        wait()
        start = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - start)
    return min(times[3:])


def tell(**row: Any) -> None:
    """One line."""
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
