"""No rule claims too little: what changes in an output when one stream's frame does is marked as depending on it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel
from edgelstm.passes.batching import ELEMENTWISE, REDUCTIONS
from edgelstm.passes.stream_axis import STREAMS, _Follow
from edgelstm.passes.stream_marks import RULES

#: Operators on x [N, 4, 6] (and s of that shape); what comes out is y. Some work across the streams on purpose.
ON_ROWS = {
    "BatchNormalization": "y = BatchNormalization (x, four, four, four, four)",
    "BatchNormalization in training": "y, m, v = BatchNormalization <training_mode = 1> (x, four, four, four, four)",
    "MeanVarianceNormalization": "y = MeanVarianceNormalization <axes = [0, 2]> (x)",
    "InstanceNormalization": "y = InstanceNormalization (x, four, four)",
    "InstanceNormalization across": "t = Transpose <perm = [1, 0, 2]> (x) y = InstanceNormalization (t, three, three)",
    "GroupNormalization": "y = GroupNormalization <num_groups = 2> (x, four, four)",
    "LayerNormalization": "y = LayerNormalization <axis = 1> (x, grid)",
    "LayerNormalization of all": "y = LayerNormalization <axis = 0> (x, block)",
    "LpNormalization": "y = LpNormalization <axis = 1> (x)",
    "LpNormalization across": "y = LpNormalization <axis = 0> (x)",
    "LRN": "u = Unsqueeze (x, at3) y = LRN <size = 3> (u)",
    "DFT": 'u = Unsqueeze (x, at3) y = DFT (u, "", axis1)',
    "DFT across": 'u = Unsqueeze (x, at3) y = DFT (u, "", axis0)',
    "Softmax": "y = Softmax <axis = -1> (x)",
    "Softmax across": "y = Softmax <axis = 0> (x)",
    "LogSoftmax": "y = LogSoftmax <axis = 1> (x)",
    "Hardmax": "y = Hardmax <axis = 0> (x)",
    "CumSum": "y = CumSum (x, axis1)",
    "CumSum across": "y = CumSum (x, axis0)",
    "TopK": "y, i = TopK <axis = 2> (x, k2)",
    "TopK across": "y, i = TopK <axis = 0> (x, k2)",
    "ArgMax": "y = ArgMax <axis = 1, keepdims = 0> (x)",
    "ArgMin": "y = ArgMin <axis = 0> (x)",
    "MatMul": "y = MatMul (x, w65)",
    "MatMul of both": "t = Transpose <perm = [0, 2, 1]> (s) y = MatMul (x, t)",
    "MatMul across": "t = Transpose <perm = [1, 2, 0]> (s) q = Transpose <perm = [1, 0, 2]> (x) y = MatMul (t, q)",
    "MatMul by a vector": "y = MatMul (x, six)",
    "MatMul of a vector": "t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (six, t)",
    "Gemm": "r = Reshape (x, flat) y = Gemm (r, w24, five)",
    "Gemm transposed": "r = Reshape (x, flat) y = Gemm <transA = 1> (r, r)",
    "Gemm of both": "r = Reshape (x, flat) q = Reshape (s, flat) y = Gemm <transB = 1> (r, q)",
    "Einsum": 'y = Einsum <equation = "nab,ncb->nca"> (x, s)',
    "Einsum across": 'y = Einsum <equation = "nab,mab->nm"> (x, s)',
    "Conv": "y = Conv <pads = [1, 1]> (x, kernel)",
    "Conv of one": "u = Unsqueeze (x, at1) y = Conv (u, k13)",
    "Conv over streams": "t = Transpose <perm = [1, 2, 0]> (x) u = Unsqueeze (t, at0) y = Conv <pads = [0, 1, 0, 1]> (u, k413)",
    "ConvTranspose": "y = ConvTranspose (x, kernel)",
    "AveragePool": "y = AveragePool <kernel_shape = [2]> (x)",
    "MaxPool": "y = MaxPool <kernel_shape = [3], strides = [2]> (x)",
    "LpPool": "y = LpPool <kernel_shape = [2]> (x)",
    "GlobalAveragePool": "y = GlobalAveragePool (x)",
    "GlobalMaxPool": "y = GlobalMaxPool (x)",
    "GlobalLpPool": "y = GlobalLpPool (x)",
    "Resize": 'u = Unsqueeze (x, at1) y = Resize <mode = "linear"> (u, "", scales)',
    "Reshape": "y = Reshape (x, flat)",
    "Reshape apart": "y = Reshape (x, pieces)",
    "Flatten": "y = Flatten <axis = 2> (x)",
    "Squeeze": "u = Unsqueeze (x, at1) y = Squeeze (u, at1)",
    "Unsqueeze": "y = Unsqueeze (x, at0)",
    "Transpose": "y = Transpose <perm = [2, 0, 1]> (x)",
    "Transpose of all": "y = Transpose (x)",
    "Concat": "y = Concat <axis = 2> (x, s)",
    "Concat across": "y = Concat <axis = 0> (x, s)",
    "Split": "a, y = Split <axis = 1, num_outputs = 2> (x)",
    "Split across": "a, b, y = Split <axis = 0, num_outputs = 3> (x)",
    "Slice": "y = Slice (x, at1, at4, at2)",
    "Slice backwards": "y = Slice (x, last, before, at0, last)",
    "Gather": "y = Gather <axis = 1> (x, picks)",
    "Gather across": "y = Gather <axis = 0> (x, picks)",
    "Gather from a table": "i = ArgMax <axis = 2, keepdims = 0> (x) y = Gather (table, i)",
    "Gather where it says": "i = ArgMax <axis = 2, keepdims = 0> (x) y = Gather <axis = 2> (s, i)",
    "GatherElements": "i = ArgMax <axis = 2, keepdims = 1> (x) y = GatherElements <axis = 2> (s, i)",
    "GatherND": "y = GatherND (x, pairs)",
    "GatherND from a table": "i = ArgMax <axis = 2, keepdims = 1> (x) y = GatherND (table, i)",
    "ScatterElements": "u = Slice (x, at0, at1, at1) y = ScatterElements <axis = 1> (s, idx, u)",
    "ScatterND": "t = Transpose <perm = [1, 0, 2]> (x) u = Slice (t, at0, at1, at0) q = Transpose <perm = [1, 0, 2]> (s) y = ScatterND (q, place, u)",
    "ScatterND across": "u = Slice (x, at0, at1, at0) y = ScatterND (s, place, u)",
    "Expand": "y = Expand (x, wide)",
    "Tile": "y = Tile (x, twice)",
    "Pad": 'y = Pad <mode = "reflect"> (x, pads)',
    "Pad across": 'y = Pad <mode = "edge"> (x, pads0)',
    "OneHot": "i = ArgMax <axis = 2, keepdims = 0> (x) y = OneHot <axis = 0> (i, depth, values)",
    "ReverseSequence": "y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, lengths)",
    "ReverseSequence across": "y = ReverseSequence <batch_axis = 1, time_axis = 0> (x, lengths4)",
    "QuantizeLinear": "y = QuantizeLinear (x, tenth, zero8)",
    "DequantizeLinear": "q = QuantizeLinear (x, tenth, zero8) y = DequantizeLinear (q, tenth, zero8)",
    "DynamicQuantizeLinear": "q, a, b = DynamicQuantizeLinear (x) y = DequantizeLinear (q, a, b)",
    "LSTM": "t = Transpose <perm = [1, 0, 2]> (x) y, h, c = LSTM <hidden_size = 2> (t, W, R)",
    "GRU, last": "t = Transpose <perm = [1, 0, 2]> (x) a, y = GRU <hidden_size = 2> (t, W3, R3)",
    "RNN across": 'a, y = RNN <hidden_size = 2, direction = "reverse"> (x, W1, R1)',
    "DepthToSpace": "u = Unsqueeze (x, at3) y = DepthToSpace <blocksize = 2> (u)",
    "SpaceToDepth": "u = Unsqueeze (x, at1) y = SpaceToDepth <blocksize = 2> (u)",
    "Trilu": "y = Trilu (x)",
    "Dropout": "y = Dropout (x)",
    "CastLike": "y = CastLike (x, tenth)",
    "Clip": "y = Clip (x, low, high)",
    "Shrink": "y = Shrink <lambd = 0.3> (x)",
    "NonZero": "r = Relu (x) y = NonZero (r)",
    "Where": "b = Greater (x, s) y = Where (b, s, x)",
    "PRelu": "y = PRelu (x, six)",
}
WEIGHTS = {
    "two": np.float32([1, 2]),
    "three": np.float32([1, 2, 3]),
    "four": np.float32([1, 2, 3, 4]),
    "five": np.float32([1, 2, 3, 4, 5]),
    "six": np.float32([1, 2, 3, 4, 5, 6]),
    "at0": np.array([0]),
    "at1": np.array([1]),
    "at2": np.array([2]),
    "at3": np.array([3]),
    "at4": np.array([4]),
    "last": np.array([-1]),
    "before": np.array([-99]),
    "axis0": np.array(0),
    "axis1": np.array(1),
    "k2": np.array([2]),
    "flat": np.array([-1, 24]),
    "pieces": np.array([-1, 8]),
    "picks": np.array([2, 0, 0]),
    "pairs": np.array([[2, 1], [0, 3]]),
    "idx": np.full((3, 1, 6), 2),
    "place": np.array([[2]]),
    "wide": np.array([2, 1, 1, 1]),
    "twice": np.array([2, 1, 2]),
    "pads": np.array([0, 1, 2, 0, 1, 0]),
    "pads0": np.array([1, 0, 0, 0, 0, 1]),
    "depth": np.array(6),
    "values": np.float32([0, 1]),
    "lengths": np.array([1, 2, 3]),
    "lengths4": np.array([1, 2, 3, 2]),
    "tenth": np.float32(0.1),
    "zero8": np.uint8(128),
    "low": np.float32(-0.5),
    "high": np.float32(0.5),
    "scales": np.float32([1, 1, 1, 2]),
}
SHAPED = {
    "grid": (4, 6),
    "block": (3, 4, 6),
    "w65": (6, 5),
    "w24": (24, 5),
    "kernel": (4, 4, 3),
    "k13": (2, 1, 1, 3),
    "k413": (2, 4, 1, 3),
    "table": (6, 2),
    **{"W": (1, 8, 6), "R": (1, 8, 2), "W3": (1, 6, 6), "R3": (1, 6, 2), "W1": (1, 2, 6), "R1": (1, 2, 2)},
}
ON_ROWS |= {name: f"y = {name} <keepdims = 0> (x, at1)" for name in REDUCTIONS.split()}
ON_ROWS["ReduceMax across"] = "y = ReduceMax <keepdims = 0> (x, at0)"
ON_ROWS["ReduceMax of all"] = "y = ReduceMax <keepdims = 0> (x)"
ON_ROWS |= {
    name: f"y = {name} (x)" for name in ("Abs", "Tanh", "Sigmoid", "Softplus", "Round", "Floor", "Identity")
}
ON_ROWS |= {name: f"y = {name} (x, s)" for name in ("Add", "Mul", "Max", "Greater", "Pow", "Sum", "Mean")}


def built(body: str) -> StepModel:
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 21]>
        g (float[N, 4, 6] x, float[N, 4, 6] s) => (float[N, 4, 6] y, float[N, 4, 6] s_next) {{ {body} s_next = Identity (s) }}"""
    )
    rng = np.random.default_rng(0)
    weights = WEIGHTS | {n: rng.normal(size=shape).astype("f4") for n, shape in SHAPED.items()}
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items() if n in used
    )
    shape = ("N", 4, 6)
    signature = Signature(
        (TensorSpec("x", "float32", shape),),
        (TensorSpec("y", "float32", shape),),
        (StateSpec("s", "s", "s_next", "float32", shape),),
    )
    return StepModel(model, signature)


@pytest.mark.parametrize("name", sorted(ON_ROWS))
def test_what_changes_is_marked(name: str) -> None:
    step = built(ON_ROWS[name])
    follow = _Follow(step, STREAMS)
    # The outputs have shapes of their own, which the Signature of this graph does not know.
    follow.shapes.pop("y")
    follow.found()
    item = follow.known["y"]

    plain = onnx.ModelProto.FromString(step.model.SerializeToString())
    del plain.graph.output[:]
    plain.graph.output.append(onnx.ValueInfoProto(name="y"))
    plain = onnx.shape_inference.infer_shapes(plain)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(plain.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    given = {n: rng.normal(size=(STREAMS, 4, 6)).astype("f4") for n in ("x", "s")}
    (before,) = session.run(["y"], given)
    assert item.shape in (None, before.shape)
    marked = 0
    for stream in range(STREAMS):
        for scale in (1, 1, 1, 3, 30):
            other = {n: v.copy() for n, v in given.items()}
            for value in other.values():
                value[stream] = scale * rng.normal(size=(4, 6))
            (after,) = session.run(["y"], other)
            if after.shape != before.shape:  # as many as there are: all of it depends on all
                assert item.streams == 7
                continue
            changed = (before != after) & ~(np.isnan(before) & np.isnan(after))
            marks = (
                np.broadcast_to(item.marks, before.shape)
                if item.shape
                else np.full(before.shape, item.streams)
            )
            missed = changed & (marks & (1 << stream) == 0)
            assert not missed.any(), f"{name}: {np.argwhere(missed)[:3].tolist()} change with stream {stream}"
            marked += int(changed.sum())
    assert marked, "nothing ever changed: the test shows nothing"


def test_every_rule_is_tried() -> None:
    tried = {node.op_type for body in ON_ROWS.values() for node in built(body).model.graph.node}
    rules = {op for op, rule in RULES.items() if op not in ELEMENTWISE.split()}
    seldom = "AffineGrid Attention Bernoulli Col2Im DeformConv EyeLike GridSample MaxUnpool RMSNormalization RotaryEmbedding STFT"
    integer = "BitwiseAnd BitwiseNot BitwiseOr BitwiseXor ConvInteger MatMulInteger QLinearConv QLinearMatMul"
    others = "RandomNormalLike RandomUniformLike Upsample"
    assert rules - tried <= set(f"{seldom} {integer} {others}".split()), rules - tried
