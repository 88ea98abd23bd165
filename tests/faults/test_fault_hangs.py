"""An engine whose step never ends, for real: the process ends with its code, its checkpoint written, whoever watches it or not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydantic")

from edgelstm.pipeline.service.checkpoint import Checkpoint
from running import folder_of_sums, until

#: The command, with an engine that never comes back from a frame of 7: in native code, or there with the interpreter's lock too.
STUCK = """
import ctypes, os, sys
from edgelstm.cli import main
from edgelstm.runtime.rows import RowProgram
from edgelstm.workflows import serve_process

locked = sys.argv.pop(1) == "locked"
serve_process.GRACE = 3.0 if locked else 60.0
library = (ctypes.PyDLL if locked else ctypes.CDLL)(None)
step = RowProgram.step_row

def stuck(self, frame, *more):
    if float(frame) == 7:
        os.write(2, b"STUCK")
    while float(frame) == 7:
        library.sleep(3600)
    return step(self, frame, *more)

RowProgram.step_row = stuck
main()
"""
TEXT = """
[service]
checkpoint = "states"
checkpoint_every = 0.3
drain = 0.5
{service}
[models.m]
path = "sum.onnx"
max_wait = 0
{model}
[streams.a]
source = "a.npy"
rate = 20
sink = "a.jsonl"
sink_overload = "block"
"""

posix = pytest.mark.skipif(sys.platform == "win32", reason="sleep of the C library")


@posix
@pytest.mark.faults
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("how", "service", "model", "told"),
    [
        ("free", "", "", True),
        ("free", "stay = true", "hang_after = 0.5", False),
        ("locked", "", "hang_after = 0.5", False),
    ],
    ids=["told to stop", "the only model, and the service stays", "nothing of Python runs any more"],
)
def test_a_stuck_engine_ends_the_process(
    tmp_path: Path, how: str, service: str, model: str, told: bool
) -> None:
    folder = folder_of_sums(tmp_path)
    np.save(folder / "a.npy", np.array([1] * 20 + [7, 1], np.float32))
    (folder / "p.toml").write_text(TEXT.format(service=service, model=model))
    command = [sys.executable, "-c", STUCK, how, "serve", str(folder / "p.toml"), "--json"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        try:
            until(lambda: "STUCK" in (folder / "log").read_text())
            if told:
                process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 1, (folder / "log").read_text()
        finally:
            process.kill()
            process.communicate()
    said = (folder / "log").read_text()
    assert ("Timeout" if how == "locked" else "model m") in said
    newest = max((folder / "states").glob("*.state"))
    (part,) = Checkpoint.from_bytes(newest.read_bytes()).sections["a"].streams.values()
    assert part.index >= 5, "checkpoints were written until then"
