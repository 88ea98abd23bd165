"""Small inputs found in the field, each with what is expected of it: ``../shared/cases`` beside the checkout, run as they are."""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

#: What a case has to print (patterns), by its number; ``!`` before a pattern: what it must not.
EXPECTED: dict[str, tuple[str, ...]] = {
    "01": (r"alone and beside b: 0\.0$",),
    "03": (r"error 0\.00\d",),
    "04": (r"(?s)exported .*exported ",),
    "05": (r"^uint16 \(48, 64\) distinct values: \[30000, .* 30110\]",),
    "06": (r"-90 degrees; frame \(64, 48, 3\)", r"-180 degrees; .* top left: False"),
    "08": (r"^uint16 stored (\[[\d ]+\]) read \1$",),
    "11": (r"last 200 ms frames: 30$", r"last 4 s frames: 30$"),
    "12": (r"u=q", r"v=p", r"!v=q"),
    "14": (r"^\(StateSpec\(name='r1'.*StateSpec\(name='r2'",),
    "15": (
        r"Attribute \{\} REFUSED: .*'st'",
        r"Attribute \{'carry_state': True\} exported",
        r"Buffer \{\} REFUSED: .*'hidden'",
        r"Buffer \{'carry_state': True\} exported",
        r"!needs cells which are modules",
        r"!Expected hidden size",
    ),
    "16": (r"^refused: .*'t'",),
    "18": (r"^exported$",),
    "20": (r"'x'.*never moved|never moved.*'x'",),
    "22": (
        r"Normalization exported",
        r"RNN\(LSTMCell\) exported",
        r"Embedding exported",
        # Over a sequence of open length Keras normalises over all of its frames: no stream can.
        # The case prints the first characters of it, a path among them.
        r"GroupNormalization REFUSED: ",
        r"x \* 0\.5 exported",
        r"x\[:, :, :2\] exported",
    ),
    "24": (r"difference of h over 6 frames: (0\.0|\d\.?\d*e-0[78])|^REFUSED: .*which",),
    "25": (r"^exported",),
    "26": (r"^17 exported", r"^9 exported"),
    "27": (r"^\{\} exported None", r"^\{'window': 10\} exported 10 "),
    "28": (r"^exported \['h0?', 'c0?'\]",),
    "29": (r"^exported|^REFUSED: .*'w'.*init_hidden",),
}
#: Case 23 shows what a file gives that does not say where its state starts; the way to say it is tested with the ONNX door.
WISHES = {"23"}

#: Each case runs in a process of its own, forked from one that has imported what takes seconds to import.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "torch.onnx", "onnxscript", "onnxruntime", "edgelstm.cli", __name__]
)


def _run_case(path: str, folder: str) -> None:
    os.chdir(folder)
    for number, name in ((1, ".printed"), (2, ".errors")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    os.environ |= {
        "TMPDIR": folder,
        "PYTHONWARNINGS": "ignore",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    warnings.simplefilter("ignore")
    tempfile.tempdir = None
    sys.argv = [path]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")
    sys.stdout.flush()


#: Each has tests of its own where its matter is tested; run as they are, `make test` has this one.
SHORT = ("12",)


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=() if n in SHORT else pytest.mark.thorough) for n in sorted(EXPECTED)],
)
def test_case(number: str, shared_dir: Path, tmp_path: Path) -> None:
    found = sorted((shared_dir / "cases").glob(f"{number}_*.py"))
    if not found:
        pytest.skip(f"real inputs are not here: no case {number}")
    process = _CONTEXT.Process(target=_run_case, args=(str(found[0]), str(tmp_path)))
    process.start()
    process.join(250)
    if process.is_alive():
        process.kill()
        pytest.fail("it still runs after 250 s")
    errors = (tmp_path / ".errors").read_text()
    assert process.exitcode == 0, errors[-2000:]
    text = re.sub(r"\x1b\[[0-9;]*m", "", (tmp_path / ".printed").read_text())
    for pattern in EXPECTED[number]:
        there = re.search(pattern.removeprefix("!"), text, re.MULTILINE)
        assert bool(there) is not pattern.startswith("!"), f"{pattern}\n{text[-3000:]}"


def test_every_case_is_expected_something_of(shared_dir: Path) -> None:
    here = {path.name[:2] for path in (shared_dir / "cases").glob("*.py")}
    assert here <= set(EXPECTED) | WISHES
