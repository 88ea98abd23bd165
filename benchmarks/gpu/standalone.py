"""The plugin's own benchmark program (plugins/bench/): compiled on the spot, run, and what it prints read."""

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
PROGRAM = "bench/fused_gates_bench.cu"


def measure(plugins: Path, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """One row for each form, layout and number of streams; one that says why if there is none."""
    nvcc = find_nvcc()
    cuda = machine.cuda()
    if device == "cpu" or not (cuda and cuda.gpus):
        yield missing("it runs on GPUs only")
    elif not (plugins / PROGRAM).is_file():
        yield missing(f"{plugins.name}/{PROGRAM} is not here")
    elif nvcc is None:
        yield missing("nvcc is not on the PATH, nor in $CUDA_HOME or /usr/local/cuda")
    else:
        with tempfile.TemporaryDirectory(prefix="edgelstm-kernels-") as folder:
            program = Path(folder, "bench")
            compiler = command(nvcc, plugins, program, cuda.gpus[0].capability)
            done = subprocess.run(compiler, capture_output=True, text=True, check=False)
            if done.returncode:
                yield failed(f"nvcc: {last_line(done.stderr)}")
                return
            arguments = ["--repeats", "3"] if quick else []
            done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)
        yield from rows(done.stdout, done.returncode)


def rows(printed: str, code: int) -> list[dict[str, Any]]:
    """What the program printed, as rows of the kernel table."""
    try:
        found = json.loads(printed)
        if "error" in found or code not in (0, 1):
            return [failed(str(found.get("error", f"it ended with code {code}")))]
        return [_checks(found), *_times(found.get("times", []))]
    except (ValueError, AttributeError, TypeError, KeyError):
        return [failed(f"it ended with code {code}: {last_line(printed) or 'it said nothing'}")]


def _checks(found: dict[str, Any]) -> dict[str, Any]:
    wrong = found["checks_failed"]
    said = f"{found['checks']} results against the host's, {wrong} of them wrong; largest error {found['worst_of_allowed']} of what may be"
    return {"name": f"{NAME}, checks", "status": "failed" if wrong else "passed", "note": said}


def _times(times: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    most = max((t["streams"] for t in times), default=0)
    for t in times:
        dtype, _, layout = t["case"].partition(" ")
        yield {
            "name": NAME,
            "layout": layout,
            "dtype": dtype,
            "size": f"{t['streams']} stream{'s' if t['streams'] > 1 else ''}",
            "bytes": t["bytes"],
            "microseconds": [t["seconds"] * 1e6],
            "copy_gb_per_s": max(t["memcpy_gb_per_s"], t["copy_kernel_gb_per_s"]),
            # It takes as many streams as make the tensors eight times the L2.
            "past_l2": t["streams"] == most,
        }


def command(nvcc: str, plugins: Path, program: Path, capability: str) -> list[str]:
    """How it is compiled: for one GPU, as the plugin is."""
    sources = [plugins / PROGRAM, plugins / "src" / "fused_gates.cu"]
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
