"""The samples beside the sinks: together they are one pipeline file, with what stands commented out and without."""

from __future__ import annotations

import re
import sys
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
    instead = {"below", "detector"}  # of above
    assert all(f"or {key} = " in alarm for key in instead)
    assert (
        set(re.findall(r"^(?:# )?(\w+) = ", alarm, re.MULTILINE)) == set(AlarmSection.model_fields) - instead
    )
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


@pytest.mark.parametrize(
    "kind", [k for k in (*sinks.FILES, *sinks.ADDRESSES) if k.needs], ids=lambda k: k.what
)
def test_a_package_that_is_missing_is_said_by_a_check(
    kind: sinks.Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the line that installs it, before anything runs; and again where it is opened without a check."""
    import numpy as np

    import zoo
    from edgelstm import EdgeLstmError, Pipeline
    from peers import SIGNATURE

    assert kind.needs is not None
    module, extra = kind.needs
    monkeypatch.setitem(sys.modules, module, None)
    where = {"mqtt://HOST/TOPIC": "mqtt://h/t"}.get(kind.what, kind.what.replace("HOST:PORT", "127.0.0.1:1"))
    zoo.persistence().save(tmp_path / "m.onnx")
    np.save(tmp_path / "camera.npy", np.zeros((2, 1, 4, 4), np.float32))
    pipeline = Pipeline.from_text(f'{HEAD}sink = "{where}"\n', tmp_path)
    with pytest.raises(
        EdgeLstmError,
        match=rf"stream camera: .* needs the Python package {module.split('.')[0]}.*\[{extra}\]",
    ):
        pipeline.check()
    with pytest.raises(EdgeLstmError, match=rf"\[{extra}\]"):
        sinks.open_sink(where, SIGNATURE)
