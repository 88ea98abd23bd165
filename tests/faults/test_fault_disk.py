"""A full disk and a closed pipe cost what would have been written, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydantic")

from edgelstm.pipeline.service.checkpoint import Folder
from running import MODEL, folder_of_sums, sums, toml, values

SIZE = 96 * 1024


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 96 KiB; None where it can't be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield None
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def limited() -> None:
    """No file of this process grows beyond the size: what a full disk says, EFBIG for ENOSPC."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, SIZE))


def test_a_full_disk(tmp_path: Path, small: Path | None) -> None:
    """Lines and checkpoints on it: the stream goes on, what was written stays whole, and the end says what failed."""
    if small is None and sys.platform == "win32":
        pytest.skip("neither a file system of its own nor a limit")
    folder = folder_of_sums(tmp_path, a=2000, b=2000)
    there = small or folder / "small"
    more: dict[str, Any] = {"rate": 1500}
    lines = f'[service]\ncheckpoint = "{there}/states"\ncheckpoint_every = 0.2\n' + MODEL
    lines += toml("a", sink=f"{there}/a.jsonl", **more) + toml("b", **more)
    (folder / "p.toml").write_text(lines)
    done = subprocess.run(
        [sys.executable, "-m", "edgelstm", "serve", "p.toml", "--json"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=limited if small is None else None,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    a, b = report["streams"]["a"], report["streams"]["b"]
    assert a["stepped"] == b["stepped"] == 2000
    lost = sum(n for name, n in a.items() if name.startswith("undelivered:"))
    assert a["delivered"] + lost == 2000
    assert lost > 0
    said = "No space left" if small else "File too large"
    assert said in json.dumps(report["failed"]) + done.stderr
    if small:
        assert b["delivered"] == 2000
        assert values(folder / "b.jsonl") == sums(np.load(folder / "b.npy"))
        assert "no checkpoint" in done.stderr
    whole = [
        json.loads(line)["index"]
        for line in (there / "a.jsonl").read_text().splitlines()
        if line.endswith("}}}")  # of a torn one, an inner object may be whole
    ]
    assert whole == sorted(set(whole)), "none twice, whatever is missing"
    # A line whose end alone found no room is there and was not delivered.
    assert len(whole) - a["delivered"] in (0, 1)
    found = Folder(there / "states").load()
    assert found is not None, "the last one that fitted is whole"
    assert not list((there / "states").glob(".checkpoint*")), "no half of one"


@pytest.mark.faults
def test_a_reader_that_goes_away_costs_its_sink_alone(tmp_path: Path) -> None:
    folder = folder_of_sums(tmp_path, a=3000, b=3000)
    (folder / "p.toml").write_text(MODEL + toml("a", sink="-", rate=3000) + toml("b", rate=3000))
    with subprocess.Popen(
        [sys.executable, "-m", "edgelstm", "serve", "p.toml"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        error = process.stderr.read()
        process.wait(120)
    assert process.returncode == 1
    assert "Traceback" not in error
    assert "sink a -> -: failed, nothing more is written to it" in error
    assert values(folder / "b.jsonl") == sums(np.load(folder / "b.npy"))
