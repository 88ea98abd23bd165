"""The plugin's own benchmark program (plugins/bench/): compiled on the spot, run, and its lines of JSON read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgelstm import machine

NAME = "FusedGates kernel"


def measure(plugins: Path, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """One row for each line of JSON the program prints; one that says why if there is none."""
    sources = sorted((plugins / "bench").glob("*.cu"))
    nvcc = find_nvcc()
    cuda = machine.cuda()
    if device == "cpu" or not (cuda and cuda.gpus):
        yield missing("it runs on GPUs only")
        return
    if not sources:
        yield missing(f"no program in {plugins.name}/bench")
        return
    if nvcc is None:
        yield missing("nvcc is not on the PATH, nor in $CUDA_HOME or /usr/local/cuda")
        return
    with tempfile.TemporaryDirectory(prefix="edgelstm-kernels-") as folder:
        program = Path(folder, "bench")
        done = subprocess.run(
            command(nvcc, plugins, program, cuda.gpus[0].capability),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            yield failed(f"nvcc: {last_line(done.stderr)}")
            return
        done = subprocess.run(
            [str(program), "--json", *(["--quick"] if quick else [])],
            capture_output=True,
            text=True,
            check=False,
        )
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                yield {"name": NAME, **json.loads(line)}
        if done.returncode:
            yield failed(last_line(done.stderr) or f"it ended with code {done.returncode}")


def command(nvcc: str, plugins: Path, program: Path, capability: str) -> list[str]:
    """How it is compiled: for one GPU, as the plugin is."""
    sources = [*sorted((plugins / "bench").glob("*.cu")), plugins / "src" / "fused_gates.cu"]
    flags = ["-O3", "-std=c++17", f"-arch=sm_{capability.replace('.', '')}", "-I", str(plugins / "include")]
    return [nvcc, *flags, "-o", str(program), *map(str, sources)]


def find_nvcc() -> str | None:
    """Path of CUDA's compiler."""
    beside = [Path(home, "bin") for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, beside)]))


def missing(note: str) -> dict[str, Any]:
    return {"name": NAME, "status": "missing", "note": note}


def failed(note: str) -> dict[str, Any]:
    return {"name": NAME, "status": "failed", "note": note[:300]}


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
