"""ONNX files as other exporters write them: plain, without a Signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

X, H = 3, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def text(inputs: str, outputs: str, body: str, weights: str = "", opset: int = 17) -> bytes:
    """An ONNX file from the text of its graph."""
    source = f'<ir_version: 8, opset_import: ["" : {opset}]>\ng ({inputs}) => ({outputs})\n{weights}\n{{\n{body}\n}}'
    return bytes(onnx.parser.parse_model(source).SerializeToString())


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[Any]],
    outputs: dict[str, Sequence[Any] | None],
    weights: dict[str, np.ndarray],
    *,
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
) -> bytes:
    """An ONNX file from its nodes; shapes hold sizes, names or None."""
    v = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "g",
        [v(n, dtype, s) for n, s in inputs.items()],
        [v(n, dtype, s) for n, s in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(made.SerializeToString())


def recurrent_weights(kind: str, inputs: int, rng: np.random.Generator, prefix: str) -> dict[str, np.ndarray]:
    """W, R and B of one forward operator."""
    rows = GATES[kind] * H
    shapes = {"W": (1, rows, inputs), "R": (1, rows, H), "B": (1, 2 * rows)}
    return {f"{prefix}{n}": rng.normal(0, 0.6, s).astype("f4") for n, s in shapes.items()}


def stateful(
    kind: str = "LSTM",
    *,
    layers: int = 2,
    opset: int = 17,
    axis: int = 1,
    batch: str | int | None = "batch",
) -> bytes:
    """A step with explicit states as PyTorch has them: h and c [layers, N, H], x [1, N, X] or [N, 1, X]."""
    rng = np.random.default_rng(0)
    states = ("h", "c") if kind == "LSTM" else ("h",)
    weights: dict[str, np.ndarray] = {"axis_0": np.array([0]), "axis_1": np.array([1])}
    nodes, x, inputs = [], "x", X
    if axis == 0:
        nodes.append(helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]))
        x = "x_time"
    last: dict[str, list[str]] = {s: [] for s in states}
    for k in range(layers):
        weights |= recurrent_weights(kind, inputs, rng, f"l{k}_")
        for s in states:
            weights |= {f"start_{k}": np.array([k]), f"end_{k}": np.array([k + 1])}
            nodes.append(
                helper.make_node("Slice", [f"{s}_in", f"start_{k}", f"end_{k}", "axis_0"], [f"{s}_{k}"])
            )
            last[s].append(f"{s}_{k}_last")
        names = [x, f"l{k}_W", f"l{k}_R", f"l{k}_B", "", *(f"{s}_{k}" for s in states)]
        made = [f"y_{k}", *(f"{s}_{k}_last" for s in states)]
        nodes.append(helper.make_node(kind, names, made, hidden_size=H, name=f"rnn_{k}"))
        nodes.append(helper.make_node("Squeeze", [f"y_{k}", "axis_1"], [f"x_{k}"]))
        x, inputs = f"x_{k}", H
    nodes += [helper.make_node("Concat", names, [f"{s}_out"], axis=0) for s, names in last.items()]
    nodes.append(helper.make_node("Squeeze", [x, "axis_0"], ["y"]))
    frame = (1, batch, X) if axis == 1 else (batch, 1, X)
    return model(
        nodes,
        {"x": frame} | {f"{s}_in": (layers, batch, H) for s in states},
        {"y": (batch, H)} | {f"{s}_out": (layers, batch, H) for s in states},
        weights,
        opset=opset,
    )


def forgetful(
    kind: str = "LSTM",
    *,
    initial: str = "none",
    layers: int = 1,
    opset: int = 17,
    time: str | int = "time",
    batch: str | int = "batch",
    layout: int = 0,
    direction: str = "forward",
    last_only: bool = False,
) -> bytes:
    """A model over sequences x [batch, time, X] that starts anew in each call.

    initial: ``none`` (left out), ``zeros`` (spread over the batch), ``constant`` (a trained first state, likewise).
    """
    rng = np.random.default_rng(1)
    weights: dict[str, np.ndarray] = {
        "axis_1": np.array([1]),
        "axis_2": np.array([2]),
        "place": np.array([0]),
        "one": np.array([1]),
        "width": np.array([H]),
        "last": np.array(-1),
        "out": rng.normal(size=(H, 2)).astype("f4"),
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "place"], ["count"]),
        helper.make_node(
            "Concat", ["count", "one", "width"] if layout else ["one", "count", "width"], ["target"], axis=0
        ),
    ]
    value = "x"
    if not layout:
        nodes.append(helper.make_node("Transpose", ["x"], ["x_time"], perm=[1, 0, 2]))
        value = "x_time"
    inputs = X
    for k in range(layers):
        weights |= recurrent_weights(kind, inputs, rng, f"l{k}_")
        names = [value, f"l{k}_W", f"l{k}_R", f"l{k}_B"]
        if initial != "none":
            names.append("")
            for s in ("h", "c")[: 2 if kind == "LSTM" else 1]:
                first = rng.normal(size=(1, 1, H)) if initial == "constant" else np.zeros((1, 1, H))
                weights[f"{s}_{k}"] = first.astype("f4")
                nodes.append(helper.make_node("Expand", [f"{s}_{k}", "target"], [f"{s}_{k}_all"]))
                names.append(f"{s}_{k}_all")
        extra: dict[str, Any] = {"layout": 1} if layout else {}
        nodes.append(
            helper.make_node(
                kind, names, [f"y_{k}"], hidden_size=H, name=f"rnn_{k}", direction=direction, **extra
            )
        )
        nodes.append(helper.make_node("Squeeze", [f"y_{k}", "axis_2" if layout else "axis_1"], [f"x_{k}"]))
        value, inputs = f"x_{k}", H
    if not layout:
        nodes.append(helper.make_node("Transpose", [value], ["back"], perm=[1, 0, 2]))
        value = "back"
    if last_only:
        nodes.append(helper.make_node("Gather", [value, "last"], ["final"], axis=1))
        value = "final"
    nodes.append(helper.make_node("MatMul", [value, "out"], ["y"]))
    shape = (batch, 2) if last_only else (batch, time, 2)
    return model(nodes, {"x": (batch, time, X)}, {"y": shape}, weights, opset=opset)


def looping(kind: str, *, opset: int = 17, named: bool = False) -> bytes:
    """A ConvLSTM over frames x [N, T, 1, 4, 4] in a Loop or Scan, from zeros in each call; y [N, T, 2, 4, 4].

    named: the Loop names its last states, which nothing reads; ONNX Runtime 1.31 crashes where it does not.
    """
    rng = np.random.default_rng(2)
    v = helper.make_tensor_value_info
    c, f = TensorProto.FLOAT, ["N", 2, 4, 4]
    weights = {
        "kernel": rng.normal(0, 0.4, (8, 3, 3, 3)).astype("f4"),
        "bias": rng.normal(0, 0.4, 8).astype("f4"),
        "yes": np.array(True),
        "place_0": np.array([0]),
        "place_1": np.array(1),
        "tail": np.array([2, 4, 4]),
    }
    cell = [
        helper.make_node("Concat", ["frame", "h_in"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "kernel", "bias"], ["z"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "Split", ["z"], ["zi", "zf", "zg", "zo"], axis=1, **({"num_outputs": 4} if opset >= 18 else {})
        ),
        helper.make_node("Sigmoid", ["zi"], ["i"]),
        helper.make_node("Sigmoid", ["zf"], ["f"]),
        helper.make_node("Sigmoid", ["zo"], ["o"]),
        helper.make_node("Tanh", ["zg"], ["g"]),
        helper.make_node("Mul", ["f", "c_in"], ["kept"]),
        helper.make_node("Mul", ["i", "g"], ["new"]),
        helper.make_node("Add", ["kept", "new"], ["c_out"]),
        helper.make_node("Tanh", ["c_out"], ["tc"]),
        helper.make_node("Mul", ["o", "tc"], ["h_out"]),
        helper.make_node("Identity", ["h_out"], ["shown"]),
    ]
    states = [v("h_in", c, f), v("c_in", c, f)]
    results = [v("h_out", c, f), v("c_out", c, f), v("shown", c, f)]
    zeros = helper.make_tensor("zero", c, [1], [0.0])
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "place_0"], ["count"]),
        helper.make_node("Concat", ["count", "tail"], ["target"], axis=0),
        helper.make_node("ConstantOfShape", ["target"], ["zeros"], value=zeros),
    ]
    if kind == "Loop":
        body = helper.make_graph(
            [
                helper.make_node("Gather", ["x", "t"], ["frame"], axis=1),
                *cell,
                helper.make_node("Identity", ["going"], ["goes"]),
            ],
            "body",
            [v("t", TensorProto.INT64, []), v("going", TensorProto.BOOL, []), *states],
            [v("goes", TensorProto.BOOL, []), *results],
        )
        nodes += [
            helper.make_node("Gather", ["shape", "place_1"], ["frames"]),
            helper.make_node(
                "Loop",
                ["frames", "yes", "zeros", "zeros"],
                ["h_last", "c_last", "all"] if named else ["", "", "all"],
                body=body,
            ),
        ]
    else:
        body = helper.make_graph(cell, "body", [*states, v("frame", c, ["N", 1, 4, 4])], results)
        nodes.append(
            helper.make_node(
                "Scan",
                ["zeros", "zeros", "x"],
                ["h_last", "c_last", "all"],
                body=body,
                num_scan_inputs=1,
                scan_input_axes=[1],
            )
        )
    nodes.append(helper.make_node("Transpose", ["all"], ["y"], perm=[1, 0, 2, 3, 4]))
    return model(nodes, {"x": ("N", "T", 1, 4, 4)}, {"y": ("N", "T", 2, 4, 4)}, weights, opset=opset)
