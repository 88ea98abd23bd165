"""What the demo does with one example: export, compare with PyTorch's recorded outputs, stream, score."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.demo.pictures import sprite
from edgelstm.demo.recorded import Recorded
from edgelstm.demo.scores import Scores, csi, jsonable, mean_over_leads, score
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.pipeline import Frame, Inputs, open_source
from edgelstm.pipeline.units import known as known_values
from edgelstm.pipeline.units import physical
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Array
from edgelstm.runtime.runner import Runner
from edgelstm.workflows.export import export
from edgelstm.workflows.frames import STEPS

#: mm/h from which a pixel counts as rain, as in the literature on nowcasting (CSI at 1 mm/h).
RAINY = 1.0
#: The radar network was trained on the composites of this night; a score on them would flatter it.
TRAINED = ("2010-08-26T00:00Z", "2010-08-26T05:30Z")
#: Grey levels of the digits on the page: enough for the eye, and a third smaller than 256.
LEVELS = 63
#: Bytes of a radar picture up to 54 mm/h; 255 stands for no data.
RAIN_LEVELS = 254

Bars = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


@dataclass
class Streamed:
    """One example: figures for ``report.json``; ``view``, what the page draws; ``step``, the exported graph."""

    name: str
    unit: str
    step: StepModel
    export_error: float
    export_frames: int
    recorded_error: float
    recorded_steps: int
    milliseconds: list[float]
    scores: Scores
    scored: str
    gaps: tuple[str, ...] = ()
    view: dict[str, Any] = field(repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.data = self.step.to_bytes()
        self.view["errors"] = {
            "model": [jsonable(row) for row in self.scores.model],
            "persistence": [jsonable(row) for row in self.scores.persistence],
        }

    @property
    def file(self) -> str:
        """Name of the exported graph beside the page."""
        return f"{self.name}.onnx"

    @property
    def frames(self) -> int:
        """Frames streamed."""
        return len(self.milliseconds)

    @property
    def mae(self) -> float:
        """Mean absolute error over all leads."""
        return float(np.mean([lead["mae"] for lead in self.scores.leads]))

    @property
    def mae_persistence(self) -> float:
        """The same for repeating the last frame."""
        return float(np.mean([lead["mae_persistence"] for lead in self.scores.leads]))

    def percentile(self, q: float) -> float:
        """Milliseconds a frame."""
        return float(np.percentile(self.milliseconds, q))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        signature = self.step.signature
        return {
            "name": self.name,
            "file": self.file,
            "sha256": self.step.sha256(),
            "unit": self.unit,
            "model_bytes": len(self.data),
            "parameters": sum(int(np.prod(t.dims)) for t in self.step.model.graph.initializer),
            "operators": dict(Counter(self.step.op_types()).most_common()),
            "inputs": {t.name: list(t.frame_shape) for t in signature.inputs},
            "outputs": {t.name: list(t.frame_shape) for t in signature.outputs},
            "states": {s.name: list(s.frame_shape) for s in signature.states},
            "export_error": self.export_error,
            "export_frames": self.export_frames,
            "recorded_error": self.recorded_error,
            "recorded_steps": self.recorded_steps,
            "frames": self.frames,
            "gaps": list(self.gaps),
            "p50_ms": self.percentile(50),
            "p99_ms": self.percentile(99),
            "milliseconds": [round(ms, 4) for ms in self.milliseconds],
            "mae": self.mae,
            "mae_persistence": self.mae_persistence,
            "scored": self.scored,
            "leads": self.scores.leads,
            "error_over_time": mean_over_leads(self.scores.model),
            "persistence_over_time": mean_over_leads(self.scores.persistence),
        }


def digits(frames: int, threads: int | None, bars: Bars) -> Streamed:
    """Two bouncing digits: the next ten frames."""
    run = _Run("moving_digits", threads, bars, frames)
    x, ahead, times = run.stream_own(frames)
    images, truth = ahead[:, :, 0], x[:, 0]
    leads = range(1, images.shape[1] + 1)
    return run.result(
        "brightness 0 to 1",
        times,
        score(images, truth),
        view={
            "kind": "images",
            "title": "Moving digits, ten frames ahead",
            "intro": "A ConvLSTM encoding-forecasting network (Shi et al. 2015) watches two handwritten digits bounce in a "
            "square and draws the ten frames to come. A single frame shows neither speed nor direction: both live in the "
            "state. Digits and paths are none that it was trained on.",
            "palette": "ink",
            "rate": 12,
            "start": 4,
            "strip": "The ten frames that the network draws at this moment. Choose one to see it large:",
            "frame_names": [f"frame {t}" for t in range(len(truth))],
            "leads": [_lead(k, f"{k} frame{'s' * (k > 1)} ahead", f"+{k}") for k in leads],
            "size": list(truth.shape[1:]),
            "levels": LEVELS,
            "truth": sprite(truth, LEVELS),
            "forecasts": [sprite(images[:, k - 1], LEVELS) for k in leads],
        },
    )


def sensors(frames: int, threads: int | None, bars: Bars) -> Streamed:
    """A plant's six sensors, a few samples ahead."""
    run = _Run("sensor_lstm", threads, bars, frames)
    x, ahead, times = run.stream_own(frames)
    ahead = ahead.reshape(len(x), -1, x.shape[1])
    return run.result(
        "parts of the usual range",
        times,
        score(ahead, x),
        view={
            "kind": "series",
            "title": "Plant sensors, eight seconds ahead",
            "intro": "A two-layer LSTM reads six sensors of a simulated plant once a second and says what each will read for "
            "the next eight seconds. An operator moves the set point, which nobody can foresee; what follows from it, the "
            "overshoot of the flow and the ripple of the pump, the state knows.",
            "rate": 10,
            "start": 2,
            "strip": "Seconds ahead:",
            "channels": ["set point", "flow", "motor current", "pressure", "temperature", "level"],
            "leads": [_lead(k, f"{k} s ahead", f"+{k} s") for k in range(1, ahead.shape[1] + 1)],
            "truth": _rounded(x),
            "forecasts": [_rounded(ahead[:, k]) for k in range(ahead.shape[1])],
        },
    )


def radar_nowcast(folder: Path, threads: int | None, bars: Bars) -> Streamed:
    """Rain 30 minutes ahead, on the user's radar composites."""
    with open_source(str(folder)) as source:
        unseen = [frame for frame in source if not TRAINED[0] <= frame.name < TRAINED[1]]
        gaps = source.gaps
    run = _Run("nowcast_radar", threads, bars)
    run.stream_own(STEPS)  # drawn rain, only to compare with PyTorch
    horizon = run.signature.outputs[0].frame_shape[0]
    if len(unseen) <= horizon:
        raise EdgeLstmError(
            f"{folder} holds too little to forecast",
            found=f"{len(unseen)} composites that the network was not trained on",
            expected=f"more than {horizon}, one every five minutes",
        )
    x, ahead, times = run.stream(unseen)
    spec = run.signature.inputs[0]
    ops = run.signature.preprocessing[spec.name]
    known = np.stack([known_values(frame.data, ops, spec) for frame in unseen])[:, 0]
    mm_per_hour = physical(ops)
    rate, forecast = mm_per_hour(x[:, 0]), mm_per_hour(ahead[:, :, 0])
    scores = score(forecast, rate, known)
    count = len(rate) - horizon
    for entry in scores.leads:
        k = entry["lead"]
        was = rate[k : k + count], known[k : k + count], RAINY
        entry |= {
            "minutes": 5 * k,
            "csi": csi(forecast[:count, k - 1], *was),
            "csi_persistence": csi(rate[:count], *was),
        }
    leads = range(1, horizon + 1)
    # Shown as the network sees them: log rain, so that drizzle is seen beside a downpour.
    return run.result(
        "mm/h",
        times,
        scores,
        gaps=gaps,
        view={
            "kind": "images",
            "title": "Rain, 30 minutes ahead",
            "intro": "A ConvLSTM encoding-forecasting network (Shi et al. 2015) takes a weather-radar composite every five "
            "minutes and gives the next six: 256 by 256 km in pixels of 2 km. The stream starts from zero state; nothing of "
            "the hours that the network was trained on is shown, scored or carried over.",
            "palette": "rain",
            "log1p_scale": _log_scale(ops),
            "rate": 3,
            "start": 5,
            "strip": "The half hour that the network foresees at this moment. Choose a time to see it large:",
            "frame_names": [frame.name.replace("T", " ").replace("Z", " UTC") for frame in unseen],
            "times": [frame.name[11:16] for frame in unseen],
            "leads": [_lead(k, f"{5 * k} minutes ahead", f"+{5 * k}", f"{5 * k} min") for k in leads],
            "size": list(rate.shape[1:]),
            "levels": RAIN_LEVELS,
            "truth": sprite(np.where(known, x[:, 0], np.nan), RAIN_LEVELS),
            "forecasts": [sprite(ahead[:, k - 1, 0], RAIN_LEVELS) for k in leads],
        },
    )


class _Run:
    """One example on its way: its folder, its export, and how far it is from what PyTorch gave."""

    def __init__(self, name: str, threads: int | None, bars: Bars, frames: int = STEPS) -> None:
        """frames: those that will be streamed; on more than them the export needs no comparison."""
        self.name = name
        self.folder = find_example(name)
        self._own = str(self.folder / "test_stream.npz")
        self._threads, self._bars = threads, bars
        with open_source(self._own) as source:
            length = min(STEPS, frames, source.length or STEPS)
        with bars(f"{name}: exporting", length) as tick:
            self.exported = export(
                self.folder / "model.safetensors",
                source=self._own,
                limit=length,
                threads=threads,
                progress=tick,
            )
        self.signature = self.exported.step.signature
        self._recorded = (0.0, 0)

    def stream_own(self, limit: int) -> tuple[Array, Array, list[float]]:
        """Stream at most ``limit`` of the example's own frames, comparing with what PyTorch gave on them."""
        recorded = Recorded(self.folder / "expected.npz")
        with open_source(self._own, limit=limit) as source:
            result = self.stream(source, recorded, source.length)
        self._recorded = recorded.worst()
        return result

    def stream(
        self, frames: Iterable[Frame], recorded: Recorded | None = None, length: int | None = None
    ) -> tuple[Array, Array, list[float]]:
        """Frames as the model takes them, its outputs, and milliseconds a frame."""
        if isinstance(frames, Sequence):
            length = len(frames)
        inputs = Inputs(self.signature)
        x, ahead, times = [], [], []
        program = OrtProgram(self.exported.step.to_bytes(), threads=self._threads)
        with Runner(program) as runner, self._bars(f"{self.name}: streaming", length) as tick:
            stream = runner.stream("demo")
            for _, arrays in inputs.steps(frames):
                started = time.perf_counter()
                outputs = stream.step(arrays, copy=False)
                times.append(1e3 * (time.perf_counter() - started))
                x.append(next(iter(arrays.values())).copy())
                ahead.append(next(iter(outputs.values())).copy())
                if recorded is not None:
                    recorded.compare(stream.frames - 1, ahead[-1], stream.snapshot)
                tick(1)
        return np.stack(x), np.stack(ahead), times

    def result(
        self, unit: str, times: list[float], scores: Scores, view: dict[str, Any], gaps: tuple[str, ...] = ()
    ) -> Streamed:
        count, horizon = len(times), len(scores.leads)
        comparison = self.exported.comparison
        return Streamed(
            name=self.name,
            unit=unit,
            step=self.exported.step,
            export_error=comparison.worst.worst,
            export_frames=comparison.frames,
            recorded_error=self._recorded[0],
            recorded_steps=self._recorded[1],
            milliseconds=times,
            scores=scores,
            scored=f"the forecasts made at frames 0 to {count - horizon - 1}, those from the cold start among them; "
            "“last frame repeated” is persistence",
            gaps=gaps,
            view=view,
        )


def find_example(name: str) -> Path:
    """The example's folder: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "examples" / name, package / "_examples" / name):
        if (folder / "model.safetensors").is_file():
            return folder
    raise EdgeLstmError(
        f"the example {name} is not there",
        expected=f"examples/{name}/model.safetensors beside the package",
        hint="Run the demo from a checkout, or install the released wheel",
    )


def _lead(k: int, name: str, short: str, ahead: str | None = None) -> dict[str, Any]:
    return {"lead": k, "name": name, "short": short, "ahead": ahead or name.removesuffix(" ahead")}


def _log_scale(ops: tuple[Any, ...]) -> float:
    return next((float(op.get("scale", 1.0)) for op in ops if op["op"] == "log1p"), 1.0)


def _rounded(values: Array) -> list[Any]:
    rounded: list[Any] = np.round(values.astype(float), 4).tolist()
    return rounded
