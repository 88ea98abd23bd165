"""report: one's own model and source on a page: what goes in, what comes out, what came, the states, the time of a frame."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.demo.pictures import colour_sprite, sprite
from edgelstm.demo.report import page
from edgelstm.dtypes import to_float32
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike, refuse_overwrite, write_text
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import Outputs
from edgelstm.pipeline.inputs import OnGap
from edgelstm.pipeline.outputs import frame_outputs
from edgelstm.renamed import renamed
from edgelstm.runtime.frames import BadFrame
from edgelstm.runtime.protocol import Array
from edgelstm.verify.forecast import forecast_output
from edgelstm.workflows.frames import Preprocessing, Progress, operations, texts
from edgelstm.workflows.run import RunReport, run
from edgelstm.workflows.score import score_rows
from edgelstm.workflows.streaming import Step

#: Frames on a page, unless told: each is a picture or a point.
FRAMES = 240
#: Longest side of a picture on the page.
SIDE = 128
#: Most lines of a signal, and most lead times and channels that are drawn.
LINES, PANELS = 12, 6
#: Bytes of a picture: 255 stands for NaN.
LEVELS = 254


@dataclass(repr=False)
class Report:
    """What :func:`report` wrote: ``path``, and ``run``, how it ran."""

    path: Path
    run: RunReport
    frames: int

    def __repr__(self) -> str:
        return f"Report({self.path}, {count_of(self.frames, 'frame')})"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"path": str(self.path), "frames": self.frames, "run": self.run.to_json()}


@renamed(out="output")
def report(
    model: PathLike,
    source: str,
    output: PathLike,
    *,
    limit: int = FRAMES,
    device: str | None = None,
    threads: int | None = None,
    preprocess: Preprocessing | None = None,
    hop: int | None = None,
    on_gap: OnGap = "hold",
    on_bad_frame: BadFrame = "error",
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Stream at most ``limit`` frames of ``source`` through ``model`` and write one page (.html) of what happened.

    The page asks nothing of the network. It shows input and outputs (pictures, or lines for vectors; forecasts at the time
    they are for, beside what came), the range of every state over time, and the time of each frame; forecasts of the
    input are scored. Other arguments as :func:`edgelstm.run`. Of a source of several streams, the first is shown.
    """
    path = Path(output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise EdgeLstmError(f"output {path}", expected="a .html file")
    refuse_overwrite(output, (model, source))
    seen = _Seen(preprocess)
    signature = _signature(model)
    scored = signature.window is None and hop is None and forecast_output(signature) is not None
    found = run(
        model,
        source,
        device=device,
        threads=threads,
        limit=limit,
        preprocess=preprocess,
        hop=hop,
        on_gap=on_gap,
        on_bad_frame=on_bad_frame,
        score=scored,
        observe=seen,
        progress=progress,
        say=say,
    )
    if not seen.names:
        raise EdgeLstmError(f"source {source}", found="no step of the model", expected="at least one")
    data = seen.data(found, scored)
    words = ["edgelstm", "report", str(model), "--source", source, "-o", str(path)]
    words += [] if limit == FRAMES else ["--limit", str(limit)]
    words += [] if hop is None else ["--hop", str(hop)]
    words += [] if on_gap == "hold" else ["--on-gap", on_gap]
    words += [] if on_bad_frame == "error" else ["--on-bad-frame", on_bad_frame]
    words += [] if device is None else ["--device", device]
    for text in texts(signature, preprocess):
        words += ["--preprocess", text]
    data["command"] = shlex.join(words)
    write_text(path, page(data, "own"))
    return Report(path, found, len(seen.names))


def _signature(model: PathLike) -> Signature:
    from edgelstm.runtime.open import open_program

    with_program = open_program(model, "cpu" if Path(model).suffix == ".onnx" else None)
    try:
        return with_program.signature
    finally:
        with_program.close()


@dataclass
class _Panel:
    """Pictures of one thing over time; shift: how many frames later is shown what the panel holds."""

    title: str
    like_frames: bool
    shift: int = 0
    colour: bool = False
    frames: list[Array] = field(default_factory=list)


class _Seen:
    """Watches a run and keeps what the page shows, small."""

    def __init__(self, preprocess: Preprocessing | None) -> None:
        self._preprocess = preprocess
        self.names: list[str] = []
        #: Frames with something missing before them.
        self.gaps: list[int] = []
        self._stream: str | None = None
        self._signature: Signature | None = None
        self._panels: dict[str, _Panel] = {}
        self._lines: dict[str, dict[str, list[float]]] = {}
        self._states: dict[str, list[tuple[float, float, float]]] = {}
        self._milliseconds: list[float] = []

    def __call__(self, step: Step) -> None:
        if self._stream is None:
            self._stream, self._signature = step.stream, step.signature
            ops = operations(step.signature, self._preprocess)
            try:
                self._physical = Outputs(step.signature, ops, units="physical")
            except EdgeLstmError:
                self._physical = Outputs(step.signature)
            self._frames = frame_outputs(step.signature)
        if step.stream != self._stream:
            return
        if step.frame.gap is not None:
            self.gaps.append(len(self.names))
        self.names.append(step.frame.name)
        self._milliseconds.append(step.seconds * 1e3)
        for name, value in step.state().items():
            numbers = np.asarray(value, np.float64)
            self._states.setdefault(name, []).append(
                (float(numbers.min()), float(numbers.mean()), float(numbers.max()))
            )
        self._inputs(step)
        outputs = self._physical(step.outputs)
        for spec in step.signature.outputs:
            self._output(spec, outputs[spec.name], step)

    def _inputs(self, step: Step) -> None:
        raw = step.frame.data
        if isinstance(raw, np.ndarray) and raw.ndim == 3 and raw.shape[2] == 3 and step.frame.values:
            top = step.frame.values[1]
            self._add(
                "in", "goes in, as it came", raw.astype(np.float32) * (255 / top), like=False, colour=True
            )
        for spec in step.signature.inputs:
            value = self._physical.frame(step.inputs[spec.name], spec.dtype)
            if step.signature.window is not None:
                value = value[-1]
            self._show(f"input {spec.name}", value, spec, like=True)

    def _output(self, spec: TensorSpec, value: Array, step: Step) -> None:
        signature = step.signature
        value = to_float32(value, spec.dtype) if value.dtype == np.uint16 else np.asarray(value, np.float32)
        if signature.window is not None:
            value = value[-1]
        own = 0 if signature.window is None else 1
        frame = signature.inputs[0].frame_shape[own:]
        if spec.name in self._frames and value.shape[1:] == frame:
            for lead in _some(value.shape[0], PANELS):
                self._show(f"{spec.name}, {lead + 1} ahead", value[lead], spec, like=True)
        else:
            self._show(f"output {spec.name}", value, spec, like=spec.name in self._frames)

    def _show(self, title: str, value: Array, spec: TensorSpec, *, like: bool) -> None:
        image = _image(value)
        if image is not None:
            for channel in _some(len(image), 3):
                name = title if len(image) == 1 else f"{title}, channel {channel}"
                self._add(name, name, image[channel], like=like)
            return
        flat = value.ravel()
        lines = self._lines.setdefault(title, {})
        for k in _some(flat.size, LINES):
            lines.setdefault(str(k), []).append(float(flat[k]))

    def _add(self, key: str, title: str, value: Array, *, like: bool, colour: bool = False) -> None:
        panel = self._panels.setdefault(key, _Panel(title, like, colour=colour))
        panel.frames.append(_small(value).astype(np.uint8 if colour else np.float32))

    def data(self, found: RunReport, scored: bool) -> dict[str, Any]:
        """What the page draws."""
        from edgelstm import __version__
        from edgelstm.machine import cpu

        assert self._signature is not None
        pictures, scales = self._pictures(found)
        count = len(self.names)
        states = [
            {
                "title": name,
                "unit": " x ".join(map(str, spec.frame_shape)),
                "lines": [
                    {"name": label, "values": _numbers([row[k] for row in self._states[name]])}
                    for k, label in ((1, "mean"), (0, "smallest"), (2, "largest"))
                ],
            }
            for name, spec in ((s.name, s) for s in self._signature.states)
        ]
        rows = score_rows("main", next(iter(found.scores.values()), None), found) if scored else []
        for row in rows:
            ahead = row["lead_seconds"]
            row["ahead"] = f"{row['lead']} frames" if ahead is None else f"{ahead / 60:g} min"
        carried = sum(int(np.prod(s.frame_shape)) for s in self._signature.states)
        return {
            "title": found.model,
            "intro": f"{count_of(count, 'frame')} of {found.source}, streamed one by one; the state went on from frame to frame.",
            "machine": [cpu().model, f"edgelstm {__version__}", time.strftime("%Y-%m-%d %H:%M")],
            "frames": count,
            "names": self.names,
            "gaps": self.gaps,
            "milliseconds": [round(m, 4) for m in self._milliseconds],
            "p50": float(np.percentile(self._milliseconds, 50)),
            "p99": float(np.percentile(self._milliseconds, 99)),
            "pictures": pictures,
            "scales": scales,
            "signals": self._signals(),
            "states": states,
            "scores": rows,
            "scored": f"{rows[0]['forecasts']} forecasts, in full; no forecast is held against frames behind a gap." if rows else "",
            "unit": found.frame_unit or "",
            "facts": [
                ["time a frame, median", f"{np.percentile(self._milliseconds, 50):.3g} ms", f"99% within {np.percentile(self._milliseconds, 99):.3g} ms"],
                ["frames", str(count), f"{found.skipped} skipped, {count_of(len(found.gaps), 'gap')}"],
                ["state carried", f"{carried:,} numbers", f"{count_of(len(self._signature.states), 'tensor')}"],
                *([["error, mean of all leads", f"{np.mean([r['mae'] for r in rows]):.3g} {found.frame_unit or ''}", f"last frame repeated: {np.mean([r['mae_persistence'] for r in rows]):.3g}"]] if rows else []),
            ],
        }  # fmt: skip

    def _pictures(self, found: RunReport) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Panels and the values of their darkest and brightest; what is made of frames shares one scale."""
        shared = [p for p in self._panels.values() if p.like_frames and not p.colour]
        low, high = _range([p.frames for p in shared])
        unit = found.frame_unit or ""
        panels, scales = [], []
        if shared:
            scales.append({"name": "frames", "low": low, "high": high, "unit": unit})
        for panel in self._panels.values():
            stack = np.stack(panel.frames)
            made: dict[str, Any] = {
                "title": panel.title,
                "size": stack.shape[1:3],
                "shift": 0,
                "colour": panel.colour,
            }
            if panel.colour:
                panels.append({**made, "sprite": colour_sprite(stack)})
                continue
            a, b = (low, high) if panel.like_frames else _range([panel.frames])
            if not panel.like_frames:
                scales.append({"name": panel.title, "low": a, "high": b, "unit": ""})
            shown = {**made, "sprite": sprite((stack - a) / (b - a), LEVELS)}
            panels.append(shown)
        return self._beside_what_came(panels), scales

    def _beside_what_came(self, panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What came, for each forecast shown: the input's pictures, as many frames later."""
        first = next((k for k, p in enumerate(panels) if p["title"].startswith("input ")), None)
        made: list[dict[str, Any]] = []
        for panel in panels:
            name, found, ahead = panel["title"].rpartition(", ")
            made.append(panel)
            if found and name and first is not None and ahead.endswith(" ahead"):
                lead = int(ahead.split()[0])
                came = {k: v for k, v in panels[first].items() if k != "sprite"}
                made.append({**came, "of": first, "title": f"what came, {lead} ahead", "shift": lead})
        return made

    def _signals(self) -> list[dict[str, Any]]:
        """Charts of vectors: elements of input and outputs, each in its own; forecasts at the time they are for."""
        charts = []
        count = len(self.names)
        for title, lines in self._lines.items():
            _, comma, ahead = title.rpartition(", ")
            lead = int(ahead.split()[0]) if comma and ahead.endswith(" ahead") else 0
            if lead > 1:
                continue
            for element, values in lines.items():
                shifted = [None] * lead + _numbers(values)[: count - lead]
                for gap in self.gaps if lead else []:
                    shifted[gap] = None
                drawn = [{"name": title, "values": shifted}]
                if lead:
                    came = next((v for t, v in self._lines.items() if t.startswith("input ")), {})
                    drawn += (
                        [{"name": "what came", "values": _numbers(came[element])}] if element in came else []
                    )
                charts.append({"title": f"{title} [{element}]" if len(lines) > 1 else title, "lines": drawn})
        return charts


def _some(count: int, most: int) -> list[int]:
    """At most ``most`` of 0..count - 1, spread evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})


def _image(value: Array) -> Array | None:
    """[C, H, W] of an image with any place for its channels; None for what is none."""
    if value.ndim == 2 and min(value.shape) > 3:
        return value[None]
    if value.ndim == 3 and min(value.shape[1:]) > 3:
        return value
    if value.ndim == 3 and value.shape[2] <= 3 and min(value.shape[:2]) > 3:
        first: Array = value.transpose(2, 0, 1)
        return first
    return None


def _small(value: Array) -> Array:
    """Means of whole blocks, so that no side is longer than ``SIDE``."""
    factor = -(-max(value.shape[:2]) // SIDE)
    if factor == 1:
        return value
    height, width = (n // factor * factor for n in value.shape[:2])
    cut = value[:height, :width]
    blocks = cut.reshape(height // factor, factor, width // factor, factor, *cut.shape[2:])
    small: Array = blocks.mean((1, 3))
    return small


def _range(panels: list[list[Array]]) -> tuple[float, float]:
    """Values of the darkest and the brightest: all but the highest 0.5%, for a few bright pixels would darken all others."""
    finite = [f[np.isfinite(f)] for frames in panels for f in frames]
    values = np.concatenate(finite) if finite else np.zeros(0)
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    high = high if high > low else float(values.max())
    return (low, high) if high > low else (low, low + 1)


def _numbers(values: list[float]) -> list[float | None]:
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values]
