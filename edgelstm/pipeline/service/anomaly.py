"""The anomaly scores of a section's streams, by a detector that ``edgelstm fit-detector`` wrote."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgelstm.graph.signature import Signature
from edgelstm.pipeline.sources.source import Frame
from edgelstm.runtime.outside import Outside
from edgelstm.runtime.protocol import Array
from edgelstm.verify.anomaly import Detector
from edgelstm.verify.step_errors import Errors

log = logging.getLogger("edgelstm.serve")


@dataclass(frozen=True, slots=True)
class Stepped:
    """See :class:`edgelstm.verify.step_errors.Stepped`."""

    stream: str
    signature: Signature
    frame: Frame
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    fresh: int | None
    anew: bool = False  # that is told as it happens


class Scores:
    """Of one step after the other; ``fresh`` as there. The loop's thread alone calls it."""

    def __init__(self, detector: Detector, signature: Signature, fresh: int | None) -> None:
        self._detector, self._signature, self._fresh = detector, signature, fresh
        self._errors: Errors[Stepped] = Errors(detector.target, self._take, detector.settle)
        self._score: float | None = None
        self._outside = Outside(detector.ranges, "what the detector was fitted on")

    def _take(self, step: Stepped, error: Array) -> None:
        score = self._detector.score(error)
        self._score = math.inf if math.isnan(score) else score  # nobody knows what it was: an anomaly

    def of(
        self, stream: str, frame: Frame, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> float | None:
        """The score of one step, in the model's own units; None where it has none, as the first of a stream that foretells."""
        self._score = None
        if not self._outside.done and (note := self._outside.look(inputs)) is not None:
            log.warning("stream %s: %s", stream, note)
        self._errors(Stepped(stream, self._signature, frame, inputs, outputs, self._fresh))
        return self._score

    def interrupted(self, stream: str, anew: bool) -> None:
        """A frame was left out, or, ``anew``, the state began anew."""
        self._errors.interrupted(stream, anew)
