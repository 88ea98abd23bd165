"""Folders that files come into: gaps, a half-written last file, waiting for what comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import edgelstm
import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source
from edgelstm.pipeline.sources import folder as folder_module
from running import until

h5py = pytest.importorskip("h5py")


def radar(folder: Path, minute: int, value: int = 1) -> Path:
    path = folder / f"RAD_2020010100{minute:02d}.h5"
    with h5py.File(path, "w") as file:
        file["image1/image_data"] = np.full((5, 5), value, np.uint16)
    return path


def test_a_half_written_last_file_is_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for minute in (0, 5, 10):
        last = radar(tmp_path, minute, minute)
    whole = last.read_bytes()
    last.write_bytes(whole[:-900])
    assert [f.data[0, 0] for f in open_source(str(tmp_path))] == [0, 5]
    assert f"left out the last file, it is half-written or damaged: {last}" in caplog.text
    radar(tmp_path, 15)  # now it is no longer the last: damaged, and an error
    with pytest.raises(EdgeLstmError, match="damaged, or not HDF5"):
        list(open_source(str(tmp_path)))


def test_follow_waits_for_files_and_for_the_half_of_one(tmp_path: Path) -> None:
    radar(tmp_path, 0, 0)
    spare = tmp_path / "spare"
    spare.mkdir()
    whole = radar(spare, 5, 5).read_bytes()

    def arrive() -> None:
        late = tmp_path / "RAD_202001010005.h5"
        time.sleep(0.4)
        late.write_bytes(whole[:-900])
        time.sleep(0.6)
        late.write_bytes(whole)
        radar(tmp_path, 20, 20)

    writer = threading.Thread(target=arrive)
    writer.start()
    with open_source(str(tmp_path), follow=True, idle=2.0) as source:
        assert source.length is None
        found = [(int(f.data[0, 0]), f.time, f.gap) for f in source]
    writer.join()
    assert found == [
        (0, 0.0, None),
        (5, 300.0, None),
        (20, 1200.0, "2 frames missing between 2020-01-01T00:05Z and 2020-01-01T00:20Z"),
    ]


def test_follow_leaves_out_what_stays_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folder_module, "PATIENCE", 0.5)
    radar(tmp_path, 0)
    (tmp_path / "RAD_202001010005.h5").write_bytes(b"no radar")
    radar(tmp_path, 10)
    assert len(list(open_source(str(tmp_path), follow=True, idle=1.0))) == 2
    assert "left out, it can't be read" in caplog.text


@pytest.mark.parametrize("watched", [True, False])
def test_a_folder_that_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, watched: bool
) -> None:
    """By the system's word or by looking: a file whose place was reserved before it was filled is no file of zeros, a stray one ends
    nothing, what was removed is forgotten, and a stop is a stop."""
    if watched:
        pytest.importorskip("watchfiles")
    else:
        monkeypatch.setitem(sys.modules, "watchfiles", None)
    monkeypatch.setattr(folder_module, "SETTLED", 0.0)
    first = radar(tmp_path, 0, 1)
    spare = tmp_path / "spare"
    spare.mkdir()
    whole = radar(spare, 5, 5).read_bytes()
    values = np.full((5, 5), 5, np.uint16).tobytes()
    assert whole.count(values) == 1
    reserved = whole.replace(values, bytes(len(values)))
    source = open_source(str(tmp_path), follow=True)
    found: list[int] = []
    left_out: list[str] = []
    source.left_out.tell = left_out.append
    more = threading.Event()

    def read() -> None:
        for frame in source:
            found.append(int(frame.data[0, 0]))
            more.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert more.wait(60)
    more.clear()
    first.unlink()
    late = tmp_path / "RAD_202001010005.h5"
    monkeypatch.setattr(folder_module, "SETTLED", 1e9)
    with late.open("wb") as file:  # piece by piece, in the size that it will have
        for piece in (reserved, reserved[:900] + whole[900:], whole):
            file.seek(0)
            file.write(piece)
            file.flush()
            assert not more.wait(0.1)
    monkeypatch.setattr(folder_module, "SETTLED", 0.0)
    (tmp_path / "stray.h5").write_bytes(whole)
    assert more.wait(60)
    more.clear()
    radar(tmp_path, 10, 10)
    assert more.wait(60)
    radar(tmp_path, 7, 7)
    until(lambda: "late" in left_out)
    source.stop()
    reader.join(60)
    assert not reader.is_alive()
    assert found == [1, 5, 10]
    assert left_out == ["no_time", "late"]
    assert "no time in the file's name" in caplog.text


def test_what_can_not_be_followed_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    with pytest.raises(EdgeLstmError, match="found a file; expected a folder"):
        open_source(str(tmp_path / "x.npy"), follow=True)
    with pytest.raises(EdgeLstmError, match="expected seconds, with follow"):
        open_source(str(tmp_path / "x.npy"), idle=3)


def test_a_gap_resets_the_state_where_that_is_asked(tmp_path: Path) -> None:
    model, data = tmp_path / "m.onnx", tmp_path / "radar"
    data.mkdir()
    zoo.conv_lstm(channels=1).save(model)
    for minute in (0, 5, 10, 25, 30):
        radar(data, minute, minute + 1)
    made = {}
    for policy in ("hold", "reset"):
        out = tmp_path / f"{policy}.npz"
        report = edgelstm.run(model, str(data), out, on_gap=policy, threads=1)  # type: ignore[arg-type]
        assert report.resets == (policy == "reset")
        made[policy] = np.load(out)["h_next"]
    np.testing.assert_array_equal(made["hold"][:3], made["reset"][:3])
    with edgelstm.Runner.open(model, threads=1) as runner:
        stream = runner.stream("a")
        fresh = [stream.step(np.full((1, 5, 5), m + 1, np.float32), copy=True)["h_next"] for m in (25, 30)]
    np.testing.assert_allclose(made["reset"][3:], fresh, atol=1e-6)
    assert np.abs(made["hold"][3] - made["reset"][3]).max() > 1e-3
    with pytest.raises(EdgeLstmError, match="expected frames without a gap"):
        edgelstm.run(model, str(data), tmp_path / "e.npz", on_gap="error", threads=1)
    assert not (tmp_path / "e.npz").exists()


def test_ctrl_c_ends_a_followed_folder_well(tmp_path: Path) -> None:
    """What was streamed until then is written, and the exit code is 0."""
    data = tmp_path / "radar"
    data.mkdir()
    zoo.conv_lstm(channels=1).save(tmp_path / "m.onnx")
    for minute in (0, 5, 10):
        radar(data, minute)
    command = [
        sys.executable,
        "-m",
        "edgelstm",
        "run",
        "m.onnx",
        "--source",
        "radar",
        "--follow",
        "-o",
        "y.npz",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        # A test run in the background has it ignored, and what it starts would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        temporary: list[Path] = []
        deadline = time.monotonic() + 60
        while not temporary and time.monotonic() < deadline:
            time.sleep(0.2)
            temporary = list(tmp_path.glob(".y*"))
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, error
    assert len(np.load(tmp_path / "y.npz")["h_next"]) == 3
    assert not list(tmp_path.glob(".y*"))


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    """A cube a file, in the order in which people count."""
    for k in (10, 9, 1):
        np.save(tmp_path / f"cube{k}.npy", np.full((2, 3, 4), k, ">f4"))
    with open_source(str(tmp_path)) as source:
        frames = list(source)
    assert [int(f.data[0, 0, 0]) for f in frames] == [1, 9, 10]
    assert all(f.data.dtype == np.float32 and f.data.shape == (2, 3, 4) for f in frames)
    assert source.length == 3
    np.save(tmp_path / "cube2.npy", np.zeros(3, np.complex64))
    with pytest.raises(EdgeLstmError, match=r"found complex64; expected numbers\. Write magnitude and phase"):
        list(open_source(str(tmp_path)))
    (tmp_path / "cube2.npy").write_bytes((tmp_path / "cube1.npy").read_bytes()[:-4])
    with pytest.raises(EdgeLstmError, match=r"cube2.npy \(frame 1\): not a NumPy array, or a damaged one"):
        list(open_source(str(tmp_path)))
