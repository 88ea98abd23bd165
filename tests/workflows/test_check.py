"""What quantize says of the graph it made: measured on frames that the calibration did not see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import zoo
from edgelstm import calibrate, quantize
from edgelstm.cli import app
from edgelstm.graph.step import StepModel
from edgelstm.passes.unroll import unroll
from edgelstm.quantize.calibration import Calibration
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.runner import Runner
from edgelstm.workflows import held_back
from edgelstm.workflows.check import THRESHOLD, Check, _Sums
from recordings import smooth_frames


def arrays(step: StepModel, count: int, seed: int = 0) -> np.ndarray:
    return np.stack([f["x"] for f in smooth_frames(step, count, seed)])


def denoiser() -> StepModel:
    """A GRU denoiser of two dual-path blocks (Luo et al. 2020): over the bands within a frame, over time in each band.

    It normalises its frame by its own size, as DTLN does: a step that is fine for loud frames is coarse for quiet ones.
    """
    torch = pytest.importorskip("torch")
    from torch import nn

    from edgelstm import export

    class Block(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self, c: int) -> None:
            super().__init__()
            self.intra, self.inter = nn.GRU(c, c, batch_first=True), nn.GRUCell(c, c)
            self.after, self.norm = nn.Linear(c, c), nn.LayerNorm(c)

        def forward(self, x, h):  # type: ignore[no-untyped-def]
            x = x + self.norm(self.after(self.intra(x)[0]))
            n, f, c = x.shape
            h = self.inter(x.reshape(n * f, c), h.reshape(n * f, c)).reshape(n, f, c)
            return x + h, h

    class Denoiser(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self, f: int = 6, c: int = 8) -> None:
            super().__init__()
            self.stem, self.norm = nn.Linear(f, f * c, bias=False), nn.LayerNorm(f * c, eps=1e-7)
            self.a, self.b, self.mask = Block(c), Block(c), nn.Linear(c, 1)

        def forward(self, x, h0, h1):  # type: ignore[no-untyped-def]
            y = self.norm(self.stem(x)).reshape(-1, 6, 8)
            y, h0 = self.a(y, h0)
            y, h1 = self.b(y, h1)
            return x * torch.sigmoid(12 * self.mask(y))[..., 0], h0, h1

    torch.manual_seed(0)
    return export(Denoiser().eval(), frame=(6,), states={"h0": (6, 8), "h1": (6, 8)}, limit=4).step


def speech(count: int = 400) -> np.ndarray:
    """Loud at first, quiet at the end."""
    rng = np.random.default_rng(0)
    loudness = np.where(np.arange(count) < count - 80, 1.0, 0.006)
    return (rng.normal(size=(count, 6)) * loudness[:, None]).astype(np.float32)


def test_the_error_is_that_of_the_frames_held_back(tmp_path: Path) -> None:
    step = zoo.lstm()
    frames = arrays(step, 300)
    np.savez(tmp_path / "f.npz", frames=frames)
    by_source = calibrate(step, str(tmp_path / "f.npz"), threads=1).calibration
    by_array = calibrate(step, [list(frames)], tmp_path / "c.json", threads=1)
    assert by_source.frames == 300 - 300 // held_back.PART
    assert by_source.data[0]["check"]["start"] == 300 - held_back.RUN_IN - 37
    made = quantize(step, by_source, threads=1)
    start, length = by_source.data[0]["check"]["start"], 37
    shown = []
    for model in (step, made.step):
        with Runner(OrtProgram(model.to_bytes(), threads=1)) as runner:
            stream = runner.stream("a")
            steps = [stream.step(f, copy=True) for f in frames[start:]]
        shown.append({n: np.stack([s[n] for s in steps[-length:]]) for n in steps[0]})
    assert made.check.frames == made.check.held_back == length
    for output in made.check.outputs:
        a, b = (s[output.name].astype(np.float64) for s in shown)
        assert output.error == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-4)
        varied = np.linalg.norm(a - a.mean(0))
        assert output.of_variation == pytest.approx(np.linalg.norm(b - a) / varied, rel=1e-4)
    assert made.check.warning is None
    # From arrays, by way of the file: the same.
    again = quantize(step, tmp_path / "c.json", threads=1).check
    assert [o.to_json() for o in again.outputs] == [o.to_json() for o in made.check.outputs]
    assert "check" in by_array.to_json()["data"][0]
    assert "arrays" not in json.dumps(by_array.to_json())


def test_what_is_held_back_is_not_calibrated_on() -> None:
    step = zoo.lstm()
    frames = arrays(step, 100)
    frames[-1] *= 1000
    found = calibrate(step, [list(frames)], threads=1).calibration
    assert found.tensor("x").tensor_high < 10
    assert found.frames == 88
    assert calibrate(step, [list(frames[:40])], threads=1).calibration.frames == 40, (
        "short ones are seen whole"
    )


def test_only_some_of_many_sequences_are_cut() -> None:
    step = zoo.lstm()
    found = calibrate(step, [list(arrays(step, 80, k)) for k in range(5)], threads=1).calibration
    assert [d["frames"] for d in found.data] == [70, 80, 70, 80, 70]
    assert quantize(step, found, threads=1).check.frames == 30


def test_windows() -> None:
    step = unroll(zoo.lstm(), 4)
    blocks = arrays(zoo.lstm(), 400).reshape(100, 4, -1)
    found = calibrate(step, [list(blocks)], threads=1).calibration
    check = quantize(step, found, threads=1).check
    assert check.frames == check.held_back == 48
    assert check.warning is None


def test_what_cannot_be_verified_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = zoo.lstm()
    np.savez(tmp_path / "f.npz", frames=arrays(step, 100))
    found = calibrate(step, str(tmp_path / "f.npz"), threads=1).calibration
    (tmp_path / "f.npz").unlink()
    said = quantize(step, found, threads=1).check
    assert said.why_not is not None
    assert "f.npz does not exist" in said.why_not
    monkeypatch.setattr(held_back, "KEPT", 100)
    large = calibrate(step, [list(arrays(step, 100))], threads=1).calibration
    assert "too large to keep" in str(quantize(step, large, threads=1).check.why_not)
    assert "no calibration was given" in str(quantize(step, precision="fp16", threads=1).check.why_not)
    data = found.to_json()
    del data["data"][0]["check"]
    assert "calibrate again" in str(quantize(step, Calibration.from_json(data), threads=1).check.why_not)
    assert quantize(step, found, verify=False, threads=1).check.outputs == []


def test_an_output_that_hardly_varies() -> None:
    """300 K give or take one: 0.2 K are nothing of it, and much of what it says."""

    def measured(noise: float, wave: float = 1.0) -> Check:
        sums, rng = _Sums(), np.random.default_rng(0)
        for k in range(200):
            true = np.array([300 + wave * np.sin(k / 9), 290.0])
            sums.add(k, true, true + noise * rng.normal(size=2))
        return Check([sums.result("kelvin")])

    assert measured(0.05).warning is None
    assert "kelvin is off by" in str(measured(0.6).warning)
    assert measured(0.001, wave=0).warning is None, "what does not vary at all can't be lost"
    assert "more than 10%" in str(measured(60).warning)


@pytest.mark.parametrize("damage", ["AAAA", "not base64", None])
def test_damaged_frames_in_a_file(damage: str | None) -> None:
    step = zoo.lstm()
    data = calibrate(step, [list(arrays(step, 100))], threads=1).calibration.to_json()
    data["data"][0]["check"]["arrays"] = {} if damage is None else {"x": damage}
    said = quantize(step, Calibration.from_json(data), threads=1).check.why_not
    assert said is not None
    assert "frames" in said


@pytest.mark.thorough
def test_a_denoiser_that_comes_out_badly_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    denoiser().save("d.onnx")
    np.savez("s.npz", frames=speech())
    run = CliRunner().invoke
    assert run(app, ["calibrate", "d.onnx", "--source", "s.npz", "-o", "d.json"]).exit_code == 0
    done = run(app, ["quantize", "d.onnx", "--calibration", "d.json", "-o", "q.onnx", "--json"])
    assert done.exit_code == 0, done.output
    assert Path("q.onnx").exists()
    assert "warning: y is" in done.stderr
    assert "dB), more than 10%" in done.stderr
    assert "--precision auto --budget 0.1 --source s.npz" in done.stderr
    told = json.loads(done.stdout)["verification"]
    assert told["outputs"][0]["error"] > THRESHOLD
    assert told["outputs"][0]["snr_db"] < 20
    assert told["warning"]
    # What it advises is true.
    kept = next(r for r in told["remedies"] if r.startswith("--keep"))
    weight = kept.split("'")[1]
    better = quantize("d.onnx", "d.json", keep=[weight], threads=1).check
    assert better.worst is not None
    assert f"{better.worst.error:.2g}" in kept
    quiet = run(app, ["quantize", "d.onnx", "--calibration", "d.json", "-o", "q.onnx", "--no-verify"])
    assert quiet.exit_code == 0
    assert "warning" not in quiet.stderr
    assert "verified" not in quiet.stdout
