"""run: windows by a hop, several sources side by side, gaps, a folder that grows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

import edgelstm
import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.graph.step import make_step
from edgelstm.runtime import Runner


@pytest.fixture
def window_mean(tmp_path: Path) -> Path:
    """Means over the 4 frames that one step takes, [4, 3] -> [3]."""
    sig = Signature((TensorSpec("x", "float32", ("N", 4, 3)),), (TensorSpec("y", "float32", ("N", 3)),), ())
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    step = make_step([helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)], sig, [axes])
    path = tmp_path / "mean.onnx"
    step.save(path)
    return path


def test_a_hop_slides_a_window_over_a_stream(tmp_path: Path, window_mean: Path) -> None:
    x = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    for hop in (1, 3, 4):
        edgelstm.run(window_mean, str(tmp_path / "x.npy"), tmp_path / "y.npz", hop=hop, threads=1)
        wanted = np.lib.stride_tricks.sliding_window_view(x, 4, 0)[::hop].mean(-1)
        np.testing.assert_allclose(np.load(tmp_path / "y.npz")["y"], wanted, atol=1e-6)
    with pytest.raises(EdgeLstmError, match="--hop 1 gives it a window that slides"):
        edgelstm.run(window_mean, str(tmp_path / "x.npy"), threads=1)
    result = edgelstm.verify(str(window_mean), str(window_mean), str(tmp_path / "x.npy"), hop=1, threads=1)
    assert result.frames == 8
    with pytest.raises(
        EdgeLstmError,
        match="no step of the model: found fewer frames than one step takes; expected at least 4",
    ):
        edgelstm.run(window_mean, str(tmp_path / "x.npy"), tmp_path / "z.npz", hop=1, limit=3, threads=1)
    assert not (tmp_path / "z.npz").exists()


def test_sources_run_side_by_side_each_with_its_own_state(tmp_path: Path) -> None:
    model = tmp_path / "lstm.onnx"
    zoo.lstm().save(model)
    rng = np.random.default_rng(1)
    data = {
        name: rng.normal(size=(count, 3)).astype(np.float32) for name, count in (("left", 7), ("right", 4))
    }
    for name, x in data.items():
        np.save(tmp_path / f"{name}.npy", x)
    report = edgelstm.run(
        model, [str(tmp_path / "left.npy"), f"r={tmp_path / 'right.npy'}"], tmp_path / "y.npz", threads=1
    )
    assert report.frames == 11
    assert report.outs == {"left": str(tmp_path / "y-left.npz"), "r": str(tmp_path / "y-r.npz")}
    for name, stream in (("left", "left"), ("right", "r")):
        with Runner.open(model, threads=1) as runner:
            alone = [runner.stream("a").step(x, copy=True)["y"] for x in data[name]]
        np.testing.assert_allclose(np.load(tmp_path / f"y-{stream}.npz")["y"], alone, atol=1e-6)
    with pytest.raises(EdgeLstmError, match="two streams called 'left'"):
        edgelstm.run(model, [str(tmp_path / "left.npy")] * 2, threads=1)


def test_models_in_series_each_with_a_state(tmp_path: Path) -> None:
    """Also where the second takes a window of what the first gives: what waits for it is not skipped."""
    zoo.lstm(head=3, seed=1).save(tmp_path / "a.onnx")
    zoo.lstm(seed=2).save(tmp_path / "b.onnx")
    edgelstm.export(str(tmp_path / "b.onnx"), tmp_path / "w.onnx", window=3, limit=6, threads=1)
    x = np.random.default_rng(4).normal(size=(9, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    with Runner.open(tmp_path / "a.onnx", threads=1) as a, Runner.open(tmp_path / "b.onnx", threads=1) as b:
        first, second = a.stream("s"), b.stream("s")
        wanted = [second.step(first.step(f, copy=True)["y"], copy=True)["y"] for f in x]
    for name, steps in (("b", 9), ("w", 3)):
        report = edgelstm.run(
            tmp_path / "a.onnx",
            str(tmp_path / "x.npy"),
            tmp_path / "y.npz",
            then=[tmp_path / f"{name}.onnx"],
            threads=1,
        )
        assert (report.frames, report.skipped) == (steps, 0)
        np.testing.assert_allclose(np.load(tmp_path / "y.npz")["y"].reshape(9, -1), wanted, atol=1e-6)
    with pytest.raises(EdgeLstmError, match=r"input 'x'"):
        edgelstm.run(
            tmp_path / "b.onnx",
            str(tmp_path / "x.npy"),
            tmp_path / "n.npz",
            then=[tmp_path / "a.onnx"],
            threads=1,
        )
    assert not (tmp_path / "n.npz").exists()


@pytest.mark.parametrize("source", [np.zeros((4, 3)), [np.zeros((4, 3))], {"a": 3}, None, 5, []])
def test_what_is_no_path_is_no_source(tmp_path: Path, source: object) -> None:
    zoo.persistence(shape=(3,)).save(tmp_path / "model.onnx")
    with pytest.raises(EdgeLstmError, match=r"a source: found .*; expected a path or an address|no source"):
        edgelstm.run(tmp_path / "model.onnx", source)  # type: ignore[arg-type]


def test_a_path_is_a_source(tmp_path: Path) -> None:
    zoo.persistence(shape=(3,)).save(tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.float32))
    assert edgelstm.run(tmp_path / "model.onnx", tmp_path / "x.npy").frames == 4
