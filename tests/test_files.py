"""Files: what can't be read or written is said in one line, and nothing is left behind."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from edgelstm import files
from edgelstm.errors import EdgeLstmError
from edgelstm.files import atomic_path, read_bytes, write_bytes


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_what_may_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EdgeLstmError, match=r"can't read .*pipe: found a device or a pipe; expected a file"):
        read_bytes(tmp_path / "pipe")


def test_folders_missing_files_and_large_ones(tmp_path: Path) -> None:
    with pytest.raises(EdgeLstmError, match="found a folder; expected a file"):
        read_bytes(tmp_path)
    with pytest.raises(EdgeLstmError, match="does not exist"):
        read_bytes(tmp_path / "none")
    (tmp_path / "big").write_bytes(b"12345")
    with pytest.raises(EdgeLstmError, match="big is too large: found 5 bytes; expected at most 4"):
        read_bytes(tmp_path / "big", limit=4)


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    write_bytes(target, b"old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def _ended_at(stop: int, target: Path) -> bool:
    """Write ``target`` and end at the ``stop``-th line that ``files`` runs; whether it ran so many."""
    lines = 0

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != files.__file__:
            return None
        lines += event == "line"
        if lines == stop and event == "line":
            raise SystemExit(143)
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        with suppress(SystemExit), atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
    finally:
        sys.settrace(before)
    return lines >= stop


def test_an_end_between_any_two_lines_leaves_nothing(tmp_path: Path) -> None:
    """A signal's exit can be raised anywhere; what ``finally`` doesn't reach, the end of the process does."""
    stop = 1
    while _ended_at(stop, tmp_path / "lines.jsonl"):
        files._leave_nothing()
        assert [p.name for p in tmp_path.iterdir()] in ([], ["lines.jsonl"])
        stop += 1
    assert stop > 15
