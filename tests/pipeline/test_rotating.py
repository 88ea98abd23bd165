"""Files in parts: what is written for months is there before the end, and the oldest goes."""

from __future__ import annotations

import shutil
import wave
from pathlib import Path

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_sink
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sinks import Options, Undelivered, rotating, wav
from peers import SIGNATURE, frame


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rotating, "time", made)
    return made


@pytest.mark.parametrize("suffix", ["csv", "npz", "parquet", "mcap"])
def test_a_file_for_every_span_in_which_frames_came(tmp_path: Path, clock: Clock, suffix: str) -> None:
    for package in {"parquet": ["pyarrow"], "mcap": ["foxglove", "mcap"]}.get(suffix, []):
        pytest.importorskip(package)
    with open_sink(tmp_path / f"a.{suffix}", SIGNATURE, options=Options(rotate=60)) as sink:
        for index, now in enumerate((0, 59, 61, 500, 559)):
            clock.now = 1000.0 + now
            sink.write(frame(index), {"y": np.full(2, index, np.float32)}, 0.0)
            there = [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
            assert len(there) == (0, 0, 1, 2, 2)[index]
    paths = sorted(tmp_path.iterdir())
    assert [values(p) for p in paths] == [[0, 1], [2], [3, 4]]


def values(path: Path) -> list[float]:
    if path.suffix == ".csv":
        return [float(row.split(",")[-1]) for row in path.read_text().splitlines()[1:]]
    if path.suffix == ".npz":
        return [float(y[0]) for y in np.load(path)["y"]]
    if path.suffix == ".mcap":
        import json

        from mcap.reader import make_reader

        with path.open("rb") as file:
            return [
                json.loads(m.data)["outputs"]["y"]["values"][0] for *_, m in make_reader(file).iter_messages()
            ]
    import pyarrow.parquet

    return [float(v) for v in pyarrow.parquet.read_table(path).column("y[0]").to_pylist()]


def test_the_oldest_go_and_nothing_else_does(tmp_path: Path, clock: Clock) -> None:
    old = ("a-20200101T000000Z.csv", "a-20200102T000000Z.csv", "a-20990101T000000Z.csv")  # by a clock of then
    for name in (*old, "b-20200101T000000Z.csv", "a-mine.csv"):
        (tmp_path / name).touch()
    with open_sink(tmp_path / "a.csv", SIGNATURE, options=Options(rotate=60, keep=2)) as sink:
        for index in range(2):
            clock.now += 100
            sink.write(frame(index), {"y": np.zeros(2, np.float32)}, 0.0)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert [n for n in names if not n.startswith("a-202")] == ["a-mine.csv", "b-20200101T000000Z.csv"]
    assert len(names) == 4
    assert not any(n.startswith("a-2020") for n in names)


def test_what_can_not_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(EdgeLstmError, match="can't write"):
        open_sink(tmp_path / "none" / "a.csv", SIGNATURE, options=Options(rotate=60))
    with open_sink(tmp_path / "a.npz", SIGNATURE, options=Options(rotate=60)):
        assert not list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir()), "no frame, no file"


def test_an_error_takes_the_part_along_and_leaves_the_others(tmp_path: Path, clock: Clock) -> None:
    def write_two_and_fail() -> None:
        with open_sink(tmp_path / "a.csv", SIGNATURE, options=Options(rotate=60)) as sink:
            for index in range(2):
                clock.now += 100
                sink.write(frame(index), {"y": np.zeros(2, np.float32)}, 0.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_two_and_fail()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_wav_file_that_is_full_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header has 32 bits for its length: 37 hours at 16 kHz."""
    monkeypatch.setattr(wav, "LONGEST", 2 * 2 * 3)
    with open_sink(tmp_path / "a.wav", SIGNATURE, append=True, context=Context(hop=(8000, 2))) as sink:
        for index in range(7):
            sink.write(frame(index), {"y": np.full(2, index / 8, np.float32)}, 0.0)
    found = []
    for name in ("a.wav", "a-2.wav", "a-3.wav"):
        with wave.open(str(tmp_path / name)) as sound:
            found += np.frombuffer(sound.readframes(99), "<i2")[::2].tolist()
    assert found == [4096 * index for index in range(7)]
    assert len(list(tmp_path.iterdir())) == 3


def test_what_can_not_be_put_in_place_at_the_end_was_not_delivered(tmp_path: Path) -> None:
    folder = tmp_path / "share"
    folder.mkdir()
    sink = open_sink(folder / "a.csv", SIGNATURE, append=True)
    sink.write(frame(0), {"y": np.zeros(2, np.float32)}, 0.0)
    shutil.rmtree(folder)
    with pytest.raises(Undelivered, match=r"a\.csv") as caught:
        sink.close()
    assert (caught.value.reason, caught.value.count) == ("not_written", 1)
