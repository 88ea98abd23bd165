"""MCAP recordings, written by the libraries that robots write them with."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source

pytest.importorskip("mcap")
pytest.importorskip("mcap_ros2")
pytest.importorskip("PIL")

from mcap.writer import CompressionType
from mcap.writer import Writer as Plain
from mcap_ros2.writer import Writer
from PIL import Image as image

HEADER = """
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
IMAGE = f"std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\nuint8[] data\n{HEADER}"
COMPRESSED = f"std_msgs/Header header\nstring format\nuint8[] data\n{HEADER}"
ARRAY = """std_msgs/MultiArrayLayout layout
float32[] data
================================================================================
MSG: std_msgs/MultiArrayLayout
std_msgs/MultiArrayDimension[] dim
uint32 data_offset
================================================================================
MSG: std_msgs/MultiArrayDimension
string label
uint32 size
uint32 stride
"""
JOINTS = f"std_msgs/Header header\nstring[] name\nfloat64[] position\n{HEADER}"
STAMP = {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": "x"}
#: Nanoseconds since 1970 of the first message.
BEGIN = 1_767_225_600_000_000_000


def still(array: np.ndarray[Any, Any], encoding: str, *, wide: int = 0, big: bool = False) -> dict[str, Any]:
    """An Image; rows padded by ``wide`` bytes."""
    stored = array.astype(array.dtype.newbyteorder(">" if big else "<"))
    rows = [row.tobytes() + b"\1" * wide for row in stored]
    return {
        "header": STAMP,
        "height": array.shape[0],
        "width": array.shape[1],
        "encoding": encoding,
        "is_bigendian": int(big),
        "step": len(rows[0]),
        "data": b"".join(rows),
    }


def record(
    path: Path, topics: dict[str, tuple[str, str, list[Any]]], step: int = 40_000_000, begin: int = BEGIN
) -> Path:
    """Topics: (message, its definition, messages), one each of every topic after the other, all of a round at one time."""
    with path.open("wb") as file:
        writer = Writer(file)
        schemas = {
            topic: writer.register_msgdef(name, text) for topic, (name, text, messages) in topics.items()
        }
        for k in range(max(len(messages) for _, _, messages in topics.values())):
            for topic, (_, _, messages) in topics.items():
                if k < len(messages):
                    when = begin + k * step
                    writer.write_message(topic, schemas[topic], messages[k], log_time=when, publish_time=when)
        writer.finish()
    return path


def frames(spec: object) -> list[Any]:
    with open_source(str(spec)) as source:
        return list(source)


RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (still(BYTES, "rgb8", wide=3), BYTES),
        (still(BYTES, "bgr8"), BYTES[..., ::-1]),
        (still(np.concatenate([BYTES, BYTES[..., :1]], -1), "bgra8"), BYTES[..., ::-1]),
        (still(BYTES[..., 0], "mono8", wide=1), BYTES[..., 0]),
        (
            still(BYTES[..., 0].astype(np.uint16) * 257, "16UC1", big=True),
            BYTES[..., 0].astype(np.uint16) * 257,
        ),
        (still(BYTES[..., 0].astype(np.float32), "32FC1"), BYTES[..., 0].astype(np.float32)),
    ],
)
def test_images_as_their_encoding_says(tmp_path: Path, message: dict[str, Any], wanted: Any) -> None:
    path = record(tmp_path / "a.mcap", {"/cam": ("sensor_msgs/msg/Image", IMAGE, [message] * 3)})
    with open_source(str(path)) as source:
        found = list(source)
    assert source.length == 3
    for frame in found:
        np.testing.assert_array_equal(frame.data, wanted)
        assert frame.data.dtype == wanted.dtype
    assert [f.time for f in found] == pytest.approx([0, 0.04, 0.08], abs=1e-6)
    assert [f.name for f in found][:2] == ["2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.040Z"]
    assert source.place.start is not None
    assert source.place.start.timestamp() == BEGIN / 1e9


def test_compressed_images(tmp_path: Path) -> None:
    made = []
    for kind in ("png", "jpeg"):
        data = io.BytesIO()
        image.fromarray(BYTES).save(data, kind)
        made.append({"header": STAMP, "format": kind, "data": data.getvalue()})
    path = record(tmp_path / "a.mcap", {"/cam": ("sensor_msgs/msg/CompressedImage", COMPRESSED, made)})
    png, jpeg = frames(path)
    np.testing.assert_array_equal(png.data, BYTES)
    np.testing.assert_array_equal(
        jpeg.data, np.asarray(image.open(io.BytesIO(made[1]["data"])).convert("RGB"))
    )


def layout(*sizes: int) -> dict[str, Any]:
    return {"dim": [{"label": "", "size": n, "stride": n} for n in sizes], "data_offset": 0}


def test_arrays_in_their_layout_and_fields_of_other_messages(tmp_path: Path) -> None:
    values = RNG.normal(size=(2, 2, 3)).astype(np.float32)
    arrays = [{"layout": layout(2, 3), "data": v.ravel().tolist()} for v in values]
    joints = [{"header": STAMP, "name": ["a"], "position": [float(k), 2.0]} for k in range(4)]
    path = record(
        tmp_path / "a.mcap",
        {
            "/array": ("std_msgs/msg/Float32MultiArray", ARRAY, arrays),
            "/joints": ("sensor_msgs/msg/JointState", JOINTS, joints),
        },
    )
    np.testing.assert_array_equal([f.data for f in frames(path)], values)  # the only one that needs no word
    found = frames(f"{path}:topic=/joints:field=position")
    np.testing.assert_array_equal([f.data for f in found], [[k, 2] for k in range(4)])
    for spec, message in (
        (":topic=/joints", "expected Image, CompressedImage, .* or field=NAME"),
        (":topic=/other", "topic /other: found /array .*, /joints"),
        (":topic=/joints:field=speed", "no attribute|has no"),
        (":topic=/joints:field=name", "expected numbers"),
        (":topic=/joints:field=__class__", "KeyError"),
    ):
        with pytest.raises(EdgeLstmError, match=message):
            frames(f"{path}{spec}")


def test_a_layout_that_lies_and_images_too_short(tmp_path: Path) -> None:
    lie = {"layout": layout(2, 4), "data": [1.0] * 6}
    path = record(tmp_path / "a.mcap", {"/array": ("std_msgs/msg/Float32MultiArray", ARRAY, [lie])})
    with pytest.raises(EdgeLstmError, match=r"layout: found 6 numbers; expected \[2, 4\]"):
        frames(path)
    huge = {**still(BYTES, "rgb8"), "height": 2**31, "width": 2**31}
    for bad, message in (
        (huge, "size of a frame"),
        ({**still(BYTES, "rgb8"), "height": 5}, "expected 5 rows"),
    ):
        path = record(tmp_path / "a.mcap", {"/cam": ("sensor_msgs/msg/Image", IMAGE, [bad])})
        with pytest.raises(EdgeLstmError, match=message):
            frames(path)


def test_messages_in_json(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    with path.open("wb") as file:
        writer = Plain(file, compression=CompressionType.NONE)
        writer.start()
        schema = writer.register_schema("Step", "jsonschema", b"{}")
        channel = writer.register_channel("/s/step", "json", schema)
        for k in range(3):
            data = json.dumps({"outputs": {"y": {"values": [k, 0.5]}}}).encode()
            writer.add_message(channel, BEGIN + k, data, BEGIN + k)
        writer.finish()
    found = frames(f"{path}:topic=/s/step:field=outputs.y.values")
    np.testing.assert_array_equal([f.data for f in found], [[k, 0.5] for k in range(3)])


def test_a_stream_for_each_topic(tmp_path: Path) -> None:
    """Frames of one time go to both; one that ends before the other frees its place."""
    pytest.importorskip("pydantic")
    from edgelstm import Pipeline

    zoo.lstm().save(tmp_path / "m.onnx")
    made = {
        topic: [{"layout": layout(3), "data": RNG.normal(size=3).tolist()} for _ in range(count)]
        for topic, count in (("/left", 6), ("/right", 4))
    }
    path = record(
        tmp_path / "a.mcap",
        {t: ("std_msgs/msg/Float32MultiArray", ARRAY, messages) for t, messages in made.items()},
    )
    with pytest.raises(EdgeLstmError, match=r"Choose: a.mcap:topic=/left"):
        open_source(str(path))
    text = f'[models.m]\npath = "m.onnx"\n[streams.r]\nsource = "{path.name}:topic=/left,/right"\nsink = "r.jsonl"\n'
    report = Pipeline.from_text(text, tmp_path).run()
    assert {name: counts["stepped"] for name, counts in report.streams.items()} == {
        "r:/left": 6,
        "r:/right": 4,
    }


def test_a_recording_in_parts(tmp_path: Path) -> None:
    """A folder, as ros2 bag record makes it."""
    made = [{"layout": layout(1), "data": [float(k)]} for k in range(24)]
    for part in range(12):
        record(
            tmp_path / f"bag_{part}.mcap",
            {"/a": ("std_msgs/msg/Float32MultiArray", ARRAY, made[2 * part : 2 * part + 2])},
            begin=BEGIN + part * 80_000_000,
        )
    (tmp_path / "metadata.yaml").write_text("rosbag2_bagfile_information:\n")
    with open_source(str(tmp_path)) as source:
        found = list(source)
    assert [float(f.data[0]) for f in found] == list(range(24))
    assert [f.index for f in found] == list(range(24))
    assert [f.time for f in found] == pytest.approx([0.04 * k for k in range(24)], abs=1e-6)
    assert source.length == 24
    assert len(frames(f"{tmp_path}:topic=/a:field=data")) == 24
    with pytest.raises(EdgeLstmError, match="option channel: found a folder"):
        open_source(f"{tmp_path}:channel=0")


def test_a_recording_that_was_never_closed(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mcap", {"/cam": ("sensor_msgs/msg/Image", IMAGE, [still(BYTES, "rgb8")] * 3)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EdgeLstmError, match="mcap recover"):
        open_source(str(path))
    rng = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(whole)
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            assert all((f.data == BYTES).all() for f in frames(path))
        except EdgeLstmError:
            continue
