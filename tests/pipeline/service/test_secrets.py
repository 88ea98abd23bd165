"""Secrets typed into keys that are not for them: whatever is wrong with the file, no error and no log line repeats them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import zoo
from edgelstm import EdgeLstmError, Pipeline
from edgelstm.pipeline.service.redact import Redactor

pytest.importorskip("pydantic")

from edgelstm.pipeline.service.config import ModelSection, ServiceSection, StreamSection
from edgelstm.pipeline.service.config_sinks import AlarmSection, SinkSection
from edgelstm.pipeline.service.parse import parse, section

WORD = "hunter2Xq"
VALUES = (
    f"https://me:{WORD}@host/p",
    f"https://me:{WORD}/x@host/p",
    f"https://host/p?token={WORD}",
    f"https://hooks.example/services/T00/{WORD}",
    f"rtsp://me:{WORD}@host/1",
    f"Bearer {WORD}",
    f"{WORD}0123456789",
)
#: Their values are paths or addresses, which are shown by name.
PLACES = {"path", "calibration", "checkpoint", "source", "sink", "to", "keep_frames", "detector"}
SECTIONS: dict[str, tuple[Any, str, str]] = {
    "service": (ServiceSection, "[service]\n", ""),
    "models": (ModelSection, "[models.m]\n", 'path = "model.onnx"\n'),
    "streams": (StreamSection, "[streams.a]\n", 'source = "a.npy"\n'),
    "sink": (SinkSection, "[[streams.a.sink]]\n", 'to = "a.jsonl"\n'),
    "alarm": (AlarmSection, "[streams.a.alarms.x]\n", 'above = 1\nsink = "-"\n'),
}


def text(kind: str, line: str) -> str:
    made = ""
    for name in ("service", "models", "streams", kind if kind in ("sink", "alarm") else ""):
        if name:
            _, head, base = SECTIONS[name]
            made += head + base + (f"{line}\n" if name == kind else "")
    return made


def error_of(whole: str) -> str:
    try:
        parse(whole, "p", {})
    except EdgeLstmError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", SECTIONS)
def test_no_error_of_the_file_repeats_them(kind: str) -> None:
    said: list[tuple[str, str]] = []
    for key in SECTIONS[kind][0].model_fields:
        base = "".join(line for line in SECTIONS[kind][2].splitlines(True) if not line.startswith(f"{key} "))
        for value in VALUES:
            for form in (json.dumps(value), f"[{json.dumps(value)}]", f"{{ x = {json.dumps(value)} }}"):
                if form[0] != "{" and key in PLACES:
                    continue
                whole = text(kind, f"{key} = {form}").replace(SECTIONS[kind][2], base)
                said.append((whole, error_of(whole)))
    assert sum(bool(error) for _, error in said) > 50
    assert not [whole for whole, error in said if WORD in error]
    for key in ("pasword", "tokn", "url"):
        with pytest.raises(EdgeLstmError, match=f"found the key {key}") as caught:
            parse(text(kind, f'{key} = "{WORD}"'), "p", {})
        assert WORD not in str(caught.value)


@pytest.mark.parametrize(
    "whole",
    [
        text("service", f'token = "{WORD[:7]}"'),
        text("service", "token = 12345678"),
        text("sink", "password = 12345678"),
        text("sink", f'headers = "Authorization: {WORD}"'),
        f'password = "{WORD}"\n' + text("streams", ""),
        f'[models.m]\npath = "m.onnx"\n[streams]\nurl = "{WORD}"\n',
    ],
)
def test_nor_of_what_is_half_right(whole: str) -> None:
    with pytest.raises(EdgeLstmError) as caught:
        parse(whole, "p", {})
    assert WORD[:7] not in str(caught.value)
    assert "12345678" not in str(caught.value)


def test_nor_of_a_section_that_is_sent() -> None:
    for keys in ({"pasword": WORD}, {"gap": VALUES[0]}, {"rate": VALUES[3]}, {"sink": {"password": [WORD]}}):
        with pytest.raises(EdgeLstmError) as caught:
            section({"source": "a.npy", **keys})
        assert WORD not in str(caught.value)


def test_nor_what_opens_them_or_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    zoo.lstm().save(tmp_path / "model.onnx")
    (tmp_path / "file").write_text("")
    (tmp_path / "a.csv").write_text("1,2,3\n" * 3)
    with caplog.at_level(logging.DEBUG):
        for kind, line in (
            ("models", f'device = "Bearer {WORD}"'),
            ("streams", f'preprocess = "Bearer {WORD}"'),
            ("models", f'calibration = "https://me:{WORD}@host/x.json"'),
            ("models", f'calibration = "https://hooks.example/services/{WORD}"'),
        ):
            with pytest.raises(EdgeLstmError) as caught:
                Pipeline.from_text(text(kind, line).replace("a.npy", "a.csv"), tmp_path, {}).run()
            assert WORD not in str(caught.value), line
    assert WORD not in caplog.text


def test_what_is_no_secret_is_shown() -> None:
    shown = Redactor().text(
        "page at http://127.0.0.1:8080/ of rtsp://front/1, files/a@b.npy, C:/Users/me@x/m.onnx"
    )
    assert shown == "page at http://127.0.0.1:8080/ of rtsp://front/1, files/a@b.npy, C:/Users/me@x/m.onnx"
    with pytest.raises(EdgeLstmError, match='found "rest"; expected hold, reset'):
        parse(text("streams", 'gap = "rest"'), "p", {})
