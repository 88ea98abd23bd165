"""Killed at any moment, again and again: what is written is what a run that was never killed writes, once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydantic")

from running import MODEL, folder_of_sums, sums, toml, until

KILLS = int(os.environ.get("EDGELSTM_KILLS", "200"))


def written(folder: Path) -> int:
    """Lines of the stream that is further behind: one that is read in a process of its own begins later each time."""
    paths = [folder / f"{name}.jsonl" for name in "ab"]
    return min(path.read_bytes().count(b"\n") if path.exists() else 0 for path in paths)


def kill_and_compare(folder: Path, kills: int, frames: int, seed: int, isolate: str = "none") -> None:
    """Each time after some frames more than before, at a moment that nobody chose; also while it starts, and while it ends."""
    folder_of_sums(folder, a=frames, b=frames)
    lines = '[service]\ncheckpoint = "states"\ncheckpoint_every = 0.05\n' + MODEL
    (folder / "p.toml").write_text(lines + toml("a", rate=400) + toml("b", rate=400, isolate=isolate))
    command = [sys.executable, "-m", "edgelstm", "serve", "p.toml", "--json"]
    rng = random.Random(seed)
    for number in range(kills):
        before = written(folder)
        with subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                if number % 5 != 4:
                    more = rng.randrange(1, max(2, frames // kills))
                    until(lambda n=before + more, p=process: written(folder) >= n or p.poll() is not None)
                    time.sleep(rng.random() * 0.1)
                else:
                    time.sleep(rng.random() * 1.5)  # perhaps before anything is open
            finally:
                process.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
                process.communicate(timeout=60)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)["streams"]
    for name in "ab":
        made = []
        for line in (folder / f"{name}.jsonl").read_text().splitlines():
            if line.endswith("}"):  # a line that was cut short by a kill is written again
                row = json.loads(line)
                made.append((row["index"], row["outputs"]["y"]["values"]))
        assert [index for index, _ in made] == list(range(frames)), "each once, in order"
        assert [value for _, value in made] == sums(np.load(folder / f"{name}.npy"))
        assert counts[name]["read"] == counts[name]["stepped"] == frames


def test_killed_a_few_times(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, 5, 300, 1)


@pytest.mark.faults
@pytest.mark.timeout(3000)
def test_killed_at_two_hundred_moments(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, KILLS, 40 * KILLS, 2, "process" if hasattr(os, "memfd_create") else "none")
