"""Tables as sources and sinks: CSV and Parquet, a stream a key, scales, gaps in time."""

from __future__ import annotations

import csv
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgelstm
import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source

RNG = np.random.default_rng(3)


def write(path: Path, rows: list[list[object]], sep: str = ",") -> str:
    path.write_text("\n".join(sep.join(map(str, row)) for row in rows) + "\n", encoding="utf-8")
    return str(path)


def refusal(spec: str) -> str:
    with pytest.raises(EdgeLstmError) as caught:
        list(open_source(spec))
    return str(caught.value)


@pytest.mark.parametrize("sep", [",", ";", "\t", " "])
def test_every_separator_gives_the_same_frames(tmp_path: Path, sep: str) -> None:
    spec = write(tmp_path / "t.csv", [["a", "b", "c"], [1, 2.5, 3], [4, 5, 6e3]], sep)
    assert [f.data.tolist() for f in open_source(spec)] == [[1, 2.5, 3], [4, 5, 6000]]
    assert [f.data.tolist() for f in open_source(f"{spec}:columns=c,a")] == [[3, 1], [6000, 4]]


@pytest.mark.parametrize(
    "text",
    [
        "a;b;c\n1,5;-2;1,25e3\n,5;4,;6\n",
        "a\tb\tc\n1,5\t-2\t1,25e3\n,5\t4,\t6\n",
        "a b c\n1,5 -2 1,25e3\n,5 4, 6\n",
        'a,b,c\n"1,5",-2,"1,25e3"\n",5","4,",6\n',
        "1,5;-2;1,25e3\n,5;4,;6\n",
        "1,5 -2 1,25e3\n,5 4, 6\n",
    ],
)
def test_a_comma_between_the_digits_of_numbers(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    frames = [f.data.tolist() for f in open_source(f"{tmp_path}/t.csv:decimal=,")]
    assert frames == [[1.5, -2, 1250], [0.5, 4, 6]]


def test_what_else_a_decimal_comma_touches(tmp_path: Path) -> None:
    rows: list[list[object]] = [["unit", "t", "x"], ["1,5", "0,5", "1,25"], ["1.5", "1,5", "2"]]
    spec = write(tmp_path / "t.csv", rows, ";")
    assert "Where a comma stands between the digits of numbers: t.csv:decimal=," in refusal(
        f"{spec}:columns=x"
    )
    frames = list(open_source(f"{spec}:decimal=,:key=unit:time=t"))
    assert [(f.stream, f.time, f.name, f.data.tolist()) for f in frames] == [
        ("1,5", 0.0, "0,5", [1.25]),
        ("1.5", 0.0, "1,5", [2.0]),
    ], "keys and names are text"
    thousands = write(tmp_path / "n.csv", [["x", "y"], ["1.234", "1.234,5"]], ";")
    assert "found '1.234'; expected a number without a point" in refusal(f"{thousands}:decimal=,")
    assert "decimal: found ;; expected , or ." in refusal(f"{thousands}:decimal=;")


def test_numbers_in_the_first_line_are_a_row(tmp_path: Path) -> None:
    spec = write(tmp_path / "t.txt", [[1, 2], [3, 4]], " ")
    assert [f.data.tolist() for f in open_source(spec)] == [[1, 2], [3, 4]]
    assert [f.data.tolist() for f in open_source(f"{spec}:columns=2")] == [[2], [4]]


def test_a_first_line_that_may_be_names_or_numbers(tmp_path: Path) -> None:
    """pandas names columns 0, 1, 2: taken as a row they would be the first frame."""
    spec = write(tmp_path / "t.csv", [[0, 1, 2], [5, 6, 7]])
    assert "expected t.csv:header=yes or t.csv:header=no" in refusal(spec)
    assert [f.data.tolist() for f in open_source(f"{spec}:header=yes:columns=2,0")] == [[7, 5]]
    with open_source(f"{spec}:header=no") as source:
        assert "the first line is a row; columns are called 1 to 3" in source.said
        assert [f.data.tolist() for f in source] == [[0, 1, 2], [5, 6, 7]]
    years = write(tmp_path / "y.csv", [[2019, 2020], [5, 6]])
    assert [f.data.tolist() for f in open_source(f"{years}:header=yes:columns=2020")] == [[6]]
    assert "header: found maybe; expected yes or no" in refusal(f"{years}:header=maybe")


@pytest.mark.parametrize("sep", [",", " "])
def test_the_mark_before_names_is_no_name(tmp_path: Path, sep: str) -> None:
    np.savetxt(tmp_path / "t.txt", [[1, 2, 3], [4, 5, 6]], header=sep.join("abc"), delimiter=sep)
    assert [f.data.tolist() for f in open_source(f"{tmp_path / 't.txt'}:columns=a,b")] == [[1, 2], [4, 5]]


def test_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.Table.from_arrays([arrow.array([float(k)]) for k in range(3)], names=["a", "b", "a"])
    parquet.write_table(table, tmp_path / "t.parquet")
    assert "columns of one name: found a" in refusal(f"{tmp_path / 't.parquet'}:columns=a,b")


def test_an_empty_cell_is_nan(tmp_path: Path) -> None:
    spec = write(tmp_path / "t.csv", [["a", "b"], [1, ""], ["", 2]])
    np.testing.assert_array_equal([f.data for f in open_source(spec)], [[1, np.nan], [np.nan, 2]])


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    unit, a, b = [1, 1, 2, 2], RNG.normal(size=4), RNG.normal(size=4).astype(np.float32)
    parquet.write_table(arrow.table({"unit": unit, "a": a, "b": b}), tmp_path / "t.parquet", row_group_size=3)
    spec = write(
        tmp_path / "t.csv",
        [
            ["unit", "a", "b"],
            *([u, repr(float(x)), repr(float(y))] for u, x, y in zip(unit, a, b, strict=True)),
        ],
    )
    for options in (":key=unit", ":key=unit:scale=own", ":columns=b"):
        found = [list(open_source(f"{s}{options}")) for s in (spec, str(tmp_path / "t.parquet"))]
        for one, other in zip(*found, strict=True):
            np.testing.assert_array_equal(one.data, other.data)
            assert (one.stream, one.last) == (other.stream, other.last)


def test_streams_by_key_run_as_if_each_were_alone(tmp_path: Path) -> None:
    """Interleaved, with streams that begin and end in between."""
    model = tmp_path / "m.onnx"
    zoo.lstm().save(model)
    order = "aabababccbccdd"
    values = RNG.normal(size=(len(order), 3)).astype(np.float32)
    rows = [[k, *map(repr, map(float, v))] for k, v in zip(order, values, strict=True)]
    spec = write(tmp_path / "t.csv", [["who", "x", "y", "z"], *rows])
    with open_source(f"{spec}:key=who") as source:
        assert source.streams == 2
        assert [f.stream for f in source if f.last] == list("abcd")
    report = edgelstm.run(model, f"{spec}:key=who", tmp_path / "y.csv", threads=1)
    assert report.frames == len(order)
    with (tmp_path / "y.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["stream"] for row in found] == list(order)
    for who in "abcd":
        with edgelstm.Runner.open(model, threads=1) as runner:
            stream = runner.stream("alone")
            wanted = [stream.step(v, copy=True)["y"] for k, v in zip(order, values, strict=True) if k == who]
        made = [[float(row["y[0]"]), float(row["y[1]"])] for row in found if row["stream"] == who]
        np.testing.assert_allclose(made, wanted, atol=1e-6)


def test_windows_do_not_cross_streams(tmp_path: Path) -> None:
    from edgelstm.graph.signature import Signature, TensorSpec
    from edgelstm.pipeline import Inputs

    spec = write(tmp_path / "t.csv", [["who", "x"], *[[who, k] for k, who in enumerate("aaabbccc")]])
    signature = Signature(
        (TensorSpec("x", "float32", ("N", 3, 1)),), (TensorSpec("y", "float32", ("N", 1)),), ()
    )
    with open_source(f"{spec}:key=who") as source:
        assert source.streams == 1
        steps = [(f.stream, w["x"].ravel().tolist()) for f, w in Inputs(signature, hop=1).steps(source)]
    assert steps == [("a", [0, 1, 2]), ("c", [5, 6, 7])]


def test_scales_from_a_file_are_the_own_ones(tmp_path: Path) -> None:
    from edgelstm.pipeline.sources.table import fit_scales

    values = RNG.normal(size=(20, 2)) * 100
    spec = write(
        tmp_path / "t.csv",
        [["k", "a", "b"], *[[n % 2, *map(repr, v.tolist())] for n, v in enumerate(values)]],
    )
    assert fit_scales(f"{spec}:key=k", tmp_path / "s.csv") == 2
    with pytest.raises(EdgeLstmError, match=r"expected a \.csv file"):
        fit_scales(f"{spec}:key=k", tmp_path / "s.json")
    assert "no rows of k 5: expected" in refusal(f"{spec}:key=k:keys=5")
    own = [f.data for f in open_source(f"{spec}:key=k:scale=own")]
    np.testing.assert_array_equal(
        own, [f.data for f in open_source(f"{spec}:key=k:scale={tmp_path / 's.csv'}")]
    )
    one = values[::2]
    np.testing.assert_allclose(own[::2], (one - one.min(0)) / (one.max(0) - one.min(0)), rtol=1e-12)
    swapped = [f.data for f in open_source(f"{spec}:key=k:columns=b,a:scale={tmp_path / 's.csv'}")]
    np.testing.assert_array_equal([d[::-1] for d in swapped], own)
    other = write(tmp_path / "o.csv", [["k", "a", "b"], [7, 1, 2]])
    assert "no scale for stream '7': found 0, 1" in refusal(f"{other}:key=k:scale={tmp_path / 's.csv'}")


def test_only_some_streams_and_their_first_rows(tmp_path: Path) -> None:
    spec = write(tmp_path / "t.csv", [["k", "a"], *[[n // 4 + 9, n] for n in range(16)]])
    found = [(f.stream, f.data[0], f.last) for f in open_source(f"{spec}:key=k:keys=10-11:head=2")]
    assert found == [("10", 4, False), ("10", 5, True), ("11", 8, False), ("11", 9, True)]


def test_the_own_scale_is_that_of_all_rows(tmp_path: Path) -> None:
    spec = write(tmp_path / "t.csv", [["k", "a"], *[[1, n] for n in range(11)]])
    assert [f.data[0] for f in open_source(f"{spec}:key=k:scale=own:head=3")] == [0, 0.1, 0.2]


def test_gaps_and_backward_steps_in_time(tmp_path: Path) -> None:
    times = ["2024-01-01T00:00", "2024-01-01T00:10", "2024-01-01T00:20", "2024-01-01T01:00"]
    spec = write(tmp_path / "t.csv", [["t", "a"], *[[t, 1] for t in times]])
    found = list(open_source(f"{spec}:time=t"))
    assert [f.time for f in found] == [0, 600, 1200, 3600]
    assert [f.gap for f in found[:3]] == [None] * 3
    assert found[3].gap == "3 rows missing between 2024-01-01T00:20 and 2024-01-01T01:00"
    spec = write(tmp_path / "b.csv", [["t", "a"], [5, 1], [4, 1]])
    assert "row 2 (line 3), column 't': time runs backwards: found 4 after 5" in refusal(f"{spec}:time=t")
    spec = write(tmp_path / "n.csv", [["t", "a"], ["noon", 1]])
    assert "row 1 (line 2), column 't': time: found 'noon'; expected seconds, or ISO 8601" in refusal(
        f"{spec}:time=t"
    )


def test_what_is_no_table_of_numbers_is_refused(tmp_path: Path) -> None:
    spec = write(tmp_path / "t.csv", [["a", "b"], [1, "red"]])
    assert (
        "row 1 (line 2), column 'b': found 'red'; expected a number. Choose the columns: t.csv:columns=..."
        in refusal(spec)
    )
    assert "no column 'c': found a, b" in refusal(f"{spec}:columns=c")
    assert "keys without a key" in refusal(f"{spec}:keys=1")
    assert "key: found a, b; expected it once" in refusal(f"{spec}:key=a:key=b")
    assert "head: found 0" in refusal(f"{spec}:head=0")
    assert "row 1 (line 2): found 3 values; expected 2" in refusal(
        write(tmp_path / "w.csv", [["a", "b"], [1, 2, 3]])
    )
    assert "no value for column 'b'" in refusal(write(tmp_path / "s.csv", [["a", "b"], [1]]))
    assert "columns of one name: found a" in refusal(write(tmp_path / "d.csv", [["a", "a"], [1, 2]]))
    (tmp_path / "e.csv").write_bytes(b"")
    assert "an empty first line" in refusal(str(tmp_path / "e.csv"))
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00\x01")
    assert "not a table of text" in refusal(str(tmp_path / "x.csv"))
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    assert "not a Parquet file" in refusal(str(tmp_path / "x.parquet"))


def test_parquet_out_is_csv_out(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    zoo.lstm().save(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", RNG.normal(size=(5, 3)).astype(np.float32))
    for suffix in ("csv", "parquet"):
        edgelstm.run(tmp_path / "m.onnx", str(tmp_path / "x.npy"), tmp_path / f"y.{suffix}", threads=1)
    table = parquet.read_table(tmp_path / "y.parquet").to_pydict()
    with (tmp_path / "y.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(table) == list(rows[0]) == ["stream", "index", "name", "time", "milliseconds", "y[0]", "y[1]"]
    np.testing.assert_array_equal(table["y[1]"], [float(row["y[1]"]) for row in rows])


def seconds(folder: Path, *times: object) -> list[float | None]:
    return [
        f.time
        for f in open_source(f"{write(folder / 't.csv', [['t', 'a'], *[[t, 1] for t in times]])}:time=t")
    ]


def test_digits_that_are_a_date_and_a_time(tmp_path: Path) -> None:
    """As seconds every hour would have a gap of 40."""
    assert seconds(tmp_path, 202401312350, 202402010000, 202402010010) == [0, 600, 1200]
    assert seconds(tmp_path, 20240131235959, 20240201000000) == [0, 1]
    assert seconds(tmp_path, 1706745599, 1706745600) == [0, 1]
    assert seconds(tmp_path, "20240131.0", "20240132.0") == [0, 1]
    spec = write(tmp_path / "d.csv", [["t", "a"], [20240131, 1], [20240201, 1]])
    assert "expected 2024-01-31, or 20240131.0 for seconds" in refusal(f"{spec}:time=t")


def test_numbers_that_are_no_seconds_ask_what_they_count(tmp_path: Path) -> None:
    """40 ms from row to row were 40 s: every row a gap, where max_gap says how long one is."""
    begin = 1732781893_040_000_001
    for clock, power in (("ms", 6), ("us", 3), ("ns", 0)):
        rows = [[(begin + k * 40_000_000) // 10**power, k] for k in range(3)]
        spec = write(tmp_path / "t.csv", [["t", "a"], *rows])
        assert f"expected clock={clock} behind the file" in refusal(f"{spec}:time=t")
        found = [f.time for f in open_source(f"{spec}:time=t:clock={clock}")]
        np.testing.assert_allclose(
            found, [0, 0.04, 0.08], atol=1e-6
        )  # of a time since 1970, a float64 has as much
        assert [f.time for f in open_source(f"{spec}:time=t:clock=s")] == [
            r[0] - float(rows[0][0]) for r in rows
        ]
    spec = write(tmp_path / "d.csv", [["t", "a"], ["2024-01-31", 1], ["2024-02-01", 1]])
    assert "clock=ms: found times without a zone" in refusal(f"{spec}:time=t:clock=ms")
    assert "expected s, ms, us, ns" in refusal(f"{spec}:time=t:clock=m")
    assert "clock without a time" in refusal(f"{spec}:clock=ms")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_parquet_in_every_unit(tmp_path: Path, unit: str) -> None:
    """Nanoseconds, as pandas writes them, raised a ValueError where they were no whole microseconds."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    ticks = 10 ** {"s": 0, "ms": 3, "us": 6, "ns": 9}[unit]
    times = arrow.array([1732781893 * ticks + k * (ticks + (unit == "ns")) for k in range(3)])
    table = arrow.table({"t": times.cast(arrow.timestamp(unit, "UTC")), "a": [1.0, 2.0, 3.0]})
    parquet.write_table(table, tmp_path / "t.parquet")
    found = [f.time for f in open_source(f"{tmp_path / 't.parquet'}:time=t")]
    np.testing.assert_allclose(found, [0, 1, 2], atol=1e-6)


def test_a_column_of_times_has_one_kind(tmp_path: Path) -> None:
    for first, other, kind in (
        ("2024-01-01T00:00", "2024-01-01T01:10+01:00", "times without a zone"),
        ("2024-01-01T00:00Z", "2024-01-01T00:10", "times with a zone"),
        ("5", "2024-01-01T00:10", "seconds"),
    ):
        spec = write(tmp_path / "t.csv", [["t", "a"], [first, 1], [other, 1]])
        assert f"behind {kind}; expected one kind" in refusal(f"{spec}:time=t")
    assert seconds(tmp_path, "2024-10-27T02:59+02:00", "2024-10-27T02:00+01:00") == [0, 60]
    spec = write(tmp_path / "t.csv", [["t", "a"], ["2024-10-27T02:50", 1], ["2024-10-27T02:00", 1]])
    assert "set back in autumn? Write it with its zone" in refusal(f"{spec}:time=t")


def test_a_time_a_second_time_is_told_and_no_gap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ten rows a second with stamps of whole seconds had a gap at each second."""
    spec = write(tmp_path / "t.csv", [["t", "a"], *[[k // 10, 1] for k in range(40)]])
    assert [f.gap for f in open_source(f"{spec}:time=t")] == [None] * 40
    assert caplog.text.count("a second time in one stream; key=COLUMN") == 1


def test_cells_that_are_not_there_move_no_column(tmp_path: Path) -> None:
    """Between white space an empty cell can't be seen; a row of separators is one of nothing, but at the end."""
    (tmp_path / "w.txt").write_text("a b c\n1 2 3\n1  3\n")
    assert "row 2 (line 3): found 2 values; expected 3 values, as the first row has" in refusal(
        f"{tmp_path / 'w.txt'}:columns=a,b"
    )
    (tmp_path / "t.csv").write_text("a,b\n1,2\n,\n3,4\n,\n,\n")
    found = [f.data for f in open_source(str(tmp_path / "t.csv"))]
    np.testing.assert_array_equal(found, [[1, 2], [np.nan, np.nan], [3, 4]])
    assert "found '1_000'; expected a number" in refusal(write(tmp_path / "u.csv", [["a"], ["1_000"]]))


def test_times_with_jitter_have_no_gaps_but_real_ones(tmp_path: Path) -> None:
    times = np.arange(200) + RNG.uniform(-0.1, 0.1, 200)
    times[120:] += 5
    spec = write(tmp_path / "t.csv", [["t", "a"], *[[repr(float(t)), 1] for t in times]])
    assert [k for k, f in enumerate(open_source(f"{spec}:time=t")) if f.gap is not None] == [120]


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=120),
    st.sampled_from(["", ":columns=a", ":key=b", ":key=a:scale=own", ":time=a:head=2"]),
)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, options: str
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "t.csv"
    path.write_bytes(b"a,b\n" + data)
    try:
        for frame in open_source(f"{path}{options}"):
            assert frame.data.dtype == np.float64
    except EdgeLstmError:
        pass


def test_a_table_that_grows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows come once they are whole; a stream without a place is said; what can't be followed is refused."""
    path = tmp_path / "t.csv"
    path.write_text("unit,t,x\na,0,1.5\nb,0,2\na,1,3", encoding="utf-8")
    source = open_source(f"{path}:key=unit:time=t", follow=True, idle=60)
    assert source.streams == 2
    frames = iter(source)
    assert [(f.stream, float(f.data[0])) for f in itertools.islice(frames, 2)] == [("a", 1.5), ("b", 2.0)]
    with path.open("a", encoding="utf-8") as file:
        file.write(".25\nc,0,9\n\nb,1,")
        file.flush()
        frame = next(frames)
        assert (frame.stream, float(frame.data[0]), frame.time, frame.last) == ("a", 3.25, 1.0, False)
        file.write("4\n")
        file.flush()
        assert float(next(frames).data[0]) == 4.0
    assert "'c' are left out" in caplog.text
    with path.open("w", encoding="utf-8") as file:
        file.write("unit,t,x\n")
    with pytest.raises(EdgeLstmError, match="only grows"):
        next(frames)
    assert open_source(f"{path}:key=unit:keys=a,c", follow=True).streams == 2
    for spec in (f"{path}:scale=own", f"{path}:key=unit"):
        with pytest.raises(EdgeLstmError, match=r"own|no rows"):
            open_source(spec, follow=True)
    path.write_text("unit,t", encoding="utf-8")
    with pytest.raises(EdgeLstmError, match="first line"):
        open_source(str(path), follow=True)


def test_a_growing_table_ends_when_it_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x\n1\n", encoding="utf-8")
    source = open_source(str(path), follow=True)
    frames = iter(source)
    assert float(next(frames).data[0]) == 1.0
    source.stop()
    assert list(frames) == []


def test_a_growing_table_that_comes_later_has_a_place_for_each_key(tmp_path: Path) -> None:
    zoo.lstm(head=3).save(tmp_path / "m.onnx")
    text = """
    [models.m]
    path = "m.onnx"
    [streams.t]
    source = "t.csv:key=unit:keys=a,b:columns=x,y,z"
    follow = true
    limit = 2
    retries = 1000
    retry = 0.01
    sink = "o.jsonl"
    """
    pipeline = edgelstm.Pipeline.from_text(text, tmp_path)

    def come() -> None:
        write(tmp_path / "later", [["unit", "x", "y", "z"], ["a", 1, 2, 3], ["b", 1, 2, 3]])
        (tmp_path / "later").rename(tmp_path / "t.csv")

    timer = threading.Timer(0.3, come)
    timer.start()
    report = pipeline.run()
    timer.join()
    assert {name: counts["stepped"] for name, counts in report.streams.items()} == {"t:a": 1, "t:b": 1}
