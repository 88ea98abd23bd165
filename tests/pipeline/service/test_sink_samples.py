"""The samples beside the sinks: together they are one pipeline file, with what stands commented out and without."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("pydantic")

from edgelstm.pipeline import sinks
from edgelstm.pipeline.service.config_sinks import AlarmSection, SinkSection
from edgelstm.pipeline.service.parse import parse

SAMPLES = sorted((Path(sinks.__file__).parent / "samples").glob("*.toml"))
HEAD = '[models.m]\npath = "m.onnx"\n[streams.camera]\nsource = "camera.npy"\n'
SET = dict.fromkeys(("MQTT_PASSWORD", "HOOK_TOKEN", "HOOK_PASSWORD"), "word-of-secret")


def joined(uncommented: bool) -> str:
    text = HEAD + "\n".join(path.read_text(encoding="utf-8") for path in SAMPLES)
    return re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE) if uncommented else text


@pytest.mark.parametrize("uncommented", [False, True])
def test_they_are_a_pipeline_file(uncommented: bool) -> None:
    parsed = parse(joined(uncommented), "samples", SET)
    stream = parsed.config.streams["camera"]
    assert len(stream.targets) == len(SAMPLES) - 1
    assert stream.alarms["crowded"].targets
    for secret in SET.values() if uncommented else ():
        assert secret not in parsed.redactor.text(f"a {secret} b")


def test_every_kind_and_every_option_has_one() -> None:
    kinds = {
        sinks.kind_of(where).what for where in parse(joined(False), "samples").config.streams["camera"].sinks
    }
    assert kinds >= {kind.what for kind in sinks.ADDRESSES}
    given: set[str] = set()
    for _, options in parse(joined(True), "samples", SET).config.streams["camera"].targets:
        given |= set(options.given())
    alarm = (SAMPLES[0].parent / "alarm.toml").read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:# )?(\w+) = ", alarm, re.MULTILINE)) == set(AlarmSection.model_fields) - {
        "below"
    }
    assert given == set(SinkSection.model_fields) - {"to"}


BAD: list[tuple[str, str]] = [
    ('to = "ftp://h/"', 'line 5: streams.camera.sink: found ftp:// for ftp://h/; expected FILE.npz'),
    ('to = "mqtt://h/t"\nbatch = 2', "line 5: streams.camera.sink: found the option batch for mqtt://h/t; expected user, password, qos"),
    ('to = "mqtt://h/t"\nqos = 3', "line 7: streams.camera.sink.qos: found 3; expected less than or equal to 2"),
    ('to = "mqtt://h/t"\nqso = 1', "line 7: streams.camera.sink.qso: found the key qso; expected to, user"),
    ("qos = 1", "line 5: streams.camera.sink.to: found nothing; expected to = ..."),
    ('to = "a.gif"', "streams.camera.sink: found a .gif file"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BAD)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    with pytest.raises(Exception, match=re.escape(said)):
        parse(f"{HEAD}[[streams.camera.sink]]\n{text}\n", "file")
