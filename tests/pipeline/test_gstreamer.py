"""GStreamer pipelines as sources: the system's GStreamer on its own test pictures."""

from __future__ import annotations

import subprocess
import threading
import time
from typing import Any

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source
from edgelstm.pipeline.sources import gstreamer
from edgelstm.pipeline.sources.gstreamer import shown

try:
    gstreamer._python("a test")
except EdgeLstmError as error:
    pytest.skip(f"no GStreamer for Python on this machine: {error.hint}", allow_module_level=True)

STILL = "gst:videotestsrc num-buffers=3 pattern=white ! video/x-raw,width=63,height=48,framerate=10/1,format="


def frames(spec: str) -> list[Any]:
    with open_source(spec) as source:
        return list(source)


@pytest.mark.parametrize(
    ("form", "shape", "dtype", "white"),
    [
        ("RGB", (48, 63, 3), np.uint8, 255),
        ("I420", (48, 63, 3), np.uint8, 255),
        ("GRAY8", (48, 63), np.uint8, 235),
        ("GRAY16_LE", (48, 63), np.uint16, 60395),
    ],
)
def test_a_recording_in_the_form_that_it_has(form: str, shape: Any, dtype: Any, white: int) -> None:
    """Rows are padded to whole words on the way, and here they are not."""
    with open_source(STILL + form) as source:
        made = list(source)
    assert not source.live
    assert [f.time for f in made] == pytest.approx([0, 0.1, 0.2])
    for frame in made:
        assert frame.data.shape == shape
        assert frame.data.dtype == dtype
        np.testing.assert_allclose(frame.data.astype(float), white, atol=3)  # its quick way from YUV


def test_a_live_pipeline_has_times_of_this_machine() -> None:
    with open_source(
        "gst:videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=25/1", limit=12
    ) as source:
        made = list(source)
    assert source.live
    assert source.place.start is not None
    assert abs(source.place.start.timestamp() - time.time()) < 60
    steps = np.diff([f.time for f in made])
    assert (steps > 0).all()
    assert np.median(steps) == pytest.approx(0.04, abs=0.01)
    assert all(f.name.endswith("Z") for f in made)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nosuchsrc", 'no element "nosuchsrc"'),
        ("filesrc location=/nowhere ! decodebin", "Resource not found"),
        ("videotestsrc ! fakesink ! appsink", "without a sink"),
        ("", "elements as for gst-launch"),
        ("videotestsrc ! video/x-raw,format=I420_10LE", "I420_10LE has 10 bits"),
        ("videotestsrc is-live=true ! valve drop=true #open_timeout=0.5", r"nothing came for 0\.5 s"),
        ("videotestsrc #read_timeout=x", "0.1 to 3600 seconds"),
    ],
)
def test_what_can_not_be_run(text: str, message: str) -> None:
    with pytest.raises(EdgeLstmError, match=message):
        frames(f"gst:{text}")


def test_one_that_dies_is_an_error_and_one_that_is_stopped_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = "gst:videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=25/1"
    workers: list[Any] = []

    class Watched(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *words: Any, **keys: Any) -> None:
            super().__init__(*words, **keys)
            workers.append(self)

    monkeypatch.setattr(gstreamer.subprocess, "Popen", Watched)
    with open_source(spec) as source:
        reading = iter(source)
        next(reading)
        workers[-1].kill()
        with pytest.raises(EdgeLstmError, match="its process ended"):
            list(reading)
    source = open_source(spec)
    came = threading.Event()

    def read() -> None:
        for _ in source:
            came.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert came.wait(60)
    source.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert all(worker.poll() is not None for worker in workers)


def test_nothing_secret_is_shown() -> None:
    text = 'rtspsrc location=rtsp://me:s3cr@h/x user-pw=s3cr ! decodebin ! srtsink passphrase="s3cr t"'
    assert "s3cr" not in shown(text)
    assert "rtsp://***@h/x" in shown(text)
    with pytest.raises(EdgeLstmError) as caught:
        open_source(f"gst:{text} ! nosuch")
    assert "s3cr" not in str(caught.value)
