"""Cameras: real servers are read, lost, killed and started again; what is secret stays so."""

from __future__ import annotations

import functools
import logging
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import Inputs, open_source, parse_ops
from edgelstm.pipeline.sources.address import parse_url
from edgelstm.pipeline.sources.clock import CaptureClock
from edgelstm.pipeline.sources.h264 import FrameNumbers

pytest.importorskip("av")
pytest.importorskip("pydantic")

import av
from cameras import RtspServer, h264, http_server, jpeg, transport_stream

from edgelstm import Pipeline

PASSWORD = "p@s/#s% w?rd"
MODEL = '[models.m]\npath = "model.onnx"\n'
OPS = "scale=0.00392156863;resize=8,8;channels_first"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    zoo.conv_lstm(3, 2, 8).save(tmp_path / "model.onnx")
    return tmp_path


def flat(value: int, height: int = 48, width: int = 64) -> bytes:
    return jpeg(np.full((height, width, 3), value, np.uint8))


def endless(send: Callable[[bytes], None]) -> None:
    picture = flat(100)
    while True:
        send(picture)
        time.sleep(0.02)


def section(name: str, source: str, **keys: Any) -> str:
    given = {"source": source, "preprocess": OPS, "overload": "latest", "retry": 0.05, **keys}
    words = {True: "true", False: "false"}
    lines = (f"{k} = {words.get(v) if isinstance(v, bool) else repr(v)}\n" for k, v in given.items())
    return f"[streams.{name}]\n" + "".join(lines)


@contextmanager
def running(pipeline: Pipeline) -> Iterator[list[Any]]:
    """The pipeline in a thread; its report comes into the list."""
    reports: list[Any] = []

    def run() -> None:
        reports.append(pipeline.run())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield reports
    finally:
        pipeline.stop()
        thread.join(60)
        assert not thread.is_alive()


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_rtsp_with_a_password_gives_timed_pictures_until_it_hangs() -> None:
    with RtspServer(login=f"us er:{PASSWORD}") as server:
        address = f"127.0.0.1:{server.port}/cam"
        before = time.time()
        with open_source(f"rtsp://us%20er:{quote(PASSWORD, safe='')}@{address}", limit=15) as source:
            frames = list(source)
        assert source.live
        assert source.description == f"camera rtsp://{address}"
        assert [f.index for f in frames] == list(range(15))
        assert all(f.data.shape == (48, 64, 3) and f.data.dtype == np.uint8 for f in frames)
        assert any(np.ptp(f.data) > 100 for f in frames), "a picture"
        steps = np.diff([f.time for f in frames])
        assert (steps > 0).all()
        assert np.median(steps) == pytest.approx(0.04, abs=0.01)
        assert source.place.start is not None
        assert before - 1 < source.place.start.timestamp() < time.time()
        with pytest.raises(EdgeLstmError, match="401") as caught:
            open_source(f"rtsp://us%20er:wr0ng-one@{address}")
        assert "wr0ng-one" not in repr(caught.value) + repr(caught.value.__cause__)

        with open_source(f"rtsp://us%20er:{quote(PASSWORD, safe='')}@{address}#read_timeout=0.5") as source:
            frames_again = iter(source)
            next(frames_again)
            server.freeze()
            with pytest.raises(EdgeLstmError, match=r"is lost: found nothing came for 0\.5 s"):
                list(frames_again)


def test_rtsp_goes_on_when_its_server_was_killed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with RtspServer(login=f"user:{PASSWORD}") as server:
        source = f"rtsp://user:${{PASS}}@127.0.0.1:{server.port}/cam"
        text = MODEL + section("door", source, retries=1000, loss="reset_on_return", sink="door.jsonl")
        out = folder / "door.jsonl"
        with running(Pipeline.from_text(text, folder, {"PASS": PASSWORD})) as reports:
            wait_for(lambda: lines(out) >= 3)
            server.kill()
            wait_for(lambda: "try 1 of" in caplog.text)
            before = lines(out)
            server.start()
            wait_for(lambda: lines(out) >= before + 3)
    [report] = reports
    assert not report.failed
    counts = report.streams["door"]
    assert counts["lost"] >= 1
    assert counts["returned"] >= 1
    assert counts["reset:return"] >= 1
    for secret in (PASSWORD, quote(PASSWORD, safe="")):
        assert secret not in caplog.text + repr(report)


def test_mjpeg_server_started_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server that goes away ends the connection well: of a camera that is a loss all the same."""
    out = folder / "yard.jsonl"
    down: list[threading.Event] = []

    def until_down(send: Callable[[bytes], None]) -> None:
        picture, mine = flat(100), down[-1]
        while not mine.wait(0.02):
            send(picture)

    with http_server(endless) as port:
        pass
    text = MODEL + section("yard", f"http://127.0.0.1:{port}/v?key=s3cret", retries=1000, sink="yard.jsonl")
    with running(Pipeline.from_text(text, folder)) as reports:  # it is not there yet
        for _ in range(2):
            before = lines(out)
            down.append(threading.Event())
            with http_server(until_down, port):
                wait_for(lambda before=before: lines(out) >= before + 3)
                down[-1].set()
        wait_for(lambda: lines(out) >= 6)
    [report] = reports
    assert not report.failed
    assert report.streams["yard"]["lost"] >= 1
    assert "s3cret" not in repr(report)


def changing(send: Callable[[bytes], None]) -> None:
    for height, width in ((48, 64), (96, 128)):
        for _ in range(5):
            send(flat(100, height, width))
            time.sleep(0.02)
    endless(send)


def test_another_resolution_is_resized_or_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with http_server(changing) as port, open_source(f"http://127.0.0.1:{port}/", limit=8) as source:
        frames = list(source)
    sizes = [f.data.shape[:2] for f in frames]
    assert set(sizes) == {(48, 64), (96, 128)}
    first = sizes.index((96, 128))
    assert [f.gap is not None for f in frames] == [k == first for k in range(len(frames))]
    assert "128 x 96 now, and was 64 x 48" in str(frames[first].gap)
    assert "now uint8[96, 128, 3]" in caplog.text

    signature = zoo.conv_lstm(3, 2, 8).signature
    resized = Inputs(signature, {"x": parse_ops(OPS)})
    cut = Inputs(signature, {"x": parse_ops("crop=0,0,8,8;channels_first")})
    assert resized(frames[0])["x"].shape == cut(frames[0])["x"].shape == (3, 8, 8)
    assert resized(frames[first])["x"].shape == (3, 8, 8)
    with pytest.raises(EdgeLstmError, match="'resize' comes before"):
        cut(frames[first])


def test_a_recording_over_http_is_the_file_and_ends(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(12):
            picture = np.full((48, 64, 3), 20 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with open_source(f"http://127.0.0.1:{server.server_address[1]}/a.mp4") as source:
            frames = list(source)
    finally:
        server.shutdown()
        server.server_close()
    assert not source.live
    with open_source(str(tmp_path / "a.mp4")) as stored:
        for over_http, from_file in zip(frames, stored, strict=True):
            np.testing.assert_array_equal(over_http.data, from_file.data)
            assert over_http.time == pytest.approx(from_file.time)


def until_the_end(spec: str) -> list[Any]:
    """Frames of a camera that goes away."""
    frames: list[Any] = []
    with pytest.raises(EdgeLstmError, match=r"the stream ended|is lost"), open_source(spec) as source:
        frames.extend(source)
    return frames


SCENE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)


@pytest.mark.skipif("libx264" not in av.codecs_available, reason="PyAV without libx264")
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_what_refers_to_a_picture_that_is_missing_or_damaged_is_left_out(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A decoder goes on with what it has, and what it gives is wrong until the next key frame."""
    packets = h264(np.roll(SCENE, 5 * k, 1) for k in range(40))
    clean = transport_stream(packets, (48, 64))
    if how == "gone":
        del packets[23]
    else:
        cut = av.Packet(bytes(packets[23])[: packets[23].size // 2])
        cut.pts, cut.dts = packets[23].pts, packets[23].dts
        packets[23] = cut
    hurt = transport_stream(packets, (48, 64))
    with http_server(endless, whole=clean) as port:
        pictures = [f.data for f in until_the_end(f"http://127.0.0.1:{port}/")]
    with http_server(endless, whole=hurt) as port:
        frames = until_the_end(f"http://127.0.0.1:{port}/")
        shown = until_the_end(f"http://127.0.0.1:{port}/#damaged=show")
    assert len(pictures) == 40
    found = [f.data for f in frames]
    wanted = [p for k, p in enumerate(pictures) if not 23 <= k < 30]
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    [gap] = [f.gap for f in frames if f.gap]
    assert gap == f"{6 if how == 'gone' else 7} damaged frames left out"
    assert gap in caplog.text
    assert len(shown) > len(frames)


@pytest.mark.parametrize("count", [25, pytest.param(1500, marks=pytest.mark.thorough)])
def test_whatever_a_server_sends_is_pictures_or_one_error(count: int) -> None:
    """Streams with bytes changed and ends cut off; playlists that point into this machine."""
    rng = np.random.default_rng(count)
    picture = jpeg(SCENE)
    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
    packets = h264(np.roll(SCENE, 5 * k, 1) for k in range(20))
    seeds = [
        transport_stream(packets, (48, 64)),
        b"".join(map(bytes, packets)),
        (head + picture + b"\r\n") * 6,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
    ]
    for k in range(count):
        sent = bytearray(seeds[k % len(seeds)])
        for _ in range(rng.integers(0, 30)):
            sent[rng.integers(len(sent))] = rng.integers(256)
        if rng.random() < 0.3:
            del sent[rng.integers(1, len(sent)) :]
        with (
            http_server(endless, whole=bytes(sent)) as port,
            suppress(EdgeLstmError),
            open_source(f"http://127.0.0.1:{port}/#open_timeout=9&read_timeout=9") as source,
        ):
            assert all(f.data.size for f in source)


def test_half_a_jpeg_is_no_picture() -> None:
    """FFmpeg would fill it up with grey."""
    whole = jpeg(SCENE)

    def parts(send: Callable[[bytes], None]) -> None:
        for k in range(12):
            send(whole[: len(whole) // 2] if k in (6, 7) else whole)

    with http_server(parts) as port:
        frames = until_the_end(f"http://127.0.0.1:{port}/")
    assert all(np.array_equal(f.data, frames[0].data) for f in frames)
    assert [f.gap for f in frames if f.gap] == ["2 damaged frames left out"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_certificate_of_a_server_is_looked_at(tmp_path: Path) -> None:
    """FFmpeg's own way is not to."""
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem -days 2 "
        "-subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1",
        shell=True, cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with http_server(endless, tls=context) as port:
        address = f"https://127.0.0.1:{port}/"
        with pytest.raises(EdgeLstmError, match="can't be opened"):
            open_source(address)
        for option in (f"#ca={tmp_path}/cert.pem", "#verify=0"):
            with open_source(address + option, limit=2) as source:
                assert len(list(source)) == 2


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_one_that_never_answers(mute: socket.socket, scheme: str) -> None:
    with pytest.raises(EdgeLstmError, match=r"can't be opened: found nothing came for 0\.3 s"):
        open_source(f"{scheme}://127.0.0.1:{mute.getsockname()[1]}/#open_timeout=0.3")


def test_stop_while_connecting(folder: Path, mute: socket.socket) -> None:
    """The process ends long before the timeout, at the start and when a camera is tried again."""
    source = f"rtsp://127.0.0.1:{mute.getsockname()[1]}/#open_timeout=600"
    (folder / "p.toml").write_text(MODEL + section("a", source, retries=9) + section("b", source))
    with subprocess.Popen(
        [sys.executable, "-m", "edgelstm", "serve", "--json", "p.toml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        taken = [mute.accept()[0] for _ in range(2)]  # both cameras are being opened
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        for connection in taken:
            connection.close()
    assert process.returncode == 0, out


def test_another_thread_may_stop_and_close_what_one_is_reading() -> None:
    with http_server(endless) as port:
        source = open_source(f"http://127.0.0.1:{port}/")
        came = threading.Event()

        def read() -> None:
            for _ in source:
                came.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert came.wait(60)
        source.close()
        reader.join(60)
        assert not reader.is_alive()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rtsp://u:s3cr/t@h/x", "host"),
        ("rtsp://u:1/s3cr@h/x", "host"),
        ("rtsp://u:1#s3cr@h/x", "option"),
        ("rtsp://u:s3cr@h:port/x", "host"),
        ("rtsp://u:s3cr@h/x#depth=1", "found depth; expected #NAME=VALUE"),
        ("rtsp://u:s3cr@h/x#read_timeout=soon", "0.1 to 3600 seconds"),
        ("rtsp://u:s3cr@h/x#transport=pigeon", "tcp or udp"),
        ("rtsps://u:s3cr@h/x#ca=/nowhere.pem", "certificates"),
        ("/dev/video99", "is not there"),
        ("v4l2:/dev/null#size=big", "640x480"),
        ("gopher://u:s3cr@h/x", "expected a folder"),
    ],
)
def test_addresses_that_are_wrong(spec: str, message: str) -> None:
    with pytest.raises(EdgeLstmError, match=message) as caught:
        open_source(spec)
    assert "s3cr" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=4), st.booleans())
def test_no_message_shows_a_password(password: str, quoted: bool) -> None:
    """Written as it should be, the host is the host; written bare, it may be refused, and never shown."""
    secret = f"K7{password}9Z"
    spec = f"rtsp://user:{quote(secret, safe='') if quoted else secret}@127.0.0.1:1/cam"
    try:
        address = parse_url(spec, ("stream",))
        said = address.shown
    except EdgeLstmError as error:
        assert not quoted
        said = str(error)
    else:
        assert said == "rtsp://127.0.0.1:1/cam"
    assert "K7" not in said
    assert "9Z" not in said


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(max_size=60) | st.binary(max_size=60).map(lambda b: b"\0\0\1\x67\x64\0\x0a" + b)),
    st.binary(max_size=40),
)
def test_any_bytes_may_be_sent_as_video(packets: list[bytes], extradata: bytes) -> None:
    """Pictures' numbers are read before the decoder has looked at them."""
    for begin in (extradata, b"\1" + extradata):
        numbers = FrameNumbers(begin)
        for packet in packets:
            assert numbers.missing(packet) in (True, False)
            assert numbers.missing(b"\0\0\1\x41" + packet) in (True, False)


@settings(max_examples=25, deadline=None)
@given(st.floats(-1e-4, 1e-4), st.lists(st.floats(0, 0.2), min_size=50, max_size=300), st.floats(-1000, 1000))
def test_capture_times_have_the_spacing_of_the_camera(
    drift: float, delays: list[float], began: float
) -> None:
    """Delays on the way don't show, the camera's clock may drift, and no stamp lies behind the one before."""
    clock = CaptureClock()
    now = time.monotonic()
    base = time.time() - now
    stamps, times, came = [], [], 0.0
    for k, delay in enumerate(delays):
        taken = now + k / 25
        came = max(came, taken + delay)  # none overtakes another
        times.append(clock.stamp(began + k / 25 * (1 + drift), came)[0])
        stamps.append(times[-1] - base - taken)
        delays[k] = came - taken
    late = np.array(stamps)
    assert (late[1:] >= -0.01).all(), "not before it was taken"
    assert (late <= np.array(delays) + 0.01).all(), "not after it came"
    assert all(one < other for one, other in pairwise(times))


def test_a_camera_whose_time_begins_anew_or_has_none() -> None:
    clock = CaptureClock()
    now = time.monotonic()
    assert clock.stamp(500.0, now)[1] is None
    first, note = clock.stamp(0.0, now + 1)
    assert note == "the sender's time begins anew"
    assert first - (time.time() - time.monotonic()) == pytest.approx(now + 1, abs=0.5)
    assert clock.stamp(None, now + 2)[0] - first == pytest.approx(1, abs=1e-6)
