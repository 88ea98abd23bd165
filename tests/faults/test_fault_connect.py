"""Addresses behind which nobody is: tried for ever without taking memory, and left at once when the service is told to stop."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import zoo
from edgelstm import Pipeline

pytest.importorskip("pydantic")
pytest.importorskip("av")

from reconnects import dead_address

from running import until


def reconnect_in_a_process(tries: int) -> int:
    script = str(Path(__file__).with_name("reconnects.py"))
    done = subprocess.run(
        [sys.executable, script, str(tries)], capture_output=True, text=True, timeout=1000, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


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
