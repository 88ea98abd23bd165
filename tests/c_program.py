"""The program of docs/c.md, compiled with the flags that a test has to offer, and run beside Python's Runner."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np

import zoo
from edgelstm.runtime import Runner

PAGE = Path(__file__).resolve().parents[1] / "docs" / "c.md"


def compiled(folder: Path, *flags: str, compiler: str = "cc") -> Path:
    """The program of the page."""
    (block,) = re.findall(r"^```c\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert block.count("\n") < 26
    (folder / "program.c").write_text(block)
    command = [
        compiler,
        "-std=c99",
        "-Wall",
        "-Werror",
        "-o",
        str(folder / "program"),
        str(folder / "program.c"),
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "program"


def compare(program: Path, folder: Path, *emulator: str, **environment: str) -> None:
    zoo.lstm(6, head=48).save(folder / "sensor.onnx")
    done = subprocess.run(
        [*emulator, program], cwd=folder, capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, **environment},
    )  # fmt: skip
    with Runner.open(folder / "sensor.onnx", native=False) as runner:
        sample = np.array([0.5, 0.5, 0.4, 0.3, 0.2, 0.1], np.float32)
        wanted = [runner.stream("s").step(sample, copy=True)["y"][0] for _ in range(3)]
    assert done.stdout == "".join(f"{y:.6f}\n" for y in wanted)
