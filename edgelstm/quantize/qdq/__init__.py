"""quantize: explicit Q/DQ around the products of a step graph or window, its states stored as codes.

``plan`` decides what is read in which codes and at which scales, ``activations`` and ``weights`` make them, ``rewrite``
puts them in place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import DOMAIN, GateVariant
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph
from edgelstm.passes.placement import CODES, SMALL, Target, check_target
from edgelstm.passes.products import Products, find_products
from edgelstm.quantize.calibration import Calibration
from edgelstm.quantize.qdq.plan import make_plan
from edgelstm.quantize.qdq.rewrite import Rewriter


def quantize(
    step: StepModel,
    calibration: Calibration,
    target: Target = "onnxruntime",
    precision: str = "int8",
    *,
    weights: Iterable[str] | None = None,
    correct_bias: bool = True,
    fine: bool = True,
    learned: bool = True,
) -> StepModel:
    """Guarantees: the same inputs, outputs and states by name; the chosen products run on codes of ``precision``.

    A state that such a product reads is stored as codes, at one scale on both sides of the step, unless the calibration found
    that it would stand still in them (``movement``); the cell state path stays as it is. Scales of the input channels, and of a quantised output's, are folded into the weights
    (``equalize``). ``weights``: names of the weights whose products are quantised; by default all but small ones
    (``placement.SMALL``). correct_bias: the mean error that rounding the weights makes is taken off the
    bias (Nagel et al. 2019, sec. 4.2). fine: what is no state is read in two codes where that costs little
    (``placement.FINE`` for maps, ``placement.TWO_ROWS`` for vectors). learned: weights are rounded together, by how
    their inputs go together in the calibration (``rounding``), not each to the nearest code.

    Raises EdgeLstmError for a target or precision that is none, for a calibration of another model or preprocessing,
    and for a model quantised already.
    """
    check_target(target, precision)
    if (target, precision) not in CODES:
        raise EdgeLstmError("precision in codes", found=precision, expected="int8 or fp8")
    check_calibration(step, calibration)
    found = find_products(step)
    chosen = set(default_weights(found)) if weights is None else set(weights)
    unknown = chosen - {p.weight for p in found.products}
    if unknown:
        raise EdgeLstmError(
            "weights to quantise",
            found=", ".join(sorted(unknown)),
            expected=f"some of {', '.join(dict.fromkeys(p.weight for p in found.products))}",
        )
    graph = Graph(at_opset(step, 19 if CODES[target, precision].dtype.startswith("float8") else 13))
    plan = make_plan(graph, found, calibration, target, precision, chosen, fine)
    return Rewriter(graph, plan, correct_bias, learned).run()


def check_calibration(step: StepModel, calibration: Calibration) -> None:
    """Raise EdgeLstmError unless ``calibration`` was made for this very model and its preprocessing."""
    if is_quantized(step):
        raise EdgeLstmError(
            "the model is quantised already",
            found=", ".join(sorted({t for t in step.op_types() if t.lower().endswith("quantizelinear")})),
            expected="the float step graph it was made from",
        )
    if step.graph_hash() != calibration.model:
        raise EdgeLstmError(
            "the calibration was made for another model",
            found=f"graph {calibration.model[:12]}",
            expected=f"graph {step.graph_hash()[:12]}",
            hint="Calibrate this model: edgelstm calibrate MODEL --source S -o FILE",
        )
    # As JSON a tuple is what it becomes in a file.
    declared, used = (
        json.dumps({name: [dict(op) for op in ops] for name, ops in p.items()}, sort_keys=True)
        for p in (step.signature.preprocessing, calibration.preprocessing)
    )
    if declared != used:
        raise EdgeLstmError(
            "the calibration was made with other preprocessing",
            found=used,
            expected=f"{declared} as the model's Signature says",
            hint="Calibrate again without --preprocess, or export the model with it",
        )


def is_quantized(step: StepModel) -> bool:
    """Whether a graph has Q/DQ nodes."""
    return any(t in ("QuantizeLinear", "DequantizeLinear") for t in step.op_types())


def default_weights(found: Products) -> list[str]:
    """Weights whose products take a fair part of the work."""
    work = {name: sum(p.macs for p in products) for name, products in found.by_weight().items()}
    total = sum(work.values())
    return [name for name, macs in work.items() if macs >= SMALL * total]


def at_opset(step: StepModel, least: int) -> StepModel:
    """Guarantees: the same graph in an opset that has what Q/DQ needs (13 for scales of channels, 19 for fp8 and fp16)."""
    if step.opset >= least:
        return step
    from onnx import version_converter

    try:
        model = version_converter.convert_version(step.copy_model(), least)
    except Exception as error:  # the converter raises several unrelated classes
        raise EdgeLstmError(
            f"the model is in ONNX opset {step.opset} and can't be brought to {least}",
            found=str(error).strip().splitlines()[0],
            hint="Export it again with a newer opset",
        ) from error
    # The converter leaves functions out, and a body has to be of the model's opset.
    del model.functions[:]
    model.functions.extend(
        GateVariant.of(f.name).function(least) if f.domain == DOMAIN else f for f in step.model.functions
    )
    return StepModel(model, step.signature)
