"""Which operators are known, as Keras 3 and as TensorFlow's Keras 2 name them and their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras.calls import Arguments
from edgelstm.frontends.keras.layers.layer import Layer
from edgelstm.frontends.keras.operators import elementwise, index, product, reduce, shape
from edgelstm.frontends.keras.options import Options

#: By the class name of Keras 3: what reads it, and its parameters in the order of a call.
OPERATORS: dict[str, tuple[Callable[[Options], Layer], tuple[str, ...]]] = {
    **{name: (elementwise.Elementwise, f.parameters) for name, f in elementwise.FUNCTIONS.items()},
    **dict.fromkeys(elementwise.ACTIVATIONS, (elementwise.ActivationOperator, ("x", "axis"))),
    "Clip": (elementwise.Clip, ("x", "x_min", "x_max")),
    "Cast": (elementwise.Cast, ("x", "to")),
    "ConvertToTensor": (elementwise.Same, ("x", "dtype", "sparse", "ragged")),
    **dict.fromkeys(reduce.REDUCTIONS, (reduce.Reduction, ("x", "axis", "keepdims"))),
    "Reshape": (shape.Reshape, ("x", "newshape")),
    "Transpose": (shape.Permutation, ("x", "axes")),
    "Swapaxes": (shape.Permutation, ("x", "axis1", "axis2")),
    "Moveaxis": (shape.Permutation, ("x", "source", "destination")),
    "ExpandDims": (shape.ExpandDims, ("x", "axis")),
    "Squeeze": (shape.Squeeze, ("x", "axis")),
    "Flip": (shape.AlongAxis, ("x", "axis")),
    "Repeat": (shape.AlongAxis, ("x", "repeats", "axis")),
    "Roll": (shape.AlongAxis, ("x", "shift", "axis")),
    "Take": (shape.AlongAxis, ("x", "indices", "axis")),
    "Tile": (shape.AlongAxis, ("x", "repeats")),
    "Split": (shape.Split, ("x", "indices_or_sections", "axis")),
    "Concatenate": (shape.Joined, ("xs", "axis")),
    "Stack": (shape.Joined, ("xs", "axis")),
    "GetItem": (index.GetItem, ("x", "key")),
    "Matmul": (product.Matmul, ("x1", "x2", "transpose_a", "transpose_b")),
    "Einsum": (product.Einsum, ("subscripts", "operands")),
}
#: What a file of Keras 2 calls ``function``: the class name above, and TensorFlow's parameters as those above.
_TENSORFLOW: dict[str, tuple[str, dict[str, str]]] = {}
_X = {"x": "x", "input": "x", "features": "x", "input_tensor": "x", "tensor": "x", "a": "x", "value": "x", "t": "x",
      "logits": "x"}  # fmt: skip
_XY = {"x": "x1", "y": "x2"}
for _new, _old in {
    "Add": "math.add __operators__.add add", "Subtract": "math.subtract subtract",
    "Multiply": "math.multiply multiply", "TrueDivide": "math.truediv math.divide truediv divide math.divide_no_nan",
    "FloorDivide": "math.floordiv", "Mod": "math.floormod math.mod", "Power": "math.pow pow",
    "Maximum": "math.maximum maximum", "Minimum": "math.minimum minimum", "Greater": "math.greater greater",
    "GreaterEqual": "math.greater_equal", "Less": "math.less less", "LessEqual": "math.less_equal",
    "Equal": "math.equal __operators__.eq", "NotEqual": "math.not_equal __operators__.ne",
    "LogicalAnd": "math.logical_and", "LogicalOr": "math.logical_or",
}.items():  # fmt: skip
    _TENSORFLOW.update({name: (_new, _XY) for name in _old.split() if "no_nan" not in name})
for _new, _old in {
    "Absolute": "math.abs abs", "Negative": "math.negative negative", "Exp": "math.exp exp", "Expm1": "math.expm1",
    "Log": "math.log", "Log1p": "math.log1p", "Sqrt": "math.sqrt sqrt", "Rsqrt": "math.rsqrt",
    "Square": "math.square square", "Reciprocal": "math.reciprocal", "Sign": "math.sign sign", "Sin": "math.sin",
    "Cos": "math.cos", "Tan": "math.tan", "Tanh": "math.tanh nn.tanh tanh", "Sigmoid": "math.sigmoid nn.sigmoid",
    "Floor": "math.floor floor", "Ceil": "math.ceil", "Round": "math.round round", "LogicalNot": "math.logical_not",
    "Softplus": "math.softplus nn.softplus", "Softsign": "nn.softsign math.softsign", "Relu": "nn.relu",
    "Relu6": "nn.relu6", "Elu": "nn.elu", "Selu": "nn.selu", "Silu": "nn.silu nn.swish", "Softmax": "nn.softmax",
    "LogSoftmax": "nn.log_softmax", "LeakyRelu": "nn.leaky_relu", "Gelu": "nn.gelu", "Squeeze": "squeeze",
    "ExpandDims": "expand_dims", "Mean": "math.reduce_mean reduce_mean", "Sum": "math.reduce_sum reduce_sum",
    "Max": "math.reduce_max reduce_max", "Min": "math.reduce_min reduce_min", "Prod": "math.reduce_prod",
    "Std": "math.reduce_std", "Var": "math.reduce_variance", "Any": "math.reduce_any", "All": "math.reduce_all",
    "Logsumexp": "math.reduce_logsumexp",
}.items():  # fmt: skip
    _TENSORFLOW.update(dict.fromkeys(_old.split(), (_new, _X)))
_TENSORFLOW |= {
    "clip_by_value": ("Clip", {"t": "x", "clip_value_min": "x_min", "clip_value_max": "x_max"}),
    "cast": ("Cast", {"x": "x", "dtype": "to"}),
    "concat": ("Concatenate", {"values": "xs"}),
    "stack": ("Stack", {"values": "xs"}),
    "split": ("Split", {"value": "x", "num_or_size_splits": "indices_or_sections"}),
    "convert_to_tensor": ("ConvertToTensor", {"value": "x"}),
    "identity": ("ConvertToTensor", {"input": "x"}),
    "reshape": ("Reshape", {"tensor": "x", "shape": "newshape"}),
    "transpose": ("Transpose", {"a": "x", "perm": "axes"}),
    "tile": ("Tile", {"input": "x", "multiples": "repeats"}),
    "reverse": ("Flip", {"tensor": "x"}),
    "linalg.matmul": ("Matmul", {"a": "x1", "b": "x2"}),
    "where": ("Where", {"condition": "condition", "x": "x1", "y": "x2"}),
    "compat.v1.where": ("Where", {"condition": "condition", "x": "x1", "y": "x2"}),
    "__operators__.getitem": ("GetItem", {"tensor": "x", "slice_spec": "key"}),
}


def is_operator(given: Mapping[str, Any]) -> bool:
    """Whether a layer's configuration is that of an operator on tensors."""
    if given.get("class_name") in ("TFOpLambda", "SlicingOpLambda"):
        return True
    if "module" in given:
        return str(given["module"]).startswith(("keras.src.ops.", "keras.ops."))
    # Keras 3's .h5 files leave the module out: there, what can't be trained is an operator.
    config, nodes = given.get("config"), given.get("inbound_nodes")
    new = isinstance(nodes, list) and all(isinstance(node, Mapping) for node in nodes)
    if not nodes or not new or not isinstance(config, Mapping) or "trainable" in config:
        return False
    return given.get("class_name") in OPERATORS or "dtype" not in config


def make_operator(
    parent: Options, name: str, given: Mapping[str, Any], call: Callable[[str], Arguments]
) -> tuple[Layer, Arguments]:
    """The operator that one call of ``given`` is, and the call; ``call`` reads it, given what to call it in messages.

    Raises EdgeLstmError for operators that are unknown, and for those whose rows depend on each other.
    """
    path = f"{parent.path}/{name}" if parent.path else name
    kind, config = str(given.get("class_name")), dict(given.get("config") or {})
    renamed: Mapping[str, str] = {}
    if kind in ("TFOpLambda", "SlicingOpLambda"):
        function = str(config.get("function"))
        if function not in _TENSORFLOW:
            raise _unknown(parent, path, f"{kind} of tf.{function}")
        kind, renamed = _TENSORFLOW[function]
        config = {}
    elif kind not in OPERATORS:
        raise _unknown(parent, path, f"keras.ops {kind}")
    make, parameters = OPERATORS[kind]
    config = {key: value for key, value in config.items() if key not in ("name", "trainable")}
    if kind == "Cast" and "dtype" in config:
        config["to"] = config.pop("dtype")
    what = Options(parent.source, path, kind, {}).what
    arguments = call(what)
    if kind == "Einsum":
        arguments = Arguments(("", list(arguments.args)), arguments.keywords, arguments.refs)
    if renamed:
        keywords = {renamed.get(k, k): v for k, v in arguments.keywords.items() if k != "name"}
        arguments = Arguments(arguments.args, keywords, arguments.refs)
        parameters = (*parameters, *(k for k in keywords if k not in parameters))
    found = arguments.named(what, parameters)
    if kind == "Einsum":
        found.pop("subscripts")
    return make(Options(parent.source, path, kind, {**config, **found})), arguments


def _unknown(parent: Options, path: str, found: str) -> EdgeLstmError:
    return EdgeLstmError(
        f"{parent.source.where}: operator {path!r} is unknown",
        found=found,
        expected=f"one of {', '.join(sorted(OPERATORS))}",
    )
