"""Everything that waits for a GPU, in one command: ``python benchmarks/gpu/contact.py --minutes 8``.

For a machine that is lent for a few minutes: no network, nothing to install. The slices of slices.py run one after the other, most
telling first, each under a time limit of its own; what each found is written at once to results/gpu-DEVICE-DATE.json, so that a cut
run keeps what it has, and a later run on the same day adds to it. Exit code 0: all that ran passed; 1: some did not; 3: there is no
GPU. ``--rehearse`` walks through all of it without one, on small sizes and stand-ins. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]


from slices import SLICES, Slice  # noqa: E402

SCHEMA = 1
NO_GPU = 3
#: Seconds below which no slice is begun.
LEAST = 8.0
TAIL = 12000  # characters of what a slice printed last
TESTS = re.compile(r"(\d+) (passed|failed|skipped|errors?|deselected)\b")


def main() -> int:
    """Run the slices."""
    arguments = parse()
    if arguments.list:
        for s in SLICES:
            print(f"{s.seconds:5.0f} s  {s.name}")
        return 0
    started = time.monotonic()
    about = describe(arguments.rehearse)
    if about["device"]["name"] == "cpu" and not arguments.rehearse:
        print(
            "no GPU: nothing was measured. contact.py --rehearse walks through it without one",
            file=sys.stderr,
        )
        return NO_GPU
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = re.sub("[^a-z0-9]+", "-", about["device"]["name"].lower()).strip("-")
    path = arguments.out / f"gpu-{name}-{about['date']}.json"
    data = {"schema": SCHEMA, "kind": "contact", **about, "minutes": arguments.minutes}
    data |= {"rehearsal": arguments.rehearse, "slices": earlier(path, arguments.rehearse)}
    chosen = [s for s in SLICES if not arguments.only or s.name in arguments.only]
    with tempfile.TemporaryDirectory(prefix="edgelstm-contact-") as folder:
        values = places(Path(folder), arguments)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths(Path(folder), arguments.carried))}
        for place in chosen:
            left = 60 * arguments.minutes - (time.monotonic() - started)
            found = run(place, values, environment, left, arguments.rehearse)
            found["commit"] = about["commit"]
            data["slices"] = [s for s in data["slices"] if s["name"] != place.name] + [found]
            save(path, data)
            said = f"{found['status']}{': ' + found['note'] if found.get('note') else ''}"
            print(
                f"[{time.monotonic() - started:4.0f} s] {place.name}: {said} ({found['seconds']:.0f} s)",
                file=sys.stderr,
            )
    print(f"wrote {path}. python benchmarks/gpu/contact_report.py makes tables and plots of it")
    return int(any(s["status"] in ("failed", "timed out") for s in data["slices"]))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing that would take longer")
    parser.add_argument("--only", help="semicolon-separated names of slices; default all. See --list")
    parser.add_argument("--list", action="store_true", help="the slices and their limits")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: does it all work?")
    parser.add_argument(
        "--carried", type=Path, default=ROOT / "build" / "contact", help="what carry.py gathered"
    )
    parser.add_argument("--out", type=Path, help="folder for the JSON file; default benchmarks/results")
    a = parser.parse_args()
    a.only = [n.strip() for n in a.only.split(";")] if a.only else []
    known = [s.name for s in SLICES]
    if unknown := [n for n in a.only if n not in known]:
        parser.error(f"--only: unknown {'; '.join(unknown)}. There are: {'; '.join(known)}")
    a.carried = a.carried.resolve()
    a.out = (a.out or (ROOT / "build" / "gpu" if a.rehearse else HERE.parent / "results")).resolve()
    return a


def describe(rehearse: bool) -> dict[str, Any]:
    """Device, driver, versions, commit; what can't be told stays out."""
    about: dict[str, Any] = {"date": date.today().isoformat(), "device": {"name": "cpu"}, "commit": None}
    try:
        import run as bench

        about |= bench.describe("cpu" if rehearse else "cuda")
    except Exception as error:  # a package that is missing must not cost the whole contact
        about |= {"note": f"{type(error).__name__}: {error}"[:300], "versions": {}, "host": {}}
        listed = shutil.which("nvidia-smi") and subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"],
            capture_output=True,
            text=True,
        )
        if listed and listed.returncode == 0 and not rehearse:
            about["device"] = {"name": listed.stdout.strip()}
    return about


def places(work: Path, arguments: argparse.Namespace) -> dict[str, str]:
    """What stands for the names in braces of a slice's command."""
    (work / "steps").mkdir()
    return {
        "python": sys.executable,
        "gpu": str(HERE),
        "tests": str(ROOT / "tests"),
        "device": "cpu" if arguments.rehearse else "cuda",
        "quick": "--quick" if arguments.rehearse else "",
        "work": str(work),
        "carried": str(arguments.carried),
    }


def paths(work: Path, carried: Path) -> list[str]:
    """PYTHONPATH: the checkout, and the wheels that were carried, unpacked, where the packages here are too old or missing."""
    found = [str(ROOT), str(ROOT / "tests"), str(HERE)]
    wheels = sorted((carried / "wheels").glob("*.whl"))
    check = "import importlib.metadata as m; assert int(m.version('cuda-core').split('.')[0]) >= 1; import cuda.bindings.driver"
    if wheels and subprocess.run([sys.executable, "-c", check], capture_output=True).returncode:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(work / "site")
        found.append(str(work / "site"))
    given = os.environ.get("PYTHONPATH")
    return found + ([given] if given else [])


def run(
    place: Slice, values: Mapping[str, str], environment: Mapping[str, str], left: float, rehearse: bool
) -> dict[str, Any]:
    """Run one slice, for as long as it may; never raises."""
    result: dict[str, Any] = {"name": place.name, "status": "missing", "seconds": 0.0, "rows": []}
    for need in (n.format(**values) for n in place.needs):
        if not (Path(need).exists() if "/" in need else shutil.which(need)):
            return {**result, "note": f"{need} is not here"}
    if left < LEAST:
        return {**result, "status": "no time", "note": f"{max(left, 0):.0f} s left"}
    template = place.rehearsal if rehearse and place.rehearsal else place.command
    # What comes after the bar is one argument, with spaces in it.
    words, bar, last = template.partition("|")
    command = shlex.split(words.format(**values)) + ([last] if bar else [])
    environment = {**environment, **{name: path.format(**values) for name, path in place.paths}}
    if place.site:
        environment["PYTHONPATH"] = os.pathsep.join([place.site.format(**values), environment["PYTHONPATH"]])
    # A rehearsal may share its processor with others.
    limit = min(place.seconds * (4 if rehearse else 1), left)
    start = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        try:
            code: int | None = wait(command, environment, printed, limit)
        except OSError as error:
            return {**result, "status": "failed", "note": str(error), "command": command}
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    status = "timed out" if code is None else "passed" if code == 0 else "failed"
    result |= {"status": status, "code": code, "seconds": round(time.monotonic() - start, 1), "limit": limit}
    result["rows"] = [row for line in text.splitlines() if (row := read(line)) is not None]
    if "pytest" in command:
        # pytest's last words; one whose every test was skipped has tested nothing.
        tests = {
            word.rstrip("s"): int(count) for count, word in TESTS.findall((text.splitlines() or [""])[-1])
        }
        result["tests"] = tests
        if code == 5 or (status == "passed" and not tests.get("passed") and "--collect-only" not in command):
            result |= {"status": "missing", "note": "every test was skipped"}
    if result["status"] == "passed" and any(row.get("status") == "failed" for row in result["rows"]):
        result["status"] = "failed"
    if result["status"] != "passed" or not (result["rows"] or result.get("tests")):
        result |= {"command": command, "tail": text[-TAIL:]}
    if result["status"] != "passed":
        result.setdefault("note", (text.strip().splitlines() or ["it said nothing"])[-1][:200])
    return result


def wait(command: list[str], environment: Mapping[str, str], printed: Any, limit: float) -> int | None:
    """The exit code; None after ``limit`` seconds, when the slice and all that it started are ended."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # Its own group: workers of a race that outlive it would hold the GPU.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read(line: str) -> dict[str, Any] | None:
    """A row, if the line is one."""
    if not line.startswith("{"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def earlier(path: Path, rehearse: bool) -> list[dict[str, Any]]:
    """Slices of a run before on this device and day."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return data["slices"] if data.get("schema") == SCHEMA and data.get("rehearsal") == rehearse else []


def save(path: Path, data: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(data, indent=1) + "\n")
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
