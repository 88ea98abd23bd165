"""Several threads do whatever may be done to running streams, at random: every stream's outputs are those of its frames, one after the other,
from the initial state or behind a reset."""

from __future__ import annotations

import json
import logging
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydantic")

from edgelstm import EdgeLstmError
from running import MODEL, START, Running, folder_of_sums, section, toml, until

FRAMES, NAMES, THREADS, DOINGS = 150, "abcd", 4, 25
#: What may be answered to who comes second.
SECOND = ("no such stream", "one of that name", "was removed before", "changed by someone else")
#: Other keys of a section: policies, some that open the source again, and one with which the state begins anew.
KEYS: tuple[dict[str, Any], ...] = (
    {"queue": 3, "gap": "reset"},
    {"queue": None, "bad": "rollback"},
    {"rate": 700.0},
    {"rate": 2500.0},
    {"cut": "reset", "cut_above": 1e6},
    {"preprocess": "scale=2"},
    {"preprocess": None},
)


def check(folder: Path, name: str, x: Any) -> int:
    """Lines come in the order of their frames, none is missing, and each is a step from the state before or from the initial one; gives
    the last one's number."""
    state, last = START, -1
    for line in (folder / f"{name}.jsonl").read_text().splitlines():
        said = json.loads(line)
        index, value = said["index"], said["outputs"]["y"]["values"]
        assert said["stream"] == name
        if index == 0:  # it was removed, and came again
            state, last = START, -1
        assert index == last + 1
        steps = [np.float32(s + np.float32(k) * x[index]) for s in (state, START) for k in (1, 2)]
        fits = [s for s in steps if float(np.float32(2) * s) == value]
        assert fits, f"{name}: line of frame {index}"
        state, last = fits[0], index
    return last


class Steering:
    def __init__(self, running: Running, folder: Path, text: str) -> None:
        self.running, self.folder, self.text = running, folder, text
        self.wrong: list[BaseException] = []

    def steer(self, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(DOINGS):
            try:
                self.do(rng.choice(("add", "remove", "reset", "pause", "resume", "snapshot", "configure", "configure", "swap", "reload")), rng)  # fmt: skip
            except EdgeLstmError as error:
                if not any(words in str(error) for words in SECOND):
                    self.wrong.append(error)
            except BaseException as error:
                self.wrong.append(error)

    def do(self, what: str, rng: random.Random) -> None:
        control, name = self.running.control, rng.choice(NAMES)
        if what == "add":
            control.add(name, section(name, rate=1500))
        elif what == "configure":
            old = control.find(name)[0].section
            control.configure(name, old.model_copy(update=rng.choice(KEYS)))
        elif what == "swap":
            self.running.pipeline.swap(
                "m", self.folder / rng.choice(("sum.onnx", "again.onnx")), compatible=True
            )
        elif what == "reload":
            fresh = self.folder / f"{threading.get_ident()}.toml"
            fresh.write_text(self.text + rng.choice(("", toml("c", rate=900))))
            fresh.replace(self.folder / "pipeline.toml")
            self.running.pipeline.reload()
        else:
            getattr(control, what)(name)


def steered(folder: Path, seed: int) -> None:
    folder_of_sums(folder, **dict.fromkeys(NAMES, FRAMES))
    shutil.copy(folder / "sum.onnx", folder / "again.onnx")
    text = (
        '[service]\nstay = true\ncheckpoint = "states"\ncheckpoint_every = 0.05\n'
        + MODEL
        + "".join(toml(name, rate=1000) for name in NAMES[:2])
    )
    (folder / "pipeline.toml").write_text(text)
    with Running(folder / "pipeline.toml", folder) as running:
        steering = Steering(running, folder, text)
        threads = [threading.Thread(target=steering.steer, args=(10 * seed + k,)) for k in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        service = running.control.service
        for channel in service.channels:
            running.control.resume(channel.name)
        until(lambda: all(c.is_over and not any(m.has_frame for m in c.mine()) for c in service.channels))
        there = [channel.name for channel in service.channels]
        running.pipeline.stop()
        report = running.ends()
    assert steering.wrong == []
    assert not report.failed
    for name in NAMES:
        if (folder / f"{name}.jsonl").exists():
            last = check(folder, name, np.load(folder / f"{name}.npy"))
            assert last == FRAMES - 1 or name not in there, "all of its frames"
    for name in there:
        counts = report.streams[name]
        dropped = sum(n for key, n in counts.items() if key.startswith("dropped:"))
        assert counts["read"] == counts["stepped"] + dropped


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_done_to_streams_each_gives_what_its_frames_are_worth(tmp_path: Path, seed: int) -> None:
    logging.getLogger("edgelstm").setLevel(logging.CRITICAL)  # thousands of lines
    try:
        steered(tmp_path, seed)
    finally:
        logging.getLogger("edgelstm").setLevel(logging.NOTSET)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(100, 160))
def test_whatever_is_done_to_streams_each_gives_what_its_frames_are_worth_at_length(
    tmp_path: Path, seed: int
) -> None:
    steered(tmp_path, seed)
