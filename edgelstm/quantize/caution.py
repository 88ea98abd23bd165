"""What must not be stored or computed in fewer bits, by what a calibration saw, and why: one line each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from edgelstm.dtypes import LARGEST
from edgelstm.graph.step import StepModel
from edgelstm.passes.products import find_products
from edgelstm.quantize.calibration import PRECISIONS, Calibration, growing_states, stuck_states
from edgelstm.quantize.movement import only_through_products

#: Of fp16's range, values seen may fill this part: others will be larger.
_FP16_ROOM = 0.5


@dataclass
class Caution:
    """States and weights that stay in float32 for a type, and what to say of it."""

    states: set[str] = field(default_factory=set)
    weights: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def caution(step: StepModel, calibration: Calibration, dtype: str, *, cells: bool = True) -> Caution:
    """What to leave in float32 when ``step`` goes to ``dtype``: "int8", "float8e4m3fn", "float16" or "bfloat16".

    A state that grows, or moves by less than ``dtype`` resolves; the products that read it, where all that is left of it from one
    frame to the next is what they read, or where its codes would run out of range; for float16, products whose
    values come near its end. ``cells``: states that no product reads are stored in ``dtype`` too.
    """
    found, result = find_products(step), Caution()
    readers: dict[str, set[str]] = {s.name: set() for s in step.signature.states}
    for product in found.products:
        for part in product.parts:
            for state in found.sites[part.site].states:
                readers[state].add(product.weight)
    specs = {s.name: s for s in step.signature.states}
    eight = dtype in ("int8", "float8e4m3fn")
    for name, seen in growing_states(calibration).items():
        if name not in specs or not (readers[name] or (cells and not eight)):
            continue
        result.states.add(name)
        if eight:
            result.weights |= readers[name]
            for weight in sorted(readers[name]):
                result.notes.append(
                    f"{weight} stays in float: it reads state {name!r}, which was still growing "
                    f"(largest value {seen['largest']:.4g})"
                )
        else:
            end = seen["fp16_overflows_at"] if dtype == "float16" else None
            result.notes.append(
                f"state {name!r} stays in float32: it was still growing (largest value {seen['largest']:.4g})"
                + ("" if end is None else f", and fp16 would overflow at about frame {end}")
            )
    for name, rounding in stuck_states(calibration, dtype).items():
        if name not in specs or name in result.states or not (readers[name] or (cells and not eight)):
            continue
        result.states.add(name)
        note = (
            f"state {name!r} stays in float32: in {rounding.slow:.0%} of its movements a frame moves it by less than "
            f"{PRECISIONS[dtype]} resolves; rounded every frame it would be {rounding.error:.0%} off"
        )
        if only_through_products(step, specs[name]) and readers[name]:
            result.weights |= readers[name]
            note += f". So do the products that carry it: {', '.join(sorted(readers[name]))}"
        result.notes.append(note)
    if dtype == "float16":
        result.weights |= _beyond(step, calibration, result.notes)
    return result


def _beyond(step: StepModel, calibration: Calibration, notes: list[str]) -> set[str]:
    """Weights of products that read or make values near the end of fp16."""
    found, room = find_products(step), _FP16_ROOM * LARGEST["float16"]
    weights = set()
    for weight, products in found.by_weight().items():
        sites = {part.site for p in products for part in p.parts} | {
            found.site_of[p.output] for p in products
        }
        for site in sorted(sites & set(calibration.tensors)):
            seen = calibration.tensors[site]
            largest = float(max(-seen.minimum.min(), seen.maximum.max()))
            if largest > room:
                weights.add(weight)
                notes.append(
                    f"{weight} stays in float32: {site!r} reached {largest:.4g}, fp16 ends at {LARGEST['float16']:.0f}"
                )
                break
    return weights


def names(items: Collection[str], most: int = 5) -> str:
    """At most ``most`` of ``items``, and how many more there are."""
    shown = list(items)[:most]
    more = len(items) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
