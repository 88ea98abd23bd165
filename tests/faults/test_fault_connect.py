"""Addresses behind which nobody is: tried for ever without taking memory, and left at once when the service is told to stop."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import zoo
from edgelstm import Pipeline
from edgelstm.machine import resident_bytes
from edgelstm.pipeline.service.reader import Reader
from edgelstm.pipeline.sources import open_source

pytest.importorskip("pydantic")
pytest.importorskip("av")

from running import until

TRIES = """
import sys
sys.path.insert(0, sys.argv[1])
from test_fault_connect import reconnect
print(reconnect(int(sys.argv[2])))
"""


def dead_address() -> str:
    """A port that refuses."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"rtsp://127.0.0.1:{taken.getsockname()[1]}/live"


def reconnect(tries: int) -> int:
    """Bytes that memory grew by from the first third of the tries to the end."""
    address, marks, done = dead_address(), [], [0]

    def lost() -> None:
        done[0] += 1
        if done[0] in (tries // 3, tries):
            gc.collect()
            marks.append(resident_bytes() or 0)

    reader = Reader(
        "a", lambda: open_source(address), lambda _: True, retries=tries, retry=1e-13,
        lost=lost, ended=lambda: None, elsewhere=lambda: None,
    )  # fmt: skip
    reader.start()
    reader.join(280)
    assert reader.error is not None
    assert done[0] == tries
    return marks[1] - marks[0]


def reconnect_in_a_process(tries: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", TRIES, str(Path(__file__).parent), str(tries)],
        capture_output=True, text=True, timeout=290, check=True, env=None,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


def test_sixty_tries_to_a_dead_address() -> None:
    assert reconnect_in_a_process(60) <= 1024**2


@pytest.mark.faults
def test_a_thousand_tries_to_a_dead_address_take_no_memory() -> None:
    assert reconnect_in_a_process(1000) <= 512 * 1024


def test_stop_while_connecting(tmp_path: Path) -> None:
    """To one that takes connections and never says a word, beside one that refuses them."""
    zoo.persistence(shape=(1, 8, 6)).save(tmp_path / "m.onnx")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        lines = '[service]\ndrain = 5\n[models.m]\npath = "m.onnx"\n'
        for name, address in (
            ("a", f"rtsp://127.0.0.1:{silent.getsockname()[1]}/live"),
            ("b", dead_address()),
        ):
            lines += f'[streams.{name}]\nsource = "{address}"\nretries = 1000000\nretry = 0.05\n'
        for when in (0.0, 0.3):
            pipeline = Pipeline.from_text(lines, tmp_path)
            errors: list[BaseException] = []

            def run(pipeline: Pipeline = pipeline, errors: list[BaseException] = errors) -> None:
                try:
                    pipeline.run()
                except BaseException as error:
                    errors.append(error)

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            time.sleep(when)  # any moment is as good
            pipeline.stop()
            until(lambda thread=thread: not thread.is_alive(), 30)
            assert not errors, errors
