"""Sinks: what is written can be read back; an error leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import edgelstm
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import make_step
from edgelstm.pipeline import Frame, View, open_sink, open_source
from edgelstm.pipeline.sinks.panels import Panels


def signature(**outputs: tuple[int, ...]) -> Signature:
    x = TensorSpec("x", "float32", ("N", 4))
    return Signature((x,), tuple(TensorSpec(n, "float32", ("N", *s)) for n, s in outputs.items()), ())


def frame(index: int) -> Frame:
    return Frame(index, index * 0.5, f"frame{index}", np.zeros(4))


def fill(path: str | Path, sig: Signature, steps: list[dict[str, np.ndarray]], **options: object) -> None:
    """Write ``steps`` from buffers that are overwritten after every write, as a runner's are."""
    with open_sink(path, sig, **options) as sink:
        for i, outputs in enumerate(steps):
            lent = {name: array.copy() for name, array in outputs.items()}
            sink.write(frame(i), lent, 0.001 * (i + 1))
            for array in lent.values():
                array.fill(77)


RNG = np.random.default_rng(0)
STEPS = [
    {"y": RNG.random((2, 1, 6, 8), np.float32), "level": RNG.normal(size=3).astype(np.float32)}
    for _ in range(5)
]
BOTH = signature(y=(2, 1, 6, 8), level=(3,))


def test_outputs_that_are_called_as_the_steps_are(tmp_path: Path) -> None:
    """Both are there, and come back as frames; names of other files of ours are names like any."""
    names = ["time", "output_time", "name", "times", "kept", "attrs"]
    steps = [{name: np.full(2, 10 * k + i, np.float32) for i, name in enumerate(names)} for k in range(3)]
    fill(tmp_path / "out.npz", signature(**dict.fromkeys(names, (2,))), steps)
    stored = ["output_output_time", "output_time", "output_name", "times", "kept", "output_attrs"]
    with np.load(tmp_path / "out.npz") as data:
        assert data["time"].tolist() == [0.0, 0.5, 1.0]
        assert data["name"].tolist() == ["frame0", "frame1", "frame2"]
        found = {name: data[name][:, 0].tolist() for name in stored}
    assert found == {name: [i, 10 + i, 20 + i] for i, name in enumerate(stored)}
    assert [sorted(f.data) for f in open_source(str(tmp_path / "out.npz"))] == [sorted(stored)] * 3


def test_npz_stacks_outputs_over_time(tmp_path: Path) -> None:
    fill(tmp_path / "out.npz", BOTH, STEPS)
    with np.load(tmp_path / "out.npz") as data:
        assert sorted(data) == ["attrs", "level", "name", "time", "y"]
        assert json.loads(str(data["attrs"]))["units"] == {}
        assert data["name"].tolist() == [f"frame{k}" for k in range(5)]
        assert data["time"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
        for name in ("level", "y"):
            np.testing.assert_array_equal(data[name], [s[name] for s in STEPS])
            assert data[name].dtype == np.float32
    assert [p.name for p in tmp_path.iterdir()] == ["out.npz"]
    levels = [f.data for f in open_source(f"{tmp_path / 'out.npz'}:level")]
    np.testing.assert_array_equal(levels, [s["level"] for s in STEPS])


def test_npz_of_views_scalars_and_no_frames(tmp_path: Path) -> None:
    sig = signature(y=(3, 2), s=())
    y = np.arange(6, dtype=np.float32).reshape(2, 3).T
    fill(tmp_path / "out.npz", sig, [{"y": y, "s": np.float32([5])[0:1].reshape(())}])
    with np.load(tmp_path / "out.npz") as data:
        np.testing.assert_array_equal(data["y"], [y])
        np.testing.assert_array_equal(data["s"], [5])
    fill(tmp_path / "out.npz", sig, [])
    with np.load(tmp_path / "out.npz") as data:
        assert data["y"].shape == (0, 3, 2)


def test_json_lines(tmp_path: Path) -> None:
    fill(tmp_path / "out.jsonl", BOTH, STEPS)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    third = lines[2]
    assert (third["index"], third["name"], third["time"], third["milliseconds"]) == (2, "frame2", 1.0, 3.0)
    np.testing.assert_array_equal(np.float32(third["outputs"]["level"]["values"]), STEPS[2]["level"])
    y = third["outputs"]["y"]
    assert "values" not in y, "96 elements are too many for a line"
    assert (y["min"], y["max"]) == (STEPS[2]["y"].min(), STEPS[2]["y"].max())
    assert y["mean"] == pytest.approx(STEPS[2]["y"].mean())


def test_json_lines_are_strict_json(tmp_path: Path) -> None:
    fill(tmp_path / "out.jsonl", signature(y=(3,)), [{"y": np.float32([1, np.nan, np.inf])}])

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    [line] = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["outputs"]["y"] == {
        "min": None, "mean": None, "max": None, "values": [1.0, None, None],
    }  # fmt: skip


def test_bfloat16_outputs_are_decoded(tmp_path: Path) -> None:
    sig = Signature((TensorSpec("x", "float32", ("N", 1)),), (TensorSpec("y", "bfloat16", ("N", 2)),), ())
    fill(tmp_path / "out.jsonl", sig, [{"y": np.array([0x3F80, 0xC000], np.uint16)}])
    assert json.loads((tmp_path / "out.jsonl").read_text())["outputs"]["y"]["values"] == [1.0, -2.0]


def test_float8_outputs_are_decoded(tmp_path: Path) -> None:
    sig = Signature((TensorSpec("x", "float32", ("N", 1)),), (TensorSpec("y", "float8e4m3fn", ("N", 2)),), ())
    fill(tmp_path / "out.jsonl", sig, [{"y": np.array([0x38, 0xC0], np.uint8)}])
    assert json.loads((tmp_path / "out.jsonl").read_text())["outputs"]["y"]["values"] == [1.0, -2.0]


@pytest.mark.parametrize(("dtype", "value"), [("int32", 2**24 + 1), ("int64", 2**53 - 1)])
def test_whole_numbers_are_not_rounded(tmp_path: Path, dtype: str, value: int) -> None:
    """float32 holds them to 2^24."""
    sig = Signature((TensorSpec("x", "float32", ("N", 1)),), (TensorSpec("y", dtype, ("N", 1)),), ())
    for name in ("out.jsonl", "out.csv"):
        fill(tmp_path / name, sig, [{"y": np.array([value], dtype)}])
    assert json.loads((tmp_path / "out.jsonl").read_text())["outputs"]["y"]["values"] == [value]
    assert float((tmp_path / "out.csv").read_text().splitlines()[1].split(",")[-1]) == value


def test_an_input_with_its_channel_behind_it_is_shown_whole_beside_an_output_of_another_size() -> None:
    panels = Panels(TensorSpec("y", "float32", ("N", 4, 4)), View(beside=True))
    shown = np.linspace(0, 1, 48, dtype=np.float32).reshape(8, 6, 1)
    assert panels.beside(None, None, shown).shape == (8, 6)


def pictures(folder: Path) -> dict[str, np.ndarray]:
    image = pytest.importorskip("PIL.Image")
    return {p.name: np.asarray(image.open(p)) for p in sorted(folder.iterdir())}


def test_png_shows_lead_times_side_by_side(tmp_path: Path) -> None:
    fill(f"{tmp_path}/out/", BOTH, STEPS)
    found = pictures(tmp_path / "out")
    assert list(found) == [f"{i:06d}.png" for i in range(5)]
    y = STEPS[4]["y"]
    np.testing.assert_array_equal(
        found["000004.png"], np.rint(np.concatenate([y[0, 0], y[1, 0]], axis=1) * 255)
    )
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_png_of_one_lead_and_channel_in_a_range(tmp_path: Path) -> None:
    y = RNG.normal(size=(4, 2, 5, 5)).astype(np.float32)
    fill(f"{tmp_path}/out/", signature(y=y.shape), [{"y": y}], view=View(channel=1, lead=4, range=(-1, 1)))
    expected = np.rint(np.clip((y[3, 1] + 1) / 2, 0, 1) * 255)
    np.testing.assert_array_equal(pictures(tmp_path / "out")["000000.png"], expected)


@pytest.mark.parametrize(
    ("shape", "picture"),
    [
        ((3, 6, 8), (6, 8, 3)),
        ((6, 8, 3), (6, 8, 3)),
        ((6, 8, 1), (6, 8)),
        ((6, 8), (6, 8)),
        ((2, 3, 6, 8), (6, 16, 3)),
    ],
)
def test_png_layouts(tmp_path: Path, shape: tuple[int, ...], picture: tuple[int, ...]) -> None:
    y = RNG.random(shape, np.float32)
    fill(f"{tmp_path}/out/", signature(y=shape), [{"y": y}])
    found = pictures(tmp_path / "out")["000000.png"]
    assert found.shape == picture
    top_left = y[(0, 0) if shape[:2] == (6, 8) else (..., 0, 0)].reshape(-1)
    np.testing.assert_array_equal(found[0, 0].reshape(-1), np.rint(top_left * 255)[: found[0, 0].size])


def test_brightness_stays_from_frame_to_frame(tmp_path: Path) -> None:
    first, second = np.float32([[0, 10], [5, 5]]), np.float32([[0, 5], [20, np.nan]])
    fill(f"{tmp_path}/out/", signature(y=(2, 2)), [{"y": first}, {"y": second}])
    found = pictures(tmp_path / "out")
    assert found["000000.png"].tolist() == [[0, 255], [128, 128]]
    assert found["000001.png"].tolist() == [[0, 128], [255, 0]]


def test_png_of_several_outputs(tmp_path: Path) -> None:
    sig = signature(**{"a/b": (4, 4), "c": (4, 4)})
    step = {"a/b": np.zeros((4, 4), np.float32), "c": np.ones((4, 4), np.float32)}
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", sig, [step])
    assert list(pictures(tmp_path / "out")) == ["000000_a_b.png", "000000_c.png"]
    fill(f"{tmp_path}/one/", sig, [step], view=View(output="c"))
    assert pictures(tmp_path / "one")["000000.png"].min() == 255


@pytest.mark.parametrize("h264", [True, False])
def test_mp4_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, h264: bool) -> None:
    av = pytest.importorskip("av")
    if not h264:
        monkeypatch.setattr(av, "codecs_available", set())
    # Odd sizes: 3 panels of 7 x 9 pixels, enlarged 19 times, get a row and a column to be even.
    ramp = [np.full((3, 1, 7, 9), i / 10, np.float32) for i in range(10)]
    for i, y in enumerate(ramp):
        y[2] = 1 - i / 10
    fill(tmp_path / "out.mp4", signature(y=(3, 1, 7, 9)), [{"y": y} for y in ramp], fps=25)
    source = open_source(str(tmp_path / "out.mp4"))
    frames = [f.data for f in source]
    assert source.fps == 25
    assert len(frames) == 10
    assert frames[0].shape == (134, 514, 3)
    np.testing.assert_allclose([f[:, :300].mean() for f in frames], [25.5 * i for i in range(10)], atol=6)
    np.testing.assert_allclose(
        [f[:, 360:].mean() for f in frames], [255 - 25.5 * i for i in range(10)], atol=6
    )


def test_mp4_in_colour_at_a_sensible_rate(tmp_path: Path) -> None:
    pytest.importorskip("av")
    red = np.zeros((3, 160, 200), np.float32)
    red[0] = 1
    fill(tmp_path / "out.mp4", signature(y=red.shape), [{"y": red}] * 3, fps=1 / 300)
    source = open_source(str(tmp_path / "out.mp4"))
    pixel = next(iter(source)).data[80, 100].astype(int)
    assert source.fps == 10
    np.testing.assert_allclose(pixel, [255, 0, 0], atol=8)


ALL = ["out.npz", "out.jsonl", "out.mp4", "out/"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [0, 2])
def test_an_error_leaves_nothing_behind(tmp_path: Path, name: str, steps: int) -> None:
    def run() -> None:
        with open_sink(f"{tmp_path}/{name}", BOTH) as sink:
            for i in range(steps):
                sink.write(frame(i), STEPS[i], 0.0)
            raise EdgeLstmError("the source ended early")

    with pytest.raises(EdgeLstmError, match="the source ended early"):
        run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ALL[:3])
def test_an_error_keeps_what_was_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("yesterday")

    def stopped_by_the_user() -> None:
        with open_sink(tmp_path / name, BOTH) as sink:
            sink.write(frame(0), STEPS[0], 0.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_by_the_user()
    assert (tmp_path / name).read_text() == "yesterday"
    fill(tmp_path / name, BOTH, STEPS)
    assert (tmp_path / name).read_bytes() != b"yesterday"


@pytest.mark.parametrize("name", ALL)
def test_a_path_that_cannot_be_written_is_told_before_the_first_frame(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for folder in ("nowhere", "file"):
        with pytest.raises(EdgeLstmError) as caught:
            open_sink(f"{tmp_path}/{folder}/{name}", BOTH)
        assert f"can't write {'folder ' * name.endswith('/')}{tmp_path}/{folder}/out" in str(caught.value)
        assert f"Create {tmp_path / folder} or choose another path" in str(caught.value)


def refusal(path: str | Path, sig: Signature, **options: object) -> str:
    with pytest.raises(EdgeLstmError) as caught:
        open_sink(path, sig, **options)
    return str(caught.value)


def test_bad_sinks(tmp_path: Path) -> None:
    numbers = signature(level=(3,))
    assert f"output {tmp_path / 'out.xyz'}: found a .xyz file; expected FILE.npz, FILE.jsonl" in refusal(
        tmp_path / "out.xyz", BOTH
    )
    for name in ("out.mp4", "out/"):
        path = f"{tmp_path}/{name}"
        assert "no output to make pictures of: found level [3]; expected [H, W]" in refusal(path, numbers)
        assert "no output to make pictures of: found level [3]" in refusal(
            path, BOTH, view=View(output="level")
        )
        assert "no output 'z'" in refusal(path, BOTH, view=View(output="z"))
        assert "lead of output 'y': found 3; expected 1 to 2" in refusal(path, BOTH, view=View(lead=3))
        assert "channel of output 'y': found 1; expected 0 to 0" in refusal(path, BOTH, view=View(channel=1))
        assert "range of values to show: found (1, 1); expected low below high" in refusal(
            path, BOTH, view=View(range=(1, 1))
        )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    assert (
        f"can't write folder {tmp_path / 'full'}: found files in it; expected a new or empty folder"
        in refusal(tmp_path / "full", BOTH)
    )
    assert f"can't write folder {tmp_path / 'full' / 'a'}: found a file" in refusal(
        f"{tmp_path}/full/a/", BOTH
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "output 'y' for out.npz: found nothing; expected [2, 2], one stream's output"),
        (
            {"y": np.zeros((1, 2, 2))},
            "output 'y' for out.npz: found [1, 2, 2]; expected [2, 2], one stream's output",
        ),
    ],
)
def test_outputs_must_be_those_of_the_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EdgeLstmError) as caught, open_sink("out.npz", signature(y=(2, 2))) as sink:
        sink.write(frame(0), outputs, 0.0)
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def test_a_closed_sink(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out.jsonl", BOTH)
    sink.write(frame(0), STEPS[0], 0.0)
    sink.close()
    sink.close()
    assert sink.frames == 1
    with pytest.raises(EdgeLstmError, match=r"out.jsonl is closed: expected writes before close"):
        sink.write(frame(1), STEPS[1], 0.0)


def test_a_video_without_frames_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("av")
    sink = open_sink(tmp_path / "out.mp4", BOTH)
    with pytest.raises(EdgeLstmError, match=r"out.mp4: found no frames; expected at least one"):
        sink.close()
    assert list(tmp_path.iterdir()) == []


def test_lines_go_on_when_the_disk_has_room_again(tmp_path: Path) -> None:
    """A limit on the file's size stands for a full disk: it cuts a line short, too."""
    code = f"""
import resource, signal
from edgelstm.pipeline import open_sink
from edgelstm.pipeline.sinks import Undelivered
from peers import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
one = {{"y": np.ones(2, np.float32)}}
with open_sink(r"{tmp_path / "a.jsonl"}", SIGNATURE, append=True) as sink:
    sink.write(frame(0), one, 0.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250, resource.RLIM_INFINITY))
    for index in (1, 2, 3):
        try:
            sink.write(frame(index), one, 0.0)
        except Undelivered as error:
            print(index, error.reason)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    sink.write(frame(4), one, 0.0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1", "not_written", "2", "not_written", "3", "not_written"]
    whole = []
    for line in (tmp_path / "a.jsonl").read_text().splitlines():
        try:
            whole.append(json.loads(line)["index"])
        except ValueError:
            continue
    assert whole == [0, 4]


def test_what_travels_as_bits_is_written_and_handed_on_as_what_it_is_worth(tmp_path: Path) -> None:
    """An .npz had 16256 for 1, and a second model took that for a number."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "s"], ["s_next"]),
        helper.make_node("Cast", ["s_next"], ["y"], to=onnx.TensorProto.BFLOAT16),
    ]
    sig = Signature(
        (TensorSpec("x", "bfloat16", ("N", 2)),),
        (TensorSpec("y", "bfloat16", ("N", 2)),),
        (StateSpec("s", "s", "s_next", "float32", ("N", 2)),),
    )
    model = tmp_path / "m.onnx"
    make_step(nodes, sig, []).save(model)
    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float32))
    edgelstm.run(model, str(tmp_path / "x.npy"), tmp_path / "y.npz", threads=1)
    edgelstm.run(model, str(tmp_path / "x.npy"), tmp_path / "z.npz", then=[model], threads=1)
    for name, wanted in (("y.npz", [1, 2, 3]), ("z.npz", [1, 3, 6])):
        with np.load(tmp_path / name) as file:
            assert file["y"].dtype == np.float32
            assert file["y"][:, 0].tolist() == wanted
