"""Sinks whose other end refuses, is behind a firewall, or takes a connection and never reads: no stream stalls, and each output is counted."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

import zoo
from peers import DEAD

pytest.importorskip("pydantic")

from edgelstm import Pipeline

FRAMES = 300
SINKS = {
    "mqtt": ('{ to = "mqtt://127.0.0.1:PORT/t" }', "paho"),
    "mqtt qos 1": ('{ to = "mqtt://127.0.0.1:PORT/t", qos = 1 }', "paho"),
    "webhook": ('{ to = "http://127.0.0.1:PORT/", timeout = 0.3, retries = 1 }', None),
    "webhook batch": ('{ to = "https://127.0.0.1:PORT/", batch = 8, timeout = 0.3 }', None),
}
SHORT = {
    *(("mqtt", peer) for peer in ("refusing", "mute", "half mute")),
    *(("mqtt qos 1", peer) for peer in ("black hole", "half mute")),
    *(("webhook", peer) for peer in ("refusing", "mute")),
    *(("webhook batch", peer) for peer in ("black hole", "mute")),
}


@pytest.mark.parametrize(
    ("kind", "peer"),
    [
        # One of each that differs; the others take longer than they tell.
        pytest.param(k, p, marks=[] if (k, p) in SHORT else pytest.mark.thorough)
        for k in SINKS
        for p in DEAD
    ],
)
def test_a_dead_sink_stalls_nothing(
    tmp_path: Path, kind: str, peer: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, package = SINKS[kind]
    if package is not None:
        pytest.importorskip(package)
    zoo.lstm().save(tmp_path / "model.onnx")
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(FRAMES, 3)).astype(np.float32))
    with DEAD[peer]() as port:
        begin = time.monotonic()
        report = Pipeline.from_text(
            f"""
            [service]
            drain = 0.2
            [models.m]
            path = "model.onnx"
            max_wait = 0
            [streams.a]
            source = "a.npy"
            sink_queue = 16
            hang_after = 0.2
            sink = [{text.replace("PORT", str(port))}, "beside.jsonl"]
            [streams.b]
            source = "a.npy"
            sink = "b.jsonl"
            sink_queue = {FRAMES}
            """,
            tmp_path,
        ).run()
        took = time.monotonic() - begin
    assert took < 30, "the end takes no longer than drain, and the time that a loaded machine needs"
    a = report.streams["a"]
    lost = {name: count for name, count in a.items() if name.startswith("undelivered:")}
    beside = len((tmp_path / "beside.jsonl").read_text().splitlines())
    assert a["stepped"] == FRAMES
    # What a half mute broker's socket takes counts as sent, without QoS.
    sent = a["delivered"] - beside
    if "beside.jsonl: hangs" in caplog.text:  # busy machine: its line came there
        sent += 1
    assert sent == 0 or peer == "half mute"
    assert sum(lost.values()) - lost.get("undelivered:unconfirmed", 0) + a["delivered"] == 2 * FRAMES
    # A client that was left behind, hung, counts them after the report, if ever.
    if "qos" not in kind or "left behind" not in caplog.text:
        assert lost.get("undelivered:unconfirmed", 0) == (sent if "qos" in kind else 0)
    assert set(lost) <= {f"undelivered:{why}" for why in ("overload", "closed", "unreachable", "unconfirmed")}
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == FRAMES
    assert json.loads((tmp_path / "b.jsonl").read_text().splitlines()[-1])["index"] == FRAMES - 1
