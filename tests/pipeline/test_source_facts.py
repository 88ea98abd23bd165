"""What a file says beside its pixels: how it was held, when its frames come, how many pictures it holds, what is said of it."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import Frame, Inputs, Preprocess, open_source, parse_ops
from pipeline.source_files import encode, netpbm, png, radar, tiff

av = pytest.importorskip("av")
image = pytest.importorskip("PIL.Image")
ops = pytest.importorskip("PIL.ImageOps")
pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")
h264 = pytest.mark.skipif("libx264" not in av.codecs_available, reason="PyAV without libx264")


def refusal(spec: object) -> str:
    with pytest.raises(EdgeLstmError) as caught, open_source(str(spec)) as source:
        list(source)
    return str(caught.value)


def frames(spec: object) -> list[Any]:
    with open_source(str(spec)) as source:
        return [frame.data for frame in source]


def corners() -> list[Any]:
    """A YUV picture whose corners differ: 235 top left, 150 top right, 80 bottom left, 16 elsewhere."""
    luma = np.full((48, 64), 16, np.uint8)
    luma[:12, :12], luma[:12, -12:], luma[-12:, :12] = 235, 150, 80
    return [luma, *[np.full((24, 32), 128, np.uint8)] * 2]


@h264
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi"])
@pytest.mark.parametrize(
    "options", [{"tune": "zerolatency"}, {"bf": "3", "preset": "slow"}, {"x264-params": "slices=3"}]
)
def test_pictures_that_are_missing_are_said(
    tmp_path: Path, name: str, options: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """A decoder goes on with what it has, without a word. Of whole files nothing is said."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (48, 64, 3), np.uint8)
    for lost in (None, 14):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.options = {"g": "30", **options}
            packets = []
            for k in range(40):
                picture = av.VideoFrame.from_ndarray(np.roll(scene, 3 * k, 1), "rgb24")
                packets += stream.encode(picture)
            packets += stream.encode(None)
            order = [k for k, p in enumerate(packets) if not p.is_disposable]
            for k, packet in enumerate(packets):
                if lost is None or k != order[lost]:
                    container.mux(packet)
        with open_source(str(tmp_path / name)) as source:
            gaps = [f.gap for f in source if f.gap]
        assert [gap.partition(":")[0] for gap in gaps] == ([] if lost is None else ["pictures are missing"])
    assert "what follows is wrong until the next key frame" in caplog.text


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile b.mkv\n", "#EXTM3U\n#EXTINF:1,\nb.mkv\n#EXT-X-ENDLIST\n"]
)
def test_a_list_of_other_files_is_no_video(tmp_path: Path, text: str) -> None:
    encode(tmp_path / "b.mkv", "ffv1", "gray", [np.zeros((48, 64), np.uint8)])
    assert len(frames(tmp_path / "b.mkv")) == 2
    (tmp_path / "a.mkv").write_text(text)
    assert "not a video, or a damaged one" in refusal(tmp_path / "a.mkv")


# How it was held

#: Display matrices (a b c d, translation aside) and what NumPy does for the same.
TURNS = {
    (1, 0, 0, 1): (lambda x: x, None),
    (0, 1, -1, 0): (lambda x: np.rot90(x, -1), "rotated by 90 degrees clockwise, as the file says"),
    (-1, 0, 0, -1): (lambda x: np.rot90(x, 2), "rotated by 180 degrees, as the file says"),
    (0, -1, 1, 0): (lambda x: np.rot90(x, 1), "rotated by 90 degrees counter-clockwise, as the file says"),
    (-1, 0, 0, 1): (np.fliplr, "mirrored left to right, as the file says"),
    (1, 0, 0, -1): (np.flipud, "mirrored top to bottom, as the file says"),
    (0, 1, 1, 0): (
        lambda x: x.swapaxes(0, 1),
        "rotated by 90 degrees clockwise and mirrored left to right, as the file says",
    ),
    (0, -1, -1, 0): (
        lambda x: np.rot90(x.swapaxes(0, 1), 2),
        "rotated by 90 degrees counter-clockwise and mirrored left to right, as the file says",
    ),
}


@h264
@pytest.mark.parametrize("matrix", TURNS)
def test_video_is_turned_as_its_track_header_says(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    path = tmp_path / "a.mp4"
    encode(path, "libx264", "yuv420p", corners(), {"qp": "0"})
    [plain, _] = frames(path)
    a, b, c, d = matrix
    put_matrix(path, [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])
    with open_source(str(path)) as source:
        turned = next(iter(source)).data
        words = TURNS[matrix][1]
        assert [line for line in source.said if "as the file says" in line] == ([words] if words else [])
    np.testing.assert_array_equal(turned, TURNS[matrix][0](plain))


def put_matrix(path: Path, matrix: list[int]) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


@h264
def test_a_slanted_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    encode(path, "libx264", "yuv420p", corners(), {"qp": "0"})
    put_matrix(path, [46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30])
    assert "the file asks to be shown turned: found display matrix 0.707" in refusal(path)


@h264
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_rotation_in_every_container(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    planes = corners()
    encode(path, "libx264", "yuv420p", planes, {"qp": "0"}, prepare=lambda s: s.set_display_rotation(90))
    [first, _] = frames(path)
    assert first.shape == (64, 48, 3)
    assert first[-12:, :12].min() > 240, (
        "what was top left is bottom left: counter-clockwise, as FFmpeg counts"
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "deep.png"])
def test_images_are_turned_as_exif_says(tmp_path: Path, name: str, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    exif = image.Exif()
    exif[274] = orientation
    expected = image.fromarray(pixels)
    expected.getexif()[274] = orientation
    upright = np.asarray(ops.exif_transpose(expected))
    if name == "deep.png":
        deep = pixels.astype(np.uint16) * 256 + 7
        data = exif.tobytes()[6:]
        import zlib

        chunk = struct.pack(">I", len(data)) + b"eXIf" + data
        (tmp_path / name).write_bytes(png(deep, 2, chunk + struct.pack(">I", zlib.crc32(chunk[4:]))))
        upright = upright.astype(np.uint16) * 256 + 7
    else:
        image.fromarray(pixels).save(
            tmp_path / name, exif=exif, **({"lossless": True} if "webp" in name else {})
        )
    source = open_source(str(tmp_path))
    np.testing.assert_array_equal(next(iter(source)).data, upright)
    assert any("as the file says" in line for line in source.said) == (orientation != 1)


def test_a_turn_that_only_a_later_image_has_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = image.Exif()
    exif[274] = 3
    image.new("L", (4, 4)).save(tmp_path / "1.png")
    image.new("L", (4, 4)).save(tmp_path / "2.png", exif=exif)
    image.new("L", (4, 4)).save(tmp_path / "3.png", exif=exif)
    source = open_source(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert len(list(source)) == 3
    assert [r.getMessage() for r in caplog.records] == [
        f"images in {tmp_path}, frame 1 (2.png): rotated by 180 degrees, as the file says"
    ]


# When frames come


def write_times(path: Path, times: list[int], last: int) -> Path:
    """One frame at each of ``times`` in milliseconds; the last is shown for ``last``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for time in times:
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), time % 200, np.uint8), format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 1000)
            packets += stream.encode(picture)
        lasts = [*(b - a for a, b in itertools.pairwise(times)), last]
        for packet, stay in zip([*packets, *stream.encode(None)], lasts, strict=True):
            packet.duration = round(stay / 1000 / packet.time_base)
            container.mux(packet)
    return path


MOTION = [sum(40 if j % 10 < 7 else 1000 for j in range(k)) for k in range(30)]


@h264
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize(("times", "last"), [([40 * k for k in range(30)], 200), (MOTION, 4000)])
def test_a_long_last_frame_is_no_damage(tmp_path: Path, suffix: str, times: list[int], last: int) -> None:
    path = write_times(tmp_path / f"a.{suffix}", times, last)
    with open_source(str(path)) as source:
        assert [round(1000 * f.time) for f in source] == times
        varying = [line for line in source.said if "varying times" in line]
    assert bool(varying) == (times is MOTION)


@h264
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.9])
def test_a_file_without_its_end_is_damage(tmp_path: Path, suffix: str, share: float) -> None:
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3)).astype(np.uint8)
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    with av.open(str(whole), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for values in noise:
            for packet in stream.encode(av.VideoFrame.from_ndarray(values, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    assert len(frames(whole)) == 30
    data = whole.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert str(path) in refusal(path)


def test_luma_that_the_range_has_no_place_for_is_told(tmp_path: Path) -> None:
    luma = np.add.outer(np.arange(48), np.arange(64) * 15).astype(np.uint16)
    flat = np.full((24, 32), 512, np.uint16)
    for full, told in ((None, True), (False, True), (True, False)):
        encode(tmp_path / "a.mkv", "ffv1", "yuv420p10le", [luma, flat, flat], matrix=1, full=full)
        said = open_source(str(tmp_path / "a.mkv")).said
        assert any("outside limited range (0 to 992) and is cut" in line for line in said) == told


def said_of(path: Path, codec: str, form: str, planes: list[Any], **more: Any) -> tuple[str, ...]:
    encode(path, codec, form, planes, **more)
    return open_source(str(path)).said


def deep(planes: list[Any]) -> list[Any]:
    return [plane.astype(np.uint16) * 4 for plane in planes]


@h264
def test_what_is_not_done_is_said(tmp_path: Path) -> None:
    path, planes = tmp_path / "a.mp4", corners()
    said = said_of(
        path, "libx264", "yuv420p", planes, options={"flags": "+ildct+ilme", "x264-params": "tff=1"}
    )
    assert "interlaced: both fields in one frame, as stored" in said

    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)

    assert "pixels are not square, 16:11: read as stored" in said_of(
        path, "libx264", "yuv420p", planes, prepare=wide
    )

    def bright(stream: Any) -> None:
        stream.codec_context.color_trc = 16

    said = said_of(path, "libx264", "yuv420p10le", deep(planes), prepare=bright)
    assert "HDR values as coded by PQ (SMPTE 2084), no tone mapping" in said
    alpha = [*planes, np.zeros((48, 64), np.uint8)]
    assert "alpha channel left out" in said_of(tmp_path / "a.mkv", "ffv1", "yuva420p", alpha)


def test_colours_that_only_the_container_states_count(tmp_path: Path) -> None:
    """MPEG-4's stream says nothing of its matrix; Matroska does."""
    path = tmp_path / "a.mkv"
    said = said_of(path, "mpeg4", "yuv420p", corners(), matrix=9, full=False)
    assert said[1] == "colours by BT.2020, limited range, as the file says"
    said = said_of(path, "mpeg4", "yuv420p", corners())
    assert said[1] == "colours by BT.601, limited range, for the file does not say"


@h264
@pytest.mark.parametrize(
    ("form", "profile"),
    [("yuv420p", "baseline"), ("yuv420p", ""), ("yuv422p", ""), ("yuv444p", ""), ("gray", "")],
)
def test_only_grey_h264_is_grey(tmp_path: Path, form: str, profile: str) -> None:
    halves = {"yuv420p": (24, 32), "yuv422p": (48, 32), "yuv444p": (48, 64)}
    planes = corners()[:1] + [np.full(halves.get(form, (1, 1)), 128, np.uint8)] * 2 * (form != "gray")
    for suffix in ("mp4", "mkv", "avi"):
        options = {"profile": profile} if profile else {}
        path = tmp_path / f"a.{suffix}"
        encode(path, "libx264", form, planes, options)
        [first, _] = frames(path)
        assert first.shape == ((48, 64) if form == "gray" else (48, 64, 3))


# How many pictures


def write_two(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("ffv1", rate=25) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        for k, stream in enumerate(streams):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64), 50 + k, np.uint8), format="gray")
            for packet in [*stream.encode(picture), *stream.encode(None)]:
                container.mux(packet)
    return path


def test_one_of_two_videos_is_chosen_or_none(tmp_path: Path) -> None:
    path = write_two(tmp_path / "two.mkv")
    assert (
        f"{path} holds 2 videos: found 0: ffv1 64 x 48 gray; 1: ffv1 64 x 48 gray; expected one. Choose one by the source {path}:0"
        in refusal(path)
    )
    assert [f.max() for k in (0, 1) for f in frames(f"{path}:{k}")] == [50, 51]
    assert "no video '2'" in refusal(f"{path}:2")


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    cover = io.BytesIO()
    image.new("RGB", (32, 32)).save(cover, "JPEG")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        container.add_attachment("cover.jpg", "image/jpeg", cover.getvalue())
        picture = av.VideoFrame.from_ndarray(np.full((48, 64), 50, np.uint8), format="gray")
        for packet in [*stream.encode(picture), *stream.encode(None)]:
            container.mux(packet)
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert len(container.streams.video) == 2
    assert [f.max() for f in frames(tmp_path / "a.mkv")] == [50]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_an_animation_is_a_source_and_no_image(tmp_path: Path, name: str) -> None:
    pictures = [image.fromarray(np.full((8, 12, 3), 40 * k, np.uint8)) for k in range(4)]
    lossless = {"lossless": True} if name == "a.webp" else {}
    pictures[0].save(
        tmp_path / name, save_all=True, append_images=pictures[1:], duration=[100, 200, 50, 40], **lossless
    )
    with open_source(str(tmp_path / name)) as source:
        read = list(source)
        assert (source.length, source.fps) == (4, 10)
    assert [int(f.data[0, 0, 0]) for f in read] == [0, 40, 80, 120]
    assert [round(1000 * f.time) for f in read] == [0, 100, 300, 350]
    whole = (tmp_path / name).read_bytes()
    (tmp_path / "cut").mkdir()
    for share in (0.3, 0.6, 0.8):
        (tmp_path / "cut" / name).write_bytes(whole[: int(len(whole) * share)])
        assert name in refusal(tmp_path / "cut" / name)
    assert f"holds 4 pictures: found an animation in a folder of images; expected one picture a file. An animation is a source of its own: {tmp_path / name}" in refusal(tmp_path)  # fmt: skip


def test_the_picture_for_programs_without_animations_is_none_of_it(tmp_path: Path) -> None:
    pictures = [image.fromarray(np.full((8, 12, 3), 40 * k, np.uint8)) for k in range(4)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], default_image=True)
    assert [int(f[0, 0, 0]) for f in frames(tmp_path / "a.png")] == [40, 80, 120]


def test_stacks_of_images_and_netpbm_files_of_several(tmp_path: Path) -> None:
    values = np.arange(3 * 8 * 9, dtype=np.uint16).reshape(3, 8, 9)
    path = tmp_path / "stack" / "a.tif"
    tiff(path, values)
    np.testing.assert_array_equal(frames(path), values)
    assert f"holds 3 pages: found a stack in a folder of images; expected one picture a file. A stack is a source of its own: {path}" in refusal(path.parent)  # fmt: skip
    one = netpbm(5, values[0], 1023)
    (tmp_path / "a.pgm").write_bytes(one + one)
    assert "several images in one file" in refusal(tmp_path / "a.pgm")


def test_pages_written_one_by_one_are_a_stack(tmp_path: Path) -> None:
    import tifffile

    values = np.random.default_rng(0).integers(0, 65536, (4, 8, 9)).astype(np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in values:
            writer.write(page, photometric="minisblack", contiguous=False, compression="lzw")
    np.testing.assert_array_equal(frames(tmp_path / "a.tif"), values)
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(values[0], photometric="minisblack")
        writer.write(values[0, :4], photometric="minisblack")
    assert "pages of different kinds: found uint16[8, 9], uint16[4, 9]" in refusal(tmp_path / "b.tif")


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "jpeg"}, {"imagej": True, "truncate": True, "metadata": {"axes": "TYX"}, "photometric": None}])  # fmt: skip
def test_a_tiff_without_its_end_is_damage(tmp_path: Path, options: dict[str, Any]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 32, 40)).astype(np.uint8)
    whole = Path(tiff(tmp_path / "whole.tif", values, **options)).read_bytes()
    for share in (0.1, 0.5, 0.9, 0.98):
        (tmp_path / "a.tif").write_bytes(whole[: int(len(whole) * share)])
        assert str(tmp_path / "a.tif") in refusal(tmp_path / "a.tif")


def test_images_of_differing_depth_are_one_clear_error(tmp_path: Path) -> None:
    for name, top in (("1.pgm", 1023), ("2.pgm", 4095)):
        (tmp_path / name).write_bytes(netpbm(5, np.zeros((2, 3), int), top))
    (tmp_path / "notes.txt").touch()
    assert refusal(tmp_path) == (
        f"images in {tmp_path}: frame 1 (2.pgm): found uint16[2, 3] of values 0 to 4095; "
        "expected uint16[2, 3] of values 0 to 1023 as in frame 0 (1.pgm)"
    )
    assert open_source(str(tmp_path)).said[0] == "left out: 1 file that is no image (.txt)"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_to_an_image_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    values = np.arange(8 * 9, dtype=np.uint16).reshape(8, 9)
    name = data.draw(st.sampled_from(["a.tif", "a.png", "a.pgm", "a.ppm"]))
    if name == "a.tif":
        content = bytearray(Path(tiff(folder / name, values, compression="zlib")).read_bytes())
    elif name == "a.png":
        content = bytearray(png(values, 0))
    elif name == "a.pgm":
        content = bytearray(netpbm(5, values, 1023))
    else:
        content = bytearray(netpbm(3, np.dstack([values] * 3), 1023))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(EdgeLstmError):
        assert frames(folder / name)


# Radar


def test_radar_files_whose_counts_differ_come_in_one_unit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("h5py")
    mm = np.array([[0, 100], [65535, 20]], np.uint16)
    radar(tmp_path, mm)
    radar(
        tmp_path,
        np.array([[0, 10], [65535, 2]], np.uint16),
        minute=5,
        formula="GEO = 0.100000 * PV + 0.000000",
    )
    with caplog.at_level(logging.WARNING), open_source(str(tmp_path)) as source:
        np.testing.assert_array_equal([f.data for f in source], [mm, mm])
    assert (
        "frame 1 (2020-01-01T00:05Z): image1, ACCUMULATED_PRECIPITATION_[MM]: GEO = 0.1 * PV" in caplog.text
    )
    assert source.said[0].endswith("GEO = 0.01 * PV, nothing at PV 65535; read as counts, in 5 minutes")


def test_rain_and_reflectivity_are_not_mixed(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    stored = np.array([[0, 100], [255, 20]], np.uint8)
    radar(tmp_path, stored.astype(np.uint16))
    radar(tmp_path, stored, minute=5, quantity="REFLECTIVITY_[DBZ]", formula="GEO=0.5*PV+-32.0", outside=255)
    assert "found float32[2, 2]; expected uint16[2, 2]" in refusal(tmp_path)


def test_several_radar_images_are_named(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    radar(tmp_path, np.zeros((2, 2), np.uint16), images=2)
    assert f"several images: found image1 ACCUMULATED_PRECIPITATION_[MM], image2 ACCUMULATED_PRECIPITATION_[MM]; expected one. Choose one by the source {tmp_path}:image1" in refusal(tmp_path)  # fmt: skip
    assert "no image 'image3': found image1, image2" in refusal(f"{tmp_path}:image3")
    assert [f.max() for f in frames(f"{tmp_path}:image2")] == [1]


# Scale, grey, hints


def model(shape: tuple[int, ...], preprocessing: str) -> Signature:
    spec = TensorSpec("x", "float32", ("N", *shape))
    return Signature(
        (spec,),
        (TensorSpec("y", "float32", ("N", *shape)),),
        (),
        preprocessing={"x": tuple(parse_ops(preprocessing))},
    )


def test_the_scale_of_another_depth_is_refused_with_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(netpbm(5, np.full((4, 4), 1023), 1023))
    [frame] = list(open_source(str(tmp_path)))
    eight = model((4, 4), "scale=0.00392156863")
    with pytest.raises(
        EdgeLstmError, match="found values 0 to 1023; expected 0 to 255, which the model's"
    ) as caught:
        Inputs(eight)(frame)
    assert caught.value.hint is not None
    right = caught.value.hint.split("'")[1]
    np.testing.assert_allclose(Inputs(eight, {"x": parse_ops(right)})(frame)["x"], 1, rtol=1e-6)
    np.testing.assert_allclose(Inputs(model((4, 4), "scale=0.000977517107"))(frame)["x"], 1, rtol=1e-6)
    centred = model((4, 4), "scale=0.00784313725,-1")
    with pytest.raises(EdgeLstmError) as caught:
        Inputs(centred)(frame)
    right = str(caught.value.hint).split("'")[1]
    np.testing.assert_allclose(Inputs(centred, {"x": parse_ops(right)})(frame)["x"], 1, rtol=1e-6)
    clipped = model((4, 4), "clip=0,255;scale=0.00392156863")
    with pytest.raises(EdgeLstmError) as caught:
        Inputs(clipped)(frame)
    right = str(caught.value.hint).split("'")[1]
    np.testing.assert_allclose(Inputs(clipped, {"x": parse_ops(right)})(frame)["x"], 1, rtol=1e-6)
    Inputs(eight)(Frame(0, None, "a", np.full((4, 4), 255, np.uint8), (0.0, 255.0)))
    Inputs(eight)(Frame(0, None, "a", np.full((4, 4), 9.0)))


def test_a_grey_camera_serves_a_model_that_makes_grey() -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 5)).astype(np.uint8)
    spec = TensorSpec("x", "float32", ("N", 1, 4, 5))
    np.testing.assert_array_equal(Preprocess(parse_ops("grey"), spec)(values)[0], values)
    colour = np.repeat(values[..., None], 3, -1)
    np.testing.assert_allclose(Preprocess(parse_ops("grey"), spec)(colour)[0], values, rtol=1e-6)


@pytest.mark.parametrize(
    ("have", "want", "hint"),
    [
        ((11,), (30, 11), "One step of the model takes 30 of these frames together: --hop 1 gives it a window that slides frame by frame, --hop 30"),
        ((11,), (12,), "No preprocessing makes the one of the other"),
        ((4, 5, 6, 7), (1, 8, 8), "No preprocessing makes the one of the other"),
    ],
)  # fmt: skip
def test_hints_are_true(have: tuple[int, ...], want: tuple[int, ...], hint: str) -> None:
    with pytest.raises(EdgeLstmError) as caught:
        Preprocess([], TensorSpec("x", "float32", ("N", *want)))(np.zeros(have))
    assert hint in str(caught.value.hint)
