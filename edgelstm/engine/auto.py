"""--gates auto: build native and plugin, run both on the GPU at hand, keep the faster."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.files import atomic_path, write_text
from edgelstm.runtime.open import open_program
from edgelstm.runtime.protocol import Array
from edgelstm.runtime.sidecar import Gates, sidecar_path

if TYPE_CHECKING:
    from edgelstm.engine.build import BuiltEngine, Job

#: Steps that are timed, after as many again that are not; the median counts.
STEPS = 200
#: How far apart the two may be, as a part of the largest value: both compute gates in float32, in another order.
CLOSE = 2e-2


def build_faster(job: Job, target: Path) -> BuiltEngine:
    """The faster of the two on this GPU; native where only that can be built, with a note that says why."""
    reason = _why_native(job)
    if reason:
        built = job.build(target, "native")
        return replace(built, notes=(*built.notes, f"gates native: {reason}"))
    kinds: tuple[Gates, ...] = ("native", "plugin")
    with tempfile.TemporaryDirectory(prefix="edgelstm-") as folder:
        built_of = {kind: job.build(Path(folder, f"{kind}.plan"), kind) for kind in kinds}
        timings: dict[str, float] = {}
        last: dict[str, dict[str, Array]] = {}
        for kind in kinds:
            timings[kind], last[kind] = _timed(built_of[kind].plan, job.options.streams[1])
        apart = max(_apart(last["native"][name], last["plugin"][name]) for name in last["native"])
        if not apart <= CLOSE:
            best: Gates = "native"
            note = f"gates native: the plugin's outputs differ by {apart:.2g} of the largest value, please report it"
        else:
            best = min(kinds, key=lambda kind: timings[kind])
            shown = ", ".join(f"{kind} {timings[kind]:.3f} ms" for kind in kinds)
            note = f"gates {best}: a step takes {shown}"
        chosen = built_of[best]
        with atomic_path(target) as plan:
            shutil.copyfile(chosen.plan, plan)
            write_text(sidecar_path(target), chosen.sidecar.dumps())
        seconds = sum(built.seconds for built in built_of.values())
    return replace(chosen, plan=target, seconds=seconds, notes=(*chosen.notes, note), timings=timings)


def _why_native(job: Job) -> str | None:
    """Why only native gates can be built here; None where both can."""
    if job.gpu is None:
        return "no GPU here to time the plugin on"
    if job.row.plugins == "none":
        return f"{job.runtime} has no plugins"
    try:
        job.plugin_library()
    except EdgeLstmError as error:
        return str(error)
    return None


def _timed(plan: Path, streams: int) -> tuple[float, dict[str, Array]]:
    """Median milliseconds of a step with all streams, and the last outputs of the first."""
    program = open_program(plan, "cuda", streams=streams)
    try:
        rng = np.random.default_rng(0)
        frame = {t.name: rng.standard_normal(t.frame_shape).astype(t.dtype) for t in program.signature.inputs}
        frames, rows = [frame] * streams, list(range(streams))
        state, times = program.new_state(), []
        for _ in range(2 * STEPS):
            started = time.perf_counter()
            outputs = program.step(frames, state, rows)
            times.append(time.perf_counter() - started)
        return float(np.median(times[STEPS:])) * 1e3, {k: v.copy() for k, v in outputs[0].items()}
    finally:
        program.close()


def _apart(a: Array, b: Array) -> float:
    largest = float(np.abs(a.astype(np.float64)).max(initial=0.0)) or 1.0
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)) / largest
