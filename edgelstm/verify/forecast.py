"""How good forecasts of a stream are, scored while it runs: mean absolute error and critical success index at each lead.

For models whose one output is the K frames to come, [K, *shape of a frame]. Memory for K forecasts and K frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.dtypes import to_float32
from edgelstm.graph.signature import Signature, TensorSpec

Array = npt.NDArray[Any]


def forecast_output(signature: Signature, windows: bool = False) -> tuple[str, int] | None:
    """Name of the output that has the shape of the K frames to come, and K; None when there is no such output.

    windows: one step takes [T, *frame], a window that a hop cuts.
    """
    if len(signature.inputs) != 1:
        return None
    own = 0 if signature.window is None else 1
    frame = signature.inputs[0].frame_shape[own or int(windows) :]
    for output in signature.outputs:
        leads, *shape = output.frame_shape[own:] or (0,)
        if frame and tuple(shape) == frame:
            return output.name, leads
    return None


def hits_and_events(forecast: Array, truth: Array, known: Array, threshold: float) -> tuple[int, int]:
    """Values foreseen to reach ``threshold`` that did, and values that did or were foreseen to, where ``known``."""
    said, was = (forecast >= threshold) & known, (truth >= threshold) & known
    return int((said & was).sum()), int((said | was).sum())


@dataclass(frozen=True)
class ForecastScores:
    """Scores of two forecasters ``a`` (the reference) and ``b`` on the same stream, one list entry a lead.

    A forecast counts when its farthest lead has come: ``forecasts`` of them. CSI = hits / (hits + misses + false alarms)
    of ``threshold``; None where nothing reached it and nothing was foreseen to.
    """

    output: str
    forecasts: int
    threshold: float
    mae_a: list[float]
    mae_b: list[float]
    csi_a: list[float | None]
    csi_b: list[float | None]

    @property
    def mae_loss_percent(self) -> float | None:
        """How much larger b's MAE is, in percent of a's, over all leads; None when a's is 0."""
        a, b = float(np.mean(self.mae_a)), float(np.mean(self.mae_b))
        return 100 * (b - a) / a if a else None

    @property
    def csi_loss(self) -> float | None:
        """How much lower b's CSI is, mean of the leads that have one; None when none has."""
        pairs = [
            (a, b) for a, b in zip(self.csi_a, self.csi_b, strict=True) if a is not None and b is not None
        ]
        return float(np.mean([a - b for a, b in pairs])) if pairs else None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; numbers that are not finite become null."""
        return {
            "output": self.output,
            "forecasts": self.forecasts,
            "threshold": self.threshold,
            "leads": [
                {"lead": k + 1, "mae_a": _finite(ma), "mae_b": _finite(mb), "csi_a": ca, "csi_b": cb}
                for k, (ma, mb, ca, cb) in enumerate(
                    zip(self.mae_a, self.mae_b, self.csi_a, self.csi_b, strict=True)
                )
            ],
            "mae_loss_percent": _finite(self.mae_loss_percent),
            "csi_loss": self.csi_loss,
        }


class ForecastScorer:
    """Takes frames as they arrive, and the forecasts that both models make on them, in the same order.

    windows: not every frame has a forecast; one that comes is of the window that ends with the frame that arrived last.

    frame: the model's input, a single frame. units: from its values to those that are scored, the units of
    ``threshold``. known: which values of a raw frame count (default all).
    """

    def __init__(
        self,
        output: str,
        leads: int,
        *,
        threshold: float,
        frame: TensorSpec,
        units: Callable[[Array], Array] | None = None,
        known: Callable[[Any], Array] | None = None,
        windows: bool = False,
    ) -> None:
        self.output, self.leads, self.threshold = output, leads, threshold
        self._frame = frame
        self._units = units or (lambda values: values)
        self._known = known or (lambda raw: self._all)
        self._all = np.ones(frame.frame_shape, bool)
        self._arrived: deque[tuple[Array, Array, int]] = deque()
        self._span = 0
        #: Forecasts, each with the number of the frame that it was made on; numbers of the oldest frame kept, of the next.
        self._made: deque[tuple[int, Array, Array]] = deque()
        self._first = self._next = self._observed = 0
        self._windows = windows
        self._count = 0
        self._values = np.zeros(leads)
        self._errors, self._hits, self._events = np.zeros((3, 2, leads))

    def arrived(self, frame: Mapping[str, Array], raw: Any = None, *, gap: bool = False) -> None:
        """A frame as the model takes it, and as it came; without the latter all of it counts.

        gap: frames are missing before this one: no forecast from before is held against it or what follows.
        """
        self._span += gap
        values = frame[self._frame.name]
        if self._frame.dtype == "bfloat16":
            values = to_float32(values, "bfloat16")
        if isinstance(raw, Mapping):
            raw = raw[self._frame.name]
        truth = np.array(self._units(values), np.float64)
        if self._windows and not self._made:  # no forecast was made on what is here
            self._first += len(self._arrived)
            self._arrived.clear()
        self._next += 1
        self._arrived.append((truth, self._all if raw is None else self._known(raw), self._span))
        self._score()

    def pass_over(self) -> None:
        """The outputs at the next of the frames that arrived do not count: they rest on a frame that was left out."""
        self._observed += 1

    def observe(self, a: Mapping[str, Array], b: Mapping[str, Array]) -> None:
        """The outputs of both models at the next of the frames that arrived."""
        at = self._next - 1 if self._windows else self._observed
        self._observed = at + 1
        self._made.append((at, np.array(a[self.output]), np.array(b[self.output])))
        self._score()

    def result(self) -> ForecastScores | None:
        """Scores so far; None when no forecast's farthest lead has come with a value that counts."""
        if not self._values.all():
            return None
        mae = self._errors / self._values
        csi = [
            [float(h / e) if e else None for h, e in zip(hits, events, strict=True)]
            for hits, events in zip(self._hits, self._events, strict=True)
        ]
        return ForecastScores(
            self.output, self._count, self.threshold, mae[0].tolist(), mae[1].tolist(), csi[0], csi[1]
        )

    def _score(self) -> None:
        """Score the forecasts whose farthest lead has come."""
        while self._made:
            at, *made = self._made[0]
            for _ in range(at - self._first):  # between two windows
                self._arrived.popleft()
            self._first = at
            if len(self._arrived) <= self.leads:
                return
            _, _, span = self._arrived.popleft()
            self._first += 1
            self._made.popleft()
            if self._arrived[self.leads - 1][2] != span:
                continue
            both = [self._units(values) for values in made]
            self._count += 1
            for lead, (truth, known, _) in zip(range(self.leads), self._arrived, strict=False):
                self._values[lead] += known.sum()
                for which, ahead in enumerate(both):
                    error = np.abs(ahead[lead].astype(np.float64) - truth)
                    self._errors[which, lead] += error[known].sum()
                    hits, events = hits_and_events(ahead[lead], truth, known, self.threshold)
                    self._hits[which, lead] += hits
                    self._events[which, lead] += events


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
