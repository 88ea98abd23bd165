"""The plugin's own benchmark program (plugins/bench/): compiled on the spot, run, and what it prints read.

    python standalone.py build FOLDER CARRIED [--rehearse]   # both builds, as FOLDER/bench and FOLDER/bench-4-blocks
    python standalone.py run PROGRAM [ARGUMENTS]             # rows of the kernel table, a line of JSON each

What lies in CARRIED for this GPU's architecture is taken from there. ``--rehearse``: without a GPU, programs that print what
the real one would.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from edgelstm import machine  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NAME = "FusedGates kernel"
PROGRAM = "bench/fused_gates_bench.cu"
#: Further flags of nvcc for each build that is measured.
BUILDS: dict[str, tuple[str, ...]] = {"": (), "4 blocks": ("-DEDGELSTM_MIN_BLOCKS=4",)}


def measure(plugins: Path, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """One row for each form, layout and number of streams, as soon as it is measured; one that says why if there is none.

    All of it twice: as the plugin is built, and with the launch bounds that pull a run's loads forward.
    """
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
            for build, flags in BUILDS.items():
                program = Path(folder, "bench")
                compiler = [*command(nvcc, plugins, program, cuda.gpus[0].capability), *flags]
                done = subprocess.run(compiler, capture_output=True, text=True, check=False)
                if done.returncode:
                    yield failed(f"nvcc: {last_line(done.stderr)}")
                    return
                arguments = ["--repeats", "3"] if quick else []
                yield from rows(printed([str(program), *arguments]), build)


def printed(command: list[str]) -> Iterator[str | int]:
    """The lines a program prints, as it prints them; last its exit code."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None
        yield from process.stdout
    yield process.returncode


def rows(lines: Iterable[str | int], build: str = "") -> Iterator[dict[str, Any]]:
    """What the program printed, as rows of the kernel table. ``build``: which build it is, for the rows' names."""
    name = f"{NAME}, {build}" if build else NAME
    last, code, found_any = "", 0, False
    for line in lines:
        if isinstance(line, int):
            code = line
            continue
        last = line.strip() or last
        try:
            found = json.loads(line)
            if "error" in found:
                yield failed(str(found["error"]), name)
                return
            if "checks" in found:
                yield _checks(found, name)
                found_any = True
            elif "case" in found:
                yield _time(found, name)
                found_any = True
        except (ValueError, AttributeError, TypeError, KeyError):
            continue
    if code not in (0, 1) or not found_any:
        yield failed(f"it ended with code {code}: {last or 'it said nothing'}", name)


def _checks(found: dict[str, Any], name: str) -> dict[str, Any]:
    wrong = found["checks_failed"]
    said = f"{found['checks']} results against the host's, {wrong} of them wrong; largest error {found['worst_of_allowed']} of what may be"
    return {"name": f"{name}, checks", "status": "failed" if wrong else "passed", "note": said}


def _time(t: dict[str, Any], name: str) -> dict[str, Any]:
    dtype, _, layout = t["case"].partition(" ")
    return {
        "name": name,
        "layout": layout,
        "dtype": dtype,
        "size": f"{t['streams']} stream{'s' if t['streams'] > 1 else ''}",
        "bytes": t["bytes"],
        "microseconds": [t["seconds"] * 1e6],
        "copy_gb_per_s": max(t["memcpy_gb_per_s"], t["copy_kernel_gb_per_s"]),
        # It takes as many streams as make the tensors eight times the L2: more than the eight that come before.
        "past_l2": t["streams"] > 8,
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


def build(folder: Path, carried: Path, rehearse: bool) -> int:
    """Both programs, side by side; how many could not be built."""
    cuda, nvcc = machine.cuda(), find_nvcc()
    running: list[tuple[str, subprocess.Popen[str]]] = []
    wrong = 0
    for name, flags in BUILDS.items():
        program = folder / "-".join(["bench", *name.split()])
        if rehearse:
            program.write_text(
                f"#!{sys.executable}\n" + Path(__file__).with_name("bench_rehearsal.py").read_text()
            )
            program.chmod(0o755)
            continue
        if not (cuda and cuda.gpus):
            print(json.dumps(missing("there is no GPU")))
            return 1
        capability = cuda.gpus[0].capability
        made = carried / f"{program.name}-sm_{capability.replace('.', '')}"
        if made.is_file():
            shutil.copy(made, program)
            program.chmod(0o755)
            print(json.dumps({"program": program.name, "carried": made.name}))
        elif nvcc is None:
            print(json.dumps(missing("nvcc is not on the PATH, nor in $CUDA_HOME or /usr/local/cuda")))
            wrong += 1
        else:
            compiler = [*command(nvcc, ROOT / "plugins", program, capability), *flags]
            running.append((program.name, subprocess.Popen(compiler, stderr=subprocess.PIPE, text=True)))
    for program_name, process in running:
        _, said = process.communicate()
        wrong += process.returncode != 0
        print(json.dumps({"program": program_name, "code": process.returncode, "said": said[-500:]}))
    return wrong


def missing(note: str) -> dict[str, Any]:
    return {"name": NAME, "status": "missing", "note": note}


def failed(note: str, name: str = NAME) -> dict[str, Any]:
    return {"name": name, "status": "failed", "note": note[:300]}


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def main() -> int:
    """The command line."""
    what, *rest = sys.argv[1:]
    if what == "build":
        return build(Path(rest[0]), Path(rest[1]), "--rehearse" in rest)
    wrong = 0
    label = next(
        (name for name in BUILDS if name and Path(rest[0]).name == "-".join(["bench", *name.split()])), ""
    )
    for row in rows(printed(rest), label):
        wrong += row.get("status") == "failed"
        print(json.dumps(row), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
