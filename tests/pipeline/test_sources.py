"""Sources: the real radar and video files, generated ones of every kind, and what each says of bad ones."""

from __future__ import annotations

import contextlib
import logging
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import TensorSpec
from edgelstm.pipeline import Preprocess, open_source, parse_ops
from edgelstm.pipeline.sources import source as source_module


def refusal(path: object, *, read: bool = False) -> str:
    """The message of opening (or of reading) the source at ``path``."""
    if read:
        with pytest.raises(EdgeLstmError) as caught, open_source(str(path)) as source:
            list(source)
    else:
        with pytest.raises(EdgeLstmError) as caught:
            open_source(str(path))
    return str(caught.value)


# KNMI


def write_radar(
    folder: Path, time: str, value: int = 1, *, shape: tuple[int, ...] = (6, 5), name: str = "image_data"
) -> Path:
    h5py = pytest.importorskip("h5py")
    path = folder / f"RAD_NL25_RAP_5min_{time}.h5"
    with h5py.File(path, "w") as file:
        file[f"image1/{name}"] = np.full(shape, value, np.uint16)
    return path


def test_real_radar(radar_dir: Path) -> None:
    pytest.importorskip("h5py")
    with open_source(str(radar_dir)) as source:
        assert (source.length, source.fps, source.gaps) == (92, pytest.approx(1 / 300), ())
        frames = list(source)
    assert [f.index for f in frames] == list(range(92))
    assert (frames[1].name, frames[1].time) == ("2010-08-26T00:05Z", 300.0)
    assert frames[91].name == "2010-08-26T07:35Z"
    assert all(f.data.shape == (765, 700) and f.data.dtype == np.uint16 for f in frames)
    # A summer night with heavy rain over the Netherlands: some pixels without data, some with more than 10 mm/h.
    preprocess = Preprocess(
        parse_ops("nodata=65535;scale=0.12;average=2;crop=0,0,256,256"),
        TensorSpec("x", "float32", ("N", 1, 256, 256)),
    )
    rain = np.stack([preprocess(f.data) for f in frames[::10]])
    assert rain.min() == 0
    assert 10 < rain.max() < 300


def test_radar_is_ordered_by_time_and_limited(tmp_path: Path) -> None:
    for minute, value in ((10, 3), (0, 1), (5, 2)):
        write_radar(tmp_path, f"2020010100{minute:02d}", value)
    with open_source(str(tmp_path), limit=2) as source:
        assert source.length == 2
        assert [(f.data[0, 0], f.time) for f in source] == [(1, 0.0), (2, 300.0)]
        assert len(list(source)) == 2, "iterating again starts anew"


def test_a_gap_in_the_radar_is_told_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for minute in (0, 5, 10, 25, 30):
        write_radar(tmp_path, f"2020010100{minute:02d}")
    with caplog.at_level(logging.WARNING):
        source = open_source(str(tmp_path))
    assert source.gaps == ("2 frames missing between 2020-01-01T00:10Z and 2020-01-01T00:25Z",)
    assert source.gaps[0] in caplog.text
    assert [f.time for f in source] == [0, 300, 600, 1500, 1800]


def test_bad_radar(tmp_path: Path) -> None:
    write_radar(tmp_path, "202001010000")
    second = write_radar(tmp_path, "202001010005", name="other")
    assert refusal(tmp_path, read=True) == (
        f"{second} (frame 1): not a KNMI radar image: found groups 'image1'; expected image1/image_data, whole numbers [rows, columns]"
    )
    write_radar(tmp_path, "202001010005", shape=(6, 4))
    message = refusal(tmp_path, read=True)
    assert (
        f"KNMI radar files in {tmp_path}: frame 1 (2020-01-01T00:05Z): found uint16[6, 4]; expected uint16[6, 5]"
        in message
    )
    write_radar(tmp_path, "202001010010")  # the last one may be half-written
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    assert f"{second} (frame 1): damaged, or not HDF5" in refusal(tmp_path, read=True)
    second.write_bytes(b"no radar")
    assert f"{second} (frame 1): damaged, or not HDF5" in refusal(tmp_path, read=True)
    shutil.copy(tmp_path / "RAD_NL25_RAP_5min_202001010000.h5", tmp_path / "RAD_NL21_202001010000.h5")
    assert (
        "two files of one time: found RAD_NL21_202001010000.h5, RAD_NL25_RAP_5min_202001010000.h5"
        in refusal(tmp_path)
    )
    write_radar(tmp_path, "202013010000")
    assert "RAD_NL25_RAP_5min_202013010000.h5: no time in the file's name: expected twelve digits" in refusal(
        tmp_path
    )


def test_a_radar_file_that_claims_a_huge_image_is_refused_unread(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a_202001010000.h5", "w") as file:
        file.create_dataset("image1/image_data", (100_000, 100_000), np.uint16, chunks=(100, 100))
    assert "size of a frame: found uint16[100000, 100000], 20000000000 bytes; expected 1 to" in refusal(
        tmp_path, read=True
    )


# Video


def write_video(path: Path, frames: int = 20) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            noise = np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            noise[:, :32] = i * 10 % 256
            for packet in stream.encode(av.VideoFrame.from_ndarray(noise, "rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def test_real_video(dashcam_video: Path) -> None:
    pytest.importorskip("av")
    with open_source(str(dashcam_video)) as source:
        assert (source.length, source.fps) == (221, 25)
        last, count, total = None, 0, 0.0
        for last in source:
            count, total = count + 1, total + last.data.mean()
    assert count == 221
    assert (last.data.shape, last.data.dtype, last.time, last.name) == (
        (540, 960, 3),
        np.uint8,
        8.8,
        "8.800 s",
    )
    assert 60 < total / count < 200
    sky, road = last.data[:100].mean((0, 1)), last.data[-100:].mean((0, 1))
    assert sky[2] > sky[0], "blue sky: the channels are in order R, G, B"
    assert road.mean() < sky.mean()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_video_frames_in_order(tmp_path: Path, name: str) -> None:
    source = open_source(str(write_video(tmp_path / name)))
    frames = list(source)
    assert len(frames) == 20
    assert [round(f.time * 10) for f in frames] == list(range(20))
    assert np.diff([f.data[:, :24].mean() for f in frames]).min() > 5


def test_bad_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:1000])
    assert f"{path}: not a video, or a damaged one" in refusal(path)
    path.write_bytes(b"no video")
    assert f"{path}: not a video, or a damaged one: found Invalid data" in refusal(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut.mp4", "can't read frame 110: found Invalid data"),
        ("cut.mkv", "ends early at frame 110: found 4.40 s of video; expected 8.84 s by its header"),
    ],
)
def test_a_truncated_video_names_the_frame(
    dashcam_video: Path, tmp_path: Path, name: str, message: str
) -> None:
    pytest.importorskip("av")
    path = tmp_path / name
    remux(dashcam_video, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = refusal(path, read=True)
    assert f"{path}" in said
    assert message in said


def test_a_video_damaged_in_the_middle_names_the_frame(dashcam_video: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "damaged.mp4"
    data = bytearray(dashcam_video.read_bytes())
    place = len(data) * 3 // 10
    data[place : place + 3000] = bytes(3000)
    path.write_bytes(data)
    assert f"{path}: frame 64 is damaged: expected a whole video" in refusal(path, read=True)


def remux(source: Path, target: Path) -> None:
    """Copy the packets, the index in front: such a file can be opened when its end is missing."""
    import av

    options = {"movflags": "faststart"} if target.suffix == ".mp4" else {}
    with av.open(str(source)) as inp, av.open(str(target), "w", options=options) as out:
        stream = out.add_stream_from_template(inp.streams.video[0])
        for packet in inp.demux(inp.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)


# Images


def test_images_in_natural_order(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for i in (10, 9, 1):
        image.fromarray(np.full((4, 5, 3), i, np.uint8)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    source = open_source(str(tmp_path))
    assert source.length == 3
    assert [(f.name, f.data[0, 0, 0]) for f in source] == [
        ("frame1.png", 1),
        ("frame9.png", 9),
        ("frame10.png", 10),
    ]


@pytest.mark.parametrize(
    ("mode", "suffix", "shape", "dtype"),
    [
        ("L", "png", (4, 5), "uint8"),
        ("RGB", "jpg", (4, 5, 3), "uint8"),
        ("RGBA", "png", (4, 5, 3), "uint8"),
        ("P", "png", (4, 5, 3), "uint8"),
        ("1", "png", (4, 5), "uint8"),
        ("I;16", "png", (4, 5), "uint16"),
        ("F", "tiff", (4, 5), "float32"),
    ],
)
def test_image_modes(tmp_path: Path, mode: str, suffix: str, shape: tuple[int, ...], dtype: str) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new(mode, (5, 4)).save(tmp_path / f"a.{suffix}")
    [frame] = open_source(str(tmp_path))
    assert (frame.data.shape, frame.data.dtype) == (shape, np.dtype(dtype))


def test_bad_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("L", (5, 4)).save(tmp_path / "1.png")
    image.new("L", (5, 5)).save(tmp_path / "2.png")
    assert (
        f"images in {tmp_path}: frame 1 (2.png): found uint8[5, 5]; expected uint8[4, 5] as in frame 0 (1.png)"
        in refusal(tmp_path, read=True)
    )
    (tmp_path / "2.png").write_bytes(b"no image")
    assert f"{tmp_path / '2.png'} (frame 1): not an image, or a damaged one" in refusal(tmp_path, read=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    image.fromarray(noise).save(tmp_path / "2.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:2000])
    assert f"{tmp_path / '2.png'} (frame 1): not an image, or a damaged one" in refusal(tmp_path, read=True)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [13_500, 60_000])
def test_an_image_that_claims_to_be_huge_is_refused_unread(tmp_path: Path, side: int) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = struct.pack(">II", side, side)
    import zlib

    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    message = refusal(tmp_path, read=True)
    assert "size of a frame" in message or "decompression bomb" in message


# Arrays

VALUES = np.random.default_rng(0).normal(size=(7, 3, 2))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "uint16", "bool"])
@pytest.mark.parametrize("kind", ["a.npy", "a.npz", "compressed.npz"])
def test_arrays(tmp_path: Path, kind: str, dtype: str, order: str) -> None:
    values = np.asarray(np.abs(VALUES) * 10, dtype, order=order)
    path = tmp_path / kind
    if kind == "a.npy":
        np.save(path, values)
    else:
        (np.savez_compressed if "compressed" in kind else np.savez)(path, anything=values)
    source = open_source(str(path))
    assert source.length == 7
    np.testing.assert_array_equal([f.data for f in source], values)
    np.testing.assert_array_equal([f.data for f in source], values, err_msg="iterating again")
    assert next(iter(source)).name == f"{path.stem}[0]"


def test_npz_chooses_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, frames=np.arange(3), truth=np.arange(5))
    assert [f.data for f in open_source(str(path))] == [0, 1, 2]
    assert [f.data for f in open_source(f"{path}:truth", limit=2)] == [0, 1]
    assert (
        f"{path}: no array 'x': found frames, truth; expected a.npz:NAME with one of these names"
        in refusal(f"{path}:x")
    )
    np.savez(path, left=np.arange(3), right=np.arange(3) * 2)
    assert [dict(f.data) for f in open_source(str(path))][2] == {"left": 2, "right": 4}
    np.savez(path, left=np.arange(3), right=np.arange(5))
    assert "arrays of different length: found left 3, right 5" in refusal(path)


def test_arrays_are_read_frame_by_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed array larger than the limit of one frame streams."""
    monkeypatch.setattr(source_module, "MAX_FRAME_BYTES", 1000)
    np.savez_compressed(tmp_path / "a.npz", np.zeros((100, 100), np.uint8))
    assert sum(1 for _ in open_source(str(tmp_path / "a.npz"))) == 100


def npy(shape: tuple[int, ...], data: bytes, descr: str = "<f8") -> bytes:
    import io

    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def test_bad_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"no array")
    assert f"{path}: not a NumPy array, or a damaged one" in refusal(path)
    np.save(path, np.array([{}, {}]), allow_pickle=True)
    assert f"{path}: dtype: found object; expected numbers" in refusal(path)
    np.save(path, np.array(["a", "b"]))
    assert f"{path}: dtype: found <U1; expected numbers" in refusal(path)
    np.save(path, np.float32(1))
    assert f"{path}: no frames: found []; expected time on axis 0" in refusal(path)
    np.save(path, np.zeros((0, 4)))
    assert f"{path}: no frames: found [0, 4]" in refusal(path)
    path.write_bytes(npy((-3, 4), b""))
    assert f"{path}: no frames: found [-3, 4]" in refusal(path)
    path.write_bytes(npy((5, 2**40), b""))
    assert f"{path}: size of a frame: found float64[1099511627776]" in refusal(path)
    path.write_bytes(npy((5, 2), bytes(40)))
    assert f"{path} ends early at frame 2: found 40 bytes; expected 80 for float64[5, 2]" in refusal(path)


def test_bad_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"no archive")
    assert f"{path}: not an .npz file, or a damaged one" in refusal(path)
    zipfile.ZipFile(path, "w").close()
    assert f"{path}: no array: found an empty archive" in refusal(path)
    np.savez(path, objects=np.array([{}], object))
    assert f"{path}:objects: dtype: found object" in refusal(path)


@pytest.mark.parametrize("compressed", [True, False])
def test_an_archive_damaged_in_the_middle_names_the_frame(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.npz"
    values = np.random.default_rng(0).normal(size=(2000, 10))
    (np.savez_compressed if compressed else np.savez)(path, values)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert f"{path}:arr_0 ends early or is damaged at frame " in refusal(path, read=True)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_to_an_array_file_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / ("fuzz" + data.draw(st.sampled_from([".npy", ".npz"])))
    (np.save if path.suffix == ".npy" else np.savez_compressed)(path, VALUES)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(EdgeLstmError):
        assert sum(1 for _ in open_source(str(path))) > 0


# Where sources are looked for


def test_what_is_no_source(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path / "nowhere.npy")
        == f"source {tmp_path / 'nowhere.npy'} does not exist. Check the path"
    )
    assert "found an empty folder; expected radar files (.h5), images or .npy files in it" in refusal(
        tmp_path
    )
    (tmp_path / "a.xyz").touch()
    assert "found a folder with 1 other file; expected a folder of radar files (.h5) of KNMI" in refusal(
        tmp_path
    )
    assert f"source {tmp_path / 'a.xyz'}: found a .xyz file; expected a folder of radar" in refusal(
        tmp_path / "a.xyz"
    )
    (tmp_path / "a.h5").touch()
    (tmp_path / "a.png").touch()
    assert "found 1 radar file and 1 image; expected one kind in a folder" in refusal(tmp_path)
    assert "source gopher://...: expected a folder" in refusal("gopher://host/stream")


def test_limit_must_be_positive(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    with pytest.raises(EdgeLstmError, match="limit of frames: found 0; expected at least 1"):
        open_source(str(tmp_path / "a.npy"), limit=0)


def test_a_name_is_refused_where_a_file_holds_one_source(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    assert "found 'frames' chosen in an .npy file" in refusal(f"{tmp_path / 'x.npy'}:frames")
