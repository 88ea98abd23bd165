"""What the coordinator tells a worker to open; travels as one line of JSON."""

from __future__ import annotations

import dataclasses
import importlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Frame

#: Different frames a worker steps through in turn: enough that none is always in the nearest cache.
FRAMES = 16


@dataclass(frozen=True)
class Job:
    """One contestant for one model.

    ``model``: our step graph. ``plain``: the same model as standard operators only. ``source``: the described
    .safetensors file, or None. ``module`` and ``weights``: the torch factory "pkg.mod:name" and its weights, or None.
    ``signature``: the step graph's, as JSON text. ``folder``: for temporary files. ``streams`` advance together in every
    step. ``registry``: the Python module whose table CONTESTANTS has the contestant. ``device`` and ``precision`` are for
    contestants that have a choice.
    """

    contestant: str
    model: str
    plain: str
    signature: str
    folder: str
    source: str | None = None
    module: str | None = None
    weights: str | None = None
    threads: int = 1
    streams: int = 1
    seed: int = 0
    registry: str = "edgelstm.bench.contestants"
    device: str = "cpu"
    precision: str = "fp32"

    def dumps(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> Job:
        """What ``dumps`` wrote."""
        return cls(**json.loads(text))

    def frames(self) -> list[Frame]:
        """:data:`FRAMES` seeded frames of all streams, input name -> [streams, ...]: standard normal numbers, and
        0 or 1 for inputs that are no floating-point numbers."""
        rng = np.random.default_rng(self.seed)
        frames: list[Frame] = []
        for _ in range(FRAMES):
            frame = {}
            for t in Signature.loads(self.signature).inputs:
                dtype, shape = np_dtype(t.dtype), (self.streams, *t.frame_shape)
                values = rng.normal(size=shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
                frame[t.name] = values.astype(dtype)
            frames.append(frame)
        return frames


class Missing(Exception):
    """Raised by a contestant that opens: something it needs is not on this machine; the message says what."""


def contestants_of(job: Job) -> dict[str, Any]:
    """The table with the job's contestant: name -> :class:`edgelstm.bench.contestants.Contestant`."""
    table: dict[str, Any] = importlib.import_module(job.registry).CONTESTANTS
    return table
