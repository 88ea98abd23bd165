"""What the demo does with one example: export, compare with PyTorch's recorded outputs, stream, score."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.demo.pictures import sprite
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import Frame, Inputs, Preprocess, open_source
from edgelstm.runtime import Runner
from edgelstm.runtime.protocol import Array
from edgelstm.signature import Signature, TensorSpec
from edgelstm.verify import TensorError
from edgelstm.workflows import STEPS, export

#: Largest relative error against what PyTorch gave when the weights were trained.
TOLERANCE = 1e-5
#: Leads of the digits that the page shows.
SHOWN_LEADS = (1, 2, 5, 10)
#: mm/h from which a pixel counts as rain, as in the literature on nowcasting (CSI at 1 mm/h).
RAINY = 1.0
#: The radar network saw the composites before this; scores start here.
TRAINED_UNTIL = "2010-08-26T05:30Z"
_TRAINED_FROM = "2010-08-26T00:00Z"

Bars = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


@dataclass
class Streamed:
    """One example: figures for ``report.json``, and ``view``, what the page draws."""

    name: str
    unit: str
    model_bytes: int
    parameters: int
    states: dict[str, list[int]]
    export_error: float
    recorded_error: float
    recorded_steps: int
    milliseconds: list[float]
    leads: list[dict[str, Any]]
    error_over_time: list[float | None]
    persistence_over_time: list[float | None]
    view: dict[str, Any] = field(repr=False)

    @property
    def frames(self) -> int:
        """Frames streamed."""
        return len(self.milliseconds)

    @property
    def mae(self) -> float:
        """Mean absolute error over all leads."""
        return float(np.mean([lead["mae"] for lead in self.leads]))

    @property
    def mae_persistence(self) -> float:
        """The same for repeating the last frame."""
        return float(np.mean([lead["mae_persistence"] for lead in self.leads]))

    def percentile(self, q: float) -> float:
        """Milliseconds a frame."""
        return float(np.percentile(self.milliseconds, q))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "unit": self.unit,
            "model_bytes": self.model_bytes,
            "parameters": self.parameters,
            "states": self.states,
            "export_error": self.export_error,
            "recorded_error": self.recorded_error,
            "recorded_steps": self.recorded_steps,
            "frames": self.frames,
            "p50_ms": self.percentile(50),
            "p99_ms": self.percentile(99),
            "milliseconds": [round(ms, 4) for ms in self.milliseconds],
            "mae": self.mae,
            "mae_persistence": self.mae_persistence,
            "leads": self.leads,
            "error_over_time": self.error_over_time,
            "persistence_over_time": self.persistence_over_time,
        }


def digits(frames: int, threads: int | None, bars: Bars) -> Streamed:
    """Two bouncing digits: the next ten frames."""
    run = _Run("moving_digits", threads, bars)
    x, ahead, times = run.stream(run.folder / "test_stream.npz", frames)
    images, truth = ahead[:, :, 0], x[:, 0]
    leads = [lead for lead in SHOWN_LEADS if lead <= images.shape[1] and lead < len(truth)]
    return run.result(
        "brightness, 0 to 1",
        times,
        *_scores(images, truth),
        view={
            "kind": "images",
            "title": "Moving digits",
            "palette": "ink",
            "unit": "brightness",
            "frame_names": [f"frame {t}" for t in range(len(truth))],
            "leads": [{"lead": lead, "name": f"{lead} ahead"} for lead in leads],
            "size": list(truth.shape[1:]),
            "truth": sprite(truth),
            "forecasts": [sprite(images[:, lead - 1]) for lead in leads],
        },
    )


def sensors(frames: int, threads: int | None, bars: Bars) -> Streamed:
    """A plant's six sensors, a few samples ahead."""
    run = _Run("sensor_lstm", threads, bars)
    x, ahead, times = run.stream(run.folder / "test_stream.npz", frames)
    channels = x.shape[1]
    ahead = ahead.reshape(len(x), -1, channels)
    names = ["set point", "flow", "motor current", "pressure", "temperature", "level"]
    return run.result(
        "share of the usual range",
        times,
        *_scores(ahead, x),
        view={
            "kind": "series",
            "title": "Plant sensors",
            "channels": names if len(names) == channels else [f"channel {n}" for n in range(channels)],
            "leads": [{"lead": lead, "name": f"{lead} s ahead"} for lead in range(1, ahead.shape[1] + 1)],
            "truth": _rounded(x),
            "forecasts": [_rounded(ahead[:, lead]) for lead in range(ahead.shape[1])],
        },
    )


def radar_nowcast(folder: Path, threads: int | None, bars: Bars) -> Streamed:
    """Rain 30 minutes ahead, on the user's radar composites."""
    run = _Run("nowcast_radar", threads, bars)
    run.stream(run.folder / "test_stream.npz", STEPS)  # made-up rain: only to compare with PyTorch
    with open_source(str(folder)) as source:
        # The network has seen these; a score on them would flatter it.
        unseen = [f for f in source if not _TRAINED_FROM <= f.name < TRAINED_UNTIL]
    if len(unseen) < 2:
        raise EdgeLstmError(
            f"{folder} holds too little to forecast",
            found=f"{len(unseen)} composites outside the training night",
            expected="at least 2",
        )
    x, ahead, times = run.stream_frames(unseen, record=False)
    spec = run.signature.inputs[0]
    ops = run.signature.preprocessing[spec.name]
    known = np.stack([_known(frame.data, ops, spec) for frame in unseen])[:, 0]
    rate, forecast = _mm_per_hour(x[:, 0], ops), _mm_per_hour(ahead[:, :, 0], ops)
    scored = _scores(forecast, rate, known)
    for lead in scored[0]:
        k = lead["lead"]
        lead["minutes"] = 5 * k
        lead["csi"] = _csi(forecast[:-k, k - 1], rate[k:], known[k:])
        lead["csi_persistence"] = _csi(rate[:-k], rate[k:], known[k:])
    lead_numbers = [lead["lead"] for lead in scored[0]]
    # Shown as the network sees them: log rain, so that drizzle is seen beside a downpour.
    return run.result(
        "mm/h",
        times,
        *scored,
        view={
            "kind": "images",
            "title": "Rain, 30 minutes ahead",
            "palette": "rain",
            "unit": "mm/h",
            "log1p_scale": _log_scale(ops),
            "frame_names": [frame.name for frame in unseen],
            "leads": [{"lead": k, "name": f"{5 * k} min ahead"} for k in lead_numbers],
            "size": list(rate.shape[1:]),
            "truth": sprite(x[:, 0]),
            "forecasts": [sprite(ahead[:, k - 1, 0]) for k in lead_numbers],
        },
    )


class _Run:
    """One example on its way: its folder, its export, and how far it is from what PyTorch gave."""

    def __init__(self, name: str, threads: int | None, bars: Bars) -> None:
        self.name = name
        self.folder = _example(name)
        self._threads, self._bars = threads, bars
        with bars(f"{name}: exporting and comparing", STEPS) as tick:
            self.exported = export(self.folder / "model.safetensors", threads=threads, progress=tick)
        self.signature: Signature = self.exported.step.signature
        self.recorded_error, self.recorded_steps = 0.0, 0

    def stream(self, path: Path, limit: int) -> tuple[Array, Array, list[float]]:
        """Stream the example's own frames, comparing with what PyTorch gave on them."""
        with open_source(str(path), limit=limit) as source:
            return self.stream_frames(source, record=True, length=limit)

    def stream_frames(
        self, frames: Iterable[Frame], *, record: bool, length: int | None = None
    ) -> tuple[Array, Array, list[float]]:
        """Frames as the model takes them, its outputs, and milliseconds a frame."""
        expected = _Recorded(self.folder / "expected.npz") if record else None
        inputs = Inputs(self.signature)
        x, ahead, times = [], [], []
        with tempfile.TemporaryDirectory() as folder, self._bars(f"{self.name}: streaming", length) as tick:
            path = Path(folder) / "model.onnx"
            self.exported.step.save(path)
            with Runner.open(path, threads=self._threads) as runner:
                stream = runner.stream("demo")
                for _, arrays in inputs.steps(frames):
                    started = time.perf_counter()
                    outputs = stream.step(arrays)
                    times.append(1e3 * (time.perf_counter() - started))
                    x.append(next(iter(arrays.values())).copy())
                    ahead.append(next(iter(outputs.values())).copy())
                    if expected is not None:
                        expected.compare(stream.frames - 1, ahead[-1], stream.snapshot)
                    tick(1)
        if expected is not None:
            self.recorded_error, self.recorded_steps = expected.worst(self.name)
        return np.stack(x), np.stack(ahead), times

    def result(
        self,
        unit: str,
        times: list[float],
        leads: list[dict[str, Any]],
        over_time: list[float | None],
        persistence: list[float | None],
        view: dict[str, Any],
    ) -> Streamed:
        graph = self.exported.step.model.graph
        return Streamed(
            name=self.name,
            unit=unit,
            model_bytes=len(self.exported.step.to_bytes()),
            parameters=sum(int(np.prod(t.dims)) for t in graph.initializer),
            states={s.name: list(s.frame_shape) for s in self.signature.states},
            export_error=self.exported.comparison.worst.worst,
            recorded_error=self.recorded_error,
            recorded_steps=self.recorded_steps,
            milliseconds=times,
            leads=leads,
            error_over_time=over_time,
            persistence_over_time=persistence,
            view=view,
        )


class _Recorded:
    """What PyTorch gave: ``output`` at ``steps`` (its ``leads`` only, if named), ``state_NAME`` after the last."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise EdgeLstmError(f"{path} does not exist", expected="the outputs recorded from PyTorch")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        self._at = {int(step): arrays["output"][n] for n, step in enumerate(arrays["steps"])}
        self._last = max(self._at)
        self._leads = arrays["leads"] - 1 if "leads" in arrays else None
        self._states = {n.removeprefix("state_"): a for n, a in arrays.items() if n.startswith("state_")}
        self._errors: dict[str, TensorError] = {}

    def compare(self, step: int, output: Array, snapshot: Callable[[], dict[str, Array]]) -> None:
        """Compare the output of frame ``step`` if it was recorded, and the states at the last one."""
        if step in self._at:
            self._add("output", step, self._at[step], output if self._leads is None else output[self._leads])
        if step == self._last:
            states = snapshot()
            for name, wanted in self._states.items():
                self._add(f"state {name}", step, wanted, states[name])

    def worst(self, example: str) -> tuple[float, int]:
        """Largest relative error and the number of outputs compared; an error above the tolerance is raised."""
        worst = max(self._errors.values(), key=lambda e: e.worst)
        if not worst.worst <= TOLERANCE:
            raise EdgeLstmError(
                f"{example} does not compute what PyTorch gave",
                found=f"relative error {worst.worst:.3g} of {worst.name} at frame {worst.worst_frame}",
                expected=f"at most {TOLERANCE:g}",
            )
        return worst.worst, len(self._errors["output"].errors)

    def _add(self, name: str, step: int, wanted: Array, found: Array) -> None:
        self._errors.setdefault(name, TensorError(name, "recorded")).add(step, wanted, found)


def _example(name: str) -> Path:
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


def _scores(
    ahead: Array, truth: Array, known: Array | None = None
) -> tuple[list[dict[str, Any]], list[float | None], list[float | None]]:
    """MAE at each lead, and over time (mean over all leads), model and persistence.

    ahead [T, K, ...], truth [T, ...]; known: which elements of the truth count.
    """
    count, horizon = ahead.shape[:2]
    mask = np.ones(truth.shape, bool) if known is None else known
    horizon = min(horizon, count - 1)
    over_time = np.full((horizon, count), np.nan)
    same_over_time = over_time.copy()
    leads = []
    for lead in range(1, horizon + 1):
        was, counts = truth[lead:], mask[lead:]
        error, same = np.abs(ahead[:-lead, lead - 1] - was), np.abs(truth[:-lead] - was)
        leads.append(
            {"lead": lead, "mae": float(error[counts].mean()), "mae_persistence": float(same[counts].mean())}
        )
        over_time[lead - 1, :-lead] = _mean_per_frame(error, counts)
        same_over_time[lead - 1, :-lead] = _mean_per_frame(same, counts)
    return leads, _mean_of_known(over_time), _mean_of_known(same_over_time)


def _mean_per_frame(values: Array, counts: Array) -> Array:
    """Mean over everything but time of the values that count; NaN for a frame with none."""
    axes = tuple(range(1, values.ndim))
    number = counts.sum(axes)
    mean: Array = np.where(number > 0, (values * counts).sum(axes) / np.maximum(number, 1), np.nan)
    return mean


def _mean_of_known(rows: Array) -> list[float | None]:
    """Mean over the leads, frame by frame; None where the truth of one has not come, lest the ends look better."""
    return [None if np.isnan(column).any() else round(float(column.mean()), 6) for column in rows.T]


def _csi(forecast: Array, truth: Array, known: Array) -> float:
    """Critical success index of ``RAINY``: hits / (hits + misses + false alarms)."""
    said, was = (forecast >= RAINY) & known, (truth >= RAINY) & known
    return float((said & was).sum() / max(1, (said | was).sum()))


def _log_scale(ops: tuple[Any, ...]) -> float:
    return next((float(op.get("scale", 1.0)) for op in ops if op["op"] == "log1p"), 1.0)


def _mm_per_hour(y: Array, ops: tuple[Any, ...]) -> Array:
    rate: Array = np.maximum(np.expm1(y / _log_scale(ops)), 0)
    return rate


def _known(raw: Any, ops: tuple[Any, ...], spec: TensorSpec) -> Array:
    """Pixels of the model's grid that hold no "no data"."""
    missing = next((op["value"] for op in ops if op["op"] == "nodata"), None)
    places = [op for op in ops if op["op"] in ("crop", "average", "resize")]
    share = Preprocess(places, spec)((np.asarray(raw) == missing).astype(np.float32))
    known: Array = share == 0
    return known


def _rounded(values: Array) -> list[Any]:
    rounded: list[Any] = np.round(values.astype(float), 4).tolist()
    return rounded
