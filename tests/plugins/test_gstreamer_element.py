"""The GStreamer element: the numbers of the Python Runner, states that begin anew and are kept, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gst_element
import numpy as np
import pytest
from gst_element import DEEP, GREY, RGB, one, result, runs
from onnx import TensorProto

import zoo
from command_line import Run
from edgelstm.graph.step import StepModel
from edgelstm.pipeline import Inputs, Outputs, parse_ops
from edgelstm.runtime import Runner
from edgelstm.runtime.outside import OutsideRange
from stepping import from_text

Array = np.ndarray[Any, Any]
TENSORS = "other/tensors,format=static,num_tensors=1,types=float32,dimensions=(string){}"


@pytest.fixture(autouse=True)
def element() -> None:
    gst_element.built()


def saved(step: StepModel, place: Path, preprocess: str = "", **changes: Any) -> Path:
    ops = {step.signature.inputs[0].name: tuple(parse_ops(preprocess))} if preprocess else {}
    replace(step, signature=replace(step.signature, preprocessing=ops, **changes)).save(place)
    return place


def stepped(model: Path, frames: Array, resets: tuple[int, ...] = (), units: Any = "model") -> Array:
    """By the Runner, the state set back before the frames named."""
    with Runner.open(model, threads=1, native=False) as runner:
        stream, inputs, outputs = (
            runner.stream("s"),
            Inputs(runner.signature),
            Outputs(runner.signature, units=units),
        )
        made = []
        for k, frame in enumerate(frames):
            if k in resets:
                stream.reset()
            made.append(next(iter(outputs(stream.step(inputs(frame), copy=True)).values())))
    return np.stack(made)


def pictures(count: int, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_gst_launch_gives_the_bytes_of_edgelstm_run(run: Run, tmp_path: Path) -> None:
    """On frames of moving digits, with a small ConvLSTM."""
    frames = np.load(gst_element.c_library.ROOT / "examples" / "moving_digits" / "test_stream.npz")["frames"][
        :30
    ]
    model = saved(zoo.conv_lstm(channels=1, size=64), tmp_path / "model.onnx", "scale=0.00392156862745098")
    (tmp_path / "frames.raw").write_bytes(frames.tobytes())
    np.save(tmp_path / "frames.npy", frames)
    code, _, err = run(
        "run", model, "--source", tmp_path / "frames.npy", "-o", tmp_path / "wanted.npz", "--threads", 1
    )
    assert code == 0, err
    pipeline = (
        f"filesrc location={tmp_path}/frames.raw blocksize=4096 ! rawvideoparse format=gray8 width=64 height=64 framerate=10/1 ! "
        f"edgelstm model={model} threads=1 ! other/tensors ! filesink location={tmp_path}/out.raw"
    )
    done = subprocess.run(
        ["gst-launch-1.0", "-q", *pipeline.split()], capture_output=True, text=True, check=False, timeout=60, env=gst_element.environment()
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = np.fromfile(tmp_path / "out.raw", np.float32).reshape(-1, 3, 64, 64)
    assert found.tobytes() == np.load(tmp_path / "wanted.npz")["h_next"].tobytes()


def test_preprocessing_has_the_bits_of_numpy(tmp_path: Path) -> None:
    """The model gives back what went in. `grey` may differ in the last bits, by the order of a sum, and `log1p`, which is NumPy's own."""
    wide = pictures(3, 21, 30)
    cases = [
        ((1, 21, 30), "nodata=7;scale=0.125,0.5;log1p=0.25", GREY, wide),
        ((21, 30), "clip=20,200;normalize=100,12.5", GREY, wide),
        ((1, 6, 9), "crop=2,1,19,28;average=3", GREY, wide),
        ((1, 33, 8), "scale=0.00392156862745098;resize=33,8", GREY, wide),
        ((3, 10, 17), "resize=10,17;channels_first;scale=0.01;normalize=0.4/0.5/0.6,0.2/0.3/0.1", RGB, pictures(3, 21, 31, 3)),
        ((21, 31, 3), "", RGB, pictures(3, 21, 31, 3)),
        ((1, 8, 6), "scale=1.52590218966964e-05", DEEP, (pictures(3, 8, 6).astype(np.uint16) * 257 + 1)),
        ((1, 21, 31), "grey;scale=0.5", RGB, pictures(3, 21, 31, 3)),
    ]  # fmt: skip
    given, wanted = [], []
    for k, (shape, ops, caps, frames) in enumerate(cases):
        (tmp_path / str(k)).mkdir()
        model = saved(zoo.persistence(1, shape), tmp_path / str(k) / "model.onnx", ops)
        given.append(one(model, caps, frames, after="other/tensors"))
        wanted.append(stepped(model, frames))
    for case, each, told, expected in zip(cases, given, runs(*given), wanted, strict=True):
        assert told["messages"] == []
        found = result(each, "f4", *expected.shape[1:])
        assert len(found) == len(expected) == told["frames"]
        if "grey" in case[1] or "log1p" in case[1]:
            np.testing.assert_allclose(found, expected, rtol=5e-7)
        else:
            assert found.tobytes() == expected.tobytes(), case[1]


def test_outputs_that_are_frames_come_as_pictures(tmp_path: Path) -> None:
    grey, colour = pictures(4, 9, 10), pictures(4, 9, 10, 3)
    model = saved(
        zoo.persistence(2, (1, 9, 10), 0.5), tmp_path / "grey.onnx", "scale=0.00392156862745098,-0.25"
    )
    coloured = saved(
        zoo.persistence(1, (3, 9, 10)), tmp_path / "rgb.onnx", "channels_first;scale=0.00392156862745098"
    )
    given = [
        one(model, GREY, grey, properties={"lead": 2}),
        one(model, GREY, grey),
        one(model, GREY, grey, properties={"lead": 1, "range": "-0.25,0.25"}),
        one(coloured, RGB, colour),
        one(model, GREY, grey[:1], properties={"range": "0,1"}),
    ]
    told = runs(*given)
    assert "format=(string)GRAY8, width=(int)10, height=(int)9" in told[0]["caps"]
    wanted = np.rint(np.clip(stepped(model, grey, units="source")[:, 1, 0] / 255, 0, 1) * 255).astype(
        np.uint8
    )
    assert np.array_equal(result(given[0], "u1", 9, 12)[..., :10], wanted)  # rows begin at multiples of 4
    assert np.array_equal(result(given[1], "u1", 9, 20), np.concatenate([wanted, wanted], 2))
    values = np.clip((stepped(model, grey)[:, 0, 0] + 0.25) * 2, 0, 1)
    assert np.abs(result(given[2], "u1", 9, 12)[..., :10] - values * 255.0).max() <= 0.51
    assert np.array_equal(result(given[3], "u1", 9, 32)[..., :30].reshape(4, 9, 10, 3), colour)
    assert [t["messages"] for t in told] == [[]] * 5


def test_marks_are_black_and_white_whatever_was_done_to_the_frames(tmp_path: Path) -> None:
    """An output of the frame's shape that a threshold makes marks of is no frame: its preprocessing is not undone. Nor is any of it
    where a part can't be."""
    grey, colour = pictures(3, 6, 8), pictures(3, 6, 8, 3)
    scale = "scale=0.00392156862745098;normalize=0.5,0.25"
    marks = saved(
        zoo.persistence(1, (1, 6, 8)),
        tmp_path / "marks.onnx",
        scale,
        postprocessing={"forecast": ({"op": "threshold", "value": 0.0},)},
    )
    # The logarithm, which comes last, could be undone; what is normalized channel by channel can't.
    logs = saved(
        zoo.persistence(1, (3, 6, 8)), tmp_path / "logs.onnx",
        "channels_first;normalize=0/0/0,255/255/255;log1p",
    )  # fmt: skip
    given = [one(marks, GREY, grey), one(logs, RGB, colour)]
    assert [told["messages"] for told in runs(*given)] == [[], []]
    assert np.array_equal(result(given[0], "u1", 6, 8), np.where(grey >= 127.5, 255, 0))
    wanted = np.log1p(colour.astype(np.float32) / 255) * 255
    assert np.abs(result(given[1], "u1", 6, 24).reshape(3, 6, 8, 3) - wanted).max() <= 0.51


def test_where_frames_are_missing_it_does_as_it_is_told(tmp_path: Path) -> None:
    frames = pictures(6, 8, 8)
    model = saved(zoo.conv_lstm(1, size=8), tmp_path / "model.onnx", "scale=0.00392156862745098")
    plain = [["frame", k, 100 * k, k == 0] for k in range(3)]

    def case(*do: list[Any], **properties: Any) -> dict[str, Any]:
        return one(model, GREY, frames, [*plain, *do], after="other/tensors", properties=properties)

    rest = [["frame", k, 100 * k] for k in (3, 4, 5)]
    cases: list[tuple[dict[str, Any], tuple[int, ...], list[str]]] = [
        (case(*rest), (), []),
        (case(["frame", 3, 300, True], *rest[1:]), (), ["hold"]),
        (case(["frame", 3, 300, True], *rest[1:], **{"on-gap": "reset"}), (3,), ["reset"]),
        (case(["flush"], ["frame", 3, 0, True], ["frame", 4, 100], ["frame", 5, 200]), (3,), []),
        (case(["frame", 3, 900], ["frame", 4, 1000], ["frame", 5, 1100], **{"on-gap": "reset"}), (), []),
        (case(["frame", 3, 900], ["frame", 4, 1000], ["frame", 5, 1100], **{"on-gap": "reset", "max-gap": 0.5}), (3,), ["reset"]),
        (case(["frame", 3, 0], ["frame", 4, 100], ["frame", 5, 200], **{"on-gap": "reset"}), (3,), ["reset"]),
        (case(["gap", 300, 1000], *rest, **{"on-gap": "reset"}), (3,), ["reset"]),
        (case(["gap", 300, 100], *rest, **{"on-gap": "reset", "max-gap": 0.5}), (), []),
        (case(["stream", "two"], ["caps", GREY.format(8, 8)], ["segment", 1.0], *rest, **{"on-gap": "reset"}), (3,), ["reset"]),
        (case(["reset"], *rest), (3,), []),
        (case(["set", "on-gap", "reset"], ["frame", 3, None], ["frame", 4, 100], ["frame", 5, 500, True]), (4, 5), ["reset", "reset"]),
    ]  # fmt: skip
    cases += [
        (case(["stream", "one"], ["caps", GREY.format(8, 8)], ["segment", 1.0], *rest, **{"on-gap": "reset"}), (), []),
        (case(["late", 250], ["frame", 0, 200], *rest, **{"on-gap": "reset", "qos": "true"}), (3,), ["reset"]),
    ]  # fmt: skip
    stopped = case(["frame", 3, 900], *rest, **{"on-gap": "error", "max-gap": 0.5})
    *told, last = runs(*(given for given, _, _ in cases), stopped)
    for (given, resets, said), found in zip(cases, told, strict=True):
        assert [m[0] for m in found["messages"]] == said, given["do"]
        assert found["gaps"] == len(said)
        assert result(given, "f4", 3, 8, 8).tobytes() == stepped(model, frames, resets).tobytes(), given["do"]
    assert last["flows"][-3:] == ["error"] * 3
    assert [m[0] for m in last["messages"]] == ["error"]
    assert "0.7" in last["messages"][0][1]
    assert "on-gap=reset" in last["messages"][0][1]


def test_a_seek_in_a_pipeline_begins_anew(tmp_path: Path) -> None:
    frames = pictures(40, 8, 8)
    model = saved(zoo.conv_lstm(1, size=8), tmp_path / "model.onnx", "scale=0.00392156862745098")
    (tmp_path / "frames.raw").write_bytes(frames.tobytes())
    pipeline = (
        f"filesrc location={tmp_path}/frames.raw ! rawvideoparse format=gray8 width=8 height=8 framerate=10/1 ! "
        f"edgelstm model={model} threads=1 ! other/tensors ! appsink name=out sync=false max-buffers=2"
    )
    given = {"pipeline": pipeline, "before": 5, "seek": 2000, "after": 20, "out": str(tmp_path / "out.raw")}
    (told,) = runs(given)
    assert told["pts"] == [*range(0, 500, 100), *range(2000, 4000, 100)]
    wanted = np.concatenate([stepped(model, frames[:5]), stepped(model, frames[20:])])
    assert result(given, "f4", 3, 8, 8).tobytes() == wanted.tobytes()


def test_models_of_other_types(tmp_path: Path) -> None:
    """What comes out is the running sum, whose steps are exact."""
    frames = pictures(5, 3, 4) // 20 + np.uint8(1)
    types = ("float16", "bfloat16", "double", "uint8", "int8", "int16", "int32")
    given = []
    for kind in types:
        (tmp_path / kind).mkdir()
        text = (
            f"g ({kind}[N,3,4] x, float[N,3,4] s) => ({kind}[N,3,4] y, float[N,3,4] n) "
            f"{{ f = Cast<to=1>(x) n = Add(f, s) y = Cast<to={TensorProto.DataType.Value(kind.upper())}>(n) }}"
        )
        scale = "scale=0.5" if kind.endswith("float16") else "scale=0.75"
        model = saved(from_text(text, s="n"), tmp_path / kind / "model.onnx", scale)
        given.append(one(model, GREY, frames, after="other/tensors"))
    for kind, each, told in zip(types, given, runs(*given), strict=True):
        assert told["messages"] == []
        expected = stepped(tmp_path / kind / "model.onnx", frames)
        assert f"types=(string){expected.dtype}" in told["caps"]
        assert result(each, expected.dtype.str, 3, 4).tobytes() == expected.tobytes()


def test_who_asks_is_told_what_the_model_takes(tmp_path: Path) -> None:
    """A source that has nothing of it ends with "not negotiated", which says little: there is a warning."""
    model = saved(zoo.conv_lstm(1, size=8), tmp_path / "model.onnx", "scale=0.00392156862745098")
    colour = saved(zoo.conv_lstm(3, size=8), tmp_path / "rgb.onnx", "channels_first")
    frames = pictures(1, 8, 8)
    grey, rgb = runs(
        one(model, GREY, frames, [["query", "video/x-raw"], ["query", "video/x-raw,format=RGB"], ["query", "video/x-raw,format=RGB"]]),
        one(colour, RGB, pictures(1, 8, 8, 3), [["query", "video/x-raw"]]),
    )  # fmt: skip
    assert "GRAY8" in grey["flows"][3]
    assert "RGB" not in grey["flows"][3]
    assert [m[0] for m in grey["messages"]] == ["warning"]
    assert "videoconvert" in grey["messages"][0][1]
    assert "RGB" in rgb["flows"][3]
    assert "GRAY8" not in rgb["flows"][3]


def test_frames_that_are_not_what_the_model_was_made_with_are_warned_of(tmp_path: Path) -> None:
    """A scale that is missing, or one too much; a film that is to be turned. The words are those of the Runner."""
    frames = pictures(70, 8, 8)
    far = saved(zoo.conv_lstm(1, size=8), tmp_path / "far.onnx", ranges={"x": (0.0, 1.0)})
    tiny = saved(
        zoo.conv_lstm(1, size=8),
        tmp_path / "tiny.onnx",
        "scale=0.00392156862745098",
        ranges={"x": (0.0, 255.0)},
    )
    right = saved(
        zoo.conv_lstm(1, size=8),
        tmp_path / "right.onnx",
        "scale=0.00392156862745098",
        ranges={"x": (0.0, 1.0)},
    )
    step = [["frame", 0]]
    given = [
        one(far, GREY, frames, after="other/tensors"),
        one(tiny, GREY, frames, after="other/tensors"),
        one(right, GREY, frames, after="other/tensors"),
        one(right, GREY, frames, [["turned", "rotate-90"], *step, ["turned", "rotate-90"]], after="other/tensors"),
        one(right, GREY, frames, [["turned", "rotate-0"], *step], after="other/tensors"),
    ]  # fmt: skip
    told = runs(*given)
    for each, said in zip(told, ("far outside", "next to nothing", "", "rotate-90", ""), strict=True):
        assert [m[0] for m in each["messages"]] == (["warning"] if said else [])
        assert not said or said in each["messages"][0][1]
    for model, each in ((far, told[0]), (tiny, told[1])):
        with pytest.warns(OutsideRange) as caught:
            stepped(model, frames)
        (warning,) = caught
        assert str(warning.message).split(". Is")[0].split(", where")[0] in each["messages"][0][1]


def test_the_state_goes_on_from_a_file(tmp_path: Path) -> None:
    frames = pictures(9, 8, 8)
    model = saved(zoo.conv_lstm(1, size=8), tmp_path / "model.onnx", "scale=0.00392156862745098")
    kept, other = tmp_path / "state.npz", tmp_path / "other.npz"
    keep = {"state-file": kept}

    def part(first: int, last: int, *end: list[Any], **properties: Any) -> dict[str, Any]:
        do = [["frame", k, 100 * k, k == first] for k in range(first, last)]
        return one(
            model,
            GREY,
            frames,
            [*do, *end],
            after="other/tensors",
            properties={"on-gap": "reset", **properties},
        )

    # At the end of the stream, and at a stop in its midst.
    given = [part(0, 4, ["eos"], **keep), part(4, 7, **keep), part(7, 9, **keep)]
    told = runs(*given)
    assert [t["messages"] for t in told] == [[]] * 3
    whole = stepped(model, frames)
    assert b"".join(Path(g["out"]).read_bytes() for g in given) == whole.tobytes()
    with Runner.open(model, threads=1, native=False) as runner:
        stream, inputs = runner.stream("s"), Inputs(runner.signature)
        for frame in frames:
            stream.step(inputs(frame))
        stream.snapshot().save(tmp_path / "python.npz")
    assert (tmp_path / "python.npz").read_bytes() == kept.read_bytes()
    assert not list(tmp_path.glob("state.npz.*"))
    # One element that is stopped and started: with a file it goes on, without one it begins anew.
    both = [
        one(model, GREY, frames, [["frame", 0], ["frame", 1], ["restart"], ["frame", 2, 0, True]], after="other/tensors", properties=p)
        for p in ({"state-file": tmp_path / "twice.npz"}, {})
    ]  # fmt: skip
    runs(*both)
    for each, resets in zip(both, ((), (2,)), strict=True):
        assert result(each, "f4", 3, 8, 8).tobytes() == stepped(model, frames[:3], resets).tobytes()
    # What is none is refused, and left as it is; so is that of another model, and a place that can't be written.
    short, another = (
        kept.read_bytes()[:-9],
        saved(zoo.conv_lstm(1, size=8, seed=1), tmp_path / "another.onnx"),
    )
    other.write_bytes(short)
    told = runs(
        part(0, 2, **{"state-file": other}),
        part(0, 2, model=another, **keep),
        part(0, 2, ["eos"], **{"state-file": tmp_path / "nowhere" / "state.npz"}),
    )  # fmt: skip
    assert [t["started"] for t in told] == [False, False, True]
    for each, said in zip(told, ("cut short", "another model", "No such file"), strict=True):
        assert [m[0] for m in each["messages"]] == ["error"]
        assert said in each["messages"][0][1]
    assert other.read_bytes() == short
    # One that is older than a gap may be, as everything behind a gap.
    old = [tmp_path / f"{word}.npz" for word in ("reset", "hold", "error")]
    for path in old:
        path.write_bytes(kept.read_bytes())
        os.utime(path, (time.time() - 100,) * 2)
    given = [
        part(0, 2, **{"state-file": path, "max-gap": 50, "on-gap": word})
        for path, word in zip(old, ("reset", "hold", "error"), strict=True)
    ]
    told = runs(*given)
    assert [[m[0] for m in each["messages"]] for each in told] == [["warning"], [], ["error"]]
    assert "s old; expected at most max-gap, 50 s" in told[0]["messages"][0][1]
    assert result(given[0], "f4", 2, 8, 8).tobytes() == stepped(model, frames[:2]).tobytes()
    assert (
        result(given[1], "f4", 2, 8, 8).tobytes()
        == stepped(model, np.concatenate([frames, frames[:2]]))[9:].tobytes()
    )
    assert (tmp_path / "python.npz").read_bytes() == kept.read_bytes()


def test_tensors_of_sensors(tmp_path: Path) -> None:
    """nnstreamer's caps: the innermost axis first, as many of one behind."""
    model = saved(zoo.lstm(3), tmp_path / "model.onnx", "scale=0.5")
    frames = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    spoilt = frames.copy()
    spoilt[2, 1] = np.nan
    given = [
        one(model, TENSORS.format("3"), frames),
        one(model, TENSORS.format("3:1:1:1"), frames),
        one(model, TENSORS.format("3:1:1:1"), spoilt),
        one(model, TENSORS.format("3:1:1:1"), frames[:, :2]),
        one(model, TENSORS.format("3:2"), frames),
        one(model, TENSORS.format("3:x"), frames),
    ]
    plain, padded, nan, short, wide, odd = runs(*given)
    assert "dimensions=(string)2:1:1:1" in plain["caps"]
    for each in given[:2]:
        assert result(each, "f4", 2).tobytes() == stepped(model, frames).tobytes()
    assert plain["messages"] == padded["messages"] == []
    assert (nan["out"], [m[0] for m in nan["messages"]]) == (2, ["error"])
    assert "NaN" in nan["messages"][0][1]
    assert "8 bytes; expected 12" in short["messages"][0][1]
    assert "found [2, 3]" in wide["messages"][0][1]
    assert "dimensions" in odd["messages"][0][1]


def test_what_can_not_be_is_said_once(tmp_path: Path) -> None:
    frames = pictures(2, 8, 8)
    model = saved(zoo.conv_lstm(1, size=8), tmp_path / "model.onnx", "scale=0.00392156862745098")
    two = tmp_path / "two.onnx"
    zoo.two_inputs().save(two)
    sound = saved(zoo.persistence(1, (9,)), tmp_path / "sound.onnx", "samples=16,4,16000;magnitude")
    (tmp_path / "broken.onnx").write_bytes(model.read_bytes()[:300])
    do = [["frame", 0], ["frame", 1]]

    def refused(said: str, **more: Any) -> tuple[str, dict[str, Any]]:
        properties = {"model": model, **more}
        return said, one(model, GREY, frames, do, properties=properties)

    cases = [
        ("found [7, 8] (source [7, 8] -> scale [7, 8]); expected [1, 8, 8]", one(model, GREY, pictures(2, 7, 8), do)),
        ("found [8, 8, 3]", one(model, RGB, pictures(2, 8, 8, 3), do)),
        ("values 0 to 65535; expected 0 to 255", one(model, DEEP, frames.astype(np.uint16), do)),
        refused("no file; expected a step graph", model=""),
        refused("nowhere.onnx", model=tmp_path / "nowhere.onnx"),
        refused("broken.onnx", model=tmp_path / "broken.onnx"),
        refused("2 inputs", model=two),
        refused("sound", model=sound),
        refused("found cuda; expected cpu", device="cuda"),
        refused("found z; expected one of h_next", output="z"),
        refused("found 5; expected 1 to 1", lead=5),
        refused("range: found 3,3", range="3,3"),
        refused("nolibrary", onnxruntime=tmp_path / "nolibrary.so"),
        ("found rate -1", one(model, GREY, frames, [["segment", -1.0], ["frame", 0]])),
        ("and [8, 8] before", one(saved(zoo.persistence(1, (1, 4, 4)), tmp_path / "crop.onnx", "crop=0,0,4,4"), GREY, frames,
                                  [["frame", 0], ["caps", GREY.format(9, 8), 72], ["frame", 0]])),
    ]  # fmt: skip
    for (said, _), told in zip(cases, runs(*(given for _, given in cases)), strict=True):
        assert [m[0] for m in told["messages"]] == ["error"], (said, told)
        assert said in told["messages"][0][1]
        assert told["out"] <= 1


@pytest.mark.thorough
def test_memory_stays_what_it_was_over_20000_frames(tmp_path: Path) -> None:
    grey = saved(zoo.conv_lstm(1, size=8), tmp_path / "grey.onnx", "scale=0.00392156862745098")
    cut = saved(
        zoo.persistence(1, (1, 10, 16)), tmp_path / "cut.onnx", "resize=10,16;scale=0.00392156862745098"
    )
    frames, do = pictures(2, 9, 10), [["rss", 20000]]
    given = [
        one(grey, GREY, pictures(2, 8, 8), do, after="other/tensors"),
        one(cut, GREY, frames, do),
        one(
            saved(zoo.lstm(3), tmp_path / "lstm.onnx"), TENSORS.format("3"), np.zeros((2, 3), np.float32), do
        ),
    ]
    for told in runs(*given):
        assert told["frames"] == 20000
        early, late = told["rss"]
        assert late - early < 600  # kilobytes: a leak of 40 bytes a frame would show


@pytest.mark.thorough
def test_a_film_through_decoders_is_near_to_edgelstm_run(
    run: Run, dashcam_video: Path, tmp_path: Path
) -> None:
    """The trained model of examples/moving_digits; colours differ a little from decoder to decoder."""
    model = tmp_path / "video.onnx"
    code, _, err = run(
        "export", "example:moving_digits/model.safetensors", "-o", model, "--limit", 3,
        "--preprocess", "resize=64,64;grey;scale=0.00392156862745098",
    )  # fmt: skip
    assert code == 0, err
    code, _, err = run("run", model, "--source", dashcam_video, "-o", tmp_path / "wanted.npz", "--limit", 20)
    assert code == 0, err
    pipeline = (
        f"filesrc location={dashcam_video} ! decodebin ! videoconvert ! edgelstm model={model} ! other/tensors ! "
        f"identity eos-after=21 ! filesink location={tmp_path}/out.raw"
    )
    done = subprocess.run(
        ["gst-launch-1.0", "-q", *pipeline.split()], capture_output=True, text=True, check=False, timeout=60, env=gst_element.environment()
    )  # fmt: skip
    if "missing" in done.stderr.lower() or "no suitable plugins" in done.stderr.lower():
        pytest.skip(
            "no GStreamer to build with on this machine: a decoder of H.264, apt install gstreamer1.0-libav"
        )
    assert done.returncode == 0, done.stderr
    wanted = np.load(tmp_path / "wanted.npz")["forecast"]
    found = np.fromfile(tmp_path / "out.raw", np.float32).reshape(-1, *wanted.shape[1:])
    assert len(found) >= len(wanted) == 20
    assert np.abs(found[:20] - wanted).mean() < 0.01


def test_it_is_built_and_found_as_the_commands_say(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = gst_element.built()
    code, out, err = run("config", "--gst", "--folder", plugin.prefix)
    assert (code, out.strip()) == (0, str(plugin.path.parent)), err
    code, out, err = run("config", "--folder", plugin.prefix, "--json")
    assert (code, json.loads(out)["gst"]) == (0, str(plugin.path.parent)), err
    shutil.copytree(plugin.prefix, tmp_path / "copy")
    copy = tmp_path / "copy" / "lib" / "gstreamer-1.0" / plugin.path.name
    copy.write_bytes(copy.read_bytes().replace(b"edgelstm-gst-sources ", b"edgelstm-gst-sources-"))
    code, _, err = run("config", "--gst", "--folder", tmp_path / "copy")
    assert (code, "other sources" in err) == (2, True)
    code, out, err = run("config", "--folder", tmp_path / "copy", "--json")
    assert (code, "gst" in json.loads(out)) == (0, False), err
    monkeypatch.setenv("PKG_CONFIG_LIBDIR", str(tmp_path))
    monkeypatch.delenv("PKG_CONFIG_PATH", raising=False)
    code, _, err = run("build-plugin", "--gst", "-o", tmp_path / "here")
    assert code == 2
    assert "apt install libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev" in " ".join(err.split())
    assert not (tmp_path / "here").exists()
    code, _, err = run("build-plugin", "--gst", "--machine", "aarch64")
    assert (code, "--machine with --gst" in err) == (2, True)
