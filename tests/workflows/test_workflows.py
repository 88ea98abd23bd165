"""The workflows from Python: what they give, what they refuse, and that a refusal writes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelstm
import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime import Runner
from edgelstm.workflows.frames import STEPS


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    zoo.lstm().save(path)
    return path


def frames(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


def torch_module() -> Any:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return torch.nn.LSTM(3, 4, 2, batch_first=True).eval()


def test_a_torch_module_is_exported_and_streams_as_it_computes(tmp_path: Path) -> None:
    module = torch_module()
    import torch

    data = frames(6, 3)
    result = edgelstm.export(module, tmp_path / "m.onnx", frame=(3,), source=iter(data), threads=1)
    assert result.comparison.frames == 6
    assert result.path == tmp_path / "m.onnx"
    with torch.no_grad():
        expected = module(torch.from_numpy(data)[None])[0][0].numpy()
    with Runner.open(result.path, threads=1) as runner:
        stream = runner.stream("a")
        got = np.stack([next(iter(stream.step(x, copy=True).values())) for x in data])
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_window_gives_what_the_steps_give(tmp_path: Path, model: Path) -> None:
    result = edgelstm.export(str(model), tmp_path / "w.onnx", window=4, limit=10, threads=1)
    assert result.step.signature.window == 4
    assert result.comparison.frames == 12  # whole windows
    assert edgelstm.verify(str(model), str(tmp_path / "w.onnx"), limit=8, threads=1).worst.worst < 1e-6


def test_preprocessing_is_kept_and_verify_finds_it_on_either_side(tmp_path: Path, model: Path) -> None:
    exported = tmp_path / "scaled.onnx"
    edgelstm.export(str(model), exported, preprocess=["scale=0.5"], limit=5, threads=1)
    np.save(tmp_path / "raw.npy", frames(5, 3))
    np.save(tmp_path / "half.npy", frames(5, 3) * np.float32(0.5))
    for name, path, source in (("a", exported, "raw"), ("b", model, "half")):
        report = edgelstm.run(path, str(tmp_path / f"{source}.npy"), tmp_path / f"{name}.npz", threads=1)
        assert report.frames == len(report.milliseconds) == 5
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        np.testing.assert_array_equal(a["y"], b["y"])
    # Far beyond the saturation of the gates, unless the declared scale is applied.
    edgelstm.export(str(model), exported, preprocess=["scale=0"], limit=5, threads=1)
    for pair in ((model, exported), (exported, model)):
        results = edgelstm.verify(str(pair[0]), str(pair[1]), str(tmp_path / "raw.npy"), threads=1)
        still = edgelstm.verify(str(pair[0]), str(pair[1]), np.zeros((5, 3), np.float32), threads=1)
        assert [t._largest for t in results.tensors] == [t._largest for t in still.tensors]


def test_a_tolerance_not_met_writes_nothing(tmp_path: Path, model: Path) -> None:
    for tolerance in (0.0, 1e-30):
        with pytest.raises(EdgeLstmError, match="does not match its source, so nothing was written"):
            edgelstm.export(str(model), tmp_path / "out.onnx", tolerance=tolerance, limit=3, threads=1)
    assert list(tmp_path.iterdir()) == [model]


WRONG = {
    "shape that would broadcast": (
        [np.zeros(1, np.float32)],
        r"frame 0, input 'x': found float32\[1\]; expected a NumPy array float32\[3\]",
    ),
    "dtype": ([np.zeros(3)], r"found float64\[3\]; expected a NumPy array float32\[3\]"),
    "a list": ([[0, 0, 0]], r"found list; expected a NumPy array float32\[3\]"),
    "name": ([{"q": np.zeros(3, np.float32)}], "frame 0: found inputs q; expected x"),
    "second frame": ([np.zeros(3, np.float32), np.zeros(4, np.float32)], "frame 1, input 'x'"),
    "none": ([], "nothing to compare"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_wrong_frames_are_refused_by_export_and_verify(tmp_path: Path, model: Path, case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(EdgeLstmError, match=message):
        edgelstm.export(str(model), tmp_path / "out.onnx", source=given, threads=1)
    with pytest.raises(EdgeLstmError, match=message):
        edgelstm.verify(str(model), str(model), given, threads=1)
    assert list(tmp_path.iterdir()) == [model]


def test_refusals_before_any_work(tmp_path: Path, model: Path) -> None:
    for options, message in (
        ({"output": tmp_path / "m.bin"}, "expected a path ending with .onnx"),
        ({"output": tmp_path / "none" / "m.onnx"}, "no such folder. Create the folder first"),
        ({"limit": 0}, "limit: found 0; expected at least 1"),
        ({"window": 0}, "window: found 0; expected at least 1"),
        ({"hop": 1}, "a hop of 1: found no source"),
        ({"tolerance": -1.0}, "tolerance: found -1.0; expected a relative error of at least 0"),
        ({"tolerance": float("nan")}, "tolerance: found nan"),
        ({"frame": (3,)}, "frame given for"),
        ({"preprocess": ["blur=3"]}, "blur"),
    ):
        with pytest.raises(EdgeLstmError, match=message):
            edgelstm.export(str(model), **options)
    assert list(tmp_path.iterdir()) == [model]


def test_a_forecast_is_scored_in_physical_units_over_known_values(tmp_path: Path) -> None:
    """Persistence, and persistence 10% too high, of rain that doubles from frame to frame."""
    ops = {"x": [{"op": "nodata", "value": 999}, {"op": "log1p", "scale": 0.25}]}
    for name, factor in (("a", 1.0), ("b", 1.1)):
        step = zoo.persistence(factor=factor)
        step = replace(step, signature=replace(step.signature, preprocessing=ops))
        step.save(tmp_path / f"{name}.onnx")
    rain = np.tile(2.0 ** np.arange(6, dtype=np.float32)[:, None, None], (1, 4, 4))
    rain[:, 0, :] = 999
    np.save(tmp_path / "rain.npy", rain)
    paths = [str(tmp_path / f"{name}.onnx") for name in "ab"]
    result = edgelstm.verify(*paths, str(tmp_path / "rain.npy"), threshold=5.0, threads=1)
    found = result.forecast
    assert found is not None
    assert (result.frames, result.asked, found.forecasts) == (6, STEPS, 4)
    # Forecasts of 1, 2, 4, 8 where 2, 4, 8, 16 came, and 4, 8, 16, 32 at the second lead.
    assert found.mae_a == pytest.approx([15 / 4, 45 / 4], rel=1e-4)
    assert found.csi_a == pytest.approx([1 / 2, 1 / 3])  # 8 alone reaches 5, of 8 and 16; of 8, 16 and 32
    high = 2.0 ** np.arange(4) + 1
    mae_b = np.abs(high**1.1 - 1 - 2.0 ** np.arange(1, 5)).mean()
    assert found.mae_b[0] == pytest.approx(mae_b, rel=1e-4)
    assert result.to_json()["forecast"]["leads"][0]["mae_a"] == found.mae_a[0]

    arrays = [np.log1p(frame)[None] / 4 for frame in rain]  # as the model takes them, and all of it known
    result = edgelstm.verify(*paths, arrays, limit=6, threads=1)
    assert result.asked is None
    assert result.forecast is not None
    assert result.forecast.threshold == 1
    assert edgelstm.verify(*paths, limit=6, threads=1).forecast is None  # noise is no stream to foresee


def test_a_run_that_fails_leaves_nothing(tmp_path: Path, model: Path) -> None:
    data = frames(5, 3)
    data[3, 1] = np.nan
    np.save(tmp_path / "bad.npy", data)
    before = set(tmp_path.iterdir())
    with pytest.raises(EdgeLstmError, match="frame 3 of stream 'main', input 'x'"):
        edgelstm.run(model, str(tmp_path / "bad.npy"), tmp_path / "out.npz", threads=1)
    assert set(tmp_path.iterdir()) == before
    report = edgelstm.run(model, str(tmp_path / "bad.npy"), on_bad_frame="skip", threads=1)
    assert (report.frames, report.skipped, len(report.milliseconds)) == (4, 1, 4)


def test_inspect_counts(model: Path) -> None:
    found = edgelstm.inspect(model)
    assert found.bytes == model.stat().st_size
    assert found.signature == zoo.lstm().signature
    assert found.parameters == (16 * 7 + 16) + (20 * 9 + 20) + 5 * 2
    assert found.to_json()["operators"]["FusedGates_lstm"] == 2
