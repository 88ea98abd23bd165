"""Frames that are damaged, spoilt, of another size, frozen, or of a clock that jumps: each costs what the policy says, and no other stream anything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo
from edgelstm import Pipeline

pytest.importorskip("pydantic")

from running import MODEL, START, folder_of_sums, sums, toml, values

START_TIME = 1_700_000_000.0


def text(*names: str, **keys: Any) -> str:
    return MODEL + "".join(toml(name, source=f"python:{name}", **keys) for name in names)


def served(folder: Path, frames: dict[str, Any], **keys: Any) -> Any:
    """The report; frames are (time, value) or arrays."""
    sources: dict[str, Any] = {name: (lambda given=given: iter(given)) for name, given in frames.items()}
    report = Pipeline.from_text(text(*frames, **keys), folder, sources=sources).run()
    assert not report.failed
    return report


def test_a_damaged_file_in_a_folder_costs_its_stream_alone(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    zoo.persistence(shape=(1, 8, 6)).save(tmp_path / "model.onnx")
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        for k in range(10):
            image.new("L", (6, 8), k).save(tmp_path / name / f"{k}.png")
    data = (tmp_path / "bad" / "5.png").read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"\0" * len(data), data[:-12] + b"\xff" * 12):
        (tmp_path / "bad" / "5.png").write_bytes(damaged)
        lines = '[models.m]\npath = "model.onnx"\n[streams.good]\nsource = "good"\n[streams.bad]\nsource = "bad"\nretries = 1\nretry = 0.01\n'
        report = Pipeline.from_text(lines, tmp_path).run()
        assert report.streams["good"]["stepped"] == 10
        assert report.streams["bad"]["stepped"] in (9, 10), "all but one at most, each once"


@pytest.mark.parametrize("bad", ["skip", "rollback", "reset"])
def test_nan_at_any_place_in_sixteen_streams(tmp_path: Path, bad: str) -> None:
    """What comes out is what a loop by hand gives that does what the policy says."""
    folder_of_sums(tmp_path)
    rng = np.random.default_rng(3)
    frames, wanted = {}, {}
    for k in range(16):
        given = rng.integers(-5, 5, 120).astype(np.float32)
        given[rng.random(120) < 0.1 * (k % 3)] = rng.choice([math.nan, math.inf, -math.inf])
        frames[f"s{k}"] = [np.array(x, np.float32) for x in given]
        state = kept = START
        found, good = [], 0
        for x in given:
            if not math.isfinite(x):
                state = {"skip": state, "rollback": kept, "reset": START}[bad]
                good = 0 if bad != "skip" else good
                kept = START if bad == "reset" else kept
                continue
            state = np.float32(state + x)
            found.append(float(2 * state))
            good += 1
            if good == 7:
                kept, good = state, 0
        wanted[f"s{k}"] = found
    report = served(tmp_path, frames, bad=bad, keep_every=7)
    for name, found in wanted.items():
        assert values(tmp_path / f"{name}.jsonl") == found, name
        assert report.streams[name]["read"] == 120


def test_a_state_that_overflows_is_caught_within_its_frame_beside_others(tmp_path: Path) -> None:
    folder_of_sums(tmp_path)
    big = [1.0, 1.6e38, 3e38, 1.0, math.inf, 2.0]
    frames = {
        "a": [np.array(x, np.float32) for x in big],
        **{f"s{k}": [np.array(k, np.float32)] * 6 for k in range(5)},
    }
    report = served(tmp_path, frames)
    assert report.streams["a"]["guard:state"] == report.streams["a"]["dropped:state"] == 1
    assert report.streams["a"]["dropped:not_finite"] == 1
    assert values(tmp_path / "a.jsonl") == sums([1.0, 1.6e38, 1.0, 2.0])
    for k in range(5):
        assert values(tmp_path / f"s{k}.jsonl") == sums([k] * 6)


def test_another_resolution_in_mid_stream(tmp_path: Path) -> None:
    """A model that has a resize takes it; one that has none drops those frames, and goes on when the size is back."""
    zoo.persistence(shape=(1, 8, 6)).save(tmp_path / "model.onnx")
    frames = [np.full((8, 6) if k not in (4, 5) else (16, 12), k, np.float32) for k in range(9)]
    lines = '[models.m]\npath = "model.onnx"\n[streams.a]\nsource = "python:a"\n'
    for more, stepped in (("", 7), ('preprocess = "resize=8,6"\n', 9)):
        report = Pipeline.from_text(lines + more, tmp_path, sources={"a": lambda: iter(frames)}).run()
        assert report.streams["a"]["stepped"] == stepped
        assert report.streams["a"].get("dropped:refused", 0) == 9 - stepped
        assert not report.failed


def test_a_camera_that_freezes_on_one_time(tmp_path: Path) -> None:
    folder_of_sums(tmp_path)
    times = [0.0, 1.0, *[2.0] * 40, 43.0, 44.0]
    frames = [(START_TIME + t, np.array(1, np.float32)) for t in times]
    report = served(tmp_path, {"a": frames}, max_gap=5, gap="reset")
    counts = report.streams["a"]
    assert counts["dropped:duplicate"] == 39
    assert counts["reset:gap"] == 1
    assert values(tmp_path / "a.jsonl") == [*sums([1, 1, 1]), *sums([1, 1])]


JUMPS = st.lists(
    st.one_of(st.floats(0.01, 1.0), st.sampled_from([0.0, -0.5, -3600.0, 3600.0, -1e6])),
    min_size=1,
    max_size=40,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JUMPS, st.sampled_from(["hold", "reset"]), st.sampled_from(["drop", "step"]))
def test_a_clock_that_jumps_back_and_forth(
    tmp_path_factory: pytest.TempPathFactory, jumps: list[float], gap: str, late: str
) -> None:
    """Every frame is stepped or dropped for a reason, in order and once; a gap resets, and nothing else does."""
    folder = folder_of_sums(tmp_path_factory.mktemp("clock"))
    times = (START_TIME + np.cumsum(jumps)).tolist()
    frames = [(t, np.array(k, np.float32)) for k, t in enumerate(times)]
    counts = served(folder, {"a": frames}, max_gap=60, gap=gap, late=late).streams["a"]
    dropped = sum(n for name, n in counts.items() if name.startswith("dropped:"))
    assert counts["read"] == len(times) == counts.get("stepped", 0) + dropped
    assert set(counts) <= {
        "read", "stepped", "delivered", "gaps", "reset:gap", "dropped:late", "dropped:duplicate", "stepped_late",
    }  # fmt: skip
    assert counts.get("reset:gap", 0) == (counts.get("gaps", 0) if gap == "reset" else 0)
    indices = [json.loads(line)["index"] for line in (folder / "a.jsonl").read_text().splitlines()]
    assert indices == sorted(set(indices))
    assert len(indices) == counts.get("stepped", 0)


def test_frames_that_are_no_frames(tmp_path: Path) -> None:
    """What a program's own source may give by mistake ends it, with words; what it gave before is stepped."""
    folder_of_sums(tmp_path)

    def wrong(last: Any) -> Iterator[Any]:
        yield np.array(1, np.float32)
        yield last

    for last in (None, "frame", np.array(["a"]), np.array([], np.float32), [1, 2], (1.0, None)):
        report = Pipeline.from_text(text("a"), tmp_path, sources={"a": lambda last=last: wrong(last)}).run()
        assert report.streams["a"]["stepped"] == 1
        assert "python:a: frame 1" in report.failed["stream a"]
