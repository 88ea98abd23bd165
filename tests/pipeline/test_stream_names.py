"""Names of streams, which may be anything that stands in a table: two of them are two topics, paths, files and entries."""

from __future__ import annotations

import urllib.error
import urllib.request
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
