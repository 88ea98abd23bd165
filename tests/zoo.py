"""Small step graphs for tests, with seeded random weights."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from edgelstm.graph.gates import DOMAIN, GateVariant
from edgelstm.graph.signature import Dim, Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step


def lstm(
    inputs: int = 3, hidden: tuple[int, ...] = (4, 5), *, axis: Dim = "N", seed: int = 0, head: int | None = 2
) -> StepModel:
    """Stacked LSTM, one Gemm a layer. State names sort otherwise than the graph lists them, on purpose."""
    rng = np.random.default_rng(seed)
    variant = GateVariant()
    nodes: list[NodeProto] = []
    weights = []
    states = []
    current, width = "x", inputs
    for layer, size in enumerate(hidden):
        h, c = f"z{9 - layer}_h", f"a{layer}_c"
        weights += [
            numpy_helper.from_array(
                rng.normal(0, 0.5, (4 * size, width + size)).astype(np.float32), f"w{layer}"
            ),
            numpy_helper.from_array(rng.normal(0, 0.5, 4 * size).astype(np.float32), f"b{layer}"),
        ]
        nodes += [
            helper.make_node("Concat", [current, h], [f"xh{layer}"], axis=1),
            helper.make_node("Gemm", [f"xh{layer}", f"w{layer}", f"b{layer}"], [f"g{layer}"], transB=1),
            helper.make_node(variant.op_type, [f"g{layer}", c], [f"{h}_next", f"{c}_next"], domain=DOMAIN),
        ]
        states += [
            StateSpec(h, h, f"{h}_next", "float32", (axis, size)),
            StateSpec(
                c, c, f"{c}_next", "float32", (axis, size), rng.normal(size=size).astype(np.float32).tobytes()
            ),
        ]
        current, width = f"{h}_next", size
    if head is not None:
        weights.append(
            numpy_helper.from_array(rng.normal(0, 0.5, (width, head)).astype(np.float32), "head.w")
        )
        nodes.append(helper.make_node("MatMul", [current, "head.w"], ["y"]))
        current, width = "y", head
    signature = Signature(
        inputs=(TensorSpec("x", "float32", (axis, inputs)),),
        outputs=(TensorSpec(current, "float32", (axis, width)),),
        states=tuple(states),
    )
    return make_step(nodes, signature, weights, [variant.function(18)])


def conv_lstm(
    channels: int = 2, hidden: int = 3, size: int = 5, *, peephole: bool = True, seed: int = 0
) -> StepModel:
    """One ConvLSTM layer; its h is the output, under the state's own name."""
    rng = np.random.default_rng(seed)
    variant = GateVariant(peephole=peephole)
    weights = {
        "w": rng.normal(0, 0.3, (4 * hidden, channels + hidden, 3, 3)),
        "b": rng.normal(0, 0.3, 4 * hidden),
    }
    weights |= {p: rng.normal(0, 0.3, (hidden, size, size)) for p in variant.inputs[2:]}
    nodes = [
        helper.make_node("Concat", ["x", "h"], ["xh"], axis=1),
        helper.make_node("Conv", ["xh", "w", "b"], ["z"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node(
            variant.op_type, ["z", "c", *variant.inputs[2:]], ["h_next", "c_next"], domain=DOMAIN
        ),
    ]
    shape = ("N", hidden, size, size)
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("N", channels, size, size)),),
        outputs=(TensorSpec("h_next", "float32", shape),),
        states=(
            StateSpec("h", "h", "h_next", "float32", shape),
            StateSpec("c", "c", "c_next", "float32", shape),
        ),
    )
    tensors = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()]
    return make_step(nodes, signature, tensors, [variant.function(18)])


def two_inputs() -> StepModel:
    """A leaky sum of two inputs and a counter (int64): states that are no LSTM's."""
    nodes = [
        helper.make_node("Mul", ["total", "leak"], ["kept"]),
        helper.make_node("Add", ["a", "b"], ["ab"]),
        helper.make_node("Add", ["kept", "ab"], ["total_next"]),
        helper.make_node("Add", ["count", "one"], ["count_next"]),
    ]
    signature = Signature(
        inputs=(TensorSpec("b", "float32", ("N", 2)), TensorSpec("a", "float32", ("N", 2))),
        outputs=(TensorSpec("total_next", "float32", ("N", 2)), TensorSpec("ab", "float32", ("N", 2))),
        states=(
            StateSpec("total", "total", "total_next", "float32", ("N", 2)),
            StateSpec("count", "count", "count_next", "int64", ("N", 1), np.array([7]).tobytes()),
        ),
    )
    weights = [
        numpy_helper.from_array(np.array([0.5], np.float32), "leak"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    return make_step(nodes, signature, weights)


def running_sum(axis: Dim = "N", outputs: tuple[str, ...] = ("y",)) -> StepModel:
    """Twice the sum of all frames so far; a frame is a single number: nothing has an axis but the stream's."""
    nodes = [helper.make_node("Add", ["x", "s"], ["s_next"])]
    if outputs:
        nodes.append(helper.make_node("Mul", ["s_next", "two"], ["y"]))
    signature = Signature(
        inputs=(TensorSpec("x", "float32", (axis,)),),
        outputs=tuple(TensorSpec(name, "float32", (axis,)) for name in outputs),
        states=(StateSpec("s", "s", "s_next", "float32", (axis,), np.array(3, np.float32).tobytes()),),
    )
    return make_step(nodes, signature, [numpy_helper.from_array(np.array([2], np.float32), "two")])


def persistence(leads: int = 2, shape: tuple[int, ...] = (1, 4, 4), factor: float = 1.0) -> StepModel:
    """The last frame, times ``factor``, as the forecast of the next ones; its state is that frame."""
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["s_next"]),
        helper.make_node("Unsqueeze", ["s_next", "one"], ["u"]),
        helper.make_node("Concat", ["u"] * leads, ["forecast"], axis=1),
    ]
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("N", *shape)),),
        outputs=(TensorSpec("forecast", "float32", ("N", leads, *shape)),),
        states=(StateSpec("s", "s", "s_next", "float32", ("N", *shape)),),
    )
    weights = [
        numpy_helper.from_array(np.array(factor, np.float32), "factor"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    return make_step(nodes, signature, weights)
