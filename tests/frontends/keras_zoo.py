"""Keras models for the tests: built, given random weights and saved by Keras 3 itself, on its torch backend."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras import LoadedKeras, hdf5, hdf5_reader, load_keras
from edgelstm.runtime.onnxruntime import OrtProgram
from tolerances import assert_close

# What Keras would import for wrappers and pictures that no test makes: 1.5 s of each process together.
_NOT_FOR_KERAS = [name for name in ("sklearn", "matplotlib") if name not in sys.modules]
sys.modules.update(dict.fromkeys(_NOT_FOR_KERAS))
try:
    keras = pytest.importorskip("keras", reason="Keras is in the dev extra")
finally:
    for _name in _NOT_FOR_KERAS:
        del sys.modules[_name]
pytest.importorskip("torch")
layers = keras.layers


def fill(model: Any, seed: int) -> Any:
    """Random weights: Keras's own first ones are zero biases and unit variances, which hide mistakes."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        spread = 0.5 / max(np.prod(variable.shape[:-1]), 1) ** 0.5 if len(variable.shape) > 1 else 0.3
        value = rng.normal(0, max(spread, 0.15), variable.shape)
        if "variance" in variable.path or "gamma" in variable.path:
            value = rng.uniform(0.5, 1.5, variable.shape)
        if "seed" not in variable.path:
            variable.assign(value.astype(np.float32))
    return model


def sequential(*stack: Any, frame: Sequence[int], length: int | None = None, seed: int = 0) -> Any:
    """A Sequential model over sequences of ``frame``."""
    return fill(keras.Sequential([keras.Input((length, *frame)), *stack]), seed)


def draw(rng: np.random.Generator, shape: Sequence[int], ids: int | None) -> np.ndarray:
    """Frames: noise, or whole numbers below ``ids``."""
    if ids is None:
        return rng.normal(size=shape).astype(np.float32)
    return rng.integers(0, ids, size=shape).astype(np.int32)


def predict(model: Any, *x: np.ndarray) -> list[np.ndarray]:
    """Keras's outputs for whole sequences [N, T, ...]."""
    import torch

    with torch.no_grad():
        made = model(list(x) if len(x) > 1 else x[0], training=False)
    if isinstance(made, dict):
        made = [*made.values()]
    many = made if isinstance(made, list | tuple) else [made]
    return [y.detach().cpu().numpy() for y in many]


def save(model: Any, folder: Path, suffix: str = ".keras") -> Path:
    """The file Keras writes."""
    path = folder / f"model{suffix}"
    model.save(path)
    return path


class Streamed:
    """What a step graph gave, frame by frame: by output, [N, frames, ...], and which frames were ready."""

    def __init__(self, loaded: LoadedKeras, *x: np.ndarray, streams: int | None = None) -> None:
        count = streams or len(x[0])
        step = loaded.step
        step.check()
        program = OrtProgram(step.to_bytes(), threads=1, streams=count)
        names = [t.name for t in step.signature.inputs]
        try:
            state = program.new_state()
            collected: dict[str, list[Any]] = {t.name: [] for t in step.signature.outputs}
            for t in range(x[0].shape[1]):
                frames = [{n: a[row, t] for n, a in zip(names, x, strict=True)} for row in range(count)]
                made = program.step(frames, state, range(count))
                for name, values in collected.items():
                    values.append(np.stack([np.array(row[name]) for row in made]))
        finally:
            program.close()
        self.outputs = {name: np.stack(values, 1) for name, values in collected.items()}

    def elements(self, name: str = "y") -> np.ndarray:
        """The elements of a sequence: the frames at which it was ready."""
        ready = self.outputs.get(f"{name}_ready")
        values = self.outputs[name]
        return values if ready is None else values[:, ready[0]]


def run_window(loaded: LoadedKeras, *x: np.ndarray) -> dict[str, np.ndarray]:
    """What a window graph gives for whole sequences."""
    step = loaded.step
    step.check()
    program = OrtProgram(step.to_bytes(), threads=1, streams=len(x[0]))
    names = [t.name for t in step.signature.inputs]
    try:
        frames = [{n: a[row] for n, a in zip(names, x, strict=True)} for row in range(len(x[0]))]
        made = program.step(frames, program.new_state(), range(len(x[0])))
        return {name: np.stack([np.array(row[name]) for row in made]) for name in made[0]}
    finally:
        program.close()


def by_numpy(loaded: LoadedKeras, *x: np.ndarray) -> dict[str, np.ndarray]:
    """What the reference gives for the first stream, frame by frame."""
    program = loaded.reference
    names = [t.name for t in program.signature.inputs]
    state = program.new_state()
    made = [
        program.step([{n: a[0, t] for n, a in zip(names, x, strict=True)}], state, [0])[0]
        for t in range(x[0].shape[1])
    ]
    return {name: np.stack([np.array(m[name]) for m in made]) for name in made[0]}


def check_stream(
    model: Any,
    folder: Path,
    *,
    frame: Sequence[int],
    length: int = 7,
    streams: int = 2,
    seed: int = 0,
    suffix: str = ".keras",
    ids: int | None = None,
    **options: Any,
) -> LoadedKeras:
    """Keras predicts whole sequences, the step graph streams them: the same numbers, from graph and reference."""
    path = save(model, folder, suffix)
    loaded = load_keras(path, **options)
    assert loaded.window is None, loaded.notes
    x = draw(np.random.default_rng(seed), (streams, length, *frame), ids)
    (expected,) = predict(model, x)
    streamed = Streamed(loaded, x)
    spec = loaded.step.signature.output("y")
    found = streamed.elements()
    reference = by_numpy(loaded, x)
    ready = reference.get("y_ready", np.ones(length, bool))
    if expected.ndim == len(
        spec.shape
    ):  # the last output only: Keras's for the frames so far is each frame's
        assert_close(streamed.outputs["y"][:, -1], expected, "float32", k=80, atol=1e-5)
        assert_close(reference["y"][-1], expected[0], "float32", k=80, atol=1e-5)
        return loaded
    # What looks ahead misses the last elements, whose frames never come.
    count = found.shape[1]
    assert 0 < count <= expected.shape[1]
    assert_close(found, expected[:, :count], "float32", k=80, atol=1e-5)
    assert_close(reference["y"][ready], expected[0, :count], "float32", k=80, atol=1e-5)
    return loaded


def check_window(
    model: Any,
    folder: Path,
    *,
    frame: Sequence[int],
    length: int = 5,
    streams: int = 2,
    seed: int = 0,
    suffix: str = ".keras",
    ids: int | None = None,
    **options: Any,
) -> LoadedKeras:
    """The same for a model that takes whole sequences only."""
    loaded = load_keras(save(model, folder, suffix), **options)
    assert loaded.window == length, loaded.notes
    x = draw(np.random.default_rng(seed), (streams, length, *frame), ids)
    (expected,) = predict(model, x)
    assert_close(run_window(loaded, x)["y"], expected, "float32", k=80, atol=1e-5)
    program = loaded.reference
    (name,) = (t.name for t in program.signature.inputs)
    (made,) = program.step([{name: x[0]}], program.new_state(), [0])
    assert_close(made["y"], expected[0], "float32", k=80, atol=1e-5)
    return loaded


def refused(path: Path, **options: Any) -> str:
    """The message with which a file is refused."""
    with pytest.raises(EdgeLstmError) as caught:
        load_keras(path, **options)
    return str(caught.value)


@contextmanager
def hdf5_in_process() -> Iterator[None]:
    """Read HDF5 here instead of in a process of its own, 0.2 s a file: for the many files Keras wrote a moment ago."""

    def run(self: Any, source: Path | bytes, seconds: float | None) -> tuple[dict[str, Any], bytes, int]:
        path = None if isinstance(source, bytes) else str(source)
        limits = {"path": path, "bytes": 2**30, "text": 2**24, "objects": 9999, "ratio": 200, "slack": 2**20}
        data = source if isinstance(source, bytes) else b""
        header, arrays = hdf5_reader.read({**limits, "size": 2**30}, data)
        return header, b"".join(a.astype("<f4").tobytes() for a in arrays), 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5.Hdf5, "_run", run)
        yield
