"""A frame that is to be stepped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgelstm.pipeline.sources.source import Array, Frame


@dataclass(slots=True)
class Due:
    """What a step takes. filled: the frame stands in for a missing one, and what comes out goes nowhere. at: when it came."""

    frame: Frame
    stamp: float
    arrays: Mapping[str, Array]
    filled: bool
    at: float = 0.0
    #: Of models in series: what the last one was handed.
    raw: Any = None
