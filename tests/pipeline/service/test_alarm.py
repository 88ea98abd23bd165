"""Alarms: the rule against a naive one, and a pipeline that fires, clears, is killed and goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgelstm
import zoo
from peers import Broker, listening, until

pytest.importorskip("pydantic")

from edgelstm import EdgeLstmError, Pipeline
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import Frame, open_sink
from edgelstm.pipeline.service.alarm import Alarm, Alarms, Rule
from edgelstm.pipeline.service.alarm_writer import AlarmWriter
from edgelstm.pipeline.service.counters import Counts
from edgelstm.pipeline.service.parse import parse
from edgelstm.pipeline.sources import given as given_source

numbers = st.lists(st.tuples(st.integers(-2, 5), st.floats(-3, 3, allow_nan=False)), max_size=40)
rules = st.builds(
    Rule, st.just("y"), st.just("max"), st.booleans(), st.just(1.0), st.just(0.0),
    st.integers(0, 6).map(float), st.integers(0, 6).map(float),
)  # fmt: skip


def naive(rule: Rule, steps: list[tuple[float, float]]) -> list[tuple[int, str]]:
    """Looks at the whole past anew at every step."""
    events: list[tuple[int, str]] = []
    for k, (now, _) in enumerate(steps):
        fired = bool(events) and events[-1][1] == "fired"
        first, hold = k + 1, rule.hold_clear if fired else rule.hold
        for j in range(k, events[-1][0] if events else -1, -1):
            value = steps[j][1]
            beyond, good = (
                (value > rule.limit, value <= rule.clear)
                if rule.above
                else (value < rule.limit, value >= rule.clear)
            )
            if not (good if fired else beyond):
                break
            first = j
            if j and steps[j][0] < steps[j - 1][0]:  # the clock went back: nothing before it counts
                break
        if first <= k and now - steps[first][0] >= hold:
            events.append((k, "cleared" if fired else "fired"))
    return events


def made(
    rule: Rule, steps: list[tuple[float, float]], restarts: set[int] = frozenset()
) -> list[tuple[int, str]]:  # type: ignore[assignment]
    events, alarms = [], Alarms(rule, timed=True)
    for k, (now, value) in enumerate(steps):
        if k in restarts:
            state = json.loads(json.dumps(alarms.state()))
            alarms = Alarms(rule, timed=True)
            assert alarms.resume(state, clocks=True)
        if (event := alarms.of("s").step(value, now)) is not None:
            events.append((k, event))
    return events


def test_a_hold_time_in_a_time_since_1970_is_over_with_its_last_frame() -> None:
    """By the rounding of such a time it was over a frame later, now and then."""
    rule = Rule("y", "max", True, 1.0, 0.0, hold=0.3)
    fired = []
    for k in range(100):
        alarm, begin = Alarm(rule), 1.7e9 + 0.37 * k
        events = [alarm.step(2.0, begin + 0.1 * n) for n in range(4)]
        fired.append(events.index("fired") if "fired" in events else None)
    assert fired == [3] * 100


@given(rules, numbers)
@settings(deadline=None, max_examples=300)
def test_it_does_what_looking_at_the_whole_past_does(rule: Rule, moves: list[tuple[int, float]]) -> None:
    rule = rule if rule.above else Rule("y", "max", False, 0.0, 1.0, rule.hold, rule.hold_clear)
    steps, now = [], 0.0
    for move, value in moves:
        now += move
        steps.append((now, value))
    assert made(rule, steps) == naive(rule, steps)


@given(
    rules, st.lists(st.tuples(st.integers(0, 5), st.floats(-3, 3)), max_size=40), st.sets(st.integers(0, 40))
)
@settings(deadline=None, max_examples=100)
def test_a_restart_anywhere_changes_nothing(
    rule: Rule, moves: list[tuple[int, float]], restarts: set[int]
) -> None:
    steps, now = [], 0.0
    for move, value in moves:
        now += move
        steps.append((now, value))
    assert made(rule, steps, restarts) == made(rule, steps)


def test_where_the_source_begins_anew_one_that_fired_still_has_and_hold_times_do_not() -> None:
    rule = Rule("y", "max", True, 1.0, 0.0, hold=5.0)
    alarms = Alarms(rule, True, {"a": Alarm(rule, True, 7.0), "b": Alarm(rule, False, 7.0)})
    again = Alarms(rule)
    assert again.resume(json.loads(json.dumps(alarms.state())), clocks=False)
    assert again.of("a") == Alarm(rule, True)
    assert again.of("b") == Alarm(rule)
    assert not Alarms(Rule("y", "max", True, 1.1, 0.0, hold=5.0)).resume(alarms.state(), True)
    assert not Alarms(rule).resume({"rule": rule.digest, "streams": {"a": 3}}, True)


def test_its_number() -> None:
    y = np.array([[1, np.nan, -3], [4, 5, 6]], np.float32)
    for of, expected in (("max", 6), ("min", -3), ("mean", 13 / 5), ((1, 0), 4), ((0, 1), None)):
        found = Rule("y", of, True, 0, 0).number(y, "float32")  # type: ignore[arg-type]
        assert found == (None if expected is None else pytest.approx(expected))
    assert Rule("y", "max", True, 0, 0).number(np.array([np.inf], np.float32), "float32") == math.inf
    assert Rule("y", "max", True, 0, 0).number(np.array([0x3FC0], np.uint16), "bfloat16") == 1.5
    signature = Signature(
        (TensorSpec("x", "float32", ("N", 1)),), (TensorSpec("y", "float32", ("N", 2, 3)),), ()
    )
    for rule, said in (
        (Rule("z", "max", True, 0, 0), "found z; expected y"),
        (Rule("y", (2, 0), True, 0, 0), "a place in"),
    ):
        with pytest.raises(EdgeLstmError, match=said):
            rule.check(signature)


HEAD = '[models.m]\npath = "model.onnx"\n[streams.a]\nsource = "a.npy"\n'
ALARM = HEAD + '[streams.a.alarms.high]\nabove = 2\nclear = 1\nsink = "e.jsonl"\n'


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("above = 2\n", "", "alarms.high.above: found neither; expected above = ..."),
        ("above = 2", "above = 2\nbelow = 3", "found both"),
        ("clear = 1", "clear = 3", "line 7: streams.a.alarms.high.clear: found 3; expected at most 2"),
        ("above = 2", "over = 2", "line 6: streams.a.alarms.high.over: found the key over; expected detector, output, of, above"),
        ('sink = "e.jsonl"', 'sink = "e.npz"', "line 8: streams.a.alarms.high.sink: found FILE.npz for e.npz; expected FILE.jsonl"),
        ('sink = "e.jsonl"', "sink = []", "found nothing"),
        ('sink = "e.jsonl"', "", "line 5: streams.a.alarms.high.sink: found nothing; expected sink = ..."),
        ('sink = "e.jsonl"', 'sink = {to = "mqtt://h/t", qos = 9}', "alarms.high.sink.qos: found 9"),
        ('source = "a.npy"', 'source = "a.npy"\nsink = "e.jsonl"', "found e.jsonl, where outputs of a go"),
        ("above = 2", 'above = 2\nof = "median"', "alarms.high.of: found \"median\""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(old: str, new: str, said: str) -> None:
    assert old in ALARM
    with pytest.raises(EdgeLstmError) as caught:
        parse(ALARM.replace(old, new), "file")
    assert said in str(caught.value)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that gives what it gets, and a stream that rises and falls."""
    zoo.persistence(shape=(1, 2, 2)).save(tmp_path / "model.onnx")
    values = [0, 3, 1.5, 0.5, 0, 3, 3, 3, 0, 0, 3, 0]
    np.save(
        tmp_path / "a.npy",
        np.array(values, np.float32)[:, None, None, None] * np.ones((1, 1, 2, 2), np.float32),
    )
    return tmp_path


def test_an_element_that_is_not_there_is_said_by_a_check(folder: Path) -> None:
    text = ALARM.replace("above = 2", "above = 2\nof = [0, 5]")
    with pytest.raises(
        EdgeLstmError, match=r"stream a: alarm high: element of output 'forecast'|alarm high: element"
    ):
        Pipeline.from_text(text, folder).check()


def test_events_go_to_a_file_and_a_broker(folder: Path) -> None:
    pytest.importorskip("paho")
    broker = Broker(folder)
    try:
        with listening(broker.port, "#") as heard:
            sinks = f'["{{alarm}}.jsonl", {{ to = "mqtt://127.0.0.1:{broker.port}/{{stream}}/{{alarm}}", qos = 1 }}]'
            report = Pipeline.from_text(ALARM.replace('"e.jsonl"', sinks), folder).run()
            until(lambda: len(heard) == 6, "the events")
    finally:
        broker.stop()
    events = lines(folder / "high.jsonl")
    assert [(e["index"], e["event"], e["value"]) for e in events] == [
        (1, "fired", 3), (3, "cleared", 0.5), (5, "fired", 3), (8, "cleared", 0), (10, "fired", 3), (11, "cleared", 0),
    ]  # fmt: skip
    assert {k: events[0][k] for k in ("alarm", "stream", "of", "above", "clear")} == {
        "alarm": "high", "stream": "a", "of": "max", "above": 2, "clear": 1,
    }  # fmt: skip
    assert [(t, json.loads(p)["index"], json.loads(p)["event"]) for t, p in heard] == [
        ("a/high", e["index"], e["event"]) for e in events
    ]
    counts = report.streams["a"]
    assert (counts["alarm:high:fired"], counts["alarm:high:cleared"], counts["delivered"]) == (3, 3, 12)


def test_one_that_fired_before_a_restart_clears_after_it(folder: Path) -> None:
    """Also where the state begins anew, since the source is another."""
    text = '[service]\ncheckpoint = "states"\n' + ALARM
    np.save(folder / "a.npy", np.full((3, 1, 2, 2), 3, np.float32))
    Pipeline.from_text(text, folder).run()
    np.save(folder / "b.npy", np.zeros((3, 1, 2, 2), np.float32))
    report = Pipeline.from_text(text.replace("a.npy", "b.npy"), folder).run()
    assert report.streams["a"]["stepped"] == 3
    assert [(e["index"], e["event"]) for e in lines(folder / "e.jsonl")] == [(0, "fired"), (0, "cleared")]


def test_a_hold_time_goes_on_over_a_restart_of_a_live_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of a live source count from when it was opened: those of the run before made the alarm wait for as long as that had lasted."""
    text = f'[service]\ncheckpoint = "states"\n{ALARM.replace("a.npy", "python:x")}hold = 5\n'
    for opened, begin in ((1000.0, 5000.0), (5002.5, 5003.0)):
        monkeypatch.setattr(given_source, "time", SimpleNamespace(time=lambda opened=opened: opened))
        frames = [(begin + k, np.full((1, 2, 2), 3, np.float32)) for k in range(3)]
        Pipeline.from_text(text, folder, sources={"x": frames}).run()
    assert [(e["event"], e["name"]) for e in lines(folder / "e.jsonl")] == [
        ("fired", "1970-01-01T01:23:25.000Z")
    ]


def test_events_from_before_a_crash_are_not_told_again(folder: Path) -> None:
    text = (
        '[service]\ncheckpoint = "states"\n'
        + ALARM
        + "[streams.a.alarms.low]\nbelow = 1\nhold = 0\n"
        + 'sink = "e.jsonl"\n'
    )
    Pipeline.from_text(text, folder).run()
    before = (folder / "e.jsonl").read_text()
    newest = max((folder / "states").iterdir())
    newest.unlink()  # the one from the start stays: nothing was seen yet
    report = Pipeline.from_text(text, folder).run()
    assert (folder / "e.jsonl").read_text() == before
    assert report.streams["a"]["stepped"] == 12
    assert report.streams["a"]["written_before"] == len(before.splitlines()) == 13


def test_the_end_of_a_stream_is_the_end_of_its_alarm(tmp_path: Path) -> None:
    """Of a table with a key, whose streams come and go: nothing of them stays, and nobody waits for an end."""
    signature = Signature(
        (TensorSpec("x", "float32", ("N", 1)),), (TensorSpec("y", "float32", ("N", 1)),), ()
    )
    path = tmp_path / "e.jsonl"
    writer = AlarmWriter(
        "high", Rule("y", "max", True, 1.0, 1.0), signature,
        lambda stop: open_sink(path, signature, append=True, events=True, stop=stop), name="x", size=10,
    )  # fmt: skip
    counts = Counts()
    for index, (stream, value, last) in enumerate(
        [
            ("a", 2, False),
            ("b", 2, False),
            ("a", 2, True),
            ("b", np.nan, True),
            ("c", 2, True),
            ("d", 0, True),
        ]
    ):
        shown = Frame(index, float(index), str(index), np.zeros(1), stream=stream, last=last)
        writer.put(shown, {"y": np.full(1, value, np.float32)}, 0.0, counts)
    writer.put(Frame(6, 6.0, "6", np.zeros(1), stream="e"), {"y": np.full(1, 2, np.float32)}, 0.0, counts)
    writer.removed()  # the section left a service that goes on
    assert writer.close(60)
    assert [(e["stream"], e["event"]) for e in lines(path)] == [
        ("a", "fired"),
        ("b", "fired"),
        ("a", "cleared"),
        ("b", "cleared"),
        *(("c", "fired"), ("c", "cleared")),
        *(("e", "fired"), ("e", "cleared")),
    ]
    assert set(writer.alarms.streams) == {"e"}


def test_a_missing_scale_is_told_as_detect_tells_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    zoo.lstm(head=3).save(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(1).uniform(size=(50, 3)).astype(np.float32))
    edgelstm.fit_detector(
        tmp_path / "m.onnx", f"{tmp_path}/x.npy", tmp_path / "d.json", target="next", threads=1
    )
    np.save(tmp_path / "x.npy", np.load(tmp_path / "x.npy") * 255)
    text = '[models.m]\npath = "m.onnx"\n[streams.s]\nsource = "x.npy"\n[streams.s.alarms.odd]\ndetector = "d.json"\nsink = "e.jsonl"\n'
    Pipeline.from_text(text, tmp_path).run()
    said = [r.message for r in caplog.records if "far outside what the detector was fitted on" in r.message]
    assert len(said) == 1
    assert said[0].startswith("stream s: ")
    assert "scale" in said[0]


@pytest.mark.parametrize("gap", ["hold", "reset"])
def test_a_detector_alarms_where_detect_finds_anomalies(tmp_path: Path, gap: Any) -> None:
    """Live as in a recording: frames that are left out, gaps, states that begin anew, two streams."""
    model, rng = tmp_path / "m.onnx", np.random.default_rng(2)
    zoo.lstm(head=3).save(model)
    rows = [[t, u, *rng.normal(size=3).round(4)] for t in range(60) for u in "ab"]
    rows = [r for r in rows if not (r[1] == "a" and 20 <= r[0] < 24)]
    rows[61][3] = ""
    text = "\n".join(",".join(map(str, row)) for row in [["t", "unit", "x", "y", "z"], *rows])
    (tmp_path / "t.csv").write_text(text + "\n", encoding="utf-8")
    source = f"{tmp_path / 't.csv'}:key=unit:time=t"
    given: dict[str, Any] = {"on_bad_frame": "skip", "on_gap": gap, "threads": 1}
    edgelstm.fit_detector(
        model,
        source,
        tmp_path / "d.json",
        target="next",
        method="mahalanobis",
        quantile=0.7,
        settle=3,
        **given,
    )
    edgelstm.detect(model, tmp_path / "d.json", source, tmp_path / "s.csv", **given)
    expected, fired = [], dict[str, str]()
    for row in (tmp_path / "s.csv").read_text().splitlines()[1:]:
        stream, index, *_, score, _threshold, odd = row.split(",")
        if fired.get(stream, "0") != odd:
            expected.append((f"t:{stream}", int(index), pytest.approx(float(score))))
        fired[stream] = odd
    text = f"""
    [models.m]
    path = "m.onnx"
    [streams.t]
    source = "t.csv:key=unit:time=t"
    max_gap = 1.5
    gap = "{gap}"
    [streams.t.alarms.odd]
    detector = "d.json"
    sink = "e.jsonl"
    """
    Pipeline.from_text(text, tmp_path).run()
    events = [e for e in lines(tmp_path / "e.jsonl") if e["value"] is not None]
    assert len(expected) > 8
    found = sorted((e["stream"], e["index"], e["value"]) for e in events)
    last = {"t:a": 118 - 4 - 2, "t:b": 115}
    assert [f for f in found if f[1] < last[f[0]]] == [
        x for x in sorted(expected, key=lambda x: x[:2]) if x[1] < last[x[0]]
    ]
    for key in ("below = 1\n", 'of = "min"\n'):
        with pytest.raises(EdgeLstmError, match="beside detector"):
            Pipeline.from_text(text.replace("detector =", key + "detector ="), tmp_path)
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(EdgeLstmError, match="not a detector"):
        Pipeline.from_text(text, tmp_path).check()
