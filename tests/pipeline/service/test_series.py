"""Models in series in a service: bit for bit what `run --then` gives; both states are carried, kept, reset, guarded and swapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgelstm
import zoo
from edgelstm import EdgeLstmError, Pipeline, Runner
from edgelstm.pipeline.service.series import Passage, Series, links

pytest.importorskip("pydantic")

from running import Running, until, values

FRAMES = 400
MODELS = '[models.a]\npath = "a.onnx"\nthen = "b"\n{a}[models.b]\npath = "b.onnx"\n{b}'
STREAM = '[streams.s]\nsource = "x.npy"\nsink = "s.jsonl"\nsink_overload = "block"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    zoo.lstm(head=3, seed=1).save(tmp_path / "a.onnx")
    zoo.lstm(seed=2).save(tmp_path / "b.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(4).normal(size=(FRAMES, 3)).astype(np.float32))
    return tmp_path


def text(more: str = "", a: str = "", b: str = "") -> str:
    return MODELS.format(a=a, b=b) + STREAM + more


def of_run(folder: Path, source: str = "x.npy", **keys: Any) -> list[Any]:
    to = folder / "run.jsonl"
    edgelstm.run(folder / "a.onnx", folder / source, to, then=[folder / "b.onnx"], threads=1, **keys)
    return values(to)


def test_it_gives_what_run_gives(folder: Path) -> None:
    """Of two streams in one call, too."""
    other = STREAM.replace("streams.s", "streams.t").replace("s.jsonl", "t.jsonl")
    assert Pipeline.from_text(text(), folder).check().streams["s"]["model"] == "a then b"
    report = Pipeline.from_text(text(other), folder).run()
    assert report.failed == {}
    assert report.streams["s"]["stepped"] == report.streams["t"]["stepped"] == FRAMES
    assert values(folder / "s.jsonl") == values(folder / "t.jsonl") == of_run(folder)


def test_both_states_go_on_after_a_restart(folder: Path) -> None:
    service = '[service]\ncheckpoint = "states"\n'
    first = Pipeline.from_text(text("limit = 150\n") + service, folder).run()
    assert first.streams["s"]["stepped"] == 150
    second = Pipeline.from_text(text() + service, folder).run()
    assert second.streams["s"]["stepped"] == FRAMES
    assert values(folder / "s.jsonl") == of_run(folder)


def test_another_second_model_begins_anew(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = '[service]\ncheckpoint = "states"\n'
    Pipeline.from_text(text("limit = 20\n") + service, folder).run()
    zoo.lstm(seed=5).save(folder / "b.onnx")
    with caplog.at_level("INFO", "edgelstm.serve"):
        Pipeline.from_text(text("limit = 40\n") + service, folder).run()
    assert "stream s: its state begins anew: the checkpoint is of another model" in caplog.text


def test_a_reset_is_of_both_and_a_snapshot_has_both(folder: Path) -> None:
    with Running(text("rate = 500\n"), folder) as running:
        until(lambda: running.count("s", "stepped") > 20)
        running.control.pause("s")
        before = running.control.snapshot("s")["s"]
        running.control.reset("s")
        after = running.control.snapshot("s")["s"]
    assert {n.partition(".")[0] for n in before} == {"1", "2"}
    for number, file in (("1", "a"), ("2", "b")):
        with Runner.open(folder / f"{file}.onnx", threads=1) as runner:
            for name, initial in runner.stream("new").values().items():
                np.testing.assert_array_equal(after[f"{number}.{name}"], initial)
                assert (before[f"{number}.{name}"] != initial).any()


@pytest.mark.parametrize("which", ["a", "b"])
def test_each_is_swapped_with_the_state_of_both(folder: Path, which: str) -> None:
    """To other weights that are said to be compatible: outputs are those of states carried by hand."""
    zoo.lstm(**({"head": 3, "seed": 7} if which == "a" else {"seed": 7})).save(folder / "new.onnx")
    with Running(text("rate = 500\n"), folder) as running:
        until(lambda: running.count("s", "stepped") > 30)
        running.control.pause("s")
        count = running.count("s", "stepped")
        with pytest.raises(EdgeLstmError, match="its states may mean something else"):
            running.pipeline.swap(which, folder / "new.onnx")
        running.pipeline.swap(which, folder / "new.onnx", compatible=True)
        running.control.resume("s")
        until(lambda: running.count("s", "stepped") > count + 30)
    files = {"a": folder / "a.onnx", "b": folder / "b.onnx"}
    found = values(folder / "s.jsonl")
    frames = np.load(folder / "x.npy")[: len(found)]
    wanted: list[Any] = []
    states: dict[str, Any] = {}
    for part in (frames[:count], frames[count:]):
        with Runner.open(files["a"], threads=1) as one, Runner.open(files["b"], threads=1) as two:
            for name, runner in (("a", one), ("b", two)):
                if name in states:
                    runner.stream("x").restore(states[name], any_model=True)
            for x in part:
                y = one.stream("x").step(x)["y"]
                wanted.append(two.stream("x").step(y)["y"].tolist())
            states = {"a": one.stream("x").snapshot(), "b": two.stream("x").snapshot()}
        files[which] = folder / "new.onnx"
    assert found == wanted


def test_a_state_that_goes_bad_takes_both_back(folder: Path) -> None:
    """The frame that spoils one of them is as if it had never been, in both; ranges are of each model's own states."""
    x = np.load(folder / "x.npy")
    with Runner.open(folder / "b.onnx", threads=1) as two, Runner.open(folder / "a.onnx", threads=1) as one:
        stream = two.stream("x")
        most: dict[str, float] = {}
        for frame in x:
            stream.step(one.stream("x").step(frame)["y"])
            for name, value in stream.values().items():
                most[name] = max(most.get(name, 0.0), float(np.abs(value).max()))
    cell = max(most, key=lambda name: most[name])
    limit = most[cell] * 0.97  # the few frames that come near the largest value of all
    b = f"ranges = {{ {json.dumps(cell)} = [{-limit}, {limit}] }}\n"
    report = Pipeline.from_text(text(b=b), folder).run()
    counts = report.streams["s"]
    assert counts["guard:range"] == counts["dropped:range"] >= 1
    kept = [json.loads(line)["index"] for line in (folder / "s.jsonl").read_text().splitlines()]
    assert len(kept) < FRAMES
    np.save(folder / "good.npy", x[kept])
    assert values(folder / "s.jsonl") == of_run(folder, "good.npy")


@settings(max_examples=25, deadline=None)
@given(fails=st.lists(st.booleans(), min_size=1, max_size=12), undo=st.booleans())
def test_a_step_that_fails_between_them_moves_no_state(
    tmp_path_factory: pytest.TempPathFactory, fails: list[bool], undo: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "series"
    if not folder.exists():
        folder.mkdir()
        zoo.lstm(head=3, seed=1).save(folder / "a.onnx")
        zoo.lstm(seed=2).save(folder / "b.onnx")
    frames = np.random.default_rng(0).normal(size=(len(fails), 3)).astype(np.float32)
    runners = [Runner.open(folder / f"{n}.onnx", threads=1) for n in "ab"]
    with runners[0], runners[1]:
        series = Series(runners)
        series.can_undo = series.can_undo and undo
        between = links([r.signature for r in runners])
        stream, mine = series.stream("s"), []
        for frame, wrong in zip(frames, fails, strict=True):
            passage = Passage({"x": frame}, frame, between)
            if wrong:
                before = stream.snapshot()
                inputs, between[0].inputs = between[0].inputs, None  # type: ignore[assignment]
                with pytest.raises(TypeError):
                    stream.step(passage)
                between[0].inputs = inputs
                for name, value in stream.snapshot().items():
                    np.testing.assert_array_equal(value, before[name])
            else:
                mine.append(stream.step(passage)["y"].tolist())
        stream.reset()
        good = [
            stream.step(Passage({"x": f}, f, between))["y"].tolist()
            for f, w in zip(frames, fails, strict=True)
            if not w
        ]
        assert mine == good


def test_dtln_is_what_run_makes_of_it(shared_dir: Path, tmp_path: Path) -> None:
    """Spectra, a mask, and blocks that are added where they overlap: declared at export, the same samples from both."""
    pytest.importorskip("onnxruntime")
    import wave

    dtln, rng = shared_dir / "models" / "dtln", np.random.default_rng(3)
    edgelstm.export(str(dtln / "model_1.onnx"), tmp_path / "a.onnx", states={"input_3": "tf_op_layer_stack_2"},
                    preprocess=["samples=512,128,16000;magnitude"], postprocess=["mask_spectrum"], limit=2, threads=1)  # fmt: skip
    edgelstm.export(str(dtln / "model_2.onnx"), tmp_path / "b.onnx", states={"input_5": "tf_op_layer_stack_5"},
                    postprocess=["overlap_add=128"], limit=2, threads=1)  # fmt: skip
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
        file.writeframes((rng.normal(size=8000) * 3000).astype("<i2").tobytes())
    sinks = 'sink = ["s.wav", "s.npz"]\nsink_overload = "block"\n'
    report = Pipeline.from_text(
        MODELS.format(a="", b="") + '[streams.s]\nsource = "x.wav"\n' + sinks, tmp_path
    ).run()
    assert report.failed == {}
    for suffix in ("wav", "npz"):
        edgelstm.run(
            tmp_path / "a.onnx",
            tmp_path / "x.wav",
            tmp_path / f"r.{suffix}",
            then=[tmp_path / "b.onnx"],
            threads=1,
        )
    assert (tmp_path / "s.wav").read_bytes() == (tmp_path / "r.wav").read_bytes()
    with np.load(tmp_path / "s.npz") as mine, np.load(tmp_path / "r.npz") as other:
        np.testing.assert_array_equal(mine["conv1d_3"], other["conv1d_3"])


def test_a_file_that_changes_puts_a_second_model_behind_the_first(folder: Path) -> None:
    path = folder / "p.toml"
    alone = '[models.a]\npath = "a.onnx"\n' + STREAM + "rate = 200\n"
    path.write_text(alone)
    with Running(path, folder) as running:
        until(lambda: running.count("s", "stepped") > 10)
        path.write_text(text("rate = 200\n"))
        assert running.pipeline.reload() == {}
        before = running.count("s", "stepped")
        until(lambda: running.count("s", "stepped") > before + 10)
        assert {n[:2] for n in running.control.snapshot("s")["s"]} == {"1.", "2."}
        path.write_text(text("rate = 200\n", b="max_wait = 0.5\n"))
        assert running.pipeline.reload() == {}
        path.write_text(alone)
        assert running.pipeline.reload() == {}
        until(lambda: running.control.snapshot("s").get("s"))
        assert not any(n.startswith("1.") for n in running.control.snapshot("s")["s"])


WRONG = [
    (text(a="").replace('then = "b"', 'then = "c"'), r"line 3: models\.a\.then: found c; expected one of b"),
    (text(b='then = "a"\n'), r"models\.a\.then: found a circle of models"),
    (text('model = "b"\n'), r"streams\.s\.model: found b, which stands behind a; expected one of a"),
    (text(b="").replace("[streams", '[models.c]\npath = "b.onnx"\nthen = "b"\n[streams', 1),
     r"models\.c\.then: found b, which stands behind a; expected a section of its own"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_what_is_wrong_is_said_at_once(folder: Path, wrong: str, said: str) -> None:
    with pytest.raises(EdgeLstmError, match=said):
        Pipeline.from_text(wrong, folder)


def test_models_that_do_not_fit_are_refused_at_the_start(folder: Path) -> None:
    turned = (
        MODELS.format(a="", b="")
        .replace("a.onnx", "t")
        .replace("b.onnx", "a.onnx")
        .replace('"t"', '"b.onnx"')
    )
    with pytest.raises(EdgeLstmError, match=r"input 'x'"):
        Pipeline.from_text(turned + STREAM, folder).check()


def test_kept_frames_are_stepped_again_through_both(folder: Path) -> None:
    """From the states of both before the first of them, as `run --begin --then` does."""
    x = np.load(folder / "x.npy")
    with Runner.open(folder / "b.onnx", threads=1) as two:
        cell = two.signature.states[-1].name
    b = f"ranges = {{ {json.dumps(cell)} = [-0.02, 0.02] }}\n"
    keep = 'keep_frames = "kept"\nkeep_seconds = 0.05\nrate = 400\nlimit = 60\n'
    report = Pipeline.from_text(text(keep, b=b), folder).run()
    assert report.streams["s"]["guard:range"] >= 1
    kept = min((folder / "kept").glob("*.npz"))
    with np.load(kept) as file:
        states = [name for name in file.files if name.startswith("state.")]
        assert {name[6:8] for name in states} == {"1.", "2."}
        count = len(file["frames"])
        np.testing.assert_array_equal(file["frames"][0], x[json.loads(file["kept"].tobytes())["index"][0]])
    to = folder / "again.jsonl"
    edgelstm.run(folder / "a.onnx", kept, to, then=[folder / "b.onnx"], begin=kept, threads=1)
    assert len(values(to)) == count
