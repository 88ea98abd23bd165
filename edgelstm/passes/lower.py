"""lower: the form of a step graph that one target can read."""

from __future__ import annotations

from typing import Literal, get_args

import onnx
import onnx.inliner

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import DOMAIN
from edgelstm.graph.step import StepModel
from edgelstm.passes.plugin_nodes import plugin_nodes

Target = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"]

#: ONNX Runtime inlines function bodies itself when it opens a model, so it keeps the readable graph. OpenVINO
#: refuses local functions. NVIDIA's parsers read them, but which of body and plugin wins depends on the version.
KEEPS_FUNCTIONS: frozenset[Target] = frozenset({"onnxruntime"})


Gates = Literal["native", "plugin"]


def lower(step: StepModel, target: Target, gates: Gates = "native", *, in_place: bool = False) -> StepModel:
    """Guarantees: the same numbers, the same Signature and metadata, and only operators that ``target`` knows.

    For "onnxruntime" the function bodies of FusedGates stay; for every other target they are written out as
    standard operators and the model has no local function left. Works on steps and windows alike.

    gates "plugin": FusedGates become nodes of the TensorRT plugin (see :mod:`edgelstm.passes.plugin_nodes`, also for
    ``in_place``); only TensorRT with that plugin runs such a graph.

    Raises EdgeLstmError for a target that is not one of :data:`Target`, and for plugin nodes where there are no plugins.
    """
    if target not in get_args(Target):
        raise EdgeLstmError(
            "lower: unknown target", found=repr(target), expected=f"one of {get_args(Target)}"
        )
    if gates == "plugin":
        if target != "tensorrt":
            raise EdgeLstmError(
                "gates as plugin nodes",
                found=f"target {target}",
                expected="target tensorrt, which has plugins",
            )
        step = plugin_nodes(step, in_place=in_place)
    if target in KEEPS_FUNCTIONS:
        return StepModel(step.copy_model(), step.signature)
    model = onnx.inliner.inline_local_functions(step.copy_model())
    used = {node.domain for node in model.graph.node}
    kept = [o for o in model.opset_import if o.domain != DOMAIN or DOMAIN in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return StepModel(model, step.signature)
