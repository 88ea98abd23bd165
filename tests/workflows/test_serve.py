"""serve: a pipeline file at work, from its text to its outputs, and one clear error for each thing that may be wrong in it."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from command_line import Run

pytest.importorskip("pydantic")

from edgelstm import EdgeLstmError, Pipeline, Runner
from edgelstm.workflows.serve import EXAMPLES
from exported import exported

MODEL = '[models.m]\npath = "model.onnx"\nmax_wait = 0\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    zoo.lstm().save(tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    for name, count in (("a", 20), ("b", 7)):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(count, 3)).astype(np.float32))
    return tmp_path


def section(name: str, **keys: Any) -> str:
    given = {"source": f"{name}.npy", "sink": f"{name}.jsonl", "sink_overload": "block", **keys}
    return f"[streams.{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in given.items())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def values(path: Path) -> list[Any]:
    return [line["outputs"]["y"]["values"] for line in lines(path)]


def alone(folder: Path, frames: np.ndarray[Any, Any]) -> list[Any]:
    with Runner.open(folder / "model.onnx", threads=1) as runner:
        return [runner.stream("x").step(x)["y"].tolist() for x in frames]


def test_streams_side_by_side_are_what_each_is_alone(folder: Path) -> None:
    report = Pipeline.from_text(MODEL + section("a") + section("b"), folder).run()
    assert not report.failed
    for name in "ab":
        frames = np.load(folder / f"{name}.npy")
        np.testing.assert_allclose(
            values(folder / f"{name}.jsonl"), alone(folder, frames), rtol=1e-5, atol=1e-6
        )
        counts = report.streams[name]
        assert counts == {"delivered": len(frames), "read": len(frames), "stepped": len(frames)}
    assert report.calls["m"] <= 27


def test_streams_advance_in_one_call(folder: Path) -> None:
    """Which of the two threads begins first is the machine's business; from then on the frames go together."""
    frames = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    np.save(folder / "a.npy", frames)
    np.save(folder / "b.npy", frames[::-1])
    text = MODEL.replace("max_wait = 0", "max_wait = 30")
    report = Pipeline.from_text(text + section("a") + section("b"), folder).run()
    assert 2000 <= report.calls["m"] < 3000


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_several_models_and_a_table_with_keys(folder: Path, kind: str) -> None:
    rows = [
        f"{key},{t},{t / 10},{t / 20},0.5" for t in range(9) for key in "pqr" if not (key == "q" and t > 4)
    ]
    (folder / "t.csv").write_text("unit,time,x,y,z\n" + "\n".join(rows) + "\n")
    if kind == "parquet":
        csv = pytest.importorskip("pyarrow.csv")
        pytest.importorskip("pyarrow.parquet").write_table(
            csv.read_csv(folder / "t.csv"), folder / "t.parquet"
        )
    text = (
        f'{MODEL}[models.n]\npath = "model.onnx"\n'
        + section("a", model="m")
        + section(
            "t", model="n", source=f"t.{kind}:key=unit:time=time:columns=x,y,z", sink="out-{stream}.jsonl"
        )
    )
    report = Pipeline.from_text(text, folder).run()
    assert {n: c["stepped"] for n, c in report.streams.items()} == {"a": 20, "t:p": 9, "t:q": 5, "t:r": 9}
    made = lines(folder / "out-t.jsonl")
    frames = np.array([[t / 10, t / 20, 0.5] for t in range(9)], np.float32)
    for name, count in (("t:p", 9), ("t:q", 5)):
        got = [line["outputs"]["y"]["values"] for line in made if line["stream"] == name]
        np.testing.assert_allclose(got, alone(folder, frames[:count]), rtol=1e-5, atol=1e-6)


def test_a_frame_that_does_not_fit_costs_its_stream_alone(folder: Path) -> None:
    np.save(folder / "b.npy", np.zeros((7, 5), np.float32))
    report = Pipeline.from_text(MODEL + section("a") + section("b"), folder).run()
    assert report.streams["b"] == {"dropped:refused": 7, "read": 7}
    assert report.streams["a"]["delivered"] == 20


def test_sound_that_comes_later_is_cut_by_its_hop(folder: Path) -> None:
    """A hop of samples is none of frames in a window, also before there is a source that says so."""
    zoo.lstm(64).save(folder / "model.onnx")

    def record() -> None:
        with wave.open(str(folder / "later.part"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(bytes(2 * 640))
        (folder / "later.part").rename(folder / "a.wav")

    text = MODEL + section("a", source="a.wav", hop=64, retries=1000, retry=0.01)
    timer = threading.Timer(0.3, record)
    timer.start()
    report = Pipeline.from_text(text, folder).run()
    timer.join()
    assert report.streams["a"]["stepped"] == 10


def test_a_sink_that_is_full_costs_its_outputs_alone(folder: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (folder / "b.jsonl").symlink_to("/dev/full")
    report = Pipeline.from_text(MODEL + section("a") + section("b"), folder).run()
    assert report.streams["a"]["delivered"] == 20
    assert report.streams["b"]["stepped"] == 7
    assert report.streams["b"]["undelivered:not_written"] == 7, "each is tried: the disk may have room again"
    assert "No space left" in report.failed["sink b -> b.jsonl"]


def test_a_source_that_comes_later_is_tried_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "b.npy").rename(folder / "later.npy")
    text = MODEL + section("a") + section("b", retries=100000, retry=0.01)
    with caplog.at_level(logging.WARNING, "edgelstm.serve"):
        reports: list[Any] = []
        pipeline = Pipeline.from_text(text, folder)
        thread = threading.Thread(target=lambda: reports.append(pipeline.run()), daemon=True)
        thread.start()
        _wait_for(lambda: "its source failed, try" in caplog.text)
        (folder / "later.npy").rename(folder / "b.npy")
        thread.join(120)
    assert reports[0].streams["b"]["delivered"] == 7
    assert not reports[0].failed


def test_a_source_that_fails_for_good_is_told_and_the_others_go_on(folder: Path) -> None:
    np.savez(folder / "b.npz", frames=np.zeros((4, 3), np.float32))
    (folder / "table.csv").write_text("u,x,y,z\nk,1,2,3\nk,4,5,6\n,7,8,9\n")
    with pytest.raises(EdgeLstmError, match=r"stream b: .*row 3.*'u': found an empty cell"):
        Pipeline.from_text(MODEL + section("a") + section("b", source="table.csv:key=u"), folder).run()
    assert not (folder / "a.jsonl").exists()
    report = Pipeline.from_text(
        MODEL + section("a") + section("b", source="table.csv:key=u", retries=1, retry=0.01), folder
    ).run()
    assert "an empty cell" in report.failed["stream b"]
    assert report.streams["a"]["delivered"] == 20


def test_stop_steps_what_is_queued(folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((500_000, 3), np.float32))
    pipeline = Pipeline.from_text(MODEL + section("a"), folder)
    reports: list[Any] = []
    thread = threading.Thread(target=lambda: reports.append(pipeline.run()), daemon=True)
    thread.start()
    _wait_for(lambda: (folder / "a.jsonl").exists() and (folder / "a.jsonl").stat().st_size > 0)
    pipeline.stop()
    thread.join(120)
    counts = reports[0].streams["a"]
    assert reports[0].stopped
    assert counts["read"] == counts["stepped"] == counts["delivered"] < 500_000
    assert [line["index"] for line in lines(folder / "a.jsonl")] == list(range(counts["read"]))


def test_sigterm_ends_it_well(folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((500_000, 3), np.float32))
    (folder / "p.toml").write_text(MODEL + section("a"))
    with subprocess.Popen(
        [sys.executable, "-m", "edgelstm", "serve", "p.toml", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _wait_for(lambda: (folder / "a.jsonl").exists() and (folder / "a.jsonl").stat().st_size > 0)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    report = json.loads(out)
    assert report["stopped"]
    assert report["streams"]["a"]["delivered"] == len(lines(folder / "a.jsonl"))
    assert "Traceback" not in error


#: Whose model takes seconds to export: in `make test` what was made of it before stands in its place.
LARGE = {"camera": "moving_digits", "radar": "nowcast_radar"}


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        *((name, name not in LARGE) for name in EXAMPLES if name != "rtsp"),
        *(pytest.param(name, True, marks=pytest.mark.thorough) for name in LARGE),
    ],
)
def test_examples_run_as_they_are(run: Run, name: str, whole: bool) -> None:
    code, text, _ = run("serve", "--example", name)
    assert code == 0
    if not whole:
        model = f'"example:{LARGE[name]}/model.safetensors"'
        assert model in text
        text = text.replace(model, json.dumps(str(exported(LARGE[name]))))
    Path("pipeline.toml").write_text(text)
    code, text, _ = run("serve", "--check", "pipeline.toml", "--json")
    assert code == 0
    assert set(json.loads(text)["streams"])
    assert {p.name for p in Path().iterdir()} == {"pipeline.toml"}, "nothing is written by a check"
    if name not in ("table", "audio"):
        return
    code, text, _ = run("serve", "pipeline.toml", "--json")
    assert code == 0
    if name == "audio":
        heard = [line["outputs"]["y"]["values"][0] > 0 for line in lines(Path("alarm.jsonl"))]
        assert len(heard) == 93
        assert not any(heard[:47]), "one beep is no alarm, nor is a whistle"
        assert all(heard[48:60])
        return
    b = json.loads(text)["streams"]["pumps:b"]
    assert b == {"delivered": 50, "filled": 10, "gaps": 1, "read": 50, "stepped": 50}


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_the_camera_on_the_network_runs_as_it_is(run: Run, whole: bool) -> None:
    """As a user would, or with a small model in the place of the one whose export takes seconds."""
    pytest.importorskip("av")
    pytest.importorskip("uvicorn")
    _, text, _ = run("serve", "--example", "rtsp")
    assert 'http = "127.0.0.1:8080"' in text
    frames = 100 if whole else 10  # it goes on for ever
    text = text.replace("127.0.0.1:8080", "127.0.0.1:0").replace(
        "[streams.gate]", f"[streams.gate]\nlimit = {frames}"
    )
    if not whole:
        zoo.persistence(shape=(1, 64, 64)).save("digits.onnx")
        text = text.replace("example:moving_digits/model.safetensors", "digits.onnx")
    Path("pipeline.toml").write_text(text)
    code, out, _ = run("serve", "pipeline.toml", "--json")
    assert code == 0
    counts = json.loads(out)["streams"]["gate"]
    assert counts["read"] == frames
    assert counts["delivered"] == counts["stepped"] == len(lines(Path("gate.jsonl"))) > 0
    assert {line["name"][-1] for line in lines(Path("gate.jsonl"))} == {"Z"}, "times in UTC"


BAD = [
    ('gap = "hold"', 'gap = "repeat"', 'line 10: streams.a.gap: found "repeat"; expected hold, reset, repeat:N or blank:N'),
    ('gap = "hold"', 'gap = "repeat:3"', "line 10: streams.a.gap: found repeat:3 without max_gap; expected max_gap too"),
    ('overload = "block"', 'overload = "newest"', "line 9: streams.a.overload: found \"newest\"; expected 'latest', 'block' or 'drop_oldest'"),
    ("queue = 4", 'queue = "4"', 'line 8: streams.a.queue: found "4"; expected an integer'),
    ("queue = 4", "queue = 0", "line 8: streams.a.queue: found 0; expected greater than or equal to 1"),
    ("queue = 4", "queues = 4", "line 8: streams.a.queues: found the key queues; expected model, source, sink"),
    ('model = "m"', 'model = "n"', "line 5: streams.a.model: found n; expected one of m"),
    ('source = "a.npy"', "", "line 4: streams.a.source: found nothing; expected source = ..."),
    ('source = "a.npy"', 'source = "${NOT_SET}"', "line 6: streams.a.source: found ${NOT_SET}, which the environment does not have"),
    ("max_wait = 0", "max_wait = inf", "line 3: models.m.max_wait: found Infinity; expected less than or equal to 60"),
    ("[models.m]", "[model.m]", "line 1: model: found the key model; expected service, models, streams"),
    ("[models.m]", "[models.m", "is no TOML: found"),
    ('path = "model.onnx"', 'path = "none.onnx"', "none.onnx does not exist"),
    ('path = "model.onnx"', 'path = "a.npy"', "can't run"),
    ('source = "a.npy"', 'source = "none.npy"', "stream a: source"),
]  # fmt: skip
GOOD = """[models.m]
path = "model.onnx"
max_wait = 0
[streams.a]
model = "m"
source = "a.npy"
sink = "a.jsonl"
queue = 4
overload = "block"
gap = "hold"
"""


@pytest.mark.parametrize(("good", "bad", "said"), BAD)
def test_one_bad_key_is_named_with_its_line(folder: Path, run: Run, good: str, bad: str, said: str) -> None:
    assert good in GOOD
    Path("p.toml").write_text(GOOD.replace(good, bad))
    before = {p.name for p in folder.iterdir()}
    code, _, error = run("serve", "p.toml")
    assert code == 2
    assert said in error
    assert {p.name for p in folder.iterdir()} == before, "nothing is left"


def test_two_streams_never_write_one_file(folder: Path) -> None:
    with pytest.raises(EdgeLstmError, match=r"streams.b.sink: found x.jsonl, which stream a writes"):
        Pipeline.from_text(MODEL + section("a", sink="x.jsonl") + section("b", sink="x.jsonl"), folder)


def test_secrets_are_nowhere(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a variable's value nor the password of a URL, in errors, logs and reports."""
    environment = {"PASS": "hunter2secret", "WHERE": "a.npy"}
    addresses = (
        "rtsp://me:${PASS}@127.0.0.1:1/1",
        "rtsp://me:plainword@127.0.0.1:1/1",
        "http://127.0.0.1:1/?key=plainword",
    )
    for source in (*addresses, "${PASS}.npy"):
        with pytest.raises(EdgeLstmError) as caught:
            Pipeline.from_text(MODEL + section("a", source=source), folder, environment).run()
        assert "hunter2secret" not in str(caught.value)
        assert "plainword" not in str(caught.value)
    assert "***" in str(caught.value)
    with pytest.raises(EdgeLstmError) as caught:
        Pipeline.from_text(MODEL + section("a", gap="${PASS}"), folder, environment)
    assert "hunter2secret" not in str(caught.value)
    with caplog.at_level(logging.INFO, "edgelstm"):
        report = Pipeline.from_text(
            MODEL + section("a", source="${WHERE}") + section("b", source="${PASS}", retries=1, retry=0.01),
            folder,
            environment,
        ).run()
    assert report.streams["a"]["delivered"] == 20
    (folder / "hunter2secret").mkdir()
    (folder / "hunter2secret" / "rows.csv").write_text("1,2,3\n" * 3)
    with caplog.at_level(logging.INFO, "edgelstm"):
        Pipeline.from_text(MODEL + section("b", source="${PASS}/rows.csv"), folder, environment).run()
    assert "hunter2secret" not in caplog.text + json.dumps(report.to_json())
    assert "***" in report.failed["stream b"]


def test_what_sinks_are_told_in_confidence_is_nowhere(
    folder: Path, caplog: pytest.LogCaptureFixture, run: Run
) -> None:
    """Neither passwords, nor headers, nor the paths of web addresses, which may be secrets alone."""
    section_a = (
        section("a", sink="a.jsonl")
        + """
        [streams.a.alarms.x]
        above = 0
        sink = { to = "http://127.0.0.1:9/hushpath?key=hushquery", retries = 0, timeout = 1 }
    """
    )
    sinks = """
        [[streams.b.sink]]
        to = "http://me:hushpass@127.0.0.1:9/hushpath"
        headers = { Authorization = "Bearer hushtoken", X-Key = "${KEY}" }
        retries = 0
        [[streams.b.sink]]
        to = "http://127.0.0.1:9/other"
        retries = 0
        [[streams.b.sink]]
        to = "mqtt://127.0.0.1:9/t"
        user = "me"
        password = "hushword"
    """
    text = "[service]\ndrain = 0.5\n" + MODEL + section_a + '[streams.b]\nsource = "b.npy"\n' + sinks
    with caplog.at_level(logging.DEBUG):
        pipeline = Pipeline.from_text(text, folder, {"KEY": "hushkey"})
        checked, report = pipeline.check().to_json(), pipeline.run().to_json()
    assert report["streams"]["b"]["undelivered:unreachable"] > 0
    assert "http://127.0.0.1:9/..." in caplog.text
    assert "b -> http://127.0.0.1:9/... (2)" in caplog.text
    assert "hush" not in caplog.text + json.dumps(checked) + json.dumps(report)
    bad = text.replace("retries = 0\n        [[", 'retries = "hushtoken"\n        [[')
    with pytest.raises(EdgeLstmError) as caught:
        Pipeline.from_text(bad.replace('"${KEY}"', "3"), folder, {})
    assert "hushpass" not in str(caught.value)


def test_the_schema_knows_every_key_and_the_page_explains_it(run: Run) -> None:
    code, text, _ = run("serve", "--schema")
    assert code == 0
    schema = json.loads(text)
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    for part in schema["$defs"].values():
        for name, key in part["properties"].items():
            assert f"`{name}`" in page, name
            assert key["description"]
            for word in key.get("enum", ()):
                assert f"`{word}`" in page, (name, word)


def test_without_pydantic_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(EdgeLstmError, match=r"pip install 'edgelstm\[serve\]'"):
        Pipeline.from_text(MODEL + section("a"), folder)


def test_what_a_sink_wrote_before_a_restart_stays(folder: Path) -> None:
    pytest.importorskip("PIL")
    zoo.persistence(shape=(1, 4, 6)).save(folder / "model.onnx")
    np.save(folder / "b.npy", np.zeros((3, 1, 4, 6), np.float32))
    for _ in range(3):
        report = Pipeline.from_text(MODEL + section("b", sink=["b.npz", "png/"]), folder).run()
        assert not report.failed
    assert {p.name for p in folder.glob("b*.npz")} == {"b.npz", "b-2.npz", "b-3.npz"}
    assert {p.name for p in folder.glob("png*")} == {"png", "png-2", "png-3"}


def test_lines_go_on_behind_those_that_are_there(folder: Path) -> None:
    """A line cut short by a crash does not run into the next."""
    (folder / "b.jsonl").write_text('{"cut": ')
    Pipeline.from_text(MODEL + section("b"), folder).run()
    first, *rest = (folder / "b.jsonl").read_text().splitlines()
    assert first == '{"cut": '
    assert [json.loads(line)["index"] for line in rest] == list(range(7))


def _wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ranges_of_states_are_those_given_or_calibrated(folder: Path) -> None:
    """Frames a hundred times as large as any that was calibrated with: an LSTM's cell state leaves its range, another's not."""
    import edgelstm

    np.save(folder / "c.npy", np.tile(np.load(folder / "a.npy"), (3, 1)))
    edgelstm.calibrate(folder / "model.onnx", str(folder / "c.npy"), folder / "m.calib.json")
    np.save(folder / "b.npy", np.concatenate([np.load(folder / "a.npy"), np.full((30, 3), 100, np.float32)]))
    text = MODEL + 'calibration = "m.calib.json"\nmargin = 1.5\n' + section("a") + section("b")
    report = Pipeline.from_text(text, folder).run()
    assert report.streams["a"] == {"delivered": 20, "read": 20, "stepped": 20}
    assert report.streams["b"]["guard:range"] == report.streams["b"]["dropped:range"] > 0
    with Runner.open(folder / "model.onnx") as runner:
        name = runner.signature.states[0].name
    tight = f"{MODEL}ranges = {{ {name} = [-1e-6, 1e-6] }}\n"
    assert Pipeline.from_text(tight + section("b"), folder).run().streams["b"]["guard:range"] > 0
    for ranges, said in (
        ("{ other = [0, 1] }", "found other; expected states"),
        (f"{{ {name} = [1, 0] }}", "low < high"),
    ):
        with pytest.raises(EdgeLstmError, match=said):
            Pipeline.from_text(f"{MODEL}ranges = {ranges}\n" + section("b"), folder).run()
