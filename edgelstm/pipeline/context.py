"""What is known of outputs beside their values, from the source and from what was done to its frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from edgelstm.graph.signature import Signature
from edgelstm.pipeline.outputs import Outputs, frame_outputs
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sources.source import Source

Op = Mapping[str, Any]


def context_of(
    source: Source,
    stages: Sequence[Signature],
    ops: Sequence[Op],
    outputs: Outputs,
    *,
    model: str,
    start: datetime | None = None,
    hop: tuple[int, int] | None = None,
) -> Context:
    """stages: Signatures of the models in series. ops: what the first does to the frames. outputs: of the last. start: what frames' times count from,
    where that is not the source's start.

    A unit is named for outputs that are frames in units of the source: of its own values, or behind ``ops``. What another model made of them
    is in no unit of the source.
    """
    place, made = source.place, outputs.signature
    unit = place.unit(ops if outputs.units == "physical" else ()) if len(stages) == 1 else None
    own = 0 if made.window is None else 1
    frame = len(made.inputs[0].frame_shape) - own
    frames = frame_outputs(made)
    leads = {
        t.name: t.frame_shape[own]
        for t in made.outputs
        if t.name in frames and len(t.frame_shape) - own == frame + 1
    }
    grid = None if place.grid is None else place.grid.through(ops)
    for stage in stages[1:]:
        grid = None if grid is None else grid.through(next(iter(stage.preprocessing.values()), ()))
    return Context(
        start or place.start,
        place.interval,
        grid,
        {} if unit is None else dict.fromkeys(outputs.converted, unit),
        leads,
        hop,
        model,
        source.description,
    )
