"""Names of streams, which may be anything that stands in a table: two of them are two topics, paths, files and entries."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydantic")

import edgelstm
import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.files import file_name, one_file
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import open_sink
from edgelstm.pipeline.service.parse import parse
from edgelstm.pipeline.sinks import rotating
from edgelstm.pipeline.sinks.delivery import as_level, in_url
from peers import SIGNATURE, frame, free_port
from running import MODEL

AWKWARD = [
    *("a/b", "a_b", "a-b", "a%2Fb", "a:b", "a b", "a\tb", "a+b", "a#b", "a?b", "a\\b", "a=b", "a", "A", ""),
    *("..", "../b", "a\0b", "\u00e9", "e\u0301", "k:a", "k:a:b", "k=a"),
]


def test_two_names_are_two_levels_and_two_files() -> None:
    assert len({as_level(name) for name in AWKWARD}) == len(AWKWARD)
    assert not any(set("/+#?\\ \t\0") & set(as_level(name)) for name in AWKWARD)
    # In the section "k", whose name holds no colon.
    made = {file_name(f"k:{name}") for name in AWKWARD} | {file_name("k"), file_name("k-a")}
    assert len(made) == len(AWKWARD) + 2
    assert all(Path(name).name == name and name.isascii() for name in made)
    assert (file_name("north"), file_name("pumps:a")) == ("north", "pumps=a")


def test_an_address_is_ascii_and_what_is_encoded_stays() -> None:
    path = in_url("/hook/" + as_level("pumps:K\u00fcche/1 2") + "?a=b&c=%20")
    assert path == "/hook/pumps:K%C3%BCche%2F1%202?a=b&c=%20"


def test_pictures_of_streams_whose_names_look_alike() -> None:
    pytest.importorskip("PIL")
    port = free_port()
    images = Signature(SIGNATURE.inputs, (TensorSpec("y", "float32", ("N", 1, 8, 8)),), ())
    with open_sink(f"mjpeg://127.0.0.1:{port}/cams/{{stream}}", images) as sink:
        for index, name in enumerate(("k:a/b", "k:a_b", "k:\u00e9")):
            sink.write(frame(index, name), {"y": np.full((1, 8, 8), index, np.float32)}, 0.0)
        for path in ("k:a%2Fb", "k%3Aa%2fb", "k:a_b", "k:%C3%A9"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/cams/{path}.jpg", timeout=60) as answer:
                assert answer.read(2) == b"\xff\xd8"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/cams/k:a/b.jpg", timeout=60)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x.jsonl", "X.jsonl"),
        ("x.jsonl", "./x.jsonl"),
        ("out/x.csv", "out//x.csv"),
        ("caf\u00e9.jsonl", "cafe\u0301.jsonl"),
        ("mjpeg://127.0.0.1:1/x", "mjpeg://127.0.0.1:1/x"),
    ],
)
def test_two_streams_do_not_write_one_file(one: str, other: str) -> None:
    text = (
        MODEL
        + f'[streams.a]\nsource = "a.npy"\nsink = "{one}"\n[streams.b]\nsource = "b.npy"\nsink = "{other}"\n'
    )
    with pytest.raises(EdgeLstmError, match=r"streams.b.sink: found .*, which stream a writes"):
        parse(text, "p.toml", {})


@pytest.mark.parametrize("sink", ["mjpeg://127.0.0.1:1", "zmq://127.0.0.1:1", "-", "{stream}.jsonl"])
def test_they_may_share_what_tells_them_apart(sink: str) -> None:
    parse(MODEL + "".join(f'[streams.{n}]\nsource = "a.npy"\nsink = "{sink}"\n' for n in "ab"), "p.toml", {})


def test_another_name_is_not_one_that_somebody_is_writing(tmp_path: Path) -> None:
    """``x-2.csv`` of one stream, and what another makes of ``x.csv`` where that is there from before."""
    with open_sink(tmp_path / "x-2.csv", SIGNATURE, append=True) as one:
        with open_sink(tmp_path / "x-2.csv", SIGNATURE, append=True) as two:
            for value, sink in enumerate((one, two)):
                sink.write(frame(0), {"y": np.full(2, value, np.float32)}, 0.0)
        assert not rotating._claimed or (tmp_path / "x-2-2.csv").is_file()
    last = {p.name: p.read_text().splitlines()[-1].split(",")[-1] for p in tmp_path.iterdir()}
    assert last == {"x-2.csv": "0.0", "x-2-2.csv": "1.0"}


def test_files_of_run(tmp_path: Path) -> None:
    zoo.lstm().save(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.zeros((3, 3), np.float32))
    x = str(tmp_path / "x.npy")
    for names, said in ((("../a", "b"), "a name without / in it"), (("A", "a"), "differ in more than case")):
        with pytest.raises(EdgeLstmError, match=said):
            edgelstm.run(tmp_path / "m.onnx", dict.fromkeys(names, x), tmp_path / "y.csv", threads=1)
    assert one_file("a/../B.csv") == "b.csv"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "x.npy"]


def of_outputs(*names: str, shape: tuple[int, ...] = ()) -> Signature:
    specs = tuple(TensorSpec(name, "float32", ("N", *shape)) for name in names)
    return Signature((TensorSpec("frames", "float32", ("N", 3)),), specs, ())


@pytest.mark.parametrize("names", [("a/b", "a_b"), ("Y", "y"), ("a", "b")])
def test_pictures_of_two_outputs_are_two_files(tmp_path: Path, names: tuple[str, str]) -> None:
    image = pytest.importorskip("PIL.Image")
    with open_sink(f"{tmp_path}/made/", of_outputs(*names, shape=(4, 4))) as sink:
        values = {name: np.full((4, 4), k, np.float32) for k, name in enumerate(names)}
        sink.write(frame(0), values, 0.0)
    paths = sorted((tmp_path / "made").iterdir())
    assert len({one_file(path) for path in paths}) == 2
    assert {np.asarray(image.open(path)).max() for path in paths} == {0, 255}


def test_columns_of_outputs_are_none_of_ours(tmp_path: Path) -> None:
    """In Parquet the last of one name had taken the place of the others."""
    names = ("time", "index", "output_time")
    for suffix in ("csv", "parquet"):
        if suffix == "parquet":
            pytest.importorskip("pyarrow")
        with open_sink(tmp_path / f"a.{suffix}", of_outputs(*names)) as sink:
            values = {name: np.array(k + 0.5, np.float32) for k, name in enumerate(names)}
            sink.write(frame(7, time=2.0), values, 0.0)
        rows = list(edgelstm.pipeline.open_source(f"{tmp_path}/a.{suffix}:columns=time,index,output_time"))
        assert rows[0].data.tolist() == [2.0, 7.0, 0.5]
        more = "output_index,output_output_time"
        (row,) = edgelstm.pipeline.open_source(f"{tmp_path}/a.{suffix}:columns={more}")
        assert row.data.tolist() == [1.5, 2.5]


def test_the_map_of_one_step_takes_no_other_s_place(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    maps = of_outputs("y", shape=(4, 4))

    def write(name: str, *steps: tuple[str, str]) -> int:
        with open_sink(tmp_path / name, maps) as sink:
            for index, (stream, step) in enumerate(steps):
                one = replace(frame(index, stream), name=step)
                sink.write(one, {"y": np.full((4, 4), index, np.float32)}, 0.0)
        return len([path for path in tmp_path.iterdir() if path.name.startswith(name[0])])

    assert write("a{time}.tif", ("k", "00:05"), ("k", "00:10"), ("k", "00:10")) == 2
    assert write("b{index}.tif", ("k:a", "00:05"), ("k:b", "00:05")) == 2
    assert write("c.tif", ("k", "00:05"), ("k", "00:10")) == 1
    with pytest.raises(EdgeLstmError, match=r"found k, cam1_12 and k, cam11_2; expected \{index\}"):
        write("d{time}.tif", ("k", "cam1_12"), ("k", "cam11_2"))
    for name in ("e{time}.tif", "e.tif"):
        with pytest.raises(EdgeLstmError, match=r"a file for two steps: found k:a.* and k:b"):
            write(name, ("k:a", "00:05"), ("k:b", "00:05"))
