"""Outputs to an MQTT broker: mosquitto, as the system ships it, and a client that reads back."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_sink
from edgelstm.pipeline.sinks import Options, Undelivered, mqtt
from peers import SIGNATURE, Broker, frame, listening, refusing, until

paho = pytest.importorskip("paho.mqtt.client")
ONE = {"y": np.array([1, 2.5], np.float32)}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path)
    yield made
    made.stop()


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_message_a_line_under_the_topic_of_its_stream(broker: Broker, tmp_path: Path, qos: int) -> None:
    url = f"mqtt://127.0.0.1:{broker.port}/site/{{stream}}/out"
    with listening(broker.port, "site/#") as heard:
        with (
            open_sink(url, SIGNATURE, options=Options(qos=qos, will="site/alive")) as sink,
            open_sink(tmp_path / "same.jsonl", SIGNATURE) as file,
        ):
            for index in range(40):
                for each in (sink, file):
                    each.write(frame(index, "pump:a/b"), {"y": np.full(2, index, np.float32)}, 0.001)
        # Of QoS 2 a message is heard a round trip later than the will behind it.
        until(lambda: ("site/alive", "offline") in heard and len(heard) >= 42, "all, and the end")
    assert heard[0] == ("site/alive", "online")
    lines = [text for topic, text in heard if topic == "site/pump:a%2Fb/out"]
    assert lines == (tmp_path / "same.jsonl").read_text().splitlines(), "in order, each once"


def test_the_broker_says_that_we_are_gone(broker: Broker) -> None:
    """By the last will, when the process dies."""
    code = f"""
import os
from edgelstm.pipeline import open_sink
from edgelstm.pipeline.sinks import Options
from peers import *
sink = open_sink("mqtt://127.0.0.1:{broker.port}/t", SIGNATURE, options=Options(qos=1, will="alive"))
sink.write(frame(0), {{"y": np.ones(2, np.float32)}}, 0.0)
sys = __import__("sys"); sys.stdin.read()
os._exit(1)
"""
    import sys

    with listening(broker.port, "#") as heard:
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=Path(__file__).parents[1]
        )
        until(lambda: len(heard) == 2, "online and the message")
        child.kill()
        child.wait(60)
        until(lambda: len(heard) == 3, "the will")
        assert child.stdin is not None
        child.stdin.close()
    assert {heard[0], heard[2]} == {("alive", "online"), ("alive", "offline")}


def test_it_connects_again_and_nothing_that_was_taken_is_lost(broker: Broker) -> None:
    with (
        listening(broker.port, "t") as heard,
        open_sink(
            f"mqtt://127.0.0.1:{broker.port}/t", SIGNATURE, options=Options(qos=1, retain=True)
        ) as sink,
    ):
        sink.write(frame(0), ONE, 0.0)
        until(lambda: heard, "the first")
        broker.stop()
        writing = threading.Thread(target=lambda: [sink.write(frame(i), ONE, 0.0) for i in (1, 2, 3)])
        writing.start()
        broker.start()
        writing.join(60)
        until(lambda: json.loads(heard[-1][1])["index"] == 3, "the last")


def test_a_password_and_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if shutil.which("openssl") is None or shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto is not installed, or openssl")
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1 && mosquitto_passwd -b -c users me 'a/b@c' && chmod 644 *",
        shell=True, cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    tmp_path.chmod(0o755)
    broker = Broker(
        tmp_path,
        f"allow_anonymous false\npassword_file {tmp_path}/users\nuser root\n"
        f"cafile {tmp_path}/cert.pem\ncertfile {tmp_path}/cert.pem\nkeyfile {tmp_path}/key.pem",
    )
    ca, url = str(tmp_path / "cert.pem"), f"mqtts://me:a%2Fb%40c@127.0.0.1:{broker.port}/t"
    good: list[tuple[str, Options]] = [
        (url, Options(ca=ca, qos=1)),
        (f"mqtts://127.0.0.1:{broker.port}/t", Options(ca=ca, qos=1, user="me", password="a/b@c")),
    ]
    try:
        for where, options in good:
            with open_sink(where, SIGNATURE, options=options) as sink:
                sink.write(frame(0), ONE, 0.0)
        for options, words in ((Options(qos=1), "can't connect"), (Options(ca=ca, password="x"), "refuses")):
            stop = threading.Event()
            with (
                caplog.at_level(logging.INFO, "edgelstm.serve"),
                open_sink(url, SIGNATURE, options=options, stop=stop) as sink,
            ):
                until(lambda words=words: words in caplog.text, words)
                stop.set()
                with pytest.raises(Undelivered):
                    sink.write(frame(0), ONE, 0.0)
        assert "a%2Fb" not in caplog.text
    finally:
        broker.stop()


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("mqtt://h/", {}, "topic"),
        ("mqtt://h/a/+", {}, "without [+] and #"),
        ("mqtt:///t", {}, "no host"),
        ("mqtt://me:a/secret@h/t", {}, "no port"),
        ("mqtt://h/t", {"will": "state/{stream}"}, "one for all streams"),
        ("mqtts://h/t", {"ca": "none.pem"}, "TLS for mqtts://h/t"),
        ("mqtt://h/t", {"batch": 3}, "the option batch"),
    ],
)
def test_what_is_wrong_is_said_at_once(url: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(EdgeLstmError, match=said) as caught:
        open_sink(url, SIGNATURE, options=Options(**options))
    assert "secret" not in str(caught.value)


def test_its_end_does_not_wait_for_a_broker_that_is_not_there() -> None:
    with refusing() as port:
        stop = threading.Event()
        sink = open_sink(f"mqtt://127.0.0.1:{port}/t", SIGNATURE, stop=stop)
        stop.set()
        with pytest.raises(Undelivered, match="not connected in time"):
            sink.write(frame(0), ONE, 0.0)
        sink.close()


def test_a_connection_that_ended_leaves_nothing_open() -> None:
    """Streams come and go for months."""

    def files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc on this machine")
    with refusing() as port:
        before = files()
        for _ in range(10):
            open_sink(f"mqtt://127.0.0.1:{port}/t", SIGNATURE).close()
        until(lambda: files() <= before + 4, "their sockets are closed")


def test_a_run_that_is_no_service_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "PATIENCE", 0.2)
    with refusing() as port, pytest.raises(Undelivered, match="not connected in time"):
        open_sink(f"mqtt://127.0.0.1:{port}/t", SIGNATURE).write(frame(0), ONE, 0.0)
