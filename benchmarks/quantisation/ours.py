"""Our side: the INT8 graph as `edgelstm calibrate` and `edgelstm quantize` make it, and what it is without each part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cases import CASES
from data import frames
from race import Contestant

from edgelstm.graph.step import StepModel
from edgelstm.passes.products import find_products
from edgelstm.quantize.calibration import Calibration
from edgelstm.quantize.qdq import quantize as place
from edgelstm.workflows.calibrate import calibrate
from edgelstm.workflows.quantize import quantize

#: What is measured beside the whole: name, calibration, options of the pass.
WITHOUT = {
    "min-max for pre-activations": ("minmax", {}),
    "rounded to nearest": ("recurrent", {"learned": False}),
    "no bias correction": ("recurrent", {"correct_bias": False}),
    "inputs in one code": ("recurrent", {"fine": False}),
    "second round": ("rounds", {}),
}


def ours(case: str, original: Path, folder: Path) -> Iterator[Contestant]:
    """Our INT8 step, then the same with one part exchanged. All calibrate on the frames that the peers get."""
    step = StepModel.load(original)
    calibrations: dict[str, Calibration] = {}

    def calibration(kind: str) -> Calibration:
        if kind not in calibrations:
            sequence = frames(case, CASES[case].calibration, seed=0, part="calibration")
            stream = [{name: value.copy() for name, value in frame.items()} for frame in sequence]
            method = "recurrent" if kind == "rounds" else kind
            rounds = 2 if kind == "rounds" else 1
            calibrations[kind] = calibrate(step, [stream], method=method, rounds=rounds).calibration
        return calibrations[kind]

    path = folder / f"{case}.edgelstm.int8.onnx"
    chosen = quantize(step, calibration("recurrent"), path)
    yield Contestant("edgelstm int8", path)
    weights = [row["weight"] for row in chosen.products if row["precision"] == "int8"]
    assert set(weights) <= set(find_products(step).by_weight())
    for name, (kind, options) in WITHOUT.items():
        path = folder / f"{case}.edgelstm.{name.replace(' ', '-')}.onnx"
        place(step, calibration(kind), weights=weights, **options).save(path)
        yield Contestant(f"edgelstm int8, {name}", path)
