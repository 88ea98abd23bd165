"""Anomaly scores and thresholds: against independent computations, and against the scores published with a real model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgelstm
import zoo
from command_line import Run
from edgelstm.errors import EdgeLstmError
from stepping import from_text

SENSORS = "s2,s3,s4,s7,s9,s11,s12,s14,s17,s20,s21"
RNG = np.random.default_rng(5)


def test_the_turbofan_autoencoder_scores_as_published(shared_dir: Path, tmp_path: Path) -> None:
    """Three commands' worth: export, fit-detector, detect."""
    pytest.importorskip("h5py")
    models, table = shared_dir / "models" / "turbofan", shared_dir / "data" / "cmapss" / "train_FD001.txt"
    source = f"{table}:key=unit_number:columns={SENSORS}:time=time:scale=own"
    model = tmp_path / "engine.onnx"
    edgelstm.export(str(models / "lstm_autoencoder.keras"), model, limit=60, threads=1)
    normal = tmp_path / "normal.json"
    fitted = edgelstm.fit_detector(
        model, f"{source}:keys=1-2:head=80", normal, target="input", hop=1, quantile=0.99, threads=1
    )
    assert fitted.samples == 2 * 51
    found = edgelstm.detect(model, normal, f"{source}:keys=81-82", tmp_path / "s.csv", hop=1, threads=1)
    truth, engines = np.load(models / "precomp_ae_score.npy"), np.load(models / "precomp_eng_ids_test.npy")
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = truth[engines <= 82]
    assert [row["stream"] for row in rows] == [str(e) for e in engines[engines <= 82]]
    np.testing.assert_allclose([float(row["score"]) for row in rows], wanted, atol=2e-7)
    assert found.anomalies == (wanted > fitted.threshold).sum()


def test_mahalanobis_is_scipy_s() -> None:
    distance = pytest.importorskip("scipy.spatial.distance")
    normal = RNG.normal(size=(500, 4)) @ RNG.normal(size=(4, 4)) + 3
    detector = edgelstm.Detector.fit(normal, method="mahalanobis", quantile=0.95)
    covariance = np.cov(normal.T)
    inverse = np.linalg.inv(covariance + 1e-4 * np.trace(covariance) / 4 * np.eye(4))  # shrunk a little
    for e in RNG.normal(size=(10, 4)) * 5:
        wanted = distance.mahalanobis(e, normal.mean(0), inverse) ** 2
        assert detector.score(e) == pytest.approx(wanted, rel=1e-9)
    assert sum(detector.is_anomaly(detector.score(e)) for e in normal) == 24


def test_mae_mse_and_their_threshold() -> None:
    errors = [np.array([[k, -k], [0.0, 0.0]]) for k in range(1, 101)]
    mae = edgelstm.Detector.fit(errors, method="mae", quantile=0.9)
    mse = edgelstm.Detector.fit(errors, method="mse", quantile=1)
    assert (mae.score(errors[3]), mse.score(errors[3])) == (2.0, 8.0)
    assert (mae.threshold, mse.threshold) == (45.5, 5000.0)
    assert mae.is_anomaly(float("nan"))


def test_a_detector_is_kept_in_a_file(tmp_path: Path) -> None:
    for method in ("mae", "mse", "mahalanobis"):
        made = edgelstm.Detector.fit(RNG.normal(size=(50, 3)), method=method)  # type: ignore[arg-type]
        made.save(tmp_path / "d.json")
        assert edgelstm.Detector.load(tmp_path / "d.json") == made
    data = json.loads((tmp_path / "d.json").read_text())
    for key, value in (("schema", 2), ("method", "guess"), ("whiten", [[1.0]]), ("threshold", "high")):
        (tmp_path / "bad.json").write_text(json.dumps({**data, key: value}))
        with pytest.raises(EdgeLstmError, match="detector"):
            edgelstm.Detector.load(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(EdgeLstmError, match="not a detector"):
        edgelstm.Detector.load(tmp_path / "bad.json")


def test_too_little_or_unusable_normal_data_is_refused() -> None:
    with pytest.raises(EdgeLstmError, match="found 3; expected more than"):
        edgelstm.Detector.fit(RNG.normal(size=(3, 4)), method="mahalanobis")
    with pytest.raises(EdgeLstmError, match="1 NaN or infinite"):
        edgelstm.Detector.fit([np.ones(2), np.array([np.nan, 1])])
    with pytest.raises(EdgeLstmError, match="found 0; expected at least one"):
        edgelstm.Detector.fit([])


def test_a_forecaster_is_held_against_the_next_frame(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    zoo.lstm(head=3).save(model)
    x = RNG.normal(size=(12, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(EdgeLstmError, match="--target input"):
        edgelstm.fit_detector(model, str(tmp_path / "x.npy"), threads=1)
    detector = edgelstm.fit_detector(model, str(tmp_path / "x.npy"), target="next", threads=1)
    edgelstm.detect(model, detector, str(tmp_path / "x.npy"), tmp_path / "s.csv", threads=1)
    with edgelstm.Runner.open(model, threads=1) as runner:
        made = np.stack([runner.stream("a").step(v, copy=True)["y"] for v in x])
    with (tmp_path / "s.csv").open() as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(scores, np.abs(x[1:] - made[:-1]).mean(1), rtol=1e-5)


def test_a_detector_of_another_model_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A threshold is of one model's errors: with another's, alarms come or stay away for no reason in the data."""
    zoo.lstm(head=3).save(tmp_path / "a.onnx")
    zoo.lstm(seed=1, head=3).save(tmp_path / "b.onnx")
    source = str(tmp_path / "x.npy")
    np.save(source, RNG.normal(size=(12, 3)).astype(np.float32))
    kept = tmp_path / "d.json"
    with pytest.raises(EdgeLstmError, match=r"d.txt: expected a \.json file"):
        edgelstm.fit_detector(tmp_path / "a.onnx", source, tmp_path / "d.txt", target="next", threads=1)
    edgelstm.fit_detector(tmp_path / "a.onnx", source, kept, target="next", threads=1)
    edgelstm.detect(tmp_path / "a.onnx", kept, source, threads=1)
    assert "another model" not in caplog.text
    edgelstm.detect(tmp_path / "b.onnx", kept, source, threads=1)
    assert "fitted with another model" in caplog.text


def test_nothing_is_held_against_a_frame_that_was_skipped(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    zoo.lstm(head=3).save(model)
    x = RNG.normal(size=(9, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    detector = edgelstm.fit_detector(model, str(tmp_path / "x.npy"), target="next", threads=1)
    x[4, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    found = edgelstm.detect(
        model, detector, str(tmp_path / "x.npy"), tmp_path / "s.csv", on_bad_frame="skip", threads=1
    )
    assert found.run.skipped == 1
    with (tmp_path / "s.csv").open() as file:
        # What was foretold for 6 was foretold by a state that had not seen 4.
        assert [int(row["index"]) for row in csv.DictReader(file)] == [1, 2, 3, 7, 8]


def test_a_forecast_that_rests_on_a_skipped_frame_does_not_count(tmp_path: Path) -> None:
    zoo.persistence(leads=2).save(tmp_path / "m.onnx")
    x = RNG.normal(size=(10, 1, 4, 4)).astype(np.float32)
    x[4, 0, 1, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    given: dict[str, Any] = {"on_bad_frame": "skip", "threads": 1}
    report = edgelstm.score(tmp_path / "m.onnx", str(tmp_path / "x.npy"), **given)
    assert [row["forecasts"] for row in report.rows] == [4, 4], "those of frames 0, 1, 6 and 7"
    errors = [np.abs(x[k + 1] - x[k]).mean() for k in (0, 1, 6, 7)]
    assert report.rows[0]["mae"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_forecasts_of_one_stream_are_not_scored_on_another(tmp_path: Path) -> None:
    """Two streams interleaved in one table: each is scored as it is alone."""
    from onnx import helper, numpy_helper

    from edgelstm.graph.signature import Signature, TensorSpec
    from edgelstm.graph.step import make_step

    spec = TensorSpec("x", "float32", ("N", 2))
    signature = Signature((spec,), (TensorSpec("y", "float32", ("N", 2, 2)),), ())
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    one = helper.make_node("Unsqueeze", ["x", "axes"], ["a"])
    make_step([one, helper.make_node("Concat", ["a", "a"], ["y"], axis=1)], signature, [axes]).save(
        tmp_path / "m.onnx"
    )
    values = np.cumsum(RNG.normal(size=(20, 2)), 0)
    values[1::2] += 100
    rows = [["k", "a", "b"], *[[f"s{n % 2}", *map(repr, v.tolist())] for n, v in enumerate(values)]]
    (tmp_path / "t.csv").write_text("\n".join(",".join(row) for row in rows))
    report = edgelstm.score(tmp_path / "m.onnx", f"{tmp_path / 't.csv'}:key=k", threads=1)
    assert [(row["stream"], row["lead"]) for row in report.rows] == [
        ("s0", 1),
        ("s0", 2),
        ("s1", 1),
        ("s1", 2),
    ]
    for which in (0, 1):
        own = values[which::2]
        wanted = [
            np.abs(own[1 : len(own) - 1] - own[: len(own) - 2]).mean(),
            np.abs(own[2:] - own[:-2]).mean(),
        ]
        np.testing.assert_allclose(
            [r["mae"] for r in report.rows[2 * which : 2 * which + 2]], wanted, rtol=1e-4
        )
    with pytest.raises(EdgeLstmError, match="a source of several streams"):
        edgelstm.verify(
            str(tmp_path / "m.onnx"), str(tmp_path / "m.onnx"), f"{tmp_path / 't.csv'}:key=k", threads=1
        )


def test_the_golden_detector_loads_for_ever() -> None:
    golden = Path(__file__).parents[1] / "golden" / "detector-1.json"
    found = edgelstm.Detector.load(golden)
    assert (found.method, found.samples, found.quantile) == ("mahalanobis", 50, 0.9)
    assert found.score(np.array(found.mean)) == 0
    assert found.score(np.array([3.0, -3.0])) > found.threshold


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_detector_loads_or_is_refused(data: st.DataObject) -> None:
    text = (Path(__file__).parents[1] / "golden" / "detector-1.json").read_text()
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 4)) :]
    try:
        detector = edgelstm.Detector.from_json(json.loads(changed))
    except (EdgeLstmError, ValueError, RecursionError):
        return
    assert isinstance(detector.score(np.zeros(2)), float)


def test_data_that_were_not_scaled_as_in_fitting_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "m.onnx"
    zoo.lstm(head=3).save(model)
    normal = RNG.uniform(0, 1, (60, 3)).astype(np.float32)
    for name, x in (("normal", normal), ("raw", normal * 255)):
        np.save(tmp_path / f"{name}.npy", x)
    kept = tmp_path / "d.json"
    fitted = edgelstm.fit_detector(model, str(tmp_path / "normal.npy"), kept, target="next", threads=1)
    assert fitted.ranges == {"x": (float(normal.min()), float(normal.max()))}
    assert edgelstm.Detector.load(kept) == fitted
    assert edgelstm.detect(model, kept, str(tmp_path / "normal.npy"), threads=1).run.said == ()
    assert "lie far outside" not in caplog.text
    found = edgelstm.detect(model, kept, str(tmp_path / "raw.npy"), threads=1)
    assert "lie far outside what the detector was fitted on" in caplog.text
    assert "lie far outside what the detector was fitted on" in found.run.said[0]
    old = {k: v for k, v in fitted.to_json().items() if k != "ranges"}  # of a file from before
    assert edgelstm.Detector.from_json(old).ranges == {}


def test_what_scores_nothing_is_no_success(run: Run, tmp_path: Path) -> None:
    zoo.persistence(leads=3, shape=(1, 4, 4)).save(tmp_path / "p.onnx")
    np.save(tmp_path / "p.npy", RNG.uniform(0, 1, (9, 1, 4, 4)).astype(np.float32))
    words = ("score", "p.onnx", "--source", "p.npy", "-o", "s.csv", "--limit")
    code, _, error = run(*words, 3)
    assert (code, "nothing was scored: found 3 frames; expected more" in error) == (2, True), error
    assert not (tmp_path / "s.csv").exists()
    assert run(*words, 4)[0] == 0
    zoo.lstm(head=3).save(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", RNG.uniform(0, 1, (40, 3)).astype(np.float32))
    assert run("fit-detector", "m.onnx", "--source", "x.npy", "--target", "next", "-o", "d.json")[0] == 0
    words = ("detect", "m.onnx", "--source", "x.npy", "--detector", "d.json", "-o", "d.csv", "--limit")
    code, _, error = run(*words, 1)
    assert (code, "nothing was scored: found 1 step;" in error) == (2, True), error
    assert not (tmp_path / "d.csv").exists()
    assert run(*words, 2)[0] == 0


def test_a_threshold_that_new_states_make_is_said_and_can_be_settled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A state that begins at zeros foretells badly for a while; that may not hide what is as bad later."""
    model = tmp_path / "m.onnx"
    from_text(
        """g (float[N,2] x, float[N,2] h) => (float[N,2] y, float[N,2] h_next) <float half = {0.5}>
        { sum = Add(x, h) h_next = Mul(sum, half) y = Identity(h_next) }""",
        h="h_next",
    ).save(model)
    x = (5 + np.random.default_rng(0).normal(0, 0.1, (200, 2))).astype(np.float32)
    source = str(tmp_path / "x.npy")
    np.save(source, x)
    loose = edgelstm.fit_detector(model, source, target="next", threads=1)
    assert "--settle 10" in caplog.text
    caplog.clear()
    edgelstm.fit_detector(model, source, tmp_path / "d.json", target="next", settle=10, threads=1)
    assert not caplog.text
    x[100] += 1
    np.save(source, x)
    assert edgelstm.detect(model, loose, source, threads=1).anomalies == 0
    found = edgelstm.detect(model, tmp_path / "d.json", source, threads=1)
    assert found.steps == 190
    assert 1 <= found.anomalies <= 4
