"""Snapshots know their model: another's is refused, in memory and from a file, whatever holds the weights."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgelstm
import zoo
from edgelstm import Runner, Snapshot
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import StateSpec
from edgelstm.runtime.identity import model_identity
from edgelstm.runtime.snapshot import KEY

GOLDEN = Path(__file__).parents[1] / "golden" / "snapshot-1.npz"
X = np.array([1.0, -1.0, 0.5], np.float32)


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """Two of the same states, whose weights differ."""
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for seed, path in enumerate(paths):
        zoo.lstm(seed=seed).save(path)
    return paths


def outside(step: onnx.ModelProto, path: Path) -> Path:
    """The model with its weights in a file beside it."""
    onnx.save(step, path, save_as_external_data=True, location=f"{path.stem}.data", size_threshold=0)
    return path


def test_a_snapshot_of_another_model_is_refused_unless_asked_for(models: tuple[Path, Path]) -> None:
    with Runner.open(models[0]) as mine, Runner.open(models[1]) as other, Runner.open(models[0]) as again:
        a, b, c = mine.stream("s"), other.stream("s"), again.stream("s")
        a.step(X)
        saved = a.snapshot()
        before = b.snapshot()
        with pytest.raises(EdgeLstmError, match=r"found the state of another model.*any_model=True"):
            b.restore(saved)
        assert all((b.snapshot()[name] == value).all() for name, value in before.items())
        b.restore(saved, any_model=True)
        c.restore(saved)
        np.testing.assert_array_equal(c.step(X)["y"], a.step(X, copy=True)["y"])
        b.restore(dict(saved))  # plain arrays say nothing of their model


def test_a_file_keeps_the_model(models: tuple[Path, Path], tmp_path: Path) -> None:
    with Runner.open(models[0]) as mine, Runner.open(models[1]) as other:
        stream = mine.stream("s")
        stream.step(X)
        stream.snapshot().save(tmp_path / "s.npz")
        found = Snapshot.load(tmp_path / "s.npz")
        assert (found.model, set(found)) == (model_identity(models[0]), set(stream.snapshot()))
        stream.restore(found)
        for read in (found, np.load(tmp_path / "s.npz")):  # as NumPy reads it, too
            with pytest.raises(EdgeLstmError, match="another model"):
                other.stream("s").restore(read)
        np.savez(tmp_path / "old.npz", **stream.snapshot())
        old = Snapshot.load(tmp_path / "old.npz")
        assert old.model == ""
        other.stream("s").restore(old)
        assert len(repr(found)) < 200
    with pytest.raises(EdgeLstmError, match=r"ending with \.npz"):
        found.save(tmp_path / "s.txt")


def test_the_first_format_is_read_for_ever() -> None:
    found = Snapshot.load(GOLDEN)
    assert found.model == "8" * 64
    np.testing.assert_array_equal(found["h"], np.arange(4, dtype=np.float32))


def test_what_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    whole = GOLDEN.read_bytes()
    for k, data in enumerate((b"", b"PK", whole[:-30], whole[:60] + b"\xff" * 20 + whole[80:])):
        path = tmp_path / f"{k}.npz"
        path.write_bytes(data)
        with pytest.raises(EdgeLstmError, match="is no snapshot"):
            Snapshot.load(path)
    for said in ('{"schema": 9, "model": ""}', "{}", "no JSON", "[" * 9999):
        held = io.BytesIO()
        np.savez(held, **{KEY: np.array(said)})  # type: ignore[arg-type]
        (tmp_path / "s.npz").write_bytes(held.getvalue())
        with pytest.raises(EdgeLstmError, match=r"schema|entry"):
            Snapshot.load(tmp_path / "s.npz")


def test_weights_in_another_file_count(tmp_path: Path) -> None:
    """The same ONNX file beside other weights is another model: for snapshots, and for what else keeps the hash."""
    made = [tmp_path / "0" / "m.onnx", tmp_path / "1" / "m.onnx"]
    made[0].parent.mkdir()
    outside(onnx.ModelProto.FromString(zoo.lstm(head=3).to_bytes()), made[0])
    shutil.copytree(made[0].parent, made[1].parent)
    weights = made[1].with_suffix(".data")
    weights.write_bytes((np.fromfile(weights, np.float32) * 2).tobytes())
    assert made[0].read_bytes() == made[1].read_bytes()
    assert model_identity(made[0]) != model_identity(made[1])
    with Runner.open(made[0]) as mine, Runner.open(made[1]) as other:
        saved, another = mine.stream("s").snapshot(), other.stream("s")
        with pytest.raises(EdgeLstmError, match="another model"):
            another.restore(saved)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32))
    source = str(tmp_path / "x.npy")
    fitted = edgelstm.fit_detector(made[0], source, target="next", threads=1)
    assert fitted.model == model_identity(made[0])
    long = outside(zoo.lstm().model, tmp_path / ("n" * 180 + ".onnx"))  # a length of two bytes
    before = model_identity(long)
    data = long.with_suffix(".data")
    data.write_bytes(b"\1" + data.read_bytes()[1:])
    assert model_identity(long) != before


def test_of_one_file_it_is_the_hash_that_checkpoints_and_detectors_had(models: tuple[Path, Path]) -> None:
    assert model_identity(models[0]) == hashlib.sha256(models[0].read_bytes()).hexdigest()


def test_states_may_have_any_names(tmp_path: Path) -> None:
    """Names of np.savez's own arguments, and names that differ by a suffix of files."""
    for names in (("file", "allow_pickle"), ("h", "h.npy"), ("h.npy", "h"), ("a/b", "../c"), ("a\\b", "é\n")):
        saved = Snapshot({name: np.full(2, k, np.float32) for k, name in enumerate(names)}, "m")
        saved.save(tmp_path / "s.npz")
        found = Snapshot.load(tmp_path / "s.npz")
        assert list(found) == list(names)
        assert [value[0] for value in found.values()] == [0, 1]
    with pytest.raises(EdgeLstmError, match=r"a state called 'edgelstm.snapshot'"):
        StateSpec(KEY, "a", "b", "float32", ("N", 2))


def test_true_and_false_are_all_that_a_bool_holds(tmp_path: Path) -> None:
    Snapshot({"b": np.array([1, 2], np.uint8).view(bool)}).save(tmp_path / "s.npz")
    with pytest.raises(EdgeLstmError, match="neither true nor false"):
        Snapshot.load(tmp_path / "s.npz")
