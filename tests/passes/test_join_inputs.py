"""join_inputs: one product a cell, the same numbers; what can't be joined stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgelstm.graph.step import StepModel
from edgelstm.passes.fuse_gates import fuse_gates
from edgelstm.passes.join_inputs import join_inputs
from passes.cells import Written
from passes.test_fuse_gates import assert_same


def weights(step: StepModel) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in step.model.graph.initializer}


@pytest.mark.parametrize("product", ["Gemm", "MatMul", "Conv"])
def test_two_products_become_one_of_both_inputs(product: str) -> None:
    spatial = (4, 5) if product == "Conv" else ()
    step = fuse_gates(Written(joined=False, product=product, spatial=spatial).build())
    before = step.to_bytes()
    joined = join_inputs(step)
    assert step.to_bytes() == before
    op = "Conv" if product == "Conv" else "Gemm"
    assert joined.op_types() == ["Concat", op, "FusedGates_lstm"]
    assert list(joined.model.graph.node[0].input) == ["x", "h"]
    assert_same(step, joined, "float64")


def test_the_state_comes_last_and_its_columns_with_it() -> None:
    step = fuse_gates(Written(joined=False, flips=(1 << 16) - 1).build())
    swapped = step.copy_model()
    add = next(node for node in swapped.graph.node if node.op_type == "Add")
    add.input[:] = list(add.input)[::-1]
    for model in (step.model, swapped):
        joined = join_inputs(StepModel(model, step.signature))
        concat, gemm, _ = joined.model.graph.node
        assert list(concat.input) == ["x", "h"]
        assert_same(step, joined, "float64")
        assert weights(joined)[gemm.input[1]].shape == (12, 5)  # [4H, inputs + H]


def test_alpha_beta_and_transposed_weights_of_a_gemm() -> None:
    step = fuse_gates(Written(joined=False).build())
    model = step.copy_model()
    first, second = (node for node in model.graph.node if node.op_type == "Gemm")
    first.attribute.extend([helper.make_attribute("alpha", 0.5), helper.make_attribute("beta", 2.0)])
    second.attribute.append(helper.make_attribute("transB", 1))
    tensor = next(t for t in model.graph.initializer if t.name == second.input[1])
    turned = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
    tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))
    scaled = StepModel(model, step.signature)
    joined = join_inputs(scaled)
    assert joined.op_types() == ["Concat", "Gemm", "FusedGates_lstm"]
    assert_same(scaled, joined, "float64")


def test_all_constants_of_the_sum_become_one_bias() -> None:
    step = join_inputs(fuse_gates(Written(product="MatMul", forget_bias=1.0).build()))
    assert step.op_types() == ["Concat", "Gemm", "FusedGates_lstm"]
    assert {v.shape for v in weights(step).values()} == {(12, 5), (12,)}


def changed(change: str) -> StepModel:
    """Two convolutions, of which the first differs in what joining needs equal."""
    step = fuse_gates(Written(joined=False, product="Conv", spatial=(4,), inputs=3).build())
    model = step.copy_model()
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    if change == "dilated":
        del first.attribute[:]
        first.attribute.extend(
            [helper.make_attribute("pads", [2, 2]), helper.make_attribute("dilations", [2])]
        )
    elif change == "grouped":
        first.attribute.append(helper.make_attribute("group", 3))
        tensor = next(t for t in model.graph.initializer if t.name == first.input[1])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:, :1].copy(), tensor.name))
    else:
        model.graph.node.append(helper.make_node("Identity", [first.output[0]], ["seen"]))
        extra = onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.DOUBLE, ["N", 12, 4])
        model.graph.output.append(extra)
    return StepModel(model, step.signature)


@pytest.mark.parametrize("change", ["dilated", "grouped", "read elsewhere"])
def test_what_cannot_be_joined_stays(change: str) -> None:
    step = changed(change)
    joined = join_inputs(step)
    assert joined.op_types().count("Conv") == 2
    assert_same(step, joined, "float64")


def test_sums_that_feed_no_fused_gates_stay() -> None:
    step = Written(joined=False).build()
    assert join_inputs(step).op_types() == step.op_types()


def test_a_joined_cell_stays_as_it_is() -> None:
    once = join_inputs(fuse_gates(Written(joined=False).build()))
    assert join_inputs(once).to_bytes() == once.to_bytes()


def test_copies_of_a_cell_go_on_sharing_their_weights() -> None:
    """A forecaster's cell, run three times in one step."""
    step = Written(joined=False, order=("o", "g", "f", "i")).build()
    graph = step.model.graph
    model = step.copy_model()
    del model.graph.node[:]
    names = {"h": "h", "c": "c", "x": "x"}
    for k in range(3):
        for node in graph.node:
            new = model.graph.node.add()
            new.CopyFrom(node)
            new.input[:] = [names.get(name, name) for name in node.input]
            new.output[:] = [
                name if k == 2 and name.endswith("_next") else f"{name}_{k}" for name in node.output
            ]
            names |= {name: new.output[n] for n, name in enumerate(node.output)}
        names |= {"h": names["h_next"], "c": names["c_next"]}
    thrice = StepModel(model, step.signature)
    joined = join_inputs(fuse_gates(thrice))
    assert joined.op_types() == ["Concat", "Gemm", "FusedGates_lstm"] * 3
    assert sorted(v.shape for v in weights(joined).values()) == [(12,), (12, 5)]
    assert_same(thrice, joined, "float64")
