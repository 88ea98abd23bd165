"""What a module remembers (memory.py), put at the door: states that go in and come out, equal to the module itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product

import torch
from torch import Tensor

from edgelstm.frontends.torch.kept import Kept, Layout, nested
from edgelstm.frontends.torch.memory import Call, Memory
from edgelstm.frontends.torch.running import returned, run, sample
from edgelstm.frontends.torch.snapshot import put_back
from edgelstm.frontends.torch.torch_step import Unfit
from edgelstm.frontends.torch.torchscript import copied_script

#: Layouts of what is kept that are tried.
LAYOUTS = 24
TOLERANCE = 1e-4


def at_the_door(call: Call, memory: Memory) -> Kept:
    """The module with what it keeps as states; equal to the module itself, stream by stream, over many calls.

    Raises Unfit with the reason where none of the layouts that were tried is.
    """
    scales = _scales(call, memory)
    failures: list[Unfit] = []
    for anew in (False, True):
        for layouts in islice(_layouts(memory, scales, call), LAYOUTS):
            kept = Kept(call.module, call.form, memory.slots, layouts, anew)
            try:
                check_equal(call, kept, memory)
            except Unfit as unfit:
                failures.append(unfit)
                continue
            return kept
    raise max(failures, key=lambda unfit: unfit.got)


def _scales(call: Call, memory: Memory) -> Mapping[int, list[tuple[int, ...]]]:
    """The shapes of all that is kept after as many calls, by number of streams; of those numbers that can be run."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for n in (1, 2, 3):
        try:
            put_back(call.module)
            for seed in range(memory.calls):
                call(n, seed, fresh=False)
        except Unfit:
            continue
        finally:
            values = [t for slot in memory.slots for t in nested(slot.place.get(call.module))[0]]
            put_back(call.module)
        found[n] = [tuple(t.shape) for t in values]
    return found


def _layouts(
    memory: Memory, scales: Mapping[int, list[tuple[int, ...]]], call: Call
) -> Iterator[tuple[Layout, ...]]:
    options: list[list[Layout]] = []
    depth = next(iter(call.frames.values())).dim() + (call.form.time is not None)
    for k, value in enumerate(t for slot in memory.slots for t in slot.start):
        shapes = {n: shapes[k] for n, shapes in scales.items() if len(shapes) > k}
        axes = [
            axis
            for axis in range(value.dim())
            if len(shapes) > 1 and all(len(s) > axis and s[axis] == n for n, s in shapes.items())
        ]
        if axes:
            options.append([Layout(axes[0])])
            continue
        spread = [Layout(axis) for axis in range(value.dim()) if value.shape[axis] == 1]
        lead = Layout(None, max(0, depth - value.dim()) if value.dim() == 0 else 0)
        options.append([*spread, lead])
    yield from islice(product(*options), LAYOUTS - 1)
    yield tuple(Layout(None) for _ in options)


def check_equal(call: Call, kept: Kept, memory: Memory) -> None:
    """Several streams through ``kept`` give what the module gives each of them alone. Raises Unfit."""
    steps = memory.calls + 4
    for n in (1,) if kept.one_stream else (2, 3):
        many = [sample(call.frames, n, seed=1000 + k, time=call.form.time) for k in range(steps)]
        wanted = [_alone(call, many, row) for row in range(n)]
        explicit, state = list(call.states(n)), kept.first(n)
        for k, frames in enumerate(many):
            values = run(kept, *frames, [*explicit, *state])
            outputs = values[: kept.outputs]
            explicit, state = (
                values[kept.outputs : kept.outputs + kept.given],
                values[kept.outputs + kept.given :],
            )
            for row in range(n):
                for place, y in enumerate(outputs):
                    axis = kept._axis(place)
                    mine = y.select(axis, row) if y.dim() > axis and y.shape[axis] == n else y
                    if not _close(mine, wanted[row][k][place].select(axis, 0)):
                        raise Unfit(
                            f"gave other results at call {k + 1} than from what {memory.slots[0].place} was before",
                            got=2.5 if k else 2.4,
                        )


def _alone(call: Call, many: Sequence[Sequence[Tensor]], row: int) -> list[list[Tensor]]:
    """What the module gives one stream."""
    time = call.form.time
    axis = 1 if time == 0 else 0
    put_back(call.module)
    source = vars(call.module).get("script_source")
    module = call.module if source is None else copied_script(source.script)
    states, results = list(call.states(1)), []
    try:
        for frames in many:
            one = [frame.narrow(axis, row, 1) for frame in frames]
            result = call.form.read(returned(module, call.form, one, states, fresh=False))
            states = [t.clone() for t in result.states]
            results.append([y.clone() for y in result.outputs])
    finally:
        put_back(call.module)
    return results


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    scale = float(b.abs().max()) if b.numel() else 0.0
    return torch.allclose(
        a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE * scale + 1e-7, equal_nan=True
    )
