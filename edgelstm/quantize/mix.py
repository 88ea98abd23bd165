"""The cheapest mix of precisions whose error stays within a budget: measured, greedy, the same for the same inputs.

Units are weights, those of joined products W [x ; h] in two halves: the input path and the recurrent one. Each unit is
quantised alone first, which gives its sensitivity: the error of the outputs, in the 2-norm, that N frames later is
left of it. The search then starts with everything at the lowest precision, raises the unit that errs most for
the work it saves until the budget holds, and at last lowers again whatever turns out not to have been needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.step import StepModel
from edgelstm.passes.placement import Target
from edgelstm.passes.products import find_products
from edgelstm.passes.split_joined import INPUT, STATE, split_joined
from edgelstm.quantize.calibration import Calibration
from edgelstm.quantize.qdq import quantize
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Frame
from edgelstm.verify.compare import compare

#: Levels by target, the cheapest first, and what a multiplication costs there beside one in float32. On ONNX Runtime's
#: CPU 16 bits only save memory. Measured there (benchmarks/quantisation); NVIDIA's figures are tensor-core peaks.
LEVELS: dict[Target, dict[str, float]] = {
    "onnxruntime": {"int8": 0.4, "fp32": 1.0},
    "tensorrt": {"int8": 0.25, "fp16": 0.5, "fp32": 1.0},
}
#: The error counts over this last part of the frames.
_TAIL = 0.25


@dataclass
class Unit:
    """A weight, or half of one. ``errors``: by level, what quantising it alone leaves of error."""

    name: str
    weight: str
    path: str
    macs: int
    errors: dict[str, float] = field(default_factory=dict)
    level: str = "fp32"


@dataclass
class Mix:
    """What :func:`search` found."""

    step: StepModel
    units: list[Unit]
    error: float
    budget: float
    frames: int
    tried: int
    cost: float

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "error": self.error,
            "budget": self.budget,
            "frames": self.frames,
            "tried": self.tried,
            "cost": self.cost,
            "units": [vars(u) for u in self.units],
        }

    def table(self) -> Any:
        """The sensitivities and what was chosen, for a terminal."""
        from rich.table import Table

        levels = list(self.units[0].errors)
        table = Table(
            title=f"error {self.error:.2e} after {count_of(self.frames, 'frame')} (budget {self.budget:g}), "
            f"{self.cost:.0%} of the float work; {self.tried} mixes tried"
        )
        for column in ("weight", "path", "work", *(f"{level} alone" for level in levels), "chosen"):
            table.add_column(column, justify="left" if column in ("weight", "path", "chosen") else "right")
        total = sum(u.macs for u in self.units)
        for u in self.units:
            errors = [f"{u.errors[level]:.2e}" for level in levels]
            table.add_row(u.weight, u.path, f"{u.macs / total:.1%}", *errors, u.level)
        return table


def check_budget(budget: float) -> None:
    """Raise EdgeLstmError for one that is none."""
    if not budget > 0:
        raise EdgeLstmError("budget", found=budget, expected="a relative error above 0, such as 0.01")


def search(
    step: StepModel,
    joined: Calibration,
    calibrated: Callable[[StepModel], Calibration],
    frames: Sequence[Frame],
    budget: float,
    target: Target,
    *,
    pinned: Collection[str] = (),
    float_states: Collection[str] = (),
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Mix:
    """The cheapest mix for ``target`` whose outputs err at most ``budget`` (relative, 2-norm, mean of the last quarter
    of ``frames``).

    joined: calibration of ``step``. calibrated: calibrates another form of it, whose products are split. pinned: weights that
    stay in float32, float_states: states that do (``edgelstm.quantize.caution``): what makes them err may take longer to show
    than ``frames``. Raises EdgeLstmError when no mix stays within the budget.
    """
    check_budget(budget)
    split = split_joined(step, "all")
    apart = joined if split is step else calibrated(split)
    builder = _Builder(step, joined, apart, target, float_states)
    units = _units(step, split)
    free = [u for u in units if u.weight not in pinned]
    if not free:
        raise EdgeLstmError(
            "nothing is left to quantise", found=f"{', '.join(sorted(pinned))} stay in float32"
        )
    measure = _Measure(step, builder, frames, threads, progress)
    levels = list(LEVELS[target])
    base = {u.name: "fp32" for u in units}
    for unit in units:
        for level in levels[:-1]:
            unit.errors[level] = measure({**base, unit.name: level})
    mix = base | {u.name: levels[0] for u in free}
    error = measure(mix)
    while error > budget:
        raised = [u for u in free if mix[u.name] != levels[-1]]
        if not raised:
            raise EdgeLstmError(
                "no mix stays within the budget",
                found=f"error {error:.3g} with everything in {levels[-1]}",
                expected=f"at most {budget:g}",
            )
        unit = max(raised, key=lambda u: _gain(u, mix[u.name], levels, target))
        mix[unit.name] = levels[levels.index(mix[unit.name]) + 1]
        error = measure(mix)
    for unit in sorted(free, key=lambda u: (-u.macs, u.name)):
        while (place := levels.index(mix[unit.name])) > 0:
            lower = {**mix, unit.name: levels[place - 1]}
            if (less := measure(lower)) > budget:
                break
            mix, error = lower, less
    for unit in units:
        unit.level = mix[unit.name]
    total = sum(u.macs for u in units)
    cost = sum(u.macs * LEVELS[target][mix[u.name]] for u in units) / total
    return Mix(builder(mix), units, error, budget, len(frames), measure.count, cost)


def _gain(unit: Unit, level: str, levels: list[str], target: Target) -> float:
    """Error power that raising a unit saves, for the work it costs."""
    above = levels[levels.index(level) + 1]
    saved = unit.errors[level] ** 2 - unit.errors.get(above, 0.0) ** 2
    return saved / (unit.macs * (LEVELS[target][above] - LEVELS[target][level]))


def _units(step: StepModel, split: StepModel) -> list[Unit]:
    whole = set(find_products(step).by_weight())
    units = []
    for name, products in find_products(split).by_weight().items():
        weight, path = name, "whole"
        for suffix, label in ((INPUT, "input"), (STATE, "recurrent")):
            if name not in whole and name.endswith(suffix):
                weight, path = name.removesuffix(suffix), label
        units.append(Unit(name, weight, path, sum(p.macs for p in products)))
    return units


class _Builder:
    """Graphs of mixes: products whose halves agree stay joined."""

    def __init__(
        self,
        step: StepModel,
        joined: Calibration,
        apart: Calibration,
        target: Target,
        float_states: Collection[str],
    ) -> None:
        self._step, self._target, self._float_states = step, target, float_states
        self._joined = joined
        # A site has the same name and range in either form; the halves' outputs are only in the second.
        self._tensors = {**apart.tensors, **joined.tensors}
        self._weights = {**apart.weights, **joined.weights}
        self._whole = set(find_products(step).by_weight())

    def __call__(self, mix: Mapping[str, str]) -> StepModel:
        split = {
            name.removesuffix(INPUT)
            for name in mix
            if name not in self._whole
            and name.endswith(INPUT)
            and mix[name] != mix[name.removesuffix(INPUT) + STATE]
        }
        step = split_joined(self._step, "all", split) if split else self._step
        level = {name: mix.get(name) or mix[name + INPUT] for name in find_products(step).by_weight()}
        half = [name for name, chosen in level.items() if chosen == "fp16"]
        full = [name for name, chosen in level.items() if chosen == "fp32"]
        eight = [name for name, chosen in level.items() if chosen == "int8"]
        made = step
        if eight:
            calibration = replace(
                self._joined, model=step.graph_hash(), tensors=self._tensors, weights=self._weights
            )
            made = quantize(step, calibration, self._target, "int8", weights=eight)
        if half:
            from edgelstm.quantize.precision import to_half

            made = to_half(made, "fp16", self._target, keep=full, float_states=self._float_states)
        return made


class _Measure:
    """Errors of mixes, each measured once."""

    def __init__(
        self,
        step: StepModel,
        builder: _Builder,
        frames: Sequence[Frame],
        threads: int | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._reference = OrtProgram(step.to_bytes(), threads=threads, spin=False)
        self._builder, self._frames = builder, frames
        self._threads, self._progress = threads, progress
        self._known: dict[tuple[tuple[str, str], ...], float] = {}

    @property
    def count(self) -> int:
        """Mixes measured."""
        return len(self._known)

    def __call__(self, mix: Mapping[str, str]) -> float:
        key = tuple(sorted(mix.items()))
        if key not in self._known:
            program = OrtProgram(self._builder(mix).to_bytes(), threads=self._threads, spin=False)
            result = compare(self._reference, program, self._frames)
            program.close()
            outputs = [t for t in result.tensors if t.kind == "output"] or result.tensors
            errors = [np.asarray(t.norms) for t in outputs]
            self._known[key] = max(float(e[-max(1, round(len(e) * _TAIL)) :].mean()) for e in errors)
            if self._progress is not None:
                self._progress(1)
        return self._known[key]
