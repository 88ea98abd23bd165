"""The first contact with a GPU, rehearsed without one: every import, path, argument and report of benchmarks/gpu/contact.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from contract.backends import no_gpu

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"

pytestmark = pytest.mark.skipif(no_gpu() is None, reason="there is a GPU: make gpu-contact")


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by name."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(GPU)
    yield
    for name in set(sys.modules) - before:
        if str(GPU) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def contact(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GPU / "contact.py"), *arguments],
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


TOOL = """#!{python}
import subprocess, sys
arguments = sys.argv[1:]
flags = {flags}
while arguments and arguments[0].startswith("--"):
    count = flags[arguments.pop(0)]  # a flag that the tool does not have is an error
    del arguments[:count]
sys.exit(subprocess.call(arguments))
"""
#: Flags of the tools, each with its number of values, as their manuals have them.
TOOLS = {
    "compute-sanitizer": {"--tool": 1, "--error-exitcode": 1},
    "ncu": {"--kernel-name": 1, "--section": 1, "--launch-count": 1},
}


def carried(folder: Path) -> Path:
    """What carry.py gathers, as far as a rehearsal looks at it."""
    (folder / "headers" / "10.3").mkdir(parents=True)
    with tarfile.open(folder / "onnxruntime.tar.xz", "w:xz"):
        pass
    return folder


@pytest.mark.timeout(900)
@pytest.mark.thorough
def test_the_whole_contact_without_a_gpu(tmp_path: Path) -> None:
    """All slices; the real ones on the processor or the stand-in, the others as far as their arguments."""
    pytest.importorskip("torch")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, flags in TOOLS.items():
        (tools / name).write_text(TOOL.format(python=sys.executable, flags=flags))
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    options = [
        "--out",
        str(tmp_path / "out"),
        "--carried",
        str(carried(tmp_path / "carried")),
        "--minutes",
        "4",
    ]
    done = contact("--rehearse", *options, PATH=path)
    (result,) = (tmp_path / "out").glob("gpu-cpu-*.json")
    data = json.loads(result.read_text())
    import slices

    by_name = {s["name"]: s for s in data["slices"]}
    assert list(by_name) == [s.name for s in slices.SLICES]
    wrong = {n: s for n, s in by_name.items() if s["status"] not in ("passed", "missing")}
    assert not wrong, json.dumps(wrong, indent=1)
    assert done.returncode == 0, done.stderr
    # What is unpacked only where it was carried.
    allowed = {
        "ONNX Runtime: contract",
        "ONNX Runtime: steps",
        *(n for n, s in by_name.items() if "cmake" in s.get("note", "")),
    }
    assert {n for n, s in by_name.items() if s["status"] == "missing"} <= allowed
    assert data["rehearsal"]
    assert data["commit"]
    assert {"numpy", "torch"} <= set(data["versions"])
    assert {e["contestant"] for e in by_name["steps: LSTM"]["rows"][0]["race"]["entries"]} >= {
        "torch",
        "cuDNN LSTM",
    }
    assert by_name["runner on the driver"]["tests"]["passed"] > 5
    assert by_name["kernels: times, 4 blocks"]["rows"][0]["name"].endswith("4 blocks")

    shown = subprocess.run(
        [sys.executable, str(GPU / "contact_report.py"), str(result)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "A rehearsal without a GPU" in shown
    assert "share of a copy's bandwidth | 0.895 | at least 0.9 | missed |" in shown
    for name in by_name:
        assert f"| {name} |" in shown


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    done = contact("--out", str(tmp_path))
    assert (done.returncode, list(tmp_path.iterdir())) == (3, [])
    assert "no GPU" in done.stderr


def test_a_slice_that_hangs_is_ended_with_all_it_started_and_the_rest_goes_on(tmp_path: Path) -> None:
    import contact as script
    from slices import Slice

    mark = tmp_path / "late"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).write_text('x')"
    hangs = f"import subprocess, sys, time; print('{{\"early\": 1}}', flush=True); subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    place = Slice("hangs", 1.0, "{python} -c|" + hangs)
    values = {"python": sys.executable}
    start = time.monotonic()
    found = script.run(place, values, dict(os.environ), 60.0, False)
    assert time.monotonic() - start < 3
    assert (found["status"], found["rows"]) == ("timed out", [{"early": 1}])
    time.sleep(3.5)
    assert not mark.exists(), "what it had started went on"
    assert script.run(place, values, dict(os.environ), 2.0, False)["status"] == "no time"
    missing = Slice("missing", 1.0, "nothing", needs=("no-such-program",))
    assert script.run(missing, values, dict(os.environ), 60.0, False)["note"] == "no-such-program is not here"
    fails = script.run(
        Slice("fails", 9.0, "{python} -c|raise SystemExit('why')"), values, dict(os.environ), 60.0, False
    )
    assert (fails["status"], fails["note"]) == ("failed", "why")


def test_a_later_run_adds_to_the_day_and_an_unreadable_file_costs_nothing(tmp_path: Path) -> None:
    import contact as script

    path = tmp_path / "gpu.json"
    assert script.earlier(path, False) == []
    script.save(path, {"schema": 1, "rehearsal": False, "slices": [{"name": "a"}]})
    assert script.earlier(path, False) == [{"name": "a"}]
    assert script.earlier(path, True) == []
    path.write_text("{")
    assert script.earlier(path, False) == []


def fat_binary(*entries: tuple[int, int, bytes]) -> bytes:
    body = b""
    for kind, arch, payload in entries:
        head = (
            kind.to_bytes(2, "little")
            + b"\x01\x01"
            + (64).to_bytes(4, "little")
            + len(payload).to_bytes(8, "little")
        )
        body += head + bytes(12) + arch.to_bytes(4, "little") + bytes(32) + payload
    return (0xBA55ED50).to_bytes(4, "little") + b"\x01\x00\x10\x00" + len(body).to_bytes(8, "little") + body


def test_machine_code_for_other_gpus_is_zeroed_and_nothing_else_is_touched() -> None:
    import carry

    rng = np.random.default_rng(0)
    noise = rng.bytes(1000)
    whole = (
        fat_binary((2, 80, b"a" * 400), (2, 90, b"b" * 300), (1, 90, b"p" * 100))
        + noise
        + fat_binary((2, 75, b"c" * 64))
    )
    false = (0xBA55ED50).to_bytes(4, "little") + noise  # the magic number by chance
    data = bytearray(noise + whole + false)
    assert carry.prune(data, 90) == 464
    assert bytes(data) == noise + whole.replace(b"a" * 400, bytes(400)).replace(b"c" * 64, bytes(64)) + false


def test_what_is_to_be_carried_is_gathered_and_weighed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import carry
    import standalone

    header = tmp_path / "headers" / "10.3" / "NvInfer.h"
    header.parent.mkdir(parents=True)
    header.write_text("//")
    compiled: list[list[str]] = []

    def compile_(command: list[str], check: bool) -> None:
        compiled.append(command)
        Path(command[command.index("-o") + 1]).write_bytes(bytes(2**20))

    monkeypatch.setattr(carry.subprocess, "run", compile_)
    monkeypatch.setattr(carry, "said", lambda *command: "abc" if "rev-parse" in command else "README.md")
    monkeypatch.setattr(standalone, "find_nvcc", lambda: "nvcc")
    monkeypatch.setenv("EDGELSTM_TENSORRT_HEADERS", str(tmp_path / "headers"))
    monkeypatch.setattr(sys, "argv", ["carry.py", "contact", "--out", str(tmp_path / "out")])
    carry.main()
    assert [c[-1] if c[-1].startswith("-D") else "" for c in compiled] == ["", "-DEDGELSTM_MIN_BLOCKS=4"]
    assert all("-arch=sm_90" in c for c in compiled)
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {"bench-sm_90", "bench-4-blocks-sm_90", "commit", "headers/10.3/NvInfer.h"}
    assert "contact: 2.00 MiB; with the tree 2.0" in capsys.readouterr().out

    # What was gathered is what `standalone.py build` takes.
    from edgelstm import machine

    gpus = (machine.Gpu("a GPU", "9.0", 2**36),)
    monkeypatch.setattr(machine, "cuda", lambda: machine.Cuda("13.0", gpus))
    (tmp_path / "work").mkdir()
    assert standalone.build(tmp_path / "work", tmp_path / "out", rehearse=False) == 0
    assert {p.name for p in (tmp_path / "work").iterdir()} == {"bench", "bench-4-blocks"}


def test_the_readme_keeps_what_stands_around_the_tables() -> None:
    import contact_report

    text = (GPU / "README.md").read_text()
    again = contact_report.replaced(text, "### A GPU\n")
    assert "### A GPU" in again
    assert contact_report.replaced(again, "No GPU has run it yet.\n") == text


def test_figures_hold_our_gates_against_a_copy_and_take_what_rows_say() -> None:
    import contact_report

    def row(name: str, microseconds: float, **sizes: object) -> dict[str, object]:
        return {"name": name, "microseconds": [microseconds], "dtype": "fp16", **sizes}

    rows = [
        row("torch copy", 9.0, size="64 streams"),
        row("edgelstm.kernels", 12.0, size="64 streams"),
        row("edgelstm.kernels", 12.0, size="1 stream"),  # nothing to hold it against
        {"figure": "small cell / cuDNN", "measured": 0.4, "aim": 0.5, "below": True},
        {
            "name": "host time, one frame",
            "streams": 1,
            "driver": "real",
            "microseconds": [4.0, 9.0],
            "aim": 5.0,
        },
    ]
    figures = contact_report.figures_of({"slices": [{"rows": rows}]})
    assert {f["figure"]: (round(f["measured"], 3), contact_report._mark(f)) for f in figures} == {
        "small cell / cuDNN": (0.4, "reached"),
        "gates as an operator, 64 streams, fp16: share of torch's copy bandwidth": (0.75, "missed"),
        "host time, one frame, 1 streams, real driver: us a step, fastest round": (4.0, "reached"),
    }


def test_the_section_and_the_plot_of_a_result(tmp_path: Path) -> None:
    """What contact_report.py writes for a file that contact.py left; without an installed project."""
    pytest.importorskip("matplotlib")
    import contact_report

    entries = [
        {"contestant": n, "status": "measured", "p50": 9.0, "rounds": [9.0, 10.0], "error": 1e-4}
        for n in ("torch", "torch, graphs")
    ]
    race = {"title": "LSTM", "precision": "fp16", "streams": 1, "entries": entries}
    data = {
        "device": {"name": "A GPU", "driver_version": "580"},
        "date": "2026-01-01",
        "commit": "abc",
        "rehearsal": False,
        "slices": [{"name": "steps", "status": "passed", "seconds": 3.0, "rows": [{"race": race}]}],
    }
    assert contact_report.draw(data, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    text = contact_report.section(data)
    assert "### A GPU, 2026-01-01" in text
    assert "| LSTM, fp16 | 1 | torch, graphs | 9 | 1e-04 |" in text


def test_on_a_gpu_each_slice_is_written_as_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole script as it runs where there is a GPU, with slices that need none; a second run adds to the first."""
    import contact as script
    import run as bench
    from slices import Slice

    about = {
        "date": "2026-01-01",
        "device": {"name": "NVIDIA H100 80GB HBM3", "capability": "9.0"},
        "commit": "abc",
    }
    monkeypatch.setattr(bench, "describe", lambda device: about if device == "cuda" else {})
    path = tmp_path / "gpu-nvidia-h100-80gb-hbm3-2026-01-01.json"
    seen = f"import json, pathlib; p = pathlib.Path({str(path)!r}); print(json.dumps({{'seen': len(json.loads(p.read_text())['slices']) if p.exists() else 0}}))"
    monkeypatch.setattr(
        script,
        "SLICES",
        (
            Slice("a", 9, "{python} -c|" + seen),
            Slice("b", 9, "{python} -c|" + seen),
            Slice("c", 9, "{python} -c|1/0"),
        ),
    )
    for arguments, code in (([], 1), (["--only", "b"], 1)):
        monkeypatch.setattr(
            sys, "argv", ["contact.py", "--out", str(tmp_path), "--carried", str(tmp_path), *arguments]
        )
        assert script.main() == code
    data = json.loads(path.read_text())
    by_name = {s["name"]: s for s in data["slices"]}
    assert by_name["a"]["rows"] == [{"seen": 0}]
    assert by_name["b"]["rows"] == [{"seen": 3}], "what the first run found is there"
    assert by_name["c"]["status"] == "failed"
    assert "ZeroDivisionError" in by_name["c"]["tail"]
    assert all(s["commit"] == "abc" for s in data["slices"])
    assert "wrote" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["contact.py", "--only", "d"])
    with pytest.raises(SystemExit):
        script.main()


def test_a_missing_package_does_not_cost_the_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    import contact as script

    monkeypatch.setitem(sys.modules, "run", None)
    about = script.describe(False)
    assert "import of run halted" in about["note"]
    assert about["device"] == {"name": "cpu"}
