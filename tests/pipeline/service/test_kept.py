"""What led to a bad state is in a file, and stepping it again leads there again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import frame

import zoo
from command_line import Run
from edgelstm import Runner
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.counters import Counts
from edgelstm.pipeline.service.kept import Keeper, KeepRules, state_of
from edgelstm.pipeline.sources import open_source

pytest.importorskip("pydantic")


def serve(folder: Path, values: np.ndarray[Any, Any], more: str = "") -> Any:
    from edgelstm import Pipeline

    zoo.running_sum().save(folder / "model.onnx")
    np.save(folder / "a.npy", values)
    text = (
        '[models.m]\npath = "model.onnx"\nranges = { s = [-50, 50] }\n[streams.a]\nsource = "a.npy"\n'
        f'rate = 1000\nkeep_frames = "kept"\n{more}'
    )
    return Pipeline.from_text(text, folder).run()


def test_the_frames_before_a_bad_state_step_to_it_again(tmp_path: Path, run: Run) -> None:
    values = np.concatenate([np.full(30, 0.5, np.float32), [100], np.full(5, 0.25, np.float32)]).astype(
        np.float32
    )
    report = serve(tmp_path, values)
    assert report.streams["a"]["guard:range"] == report.streams["a"]["kept"] == 1
    (path,) = (tmp_path / "kept").iterdir()
    with np.load(path) as file:
        said = json.loads(file["kept"].tobytes())
        np.testing.assert_array_equal(file["frames"], values[:31])
        np.testing.assert_allclose(file["times"], np.arange(31) / 1000)
    assert said["stream"] == "a"
    assert said["index"] == list(range(31))
    assert "outside -50 to 50" in said["why"]
    code, _, error = run(
        "run", str(tmp_path / "model.onnx"), "--source", str(path), "--begin", str(path), "-o", "again.npz"
    )
    assert code == 0, error
    with np.load("again.npz") as file:
        np.testing.assert_allclose(file["y"], 2 * (3 + np.cumsum(values[:31])), rtol=1e-6)


def test_it_begins_with_the_state_before_its_first_frame(tmp_path: Path, run: Run) -> None:
    values = np.concatenate([np.full(400, 0.1, np.float32), [100]]).astype(np.float32)
    serve(tmp_path, values, "keep_seconds = 0.1\n")
    (path,) = (tmp_path / "kept").iterdir()
    with np.load(path) as file:
        count = len(file["frames"])
    assert count < 390, "older ones are gone"
    run("run", str(tmp_path / "model.onnx"), "--source", str(path), "--begin", str(path), "-o", "again.npz")
    with np.load("again.npz") as file:
        np.testing.assert_allclose(file["y"], (2 * (3 + np.cumsum(values)))[-count:], rtol=1e-4)


def test_files_are_bounded(tmp_path: Path) -> None:
    values = np.tile(np.array([0.5] * 20 + [100], np.float32), 60)
    ahead = tmp_path / "kept" / "a-20990101T000000.000000Z.npz"  # of a clock that was set back since
    ahead.parent.mkdir()
    ahead.touch()
    report = serve(tmp_path, values, 'keep_seconds = 0.05\nkeep_files = 3\nbad = "reset"\n')
    counts = report.streams["a"]
    assert len(list((tmp_path / "kept").iterdir())) == min(3, 1 + counts["kept"])
    assert ahead.exists() == (counts["kept"] < 3)
    assert counts["kept"] + counts.get("unkept", 0) == counts["guard:range"] == 60
    assert not [p for p in (tmp_path / "kept").iterdir() if p.name.startswith(".")]


def test_a_folder_that_can_not_be_made_costs_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("no folder")
    report = serve(tmp_path, np.array([1, 100, 1], np.float32))
    assert report.streams["a"]["unkept"] == 1
    assert report.streams["a"]["stepped"] == 2
    assert not report.failed


def test_several_inputs_come_back_by_name(tmp_path: Path) -> None:
    from edgelstm.pipeline.sources.source import Frame

    # Some are called as what else lies in the file.
    names = ["x", "frames", "times", "input_times", "kept", "attrs", "state.h", "time"]
    keeper = Keeper("a:1", "m", KeepRules(tmp_path), Counts())
    for k in range(3):
        data = {name: np.full(2, k * n, np.float32) for n, name in enumerate(names)}
        keeper.take(Frame(k, None, str(k), data), float(k), lambda: {"h": np.ones(3)})
    keeper.write("test")
    keeper.close()
    (path,) = tmp_path.iterdir()
    with open_source(str(path)) as source:
        frames = list(source)
    for k, found in enumerate(frames):
        assert isinstance(found.data, dict)
        assert {name: array.tolist() for name, array in found.data.items()} == {
            name: [k * n] * 2 for n, name in enumerate(names)
        }
    np.testing.assert_array_equal(state_of(path)["h"], np.ones(3))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["frame", "half", "forget"]), max_size=60), st.integers(1, 12))
def test_the_state_is_always_that_before_the_first_frame(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str], most: int
) -> None:
    """States are running sums; at most so many frames fit."""
    folder = tmp_path_factory.mktemp("kept")
    keeper = Keeper("a", "m", KeepRules(folder, 1e9, 8, 4 * most), Counts())
    total, taken = 0, 0
    for action in actions:
        if action == "forget":
            keeper.forget()
            continue
        keeper.take(
            frame(taken, 1.0), 0.0, None if action == "half" else lambda now=total: {"s": np.array(now)}
        )
        total, taken = total + 1, taken + 1
    keeper.write("test")
    keeper.close()
    for path in folder.iterdir():
        with np.load(path) as file:
            said = json.loads(file["kept"].tobytes())
            assert said["index"] == list(range(said["index"][0], taken))
            assert int(file["state.s"]) == said["index"][0]
            assert len(said["index"]) <= most


@pytest.mark.parametrize("cut", [0, 10, 300])
def test_a_file_that_is_none_is_one_error(tmp_path: Path, cut: int) -> None:
    serve(tmp_path, np.array([1, 100], np.float32))
    (path,) = (tmp_path / "kept").iterdir()
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(EdgeLstmError):
        state_of(path)
    np.savez(tmp_path / "plain.npz", x=np.zeros(3))
    with pytest.raises(EdgeLstmError, match="holds no state"):
        state_of(tmp_path / "plain.npz")


def test_a_state_of_another_model_is_refused(tmp_path: Path, run: Run) -> None:
    serve(tmp_path, np.array([1, 100], np.float32))
    (path,) = (tmp_path / "kept").iterdir()
    zoo.lstm().save(tmp_path / "other.onnx")
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    code, _, error = run(
        "run", str(tmp_path / "other.onnx"), "--source", str(tmp_path / "x.npy"), "--begin", str(path)
    )
    assert code == 2
    assert "It was taken from another model" in error
    with Runner.open(tmp_path / "model.onnx") as runner:
        runner.stream("x").restore(state_of(path))


@pytest.mark.parametrize(
    ("name", "other"), [("north", "north-1"), ("north:[ab]*", "north:b"), ("n:ä/ö", "n:ä")]
)
def test_a_stream_clears_away_its_own_files_alone(tmp_path: Path, name: str, other: str) -> None:
    for each in (other, *[name] * 4):
        keeper = Keeper(each, "m", KeepRules(tmp_path / "kept", files=2), Counts())
        keeper.take(frame(0, 1), 0.0, lambda: {"s": np.float32(0)})
        keeper.write("a bad state")
        keeper.close()
    assert len(list((tmp_path / "kept").iterdir())) == 3, "two of its own, one of the other"
