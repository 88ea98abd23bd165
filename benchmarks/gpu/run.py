"""Kernels and steps on one NVIDIA GPU: ``python benchmarks/gpu/run.py``. README.md says what is measured and how.

Writes results/gpu-DEVICE.json after every part, so that what was measured stays if the machine goes; parts measured before
are kept and replaced one by one. Exit code 0: done, whatever was missing is a row that says so. 3: there is no GPU.
``--device cpu --quick`` runs the same code on the processor, to see that it works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# A lent machine has a checkout and a PyTorch, and nothing installed.
sys.path[:0] = [str(ROOT), str(HERE)]

import cases  # noqa: E402
import contestants  # noqa: E402
import report  # noqa: E402
import standalone  # noqa: E402

from edgelstm import machine  # noqa: E402
from edgelstm.bench import process  # noqa: E402
from edgelstm.bench.job import Job  # noqa: E402
from edgelstm.bench.process import Failed, Worker  # noqa: E402
from edgelstm.bench.race import Race  # noqa: E402
from edgelstm.files import write_text  # noqa: E402

SCHEMA = 1
NO_GPU = 3
PARTS = ("kernels", "steps")
STREAMS = (1, 8, 64)
#: Frames over which outputs are compared with float64 before anything is timed.
CHECKED = 10
PACKAGES = (
    *("edgelstm", "torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu13"),
    *("cuda-bindings", "cuda-core", "numpy"),
)


def main() -> None:
    """Measure what can be measured here, write it, show it."""
    arguments = parse()
    device = arguments.device
    if arguments.dry:
        for name in arguments.cases:
            print(
                f"{arguments.table[name].title}: {arguments.precisions}, streams {arguments.streams}, {arguments.contestants}"
            )
        return
    cuda = machine.cuda()
    if device != "cpu" and not (cuda and cuda.gpus):
        driver = f"the driver (up to CUDA {cuda.version}) sees none" if cuda else "there is no NVIDIA driver"
        print(
            f"no GPU: {driver}. Nothing was measured.\n"
            "To see that the benchmark works, run it on the processor: run.py --device cpu --quick",
            file=sys.stderr,
        )
        sys.exit(NO_GPU)
    # What was put before all else stays before all else: a runtime that was carried along, say.
    given = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    os.environ["PYTHONPATH"] = os.pathsep.join([*given, str(ROOT), str(HERE)])
    found = describe(device)
    name = found["device"]["name"]
    path = arguments.results / f"gpu-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    data = {"schema": SCHEMA, **found, "quick": arguments.quick, **kept(path, arguments.quick)}
    arguments.results.mkdir(parents=True, exist_ok=True)
    if "kernels" in arguments.parts:
        data["kernels"] = []
        for row in kernels(device, arguments.quick):
            data["kernels"].append(row)
            save(path, data)
    if "steps" in arguments.parts:
        for race in steps(arguments):
            same = [key(race) != key(other) for other in data["steps"]]
            data["steps"] = [r for r, other in zip(data["steps"], same, strict=True) if other] + [race]
            save(path, data)
            if arguments.lines:
                print(json.dumps({"race": race}), flush=True)
    data["figures"] = report.figures(data)
    save(path, data)
    print(report.text(data))
    print(f"wrote {path}{report.draw(data, path.with_suffix('.svg'))}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="kernels, steps; default both")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: a try, no measurement")
    parser.add_argument("--cases", help="comma-separated, of " + ", ".join(cases.CASES))
    parser.add_argument("--precisions", help="comma-separated, of " + ", ".join(cases.PRECISIONS))
    parser.add_argument("--streams", help="comma-separated; default " + ", ".join(map(str, STREAMS)))
    parser.add_argument("--contestants", help="semicolon-separated; default all. See contestants.py")
    parser.add_argument("--rounds", type=int, help="turns of each contestant (default 10)")
    parser.add_argument("--dry", action="store_true", help="say what would be raced, and no more")
    parser.add_argument("--lines", action="store_true", help="print each race as a line of JSON, too")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so many minutes")
    parser.add_argument("--results", type=Path, help="folder for the JSON file and the plot")
    a = parser.parse_args()
    quick, on_cpu = a.quick, a.device == "cpu"
    a.table = cases.QUICK if quick else cases.CASES
    a.parts = a.parts or list(PARTS)
    a.cases = chosen(parser, "--cases", a.cases, list(a.table))
    # The processor has no arithmetic in 16 bits worth the name.
    a.precisions = chosen(parser, "--precisions", a.precisions, ["fp32"] if on_cpu else ["fp16", "fp32"])
    a.streams = [int(n) for n in (a.streams or ("1,2" if quick else ",".join(map(str, STREAMS)))).split(",")]
    racers = [name for name in contestants.CONTESTANTS if name != contestants.TRUTH]
    a.contestants = chosen(parser, "--contestants", a.contestants, racers, ";")
    a.rounds = a.rounds or (2 if quick else 10)
    a.end = time.monotonic() + 60 * (a.minutes or 24 * 60)
    a.results = a.results or (ROOT / "build" / "gpu" if on_cpu or quick else HERE.parent / "results")
    unknown = [p for p in a.parts if p not in PARTS]
    if unknown or a.rounds < 1 or min(a.streams) < 1:
        parser.error(f"parts are {', '.join(PARTS)}; rounds and streams are at least 1")
    return a


def chosen(
    parser: argparse.ArgumentParser, option: str, text: str | None, default: Sequence[str], comma: str = ","
) -> list[str]:
    """The names in ``text``; an error for those that do not exist."""
    names = [name.strip() for name in text.split(comma)] if text else list(default)
    known = [*default, *(cases.PRECISIONS if option == "--precisions" else ())]
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(
            f"{option}: unknown {', '.join(unknown)}; there are {f'{comma} '.join(dict.fromkeys(known))}"
        )
    return names


def describe(device: str) -> dict[str, Any]:
    """The device, its driver, versions."""
    found: dict[str, Any] = {"name": "cpu"}
    cuda = machine.cuda()
    if device != "cpu" and cuda:
        gpu = cuda.gpus[0]
        found = {"name": gpu.name, "capability": gpu.capability, "memory": gpu.memory, "cuda": cuda.version}
        found |= smi("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "ecc.mode.current")
    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cpu = machine.cpu()
    return {
        "date": date.today().isoformat(),
        "device": found,
        "host": {"processor": cpu.model, "processors": cpu.usable},
        "versions": versions,
        "commit": commit(),
    }


def commit() -> str | None:
    """Of the checkout; where its history did not come along, of what carry.py gathered."""
    carried = ROOT / "build" / "contact" / "commit"
    found = said(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    return found or (carried.read_text().strip() if carried.is_file() else None)


def smi(*fields: str) -> dict[str, str]:
    """What nvidia-smi says of the first GPU; nothing where it is missing."""
    text = said(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"])
    return dict(zip(fields, (v.strip() for v in text.split(",")), strict=False)) if text else {}


def said(command: list[str]) -> str | None:
    """The first line a command prints; None if it can't."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.splitlines() or [""])[0]


def kept(path: Path, quick: bool) -> dict[str, Any]:
    """Parts of an earlier run on this device, unless it was only a try."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        data = {}
    usable = data.get("schema") == SCHEMA and data.get("quick") == quick
    return {part: data.get(part, []) if usable else [] for part in PARTS}


def key(race: dict[str, Any]) -> tuple[Any, ...]:
    """What tells races apart."""
    return race["case"], race["precision"], race["streams"]


def save(path: Path, data: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def kernels(device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """FusedGates: our kernel, PyTorch's, and the copy bandwidth, each in a process of its own; ours first."""
    print("kernels: the plugin's own", file=sys.stderr)
    yield from standalone.measure(ROOT / "plugins", device, quick)
    for what in ("copy", "eager", "compile"):
        print(f"kernels: torch {what}", file=sys.stderr)
        command = [sys.executable, str(HERE / "kernels.py"), what, device, *(["--quick"] if quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        yield from (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
        if done.returncode:
            note = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
            yield {"name": f"torch {what}", "status": "failed", "note": note[:300]}


def steps(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One race for each case, precision and number of streams."""
    with tempfile.TemporaryDirectory(prefix="edgelstm-gpu-") as folder:
        for name in arguments.cases:
            case = arguments.table[name]
            for precision in arguments.precisions:
                files = cases.write(case, precision, Path(folder, f"{name}-{precision}"))
                for streams in arguments.streams:
                    left = arguments.end - time.monotonic()
                    if left <= 0:
                        print("steps: the time is up", file=sys.stderr)
                        return
                    # One that hangs must not take the time of the others.
                    process.TIMEOUT = min(process.TIMEOUT, max(60.0, left))
                    print(f"steps: {case.title}, {precision}, {streams} streams", file=sys.stderr)
                    job = Job(
                        contestants.TRUTH,
                        str(files.model),
                        str(files.plain),
                        files.signature,
                        str(files.model.parent),
                        module=f"{'quick' if arguments.quick else 'cases'}:{name}",
                        weights=str(files.weights),
                        threads=1 if arguments.device == "cpu" else len(os.sched_getaffinity(0)),
                        streams=streams,
                        registry="contestants",
                        device=arguments.device,
                        precision=precision,
                    )
                    yield race(case, name, job, arguments)


def race(case: cases.Case, name: str, job: Job, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every contestant on one case at one number of streams, checked against float64."""
    names = [n for n in arguments.contestants if case.is_lstm or n not in contestants.LSTM_ONLY]
    # Fewer steps where one takes longer; a turn stays long against the clock.
    count = max(10, round(case.steps / job.streams**0.5))
    jobs = {n: _replace(job, contestant=n) for n in names}
    with Worker(job) as truth:
        truth.open()
        reference = truth.check(Path(job.folder), CHECKED)
    with Race(case.title, jobs, contestants.BASELINE, needed=False) as running:
        result = running.run(arguments.rounds, count, checked=CHECKED, reference=reference)
    entries = [report.entry(e) for e in result.entries]
    return {
        "case": name,
        "title": case.title,
        "precision": job.precision,
        "streams": job.streams,
        "steps": count,
        "entries": entries,
    }


def _replace(job: Job, **changes: Any) -> Job:
    import dataclasses

    return dataclasses.replace(job, **changes)


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        sys.exit(f"the float64 reference does not run: {error}")
