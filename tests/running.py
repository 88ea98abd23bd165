"""A service that runs in a thread of the test, steered and waited for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import zoo
from edgelstm import EdgeLstmError, Pipeline
from edgelstm.pipeline.service.config import StreamSection
from edgelstm.pipeline.service.control import Control

MODEL = '[models.m]\npath = "sum.onnx"\nmax_wait = 0\n'
START = np.float32(3)  # of zoo.running_sum


def folder_of_sums(folder: Path, **frames: int) -> Path:
    """A model that sums up, and sources of so many random numbers each."""
    zoo.running_sum().save(folder / "sum.onnx")
    rng = np.random.default_rng(1)
    for name, count in frames.items():
        np.save(folder / f"{name}.npy", rng.normal(size=count).astype(np.float32))
    return folder


def stream(name: str, **keys: Any) -> dict[str, Any]:
    return {"source": f"{name}.npy", "sink": f"{name}.jsonl", "sink_overload": "block", **keys}


def section(name: str, **keys: Any) -> StreamSection:
    return StreamSection.model_validate(stream(name, **keys))


def toml(name: str, **keys: Any) -> str:
    return f"[streams.{name}]\n" + "".join(
        f"{k} = {json.dumps(v)}\n" for k, v in stream(name, **keys).items()
    )


def sums(frames: Any) -> list[float]:
    """What the model makes of frames, bit for bit."""
    state, found = START, []
    for x in frames:
        state = np.float32(state + x)
        found.append(float(np.float32(2) * state))
    return found


def values(path: Path) -> list[float]:
    return [json.loads(line)["outputs"]["y"]["values"] for line in path.read_text().splitlines()]


def until(holds: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = holds()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError("not within a minute")


class Running:
    def __init__(self, text_or_path: str | Path, folder: Path) -> None:
        self.pipeline = (
            Pipeline.from_file(text_or_path)
            if isinstance(text_or_path, Path)
            else Pipeline.from_text(text_or_path, folder)
        )
        self.report: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.report = self.pipeline.run()
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Running:
        self._thread.start()
        until(self._is_up)
        return self

    def _is_up(self) -> bool:
        try:
            return self.pipeline.control is not None
        except EdgeLstmError:
            if not self._thread.is_alive():
                raise self.error or AssertionError("it ended") from None
            return False

    @property
    def control(self) -> Control:
        return self.pipeline.control

    def count(self, stream: str, name: str) -> int:
        return self.control.service.report().streams.get(stream, {}).get(name, 0)

    def ends(self) -> Any:
        """Its report, once it ended by itself."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.error is None, self.error
        return self.report

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pipeline.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()
