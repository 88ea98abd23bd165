"""V4L2 cameras: FFmpeg's own code reads a device that `v4l2_device.c` stands for, below the C library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("av")
if sys.platform != "linux" or shutil.which("cc") is None:
    pytest.skip("Linux, and a C compiler", allow_module_level=True)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("v4l2") / "device.so"
    source = Path(__file__).with_name("v4l2_device.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(made), str(source), "-ldl"], check=True)
    return made


PRELUDE = """
import itertools, logging, sys, threading, time
from pathlib import Path
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source
def does(what): Path("a.camera.says").write_text(what)
def failure(options="", frames=1):
    try:
        with open_source("v4l2:a.camera#read_timeout=1&" + options) as source:
            for frame in itertools.islice(source, frames): pass
    except EdgeLstmError as error:
        return str(error)
    return ""
"""


def done(library: Path, folder: Path, code: str) -> None:
    """Run ``code`` where ``a.camera`` is a device."""
    (folder / "a.camera").write_bytes(bytes(32 * 8192))
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    command = [sys.executable, "-c", PRELUDE + code]
    made = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr


def test_frames_outlive_the_device(library: Path, tmp_path: Path) -> None:
    """FFmpeg gives the driver's memory: frames that wait in a queue were overwritten, and reading them after the end crashed the process."""
    code = """
with open_source("v4l2:a.camera#format=gray") as source:
    frames = list(itertools.islice(source, 100))
for k, frame in enumerate(frames):
    assert frame.data.shape == (48, 64) and (frame.data == k).all(), (k, frame.data)
"""
    done(library, tmp_path, code)


def test_times_are_the_drivers(library: Path, tmp_path: Path) -> None:
    """A slow reader gets old frames, and their times say so: the driver's clock is this machine's."""
    code = """
with open_source("v4l2:a.camera#format=gray") as source:
    time.sleep(0.5)
    came = time.time()
    frames = list(itertools.islice(source, 10))
times = [source.place.start.timestamp() + f.time for f in frames]
for a, b in zip(times, times[1:]): assert abs(b - a - 0.02) < 1e-4, times
assert 0.2 < came - times[1] < 5, (came, times)
"""
    done(library, tmp_path, code)


def test_what_was_asked_for_and_is_not_given(library: Path, tmp_path: Path) -> None:
    code = """
with open_source("v4l2:a.camera#rate=30") as source:
    assert "50 frames a second, for the device does not give 30" in source.said, source.said
for options, words in {
    "format=rgb24": "format: found yuyv422; expected rgb24",
    "format=mjpeg": "list-formats-ext",
    "format=nonsense": "list-formats-ext",
    "size=640x480": "size: found 64x48; expected 640x480",
    "rate=0": "rate: found 0",
}.items():
    assert words in failure(options), (options, failure(options))
does("padded")
assert "pads its rows" in failure("format=yuyv422"), failure("format=yuyv422")
does("output")
assert "is no camera: found an output" in failure(), failure()
"""
    done(library, tmp_path, code)


def test_colours_as_the_driver_says(library: Path, tmp_path: Path) -> None:
    code = """
with open_source("v4l2:a.camera#format=yuyv422") as source:
    assert "colours by BT.709, full range, as the file says" in source.said, source.said
    frame = next(itertools.islice(source, 50, None))
y = 50  # y, u and v of it: the matrix of BT.709, full range
wanted = [y + 1.5748 * (y - 128), y - 0.1873 * (y - 128) - 0.4681 * (y - 128), y + 1.8556 * (y - 128)]
assert abs(frame.data[20, 20] - [min(max(v, 0), 255) for v in wanted]).max() <= 2, (frame.data[20, 20], wanted)
"""
    done(library, tmp_path, code)


def test_a_camera_that_is_pulled_out_or_falls_silent(library: Path, tmp_path: Path) -> None:
    """No timeout of FFmpeg's ends its waiting for a device."""
    code = """
def at(k, what):
    with open_source("v4l2:a.camera#read_timeout=1") as source:
        for frame in source:
            if frame.index == k: does(what)
for what, words in {"gone": "is lost: found No such device", "silent": "is lost: found nothing came for 1 s"}.items():
    does("")
    try: at(5, what)
    except EdgeLstmError as error: assert words in str(error), error
    else: raise AssertionError(what)
since = time.monotonic()
assert "nothing came for 1 s" in failure("open_timeout=1"), "silent from the start"
assert time.monotonic() - since < 10
does("")
with open_source("v4l2:a.camera#read_timeout=60") as source:
    for frame in source:
        if frame.index == 5:
            does("silent")
            threading.Timer(0.3, source.stop).start()
does("")
assert failure() == ""
"""
    done(library, tmp_path, code)


def test_a_device_that_does_not_begin_to_stream_is_free_again(library: Path, tmp_path: Path) -> None:
    """No room on the USB for one more camera: FFmpeg left its memory mapped, and the device was busy for as long as the process lived."""
    code = """
does("streamon")
assert "can't be opened: found No space left on device" in failure(), failure()
assert "can't be opened: found No space left on device" in failure(), failure()
does("")
assert failure() == ""
"""
    done(library, tmp_path, code)


def test_damaged_pictures_are_left_out(library: Path, tmp_path: Path) -> None:
    code = """
does("damaged")
with open_source("v4l2:a.camera#format=gray") as source:
    frames = list(itertools.islice(source, 12))
assert [int(f.data[0, 0]) for f in frames] == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13], [int(f.data[0, 0]) for f in frames]
assert [f.index for f in frames if f.gap] == [4, 8] and "1 damaged frame" in frames[4].gap
"""
    done(library, tmp_path, code)
