"""A folder of Parquet files is one table; followed, each part once its end is written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelstm
import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
X = np.random.default_rng(8).normal(size=(12, 3))


def write(path: Path, rows: range, **more: Any) -> Path:
    columns = {"unit": ["ab"[k % 2] for k in rows], **dict(zip("xyz", X[rows].T, strict=True)), **more}
    temporary = path.with_name(f".{path.name}")
    parquet.write_table(arrow.table(columns), temporary)
    return temporary.rename(path)


def values(frames: Any) -> list[list[float]]:
    return [frame.data.tolist() for frame in frames]


def test_parts_are_one_table_in_natural_order(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.parquet", range(12))
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, rows in (("part-10", range(8, 12)), ("part-2", range(4, 8)), ("part-1", range(4))):
        write(folder / f"{name}.parquet", rows)
    for options in ("", ":columns=z,x", ":key=unit", ":key=unit:keys=b:scale=own"):
        more = options or ":columns=x,y,z"
        one, several = (list(open_source(f"{path}{more}")) for path in (whole, folder))
        assert values(several) == values(one)
        assert [f.stream for f in several] == [f.stream for f in one]
        assert [f.index for f in several] == [f.index for f in one]
    write(folder / "part-11.parquet", range(2), x=["1", "n/a"])
    with pytest.raises(EdgeLstmError, match=r"part-11\.parquet, row 2, column 'x': found 'n/a'"):
        list(open_source(f"{folder}:columns=x,y"))


def test_parts_that_come_are_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "p1.parquet", range(2))
    source = open_source(f"{tmp_path}:key=unit", follow=True)
    assert source.streams == 2
    frames = iter(source)
    assert values(itertools.islice(frames, 2)) == X[:2].tolist()
    done = write(tmp_path / "later.parquet", range(2, 6)).read_bytes()
    (tmp_path / "later.parquet").unlink()
    (tmp_path / "p2.parquet").write_bytes(done[: len(done) // 2])  # it is being written
    (tmp_path / "p2.parquet").write_bytes(done)
    assert values(itertools.islice(frames, 4)) == X[2:6].tolist()
    write(tmp_path / "p0.parquet", range(3))
    write(tmp_path / "p3.parquet", range(6, 7))
    assert [f.index for f in itertools.islice(frames, 1)] == [6]
    assert "it came too late" in caplog.text
    source.stop()
    assert list(frames) == []


def test_a_service_goes_on_behind_the_rows_it_had(tmp_path: Path) -> None:
    zoo.lstm(head=3).save(tmp_path / "m.onnx")
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "1.parquet", range(5))
    for limit, part in ((5, None), (9, range(5, 9))):
        if part is not None:
            write(tmp_path / "in" / "2.parquet", part)
        text = f"""
        [service]
        checkpoint = "states"
        [models.m]
        path = "m.onnx"
        [streams.s]
        source = "in:key=unit:columns=x,y,z"
        follow = true
        limit = {limit}
        sink = "o.jsonl"
        """
        assert not edgelstm.Pipeline.from_text(text, tmp_path).run().failed
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(9))
    edgelstm.run(
        tmp_path / "m.onnx", f"{tmp_path}/in:key=unit:columns=x,y,z", tmp_path / "w.jsonl", threads=1
    )
    whole = {
        e["index"]: e["outputs"] for e in map(json.loads, (tmp_path / "w.jsonl").read_text().splitlines())
    }
    assert {line["index"]: line["outputs"] for line in lines} == whole


def test_what_can_not_be_followed_is_told_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", range(2))
    with pytest.raises(EdgeLstmError, match="name their folder"):
        open_source(str(path), follow=True)
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(EdgeLstmError, match="one kind in a folder"):
        open_source(str(tmp_path))
