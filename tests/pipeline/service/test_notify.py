"""What the service tells systemd, by the datagrams that arrive; and the files that deploy it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydantic")

from edgelstm.pipeline.service.checkpoint import Folder
from running import MODEL, Running, folder_of_sums, sums, toml, until, values

DEPLOY = Path(__file__).parents[3] / "examples" / "deploy"
SECONDS = 60.0


class Manager:
    """Listens as systemd does."""

    def __init__(self, abstract: bool) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.name = (
            f"@edgelstm-{os.getpid()}-{time.monotonic_ns()}" if abstract else f"{self._folder.name}/notify"
        )
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.name[1:] if abstract else self.name)
        self._socket.settimeout(SECONDS)

    def hears(self, word: str, within: float = SECONDS) -> str:
        """The next message with ``word``."""
        end = time.monotonic() + within
        while True:
            self._socket.settimeout(max(0.01, end - time.monotonic()))
            text = self._socket.recv(4096).decode()
            if word in text:
                return text

    def hears_none(self, word: str, seconds: float) -> bool:
        try:
            self.hears(word, seconds)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()
        self._folder.cleanup()


@contextmanager
def served(folder: Path, abstract: bool = False, **more: str) -> Iterator[tuple[Manager, Any]]:
    manager = Manager(abstract)
    environment = {**os.environ, "NOTIFY_SOCKET": manager.name, **more}
    with subprocess.Popen(
        [sys.executable, "-m", "edgelstm", "serve", "p.toml", "--json"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield manager, process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            manager.close()


@pytest.mark.parametrize("abstract", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_ready_watchdog_stopping_and_a_checkpoint_on_sigterm(tmp_path: Path, abstract: bool) -> None:
    if abstract and not sys.platform.startswith("linux"):
        pytest.skip("abstract sockets are Linux's")
    folder = folder_of_sums(tmp_path, a=30000)
    (folder / "p.toml").write_text('[service]\ncheckpoint = "states"\n' + MODEL + toml("a", rate=100))
    with served(folder, abstract, WATCHDOG_USEC="2000000") as (manager, process):
        assert "STATUS=1 stream, 1 model" in manager.hears("READY=1")
        for _ in range(2):
            manager.hears("WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        manager.hears("STOPPING=1")
        _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, error
    made = values(folder / "a.jsonl")
    assert made == sums(np.load(folder / "a.npy"))[: len(made)]
    found = Folder(folder / "states").load()
    assert found is not None
    assert found[0].sections["a"].streams["a"].counts["stepped"] == len(made), "the last one is of the end"


def test_a_loop_that_does_not_advance_keeps_the_manager_from_hearing(
    tmp_path: Path, hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that hangs, of a model that has not been given up for it."""
    folder = folder_of_sums(tmp_path)
    np.save(folder / "a.npy", np.array([1, 7, 1], np.float32))
    manager = Manager(False)
    monkeypatch.setenv("NOTIFY_SOCKET", manager.name)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    with Running("[service]\nstay = true\n" + MODEL + toml("a"), folder) as running:
        until(lambda: running.count("a", "stepped") == 1)
        manager.hears("WATCHDOG=1")
        until(lambda: manager.hears_none("WATCHDOG=1", 1.5))
        hanging.set()
        manager.hears("WATCHDOG=1")
        running.pipeline.stop()
        assert running.ends().streams["a"]["stepped"] == 3
    manager.close()


def test_the_watchdog_is_not_for_children(tmp_path: Path) -> None:
    from edgelstm.pipeline.service.notify import Notifier

    assert Notifier({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog is None
    assert Notifier({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "much"}).watchdog is None
    assert Notifier({"WATCHDOG_USEC": "1000000"}).watchdog is None
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready("nobody listens")


def test_the_unit_is_one(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here (apt install systemd)")
    unit = (DEPLOY / "edgelstm.service").read_text(encoding="utf-8")
    (tmp_path / "edgelstm.service").write_text(unit.replace("/opt/edgelstm/bin/edgelstm", sys.executable))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(tmp_path / "edgelstm.service")],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_the_images_copy_is_sent_to_docker() -> None:
    root = DEPLOY.parents[1]
    sent = {
        line[1:]
        for line in (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line[:1] == "!"
    }
    for file in (root / "Dockerfile.jetson", DEPLOY / "Dockerfile"):
        copied = [
            line.split()[1:-1]
            for line in file.read_text(encoding="utf-8").splitlines()
            if line.startswith("COPY ")
        ]
        names = {name for names in copied if not names[0].startswith("--from") for name in names}
        assert names
        assert names <= sent
        assert all((root / name).exists() for name in names)


def test_the_compose_files_are_of_one_service() -> None:
    """The one for a Jetson changes keys of the other's service, and has no other."""
    for name in ("compose.yaml", "compose.jetson.yaml"):
        lines = (DEPLOY / name).read_text(encoding="utf-8").splitlines()
        assert [line.strip() for line in lines if re.match(r"  \w+:", line)][:1] == ["edgelstm:"], name
        assert not [line for line in lines if "\t" in line]
    assert "command: [serve," in (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
