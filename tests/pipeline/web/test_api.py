"""The API: what it says is so, what it does is done, and no request makes it fail."""

from __future__ import annotations

import http.client
import io
import json
import logging
import string
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pydantic")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from calling import call, service

import zoo
from command_line import Run
from edgelstm.pipeline.service import opening
from edgelstm.pipeline.sources import Frame, Source
from edgelstm.pipeline.web import sysfs, view
from edgelstm.pipeline.web.logs import entry
from running import Running, folder_of_sums, sums, toml, until, values

SECRET = "a token that nobody guesses"
BEARER = {"authorization": f"Bearer {SECRET}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of_sums(tmp_path, a=100000, b=100000, c=40)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = folder_of_sums(tmp_path_factory.mktemp("api"), a=100000, c=40)
    with Running(service(token=SECRET) + toml("a", rate=50, sink=[]), folder) as running:
        yield running


def stream(running: Running, name: str) -> Any:
    every = call(running, "GET", "/api/status?states=1&history=1", headers=BEARER).json["streams"]
    return next((s for s in every if s["name"] == name), None)


def test_streams_come_wait_and_go(folder: Path) -> None:
    with Running(service(token=SECRET) + toml("a", rate=200, sink=[]), folder) as running:
        until(lambda: running.count("a", "stepped") > 5)
        found = stream(running, "a")
        assert (found["status"], found["model"], found["shows"]) == ("running", "m", "numbers")
        assert found["counts"]["stepped"] > 0
        assert found["states"][0]["name"] == "s"
        assert found["states"][0]["rms"] == pytest.approx(
            max(abs(found["states"][0]["least"]), abs(found["states"][0]["most"]))
        )
        assert len(found["history"]) >= 1

        assert call(running, "POST", "/api/streams/a/pause", headers=BEARER).json == {
            "ok": True,
            "stream": "a",
        }
        assert stream(running, "a")["status"] == "paused"
        assert call(running, "POST", "/api/streams/a/reset", headers=BEARER).code == 200
        assert call(running, "POST", "/api/streams/a/resume", headers=BEARER).code == 200
        until(lambda: stream(running, "a")["status"] == "running")
        assert stream(running, "a")["counts"]["reset:asked"] == 1

        given = {"source": "c.npy", "sink": "{stream}.jsonl", "sink_overload": "block"}
        assert call(running, "POST", "/api/streams/c", given, BEARER).code == 201
        assert call(running, "POST", "/api/streams/c", given, BEARER).code == 409
        until(lambda: running.count("c", "delivered") == 40)
        assert values(folder / "c.jsonl") == sums(np.load(folder / "c.npy"))
        assert (
            call(
                running, "PUT", "/api/streams/a", {"source": "a.npy", "rate": 200, "deadline": 1e-9}, BEARER
            ).code
            == 200
        )
        until(lambda: stream(running, "a")["overdue"] > 0)
        assert call(running, "DELETE", "/api/streams/c", headers=BEARER).code == 200
        assert stream(running, "c") is None
        assert call(running, "DELETE", "/api/streams/c", headers=BEARER).code == 404


def test_a_snapshot_tells_the_streams_of_a_table_apart(tmp_path: Path) -> None:
    zoo.lstm().save(tmp_path / "sum.onnx")
    keys = ["a", "a/s", "a%2Fs", "..", "a\\s"]
    rows = [f"{key},{k / 10},0,0" for k, key in enumerate(keys)]
    (tmp_path / "t.csv").write_text("\n".join(["unit,x,y,z", *rows]) + "\n")
    text = service(token=SECRET) + '[streams.t]\nsource = "t.csv:key=unit"\nfollow = true\n'
    with Running(text, tmp_path) as running:
        until(lambda: all(running.count(f"t:{key}", "stepped") for key in keys))
        answer = call(running, "GET", "/api/streams/t/snapshot", headers=BEARER)
    with np.load(io.BytesIO(answer.body)) as file:
        found = {name: file[name].tobytes() for name in file.files}
    streams = {name.partition("/")[0] for name in found}
    assert streams == {f"t:{name}" for name in ("a", "a%2Fs", "a%252Fs", "..", "a%5Cs")}
    assert len(set(found.values())) == len(found) == 4 * len(streams), "h and c of two layers"


def test_a_snapshot_is_a_file_of_arrays(lasting: Running) -> None:
    until(lambda: lasting.count("a", "stepped") > 0)
    found = call(lasting, "GET", "/api/streams/a/snapshot", headers=BEARER)
    assert 'filename="a.npz"' in str(found.headers["content-disposition"])
    with np.load(io.BytesIO(found.body), allow_pickle=False) as arrays:
        assert arrays["a/s"].dtype == np.float32


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"source": 3}, r"streams.NAME.source: found 3; expected a string"),
        ({"sauce": "a"}, "found the key sauce"),
        ({"source": "${HOME}"}, "${HOME} does not exist"),
        ({"source": "gst:videotestsrc ! filesink location=x"}, "a GStreamer pipeline in the file"),
        ({"source": "a.npy", "gap": "rest"}, "expected hold, reset, repeat:N or blank:N"),
        ({"source": "a.npy", "model": "other"}, "expected one of m"),
    ],
)
def test_what_is_wrong_is_said(lasting: Running, given: Any, why: str) -> None:
    found = call(lasting, "POST", "/api/streams/new", given, BEARER)
    assert found.code == 400
    assert why in found.json["error"]
    assert len(lasting.control.service.channels) == 1


def test_names_that_are_paths_are_refused(lasting: Running) -> None:
    for name in ("../x", "a b", "x" * 101, "a:b", "ä"):
        found = call(lasting, "POST", f"/api/streams/{quote(name, safe='')}", {"source": "c.npy"}, BEARER)
        assert "letters, digits, - and _" in found.json["error"]


def test_a_file_is_read_again(folder: Path) -> None:
    path = folder / "pipeline.toml"
    path.write_text(service() + toml("a", rate=50, sink=[]))
    with Running(path, folder) as running:
        path.write_text(service() + toml("a", rate=50, sink=[]) + toml("c"))
        assert call(running, "POST", "/api/reload").json == {"ok": True, "failed": {}}
        until(lambda: running.count("c", "delivered") == 40)
        path.write_text("[service]\nhttp = 3\n")
        assert "line 2: service.http" in call(running, "POST", "/api/reload").json["error"]


def test_what_happens_is_told_as_it_happens(lasting: Running) -> None:
    at = urlsplit(str(lasting.pipeline.url))
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)
    connection.request("GET", "/api/events", headers=BEARER)
    answer = connection.getresponse()
    assert answer.headers["content-type"].startswith("text/event-stream")
    seen = []
    while len(seen) < 2:
        line = answer.readline()
        if line.startswith(b"data: "):
            seen.append(json.loads(line[6:]))
    connection.close()
    first, second = (s["streams"][0]["counts"]["stepped"] for s in seen)
    assert second > first
    assert any("streams: a" in line["message"] for line in seen[0]["log"])


def test_metrics_are_prometheus_own(lasting: Running) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    call(lasting, "POST", "/api/streams/a/reset", headers=BEARER)
    until(lambda: lasting.count("a", "stepped") > 0)
    text = call(lasting, "GET", "/metrics", headers=BEARER).body.decode()
    found = {
        (s.name, *sorted(s.labels.items())): s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
    }
    steps = found["edgelstm_frames_stepped_total", ("stream", "a")]
    assert 0 < steps <= lasting.count("a", "stepped")
    assert found["edgelstm_state_resets_total", ("cause", "asked"), ("stream", "a")] >= 1
    assert found["edgelstm_step_seconds_count", ("stream", "a")] >= steps
    assert (
        found["edgelstm_step_seconds_bucket", ("le", "+Inf"), ("stream", "a")]
        == found["edgelstm_step_seconds_count", ("stream", "a")]
    )
    assert found["edgelstm_stream", ("edgelstm_stream", "running"), ("stream", "a")] == 1
    assert found["edgelstm_model_calls_total", ("model", "m")] >= steps
    assert found["edgelstm_ready",] == 1
    assert found["process_resident_memory_bytes",] > 1e6


def test_the_board_is_read_where_it_speaks(tmp_path: Path) -> None:
    assert sysfs.powers(tmp_path) == sysfs.temperatures(tmp_path) == {}
    monitor, zone, asleep = (
        tmp_path / "class" / part
        for part in ("hwmon/hwmon3", "thermal/thermal_zone0", "thermal/thermal_zone1")
    )
    for folder, texts in (
        (
            monitor,
            {
                "name": "ina3221",
                "in1_label": "VDD_IN",
                "in1_input": "5024",
                "curr1_input": "920",
                "in2_label": "NC",
                "in2_input": "0",
                "curr2_input": "0",
            },
        ),
        (zone, {"type": "cpu-thermal", "temp": "48062"}),
        (asleep, {"type": "gpu-thermal", "temp": "none"}),
    ):
        folder.mkdir(parents=True)
        for name, text in texts.items():
            (folder / name).write_text(text + "\n")
    assert sysfs.powers(tmp_path) == {"VDD_IN": pytest.approx(4.62208)}
    assert sysfs.temperatures(tmp_path) == {"cpu": 48.062}


def test_a_model_that_stopped_is_not_healthy(folder: Path) -> None:
    with Running(service() + toml("a", rate=50, sink=[]), folder) as running:
        loop = running.control.service.loops["m"]
        loop.between = lambda: (_ for _ in ()).throw(RuntimeError("the engine is gone"))
        until(lambda: loop.error is not None)
        assert call(running, "GET", "/healthz").code == call(running, "GET", "/readyz").code == 503
        (found,) = call(running, "GET", "/api/status").json["streams"]
        assert (found["status"], found["why"]) == ("failed", "the engine is gone")


def test_a_source_that_says_nothing_more_is_silent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a live picture is an old one: that is said, though nothing failed."""
    monkeypatch.setattr(view, "PATIENT", 0.3)
    frames, end = folder / "frames", threading.Event()
    frames.mkdir()

    def waiting(*_: Any, **__: Any) -> Source:
        def give() -> Iterator[Frame]:
            for index in range(20):
                yield Frame(index, None, str(index), np.array(1, np.float32))
                time.sleep(0.01)
            end.wait(60)

        return Source("a camera", give)

    monkeypatch.setattr(opening, "open_source", waiting)
    with Running(service() + toml("a", sink=[]), folder) as running:
        try:
            until(lambda: call(running, "GET", "/api/status").json["streams"][0]["status"] == "silent")
            (found,) = call(running, "GET", "/api/status").json["streams"]
            assert found["why"].startswith("no frame for")
            assert (
                'edgelstm_stream{edgelstm_stream="silent",stream="a"} 1.0'
                in call(running, "GET", "/metrics").body.decode()
            )
        finally:
            end.set()


def test_an_alarm_that_fired_is_seen(folder: Path) -> None:
    rule = '[streams.a.alarms.high]\noutput = "y"\nof = "max"\nabove = -1e9\nsink = "alarms.jsonl"\n'
    with Running(service() + toml("a", rate=50, sink=[]) + rule, folder) as running:
        until(lambda: call(running, "GET", "/api/status").json["streams"][0]["alarms"] == {"high": True})
        assert 'edgelstm_alarm{alarm="high",stream="a"} 1.0' in call(running, "GET", "/metrics").body.decode()
        assert 'class="fired"' in call(running, "GET", "/").body.decode()


def test_the_api_page_knows_every_route(lasting: Running) -> None:
    page = call(lasting, "GET", "/api", headers=BEARER).body.decode()
    paths = call(lasting, "GET", "/openapi.json", headers=BEARER).json["paths"]
    assert len(paths) > 10
    for path in paths:
        assert path.replace("{name}", "NAME") in page
    assert "http://" not in page.replace("http://127.0.0.1:8080", ""), "nothing comes from elsewhere"


TEXT = st.text(
    st.sampled_from(string.ascii_letters + string.digits + "%:/\\.-_ ?#&\x00é\u2028<>\"'{}"), max_size=30
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["source", "sink", "model", "rate", "queue", "gap", "x"]) | TEXT,
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)


@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]),
    st.sampled_from(
        ["/api/streams/", "/api/", "/static/", "/card?name=", "/api/log?after=", "/api/status?states=", "/"]
    ),
    TEXT,
    st.sampled_from(["", "/pause", "/reset", "/snapshot", "/frame.png", "/output.png?output=x"]),
    JSON,
)
@settings(max_examples=120, deadline=None)
def test_no_request_makes_it_fail(
    lasting: Running, method: str, head: str, name: str, tail: str, body: Any
) -> None:
    path = head + quote(name, safe="%" if name.isascii() and "%" in name else "") + tail
    if path.rstrip("/") == "/api/events" or name in ("a", "%61"):
        return
    found = call(lasting, method, path, {"body": body} if not isinstance(body, dict) else body, BEARER)
    assert found.code < 500, found.body
    assert lasting.control.service.is_running
    assert [c.name for c in lasting.control.service.channels] == ["a"]


def test_log_lines_as_json(run: Run, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "pipeline.toml"
    path.write_text(service(http="127.0.0.1:0", stay=False) + toml("c"))
    code, _, err = run("serve", path, "--log", "json")
    assert code == 0
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert any(line["message"] == "streams: c" and line["level"] == "info" for line in lines)
    record = logging.LogRecord(
        "edgelstm.serve", logging.WARNING, "", 0, "stream %s: frame 3 dropped", ("a:1",), None
    )
    assert entry(record)["stream"] == "a:1"
    assert entry(record)["time"].endswith("Z")


def test_a_source_that_hangs_while_it_connects_holds_nobody_up(folder: Path) -> None:
    """A camera that takes the connection and says nothing: others come and go meanwhile, it is removed at once, and its name is free."""
    pytest.importorskip("av")
    import socket

    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as silent,
        Running(service(token=SECRET) + toml("a", rate=200), folder) as running,
    ):
        address = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/1#open_timeout=600&read_timeout=600"
        answers: dict[str, Any] = {}

        def add(name: str) -> None:
            body = {"source": address, "sink": [], "retries": 9 if name == "cam0" else 0}
            answers[name] = call(running, "POST", f"/api/streams/{name}", body, headers=BEARER)

        names = [f"cam{k}" for k in range(16)]
        adds = [threading.Thread(target=add, args=(name,), daemon=True) for name in names]
        for thread in adds:
            thread.start()
        until(lambda: len(running.control._coming) == len(names))
        before = running.count("a", "stepped")
        full = call(running, "POST", "/api/streams/more", {"source": address, "sink": []}, headers=BEARER)
        assert full.code == 400
        assert "16 streams whose sources are being opened" in full.json["error"]
        assert call(running, "DELETE", "/api/streams/cam1", headers=BEARER).code == 200
        assert (
            call(running, "POST", "/api/streams/cam1", {"source": "c.npy", "sink": []}, headers=BEARER).code
            == 201
        )
        until(lambda: running.count("cam1", "stepped") == 40)
        until(lambda: running.count("a", "stepped") > before + 20)
        for name in (n for n in names if n != "cam1"):
            assert call(running, "DELETE", f"/api/streams/{name}", headers=BEARER).code == 200
        for thread in adds:
            thread.join(60)
            assert not thread.is_alive()
        assert {answer.code for answer in answers.values()} == {400}
        assert all("removed before its source was there" in a.json["error"] for a in answers.values())
        assert [c.name for c in running.control.service.channels] == ["a", "cam1"]


def test_models_in_series_are_shown_and_swapped_each(folder: Path) -> None:
    head = service(token=SECRET).replace("max_wait = 0\n", 'max_wait = 0\nthen = "n"\n')
    (folder / "again.onnx").write_bytes(
        (folder / "sum.onnx").read_bytes() + b"\x72\x00"
    )  # another file, the same model
    with Running(head + '[models.n]\npath = "sum.onnx"\n' + toml("a", rate=200, sink=[]), folder) as running:
        until(lambda: running.count("a", "stepped") > 5)
        shown = call(running, "GET", "/api/status?states=1", headers=BEARER).json
        (model,) = shown["models"]
        assert (model["name"], model["file"]) == ("m", "sum.onnx then sum.onnx")
        assert {state["name"] for state in shown["streams"][0]["states"]} == {"1.s", "2.s"}
        path = {"path": str(folder / "again.onnx"), "compatible": True}
        assert call(running, "POST", "/api/models/n/swap", path, headers=BEARER).code == 200
        before = running.count("a", "stepped")
        until(lambda: running.count("a", "stepped") > before)
        (model,) = call(running, "GET", "/api/status", headers=BEARER).json["models"]
        assert model["file"] == "sum.onnx then again.onnx"
        assert call(running, "GET", "/metrics", headers=BEARER).code == 200
        assert call(running, "POST", "/api/models/x/swap", path, headers=BEARER).code == 400
