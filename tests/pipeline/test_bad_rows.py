"""Rows that can't be taken are bad frames of their stream alone: an error that says where, or left out as the policy says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelstm
import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source

ROWS = """unit,t,x,y,z
a,0,1,2,3
b,0,4,5,6
a,1,n/a,2,3
b,1,4,5,7
a,2,1,,3
b,2,1,2
a,3,9,8,7,6,5
b,3,"7,8,9
a,noon,1,1,1
b,4,2,2,2
a,5,-,2,3
,6,1,1,1
b,5,1,\xff,1
a,6,3,2,1
b,6,NaN,1,1
b,7,1,2,1
"""
GOOD = {"a": [0, 13], "b": [1, 3, 9, 15]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    zoo.lstm(head=3).save(tmp_path / "m.onnx")
    (tmp_path / "t.csv").write_bytes(ROWS.encode("latin-1"))
    return tmp_path


def serve(folder: Path, lines: str) -> tuple[Any, list[dict[str, Any]]]:
    text = f"""
    [models.m]
    path = "m.onnx"
    [streams.s]
    sink = "o.jsonl"
    {lines}
    """
    report = edgelstm.Pipeline.from_text(text, folder).run()
    return report, read(folder / "o.jsonl")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_bad_row_costs_its_own_stream_one_frame(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A table that is followed, opened once: the same lines as a whole run of what is good."""
    report, lines = serve(
        folder, 'source = "t.csv:key=unit:keys=a,b:time=t:columns=x,y,z"\nfollow = true\nlimit = 15'
    )
    assert not report.failed
    kept = {k: [e["index"] for e in lines if e["stream"] == f"s:{k}"] for k in GOOD}
    assert kept == {"a": [0, 12], "b": [1, 3, 9, 14]}  # the row of nobody has no number
    counted = report.streams["s:a"]
    assert (
        counted["read"] == counted["stepped"] + counted["dropped:not_finite"] + counted["dropped:unreadable"]
    )
    assert (counted["dropped:not_finite"], counted["dropped:unreadable"]) == (3, 2)
    assert report.streams["s:b"]["dropped:not_finite"] == 4
    assert "t.csv, row 3 (line 4), column 'x': found 'n/a'; expected a number" in caplog.text
    assert "a row is left out: " in caplog.text
    assert "line 13), column 'unit': found an empty cell" in caplog.text
    good = [line for k, line in enumerate(ROWS.splitlines()) if k == 0 or k - 1 in (*GOOD["a"], *GOOD["b"])]
    (folder / "good.csv").write_text("\n".join(good) + "\n", encoding="utf-8")
    edgelstm.run(
        folder / "m.onnx", f"{folder}/good.csv:key=unit:columns=x,y,z", folder / "g.jsonl", threads=1
    )
    whole = read(folder / "g.jsonl")
    for key in GOOD:
        mine = [e["outputs"] for e in lines if e["stream"] == f"s:{key}"]
        assert mine == [e["outputs"] for e in whole if e["stream"] == key]


def test_run_and_score_say_where_or_leave_out(folder: Path) -> None:
    spec = f"{folder}/t.csv:key=unit:keys=a,b:time=t:columns=x,y,z"
    with pytest.raises(
        EdgeLstmError, match=r"t\.csv, row 3 \(line 4\), column 'x': found 'n/a'; expected a number"
    ):
        edgelstm.run(folder / "m.onnx", spec, folder / "o.jsonl", threads=1)
    assert not (folder / "o.jsonl").exists()
    report = edgelstm.run(folder / "m.onnx", spec, folder / "o.jsonl", on_bad_frame="skip", threads=1)
    assert (report.frames, report.skipped) == (6, 9)
    with pytest.raises(EdgeLstmError, match=r"row 5 \(line 6\), column 'y': an empty cell"):
        edgelstm.run(folder / "m.onnx", only(folder, 5), threads=1)
    assert edgelstm.run(folder / "m.onnx", only(folder, 3), on_bad_frame="zero", threads=1).frames == 2


def only(folder: Path, line: int) -> str:
    """A table in which one row of ``ROWS`` is bad, where it was."""
    rows = ROWS.splitlines()
    kept = ["a,0,1,2,3"] * 4 + [rows[line]]
    (folder / "one.csv").write_text("\n".join([rows[0], *(kept if line == 5 else kept[3:])]) + "\n")
    return f"{folder}/one.csv:columns=x,y,z"


def test_whoever_asks_for_frames_alone_gets_the_error(folder: Path) -> None:
    """A caller that does not look at ``Frame.bad`` is never handed NaN for a word."""
    with pytest.raises(EdgeLstmError, match="'n/a'"):
        list(open_source(f"{folder}/t.csv:columns=x"))


def test_a_column_of_words_is_refused_before_anything_runs(folder: Path) -> None:
    (folder / "w.csv").write_text("x,name\n1,red\n2,blue\n", encoding="utf-8")
    for follow in (False, True):
        with pytest.raises(EdgeLstmError, match="no number in column 'name' of 2 rows"):
            open_source(f"{folder}/w.csv", follow=follow)


def test_a_clock_that_goes_back_in_a_table_is_the_policys_affair(folder: Path) -> None:
    (folder / "b.csv").write_text("t,x,y,z\n0,1,1,1\n9,1,1,1\n3,1,1,1\n10,1,1,1\n", encoding="utf-8")
    report, lines = serve(folder, 'source = "b.csv:time=t"\nfollow = true\nlimit = 4')
    assert not report.failed
    assert report.streams["s"]["dropped:late"] == 1
    assert [e["index"] for e in lines] == [0, 1, 3]


def test_nulls_and_words_of_parquet(folder: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x = ["1", "n/a", None, "4", "5"]
    parquet.write_table(arrow.table({"x": x, "y": [1.0] * 5, "z": [2, 3, 4, None, 6]}), folder / "p.parquet")
    report, lines = serve(folder, 'source = "p.parquet"')
    assert [e["index"] for e in lines] == [0, 4]
    assert report.streams["s"]["dropped:not_finite"] == 3
    assert not report.failed


def test_a_line_without_end_is_one_bad_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a disk leaves one behind a power cut."""
    monkeypatch.setattr("edgelstm.pipeline.sources.rows.MAX_LINE", 1000)
    (folder / "z.csv").write_bytes(b"x,y,z\n1,1,1\n" + b"\0" * 5000 + b"\n2,2,2\n")
    report, lines = serve(folder, 'source = "z.csv"\nfollow = true\nlimit = 3')
    assert [e["index"] for e in lines] == [0, 2]
    assert report.streams["s"]["dropped:not_finite"] == 1


def test_a_damaged_picture_of_a_folder_is_one_bad_frame(folder: Path) -> None:
    for k in range(4):
        np.save(folder / f"f{k}.npy", np.full(3, k, np.float32))
    (folder / "f1.npy").write_bytes(b"\x93NUMPY no")
    for f in ("m.onnx", "t.csv"):
        (folder / f).rename(folder.parent / f)
    (folder.parent / "m.onnx").rename(folder / "m.onnx")
    report, lines = serve(folder, 'source = "."')
    assert [e["index"] for e in lines] == [0, 2, 3]
    assert report.streams["s"]["dropped:unreadable"] == 1
    with pytest.raises(EdgeLstmError, match=r"f1\.npy"):
        edgelstm.run(folder / "m.onnx", str(folder), threads=1)
    assert edgelstm.run(folder / "m.onnx", str(folder), on_bad_frame="skip", threads=1).skipped == 1


def test_a_message_that_can_not_be_read_is_one_bad_frame(folder: Path) -> None:
    writer_of = pytest.importorskip("mcap.writer").Writer
    with (folder / "x.mcap").open("wb") as file:
        writer = writer_of(file)
        writer.start()
        channel = writer.register_channel("/x", "json", 0)
        for k in range(5):
            data = b'{"v": [1, ' if k == 2 else json.dumps({"v": [k, 1, 2]}).encode()
            writer.add_message(channel, 10**18 + k * 10**9, data, 10**18 + k * 10**9)
        writer.finish()
    report, lines = serve(folder, 'source = "x.mcap:topic=/x:field=v"')
    assert [e["index"] for e in lines] == [0, 1, 3, 4]
    assert report.streams["s"]["dropped:unreadable"] == 1
    with pytest.raises(EdgeLstmError, match="message 2: not readable"):
        edgelstm.run(folder / "m.onnx", f"{folder}/x.mcap:topic=/x:field=v", threads=1)
    with pytest.raises(EdgeLstmError, match="not readable"):
        open_source(f"{folder}/x.mcap:topic=/x:field=w")
    with pytest.raises(EdgeLstmError, match="once its recorder has closed it"):
        open_source(f"{folder}/x.mcap:topic=/x:field=v", follow=True)
    bag = folder / "bag"
    bag.mkdir()
    for name in ("bag_0.mcap", "metadata.yaml"):
        (bag / name).touch()
    with pytest.raises(EdgeLstmError, match="once its recorder has closed it"):
        open_source(str(bag), follow=True)


def test_a_lone_stream_has_one_name_in_every_table(folder: Path) -> None:
    """As `score` and `detect` call it."""
    np.save(folder / "x.npy", np.ones((3, 3), np.float32))
    for source, name in ((f"{folder}/x.npy", "main"), (f"left={folder}/x.npy", "left")):
        edgelstm.run(folder / "m.onnx", source, folder / "o.csv", threads=1)
        rows = (folder / "o.csv").read_text().splitlines()[1:]
        assert [row.split(",")[0] for row in rows] == [name] * 3


def test_a_page_of_a_table_with_a_bad_row_and_a_gap(folder: Path) -> None:
    (folder / "g.csv").write_text(
        "t,x,y,z\n0,1,1,1\n1,1,1,1\n2,n/a,1,1\n3,1,1,1\n9,1,1,1\n", encoding="utf-8"
    )
    spec = f"{folder}/g.csv:time=t"
    with pytest.raises(EdgeLstmError, match="'n/a'"):
        edgelstm.report(folder / "m.onnx", spec, folder / "p.html", threads=1)
    made = edgelstm.report(
        folder / "m.onnx", spec, folder / "p.html", on_bad_frame="skip", on_gap="reset", threads=1
    )
    assert (made.frames, made.run.resets) == (4, 1)
    assert "--on-gap reset --on-bad-frame skip" in (folder / "p.html").read_text(encoding="utf-8")


def test_a_damaged_file_of_a_watched_folder_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it was waited for: half-written files look like that."""
    monkeypatch.setattr("edgelstm.pipeline.sources.folder.PATIENCE", 0.2)
    (folder / "in").mkdir()
    for k in range(4):
        np.save(folder / "in" / f"f{k}.npy", np.full(3, k, np.float32))
    (folder / "in" / "f1.npy").write_bytes(b"\x93NUMPY no")
    report, lines = serve(folder, 'source = "in"\nfollow = true\nlimit = 4')
    assert [e["name"] for e in lines] == ["f0.npy", "f2.npy", "f3.npy"]
    assert report.streams["s"]["dropped:unreadable"] == 1
    assert not report.failed
