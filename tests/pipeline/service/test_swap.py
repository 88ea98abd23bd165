"""Another file takes over from a running model: outputs are those of a run whose states were carried by hand."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgelstm
import zoo
from edgelstm import EdgeLstmError, Runner
from edgelstm.graph.signature import Quantization, StateSpec
from edgelstm.pipeline.service.swap import Carry

pytest.importorskip("pydantic")

from running import Running, section, until, values

FRAMES = 600
TEXT = (
    '[models.m]\npath = "model.onnx"\nmax_wait = 0\n{more}[models.other]\npath = "other.onnx"\n'
    '[streams.a]\nmodel = "m"\nsource = "a.npy"\nsink = "a.jsonl"\nsink_overload = "block"\nrate = 1000\n'
    '[streams.b]\nmodel = "m"\nsource = "b.npy"\nsink = "b.jsonl"\nsink_overload = "block"\nrate = 1000\n'
    '[streams.c]\nmodel = "other"\nsource = "c.npy"\nsink = "c.jsonl"\nsink_overload = "block"\nrate = 1000\n'
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model, the same in int8, one of other weights, one of another shape."""
    folder = tmp_path_factory.mktemp("models")
    zoo.lstm().save(folder / "float.onnx")
    rng = np.random.default_rng(5)
    np.save(folder / "seen.npy", rng.normal(size=(60, 3)).astype(np.float32))
    edgelstm.calibrate(folder / "float.onnx", str(folder / "seen.npy"), folder / "m.calib.json")
    edgelstm.quantize(folder / "float.onnx", folder / "m.calib.json", folder / "int8.onnx")
    zoo.lstm(seed=77).save(folder / "retrained.onnx")
    zoo.lstm(hidden=(6, 5)).save(folder / "wider.onnx")
    return folder


def pipeline(folder: Path, models: Path, more: str = "") -> str:
    rng = np.random.default_rng(1)
    for name in "abc":
        np.save(folder / f"{name}.npy", rng.normal(size=(FRAMES, 3)).astype(np.float32))
    for name in ("model", "other"):
        (folder / f"{name}.onnx").write_bytes((models / "float.onnx").read_bytes())
    return TEXT.replace("{more}", more)


def by_hand(frames: Any, first: Path, count: int, second: Path) -> list[Any]:
    made = []
    with Runner.open(first, threads=1) as a, Runner.open(second, threads=1) as b:
        for frame in frames[:count]:
            made.append(a.stream("x").step(frame)["y"].tolist())
        states = a.stream("x").values()
        b.stream("x").restore(
            states if first.read_bytes() != second.read_bytes() else a.stream("x").snapshot()
        )
        for frame in frames[count:]:
            made.append(b.stream("x").step(frame)["y"].tolist())
    return made


@pytest.mark.parametrize("file", ["int8", "retrained", "float"])
def test_outputs_are_those_of_states_carried_by_hand(models: Path, tmp_path: Path, file: str) -> None:
    counts: dict[str, int] = {}
    with Running(pipeline(tmp_path, models), tmp_path) as running:
        until(lambda: running.count("a", "stepped") > 50 and running.count("b", "stepped") > 50)
        for name in "ab":
            running.control.pause(name)
            counts[name] = running.count(name, "stepped")
        running.pipeline.swap("m", models / f"{file}.onnx", compatible=file == "retrained")
        for name in "ab":
            running.control.resume(name)
        report = running.ends()
    assert not report.failed
    for name in "ab":
        frames = np.load(tmp_path / f"{name}.npy")
        wanted = by_hand(frames, models / "float.onnx", counts[name], models / f"{file}.onnx")
        np.testing.assert_allclose(values(tmp_path / f"{name}.jsonl"), wanted, rtol=1e-5, atol=1e-6)
        assert report.streams[name]["stepped"] == FRAMES
    wanted = by_hand(np.load(tmp_path / "c.npy"), models / "float.onnx", FRAMES, models / "float.onnx")
    assert values(tmp_path / "c.jsonl") == wanted, "another model's stream"


def test_what_does_not_fit_is_refused_and_the_old_one_goes_on(models: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes((models / "float.onnx").read_bytes()[:-200])
    (tmp_path / "text.onnx").write_text("no model")
    with Running(pipeline(tmp_path, models), tmp_path) as running:
        until(lambda: running.count("a", "stepped") > 5 and running.count("b", "stepped") > 5)
        running.control.pause("a")  # so that it does not end meanwhile
        for path, said in (
            (models / "retrained.onnx", r"not swapped: its states may mean something else.*compatible=True"),
            (models / "wider.onnx", "its states are others|its outputs are others"),
            (tmp_path / "cut.onnx", "can't open"),
            (tmp_path / "text.onnx", "can't open"),
            (tmp_path / "none.onnx", "does not exist"),
            ("https://user:secret@host/m.onnx", "^path of model m: found an address; expected a file$"),
        ):
            with pytest.raises(EdgeLstmError, match=said):
                running.pipeline.swap("m", path)
        with pytest.raises(EdgeLstmError, match="no such model"):
            running.pipeline.swap("n", models / "float.onnx")
        running.control.resume("a")
        report = running.ends()
    assert not report.failed
    for name in "abc":
        wanted = by_hand(
            np.load(tmp_path / f"{name}.npy"), models / "float.onnx", FRAMES, models / "float.onnx"
        )
        np.testing.assert_allclose(values(tmp_path / f"{name}.jsonl"), wanted, rtol=1e-5, atol=1e-6)


def test_a_watched_file_takes_over_once_it_is_whole(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of it is refused, whatever it takes to be written; the rest of it makes it one."""
    data = (models / "int8.onnx").read_bytes()
    text = pipeline(tmp_path, models, "watch = true\ncompatible = true\n").replace(
        "rate = 1000", "rate = 200"
    )
    with caplog.at_level(logging.INFO, "edgelstm.serve"), Running(text, tmp_path) as running:
        until(lambda: running.count("a", "stepped") > 5)
        with (tmp_path / "model.onnx").open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            until(lambda: "model m is not taken over, the old one goes on" in caplog.text)
            file.write(data[len(data) // 2 :])
        until(lambda: "model m: swapped" in caplog.text)
        before = running.count("a", "stepped")
        until(lambda: running.count("a", "stepped") > before)
        running.pipeline.stop()
        report = running.ends()
    assert not report.failed
    assert "reset:source" not in report.streams["a"]


def test_a_file_that_is_read_again_says_what_is_watched(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`watch` is added to a running service's file: nothing but that changes."""
    text = pipeline(tmp_path, models).replace("rate = 1000", "rate = 50")
    (tmp_path / "p.toml").write_text(text)
    with caplog.at_level(logging.INFO, "edgelstm.serve"), Running(tmp_path / "p.toml", tmp_path) as running:
        until(lambda: running.count("a", "stepped") > 5)
        (tmp_path / "p.toml").write_text(text.replace("max_wait = 0\n", "max_wait = 0\nwatch = true\n", 1))
        assert running.pipeline.reload() == {}
        assert "model m: changed" not in caplog.text
        (tmp_path / "new.onnx").write_bytes((models / "int8.onnx").read_bytes())
        (tmp_path / "new.onnx").rename(tmp_path / "model.onnx")
        until(lambda: "model m: swapped" in caplog.text)
        running.pipeline.stop()
        report = running.ends()
    assert not report.failed
    assert not [n for n in report.streams["a"] if n.startswith("reset")]


def spec(dtype: str, scale: tuple[float, ...] | None = None, zero: int = 0) -> StateSpec:
    worth = None if scale is None else Quantization(scale, zero)
    return StateSpec("h", "h", "h_next", dtype, ("N", 4), quantization=worth)


SPECS = (spec("float32"), spec("float16"), spec("bfloat16"), spec("int8", (0.01,)), spec("int8", (0.02,), 3), spec("float8e4m3fn"))  # fmt: skip
STEP = {"float32": 1e-7, "float16": 1e-3, "bfloat16": 8e-3, "float8e4m3fn": 0.07}


@settings(deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4),
    st.sampled_from(SPECS),
    st.sampled_from(SPECS),
)
def test_what_a_state_is_worth_is_carried(numbers: list[float], old: StateSpec, new: StateSpec) -> None:
    """To the nearest that the new one can hold."""
    from edgelstm.graph.signature import Signature, TensorSpec

    def signature(state: StateSpec) -> Signature:
        return Signature(
            (TensorSpec("x", "float32", ("N",)),), (TensorSpec("y", "float32", ("N",)),), (state,)
        )

    worth = np.array(numbers, np.float32)
    stored = old.stored(worth) if old.is_coded else worth.astype(old.dtype)
    carried = Carry(signature(old), signature(new))({"h": stored})["h"]
    if old == new:
        np.testing.assert_array_equal(carried, stored)
        return
    known, got = old.values(stored).astype(np.float32), new.values(carried).astype(np.float32)
    step = new.quantization.scale[0] if new.quantization else 0.0
    np.testing.assert_allclose(
        got, known, rtol=STEP.get(new.dtype, 0), atol=max(step, 2e-3 if new.dtype == "float8e4m3fn" else 1e-7)
    )


def test_a_value_that_the_new_one_can_not_hold_is_refused() -> None:
    from edgelstm.graph.signature import Signature, TensorSpec

    def signature(dtype: str) -> Signature:
        return Signature(
            (TensorSpec("x", "float32", ("N",)),), (TensorSpec("y", "float32", ("N",)),), (spec(dtype),)
        )

    with pytest.raises(EdgeLstmError, match="what float16 can hold"):
        Carry(signature("float32"), signature("float16"))({"h": np.array([1e6, 0, 0, 0], np.float32)})


def test_a_file_that_is_read_again_leaves_a_swapped_model(models: Path, tmp_path: Path) -> None:
    """Another key of the model's section is no reason to go back to the file that it names, states and all."""
    text = pipeline(tmp_path, models).replace("rate = 1000", "rate = 200")
    path = tmp_path / "p.toml"
    path.write_text(text)
    with Running(path, tmp_path) as running:
        until(lambda: running.count("a", "stepped") > 20)
        running.pipeline.swap("m", models / "retrained.onnx", compatible=True)
        path.write_text(text.replace("max_wait = 0", "max_wait = 0.001", 1))
        service = running.control.service
        swapped, before = service.hashes["m"], running.count("a", "stepped")
        assert running.pipeline.reload() == {}
        assert service.hashes["m"] == service.loops["m"].digest == swapped
        assert service.loops["m"].max_wait == 0.001
        until(lambda: running.count("a", "stepped") > before)
        assert not [n for n in service.report().streams["a"] if n.startswith("reset:")]


def test_a_stream_more_does_not_bring_in_another_file(models: Path, tmp_path: Path) -> None:
    """What a file holds since the service opened it is nobody's model yet: a swap looks at it, a new stream does not take it."""
    with Running(pipeline(tmp_path, models), tmp_path) as running:
        (tmp_path / "new.onnx").write_bytes((models / "retrained.onnx").read_bytes())
        (tmp_path / "new.onnx").rename(tmp_path / "model.onnx")
        before = running.control.service.loops["m"].runner
        with pytest.raises(EdgeLstmError, match="another file than the one that runs"):
            running.control.add("d", section("a", model="m", sink=[]))
        assert running.control.service.loops["m"].runner is before


@pytest.mark.parametrize("file", ["int8", "retrained"])
def test_a_restart_with_the_old_file_takes_the_values_of_the_swapped_one(
    models: Path, tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It took over from the old one, so what its states are worth goes on there; not in a third one that nobody vouched for."""
    text = '[service]\ncheckpoint = "states"\n' + pipeline(tmp_path, models)
    text = (
        text.partition("[models.other]")[0]
        + "[streams.a]"
        + text.partition("[streams.a]")[2].partition("[")[0]
    )
    with Running(text, tmp_path) as running:
        until(lambda: running.count("a", "stepped") > 20)
        running.pipeline.swap("m", models / f"{file}.onnx", compatible=True)
        before = running.count("a", "stepped")
        until(lambda: running.count("a", "stepped") > before + 20)
        running.control.pause("a")
        was = running.control.snapshot("a")["a"]
        count = running.count("a", "stepped")
        running.pipeline.stop()
        running.ends()
    with caplog.at_level(logging.INFO, "edgelstm.serve"), Running(text, tmp_path) as running:
        until(lambda: running.count("a", "stepped") > count + 20)
    assert f"its states are of {file}.onnx, which had taken over from it" in caplog.text
    assert "stream a: goes on from" in caplog.text
    frames = np.load(tmp_path / "a.npy")
    with Runner.open(models / "float.onnx", threads=1) as runner:
        runner.stream("x").restore(was)
        wanted = [runner.stream("x").step(x)["y"].tolist() for x in frames[count : count + 20]]
    found = values(tmp_path / "a.jsonl")[count : count + 20]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)

    other = {"int8": "retrained", "retrained": "int8"}[file]
    (tmp_path / "model.onnx").write_bytes((models / f"{other}.onnx").read_bytes())
    for more, said in (
        (
            "",
            "begins anew: the checkpoint is of another model, model.onnx; the file says model.onnx, and not compatible",
        ),
        ("compatible = true\n", "its states are of model.onnx, which is said to be compatible"),
    ):
        caplog.clear()
        folder = tmp_path / "states"
        saved = {path: path.read_bytes() for path in folder.iterdir()}
        changed = text.replace("max_wait = 0\n", "max_wait = 0\n" + more)
        with caplog.at_level(logging.INFO, "edgelstm.serve"), Running(changed, tmp_path):
            assert said in caplog.text
        for path in folder.iterdir():
            path.unlink()
        for path, data in saved.items():
            path.write_bytes(data)
