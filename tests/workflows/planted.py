"""A ConvLSTM step with a norm, a recurrent tanh layer and a head of unlike channels, and the faults that may be planted in it.

``python tests/workflows/planted.py`` measures the smallest size of each that the proof catches: the table in docs/proof.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from edgelstm.frontends import Loaded
from edgelstm.frontends.onnx.program import DeclaredProgram
from edgelstm.graph.gates import DOMAIN, GateVariant
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step
from edgelstm.workflows.prove import Proved, proved

CHANNELS, HIDDEN, SIZE = 2, 3, 5
#: Scales of the head's two channels: what is wrong in the second must not hide behind the first.
SCALES = (1.0, 1e-5)


def model(seed: int = 0) -> StepModel:
    """x -> ConvLSTM (h, c) -> layer norm -> tanh(W y + R r) = r -> a head of two channels."""
    rng = np.random.default_rng(seed)
    variant = GateVariant()
    flat = HIDDEN * SIZE * SIZE

    def weight(name: str, *shape: int, scale: float = 0.3) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(0, scale, shape).astype(np.float32), name)

    head = rng.normal(0, 0.5, (4, 2)) * SCALES
    weights = [
        weight("w", 4 * HIDDEN, CHANNELS + HIDDEN, 3, 3),
        weight("b", 4 * HIDDEN),
        weight("gamma", HIDDEN, SIZE, SIZE),
        weight("beta", HIDDEN, SIZE, SIZE),
        weight("W", flat, 4, scale=0.1),
        weight("R", 4, 4),
        numpy_helper.from_array(head.astype(np.float32), "head"),
        numpy_helper.from_array(np.array([0, flat]), "flat"),
    ]
    nodes = [
        helper.make_node("Concat", ["x", "h"], ["xh"], axis=1),
        helper.make_node("Conv", ["xh", "w", "b"], ["z"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node(variant.op_type, ["z", "c"], ["h_next", "c_next"], domain=DOMAIN),
        helper.make_node("LayerNormalization", ["h_next", "gamma", "beta"], ["normed"], axis=1, epsilon=1e-5),
        helper.make_node("Reshape", ["normed", "flat"], ["flattened"]),
        helper.make_node("MatMul", ["flattened", "W"], ["from_below"]),
        helper.make_node("MatMul", ["r", "R"], ["from_before"]),
        helper.make_node("Add", ["from_below", "from_before"], ["a"]),
        helper.make_node("Tanh", ["a"], ["r_next"]),
        helper.make_node("MatMul", ["r_next", "head"], ["y"]),
    ]
    grid = ("N", HIDDEN, SIZE, SIZE)
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("N", CHANNELS, SIZE, SIZE)),),
        outputs=(TensorSpec("y", "float32", ("N", 2)),),
        states=(
            StateSpec("h", "h", "h_next", "float32", grid),
            StateSpec("c", "c", "c_next", "float32", grid),
            StateSpec("r", "r", "r_next", "float32", ("N", 4)),
        ),
    )
    return make_step(nodes, signature, weights, [variant.function(18)])


def judged(source: StepModel, graph: StepModel, steps: int = 20) -> Proved:
    """``graph`` as if it were what an export made of ``source``."""
    return proved(Loaded(source, DeclaredProgram(source), "planted"), graph, None, steps, threads=1)


# -- faults -------------------------------------------------------------------------------------------------------


def weights(step: StepModel, name: str, change: Callable[[np.ndarray], None]) -> StepModel:
    """The same graph with a weight changed in place by ``change``."""
    new = step.copy_model()
    tensor = next(t for t in new.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).astype(np.float64)
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    return StepModel(new, step.signature)


def attribute(step: StepModel, op: str, name: str, value: object) -> StepModel:
    """The same graph with an attribute of its only ``op`` changed."""
    new = step.copy_model()
    node = next(n for n in new.graph.node if n.op_type == op)
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
    return StepModel(new, step.signature)


def after(step: StepModel, name: str, *ops: Callable[[str, str], NodeProto]) -> StepModel:
    """The same graph with operators put behind the value ``name``; its readers in the graph take what it was."""
    new = step.copy_model()
    for node in new.graph.node:
        node.input[:] = [f"{name}_raw" if i == name else i for i in node.input]
        node.output[:] = [f"{name}_raw" if o == name else o for o in node.output]
    names = [f"{name}_raw", *(f"{name}_{k}" for k in range(len(ops) - 1)), name]
    new.graph.node.extend(op(a, b) for op, a, b in zip(ops, names, names[1:], strict=False))
    return StepModel(new, step.signature)


def in_place_of(step: StepModel, op: str, make: Callable[[str, str], list[NodeProto]]) -> StepModel:
    """The same graph with other operators in place of its only ``op``."""
    new = step.copy_model()
    nodes: list[NodeProto] = []
    for node in step.model.graph.node:
        nodes += make(node.input[0], node.output[0]) if node.op_type == op else [node]
    nodes = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del new.graph.node[:]
    new.graph.node.extend(nodes)
    return StepModel(new, step.signature)


def wrong_weight(step: StepModel, size: float, name: str = "w", at: int = 7) -> StepModel:
    """One weight times 1 + size."""

    def change(values: np.ndarray) -> None:
        values.reshape(-1)[at] *= 1 + size

    return weights(step, name, change)


def wrong_bias(step: StepModel, size: float, at: int = 4) -> StepModel:
    """The bias of one gate of one channel off by ``size``."""

    def change(values: np.ndarray) -> None:
        values[at] += size

    return weights(step, "b", change)


def swapped_gates(step: StepModel, channel: int = 1, first: int = 0, second: int = 1) -> StepModel:
    """Two gates of one channel in each other's place."""

    def change(values: np.ndarray) -> None:
        rows = [first * HIDDEN + channel, second * HIDDEN + channel]
        values[rows] = values[rows[::-1]]

    return weights(weights(step, "w", change), "b", change)


def small_channel(step: StepModel, size: float) -> StepModel:
    """One weight of the head's small channel times 1 + size."""
    return wrong_weight(step, size, "head", 1)


def norm_epsilon(step: StepModel, size: float) -> StepModel:
    """The norm's epsilon larger by ``size``."""
    return attribute(step, "LayerNormalization", "epsilon", 1e-5 + size)


def shifted_pad(step: StepModel) -> StepModel:
    """A pixel of padding on the other side."""
    return attribute(step, "Conv", "pads", [1, 0, 1, 2])


def transposed(step: StepModel) -> StepModel:
    """A square recurrent weight, transposed."""

    def change(values: np.ndarray) -> None:
        values[:] = values.T.copy()

    return weights(step, "R", change)


def swapped_states(step: StepModel) -> StepModel:
    """h and c fed back into each other's place."""
    h, c, r = step.signature.states
    states = (replace(h, output=c.output), replace(c, output=h.output), r)
    return StepModel(step.copy_model(), replace(step.signature, states=states))


def rows_out_of_order(step: StepModel, name: str = "h_next") -> StepModel:
    """Two rows of a state in each other's place, but not of what reads it."""
    order = [1, 0, *range(2, {"r_next": 4}.get(name, HIDDEN))]
    new = after(step, name, lambda a, b: helper.make_node("Gather", [a, "order"], [b], axis=1))
    new.model.graph.initializer.append(numpy_helper.from_array(np.array(order), "order"))
    return new


def coarse_state(step: StepModel, name: str = "c_next", to: int = onnx.TensorProto.FLOAT16) -> StepModel:
    """A state stored in float16."""
    return after(
        step,
        name,
        lambda a, b: helper.make_node("Cast", [a], [b], to=to),
        lambda a, b: helper.make_node("Cast", [a], [b], to=onnx.TensorProto.FLOAT),
    )


def rational_tanh(step: StepModel, terms: int = 2) -> StepModel:
    """tanh by so many terms of its continued fraction x / (1 + x^2 / (3 + x^2 / (5 + ...))).

    Off by .13 at x = 2 with two terms, by .01 with three, by 4e-4 with four, by 1e-5 with five.
    """

    def make(x: str, y: str) -> list[NodeProto]:
        nodes = [helper.make_node("Mul", [x, x], ["square"])]
        last = f"odd{terms}"
        for k in range(terms - 1, 0, -1):
            nodes.append(helper.make_node("Div", ["square", last], [f"part{k}"]))
            nodes.append(helper.make_node("Add", [f"odd{k}", f"part{k}"], [f"whole{k}"]))
            last = f"whole{k}"
        return [*nodes, helper.make_node("Div", [x, last], [y])]

    new = in_place_of(step, "Tanh", make)
    new.model.graph.initializer.extend(
        numpy_helper.from_array(np.float32(2 * k - 1), f"odd{k}") for k in range(1, terms + 1)
    )
    return new


#: Faults of a size, by what the table calls them, and the size that is always caught.
SIZED: dict[str, tuple[Callable[[StepModel, float], StepModel], float]] = {
    "one weight of one gate, times 1 + s": (wrong_weight, 1e-3),
    "one weight of a channel 100,000 times smaller than its neighbour, times 1 + s": (small_channel, 1e-4),
    "bias of one gate of one channel, off by s": (wrong_bias, 1e-4),
    "epsilon of a norm, 1e-5 + s": (norm_epsilon, 1e-5),
}
#: Faults without one.
WHOLE: dict[str, Callable[[StepModel], StepModel]] = {
    "two gates of one channel swapped": swapped_gates,
    "padding a pixel to one side": shifted_pad,
    "a square recurrent weight transposed": transposed,
    "h and c fed back into each other's place": swapped_states,
    "two rows of a state swapped": rows_out_of_order,
    "a cell state stored in float16": coarse_state,
    "tanh by four terms of its continued fraction (off by 4e-4 at 2)": lambda s: rational_tanh(s, 4),
}


def smallest(fault: Callable[[StepModel, float], StepModel], steps: int = 200) -> float:
    """The smallest power of ten whose half that is caught."""
    from edgelstm.errors import EdgeLstmError

    source, found = model(), np.inf
    for exponent in range(-2, -9, -1):
        for digit in (5, 2, 1):
            size = digit * 10.0**exponent
            try:
                judged(source, fault(source, size), steps)
            except EdgeLstmError:
                found = size
            else:
                return found
    return found


if __name__ == "__main__":
    for name, (fault, _) in SIZED.items():
        print(f"| {name} | {smallest(fault):.0e} |", flush=True)
    print(judged(model(), model(), 200).proof)
    for name, whole in WHOLE.items():
        try:
            judged(model(), whole(model()), 200)
            print(f"| {name} | NOT CAUGHT |")
        except Exception as error:
            print(f"| {name} | caught |", str(error)[:400])
