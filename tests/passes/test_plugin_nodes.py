"""plugin_nodes: the nodes hold everything the plugin needs, and computing what they say gives the graph's own numbers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import attribute
from edgelstm.passes.lower import lower
from edgelstm.passes.plugin_nodes import is_plugin
from edgelstm.passes.unroll import unroll
from edgelstm.workflows.quantize import quantize
from recordings import calibrated, drift
from stepping import Stepper, from_text, some_frames

H_DTYPES = {0: np.float32, 1: np.float16, 2: np.int8, 7: ml_dtypes.bfloat16}


class FusedGates(OpRun):
    """What plugins/README.md says the plugin does, computed by the NumPy reference of the variant its fields name."""

    op_domain = "edgelstm"

    def _run(self, z: Any, c: Any, *peepholes: Any, **fields: Any) -> Any:
        hard = bool(fields["hard_sigmoid"])
        variant = GateVariant(
            peephole=bool(fields["peephole"]),
            gate="hard_sigmoid" if hard else "sigmoid",
            **({"alpha": float(fields["alpha"]), "beta": float(fields["beta"])} if hard else {}),
            candidate="relu" if fields["candidate_relu"] else "tanh",
            output="relu" if fields["output_relu"] else "tanh",
            cell_clip=float(fields["cell_clip"]) or None,
            coupled=bool(fields["coupled"]),
        )
        maps = [p.reshape(-1, *[1] * (c.ndim - 2)) if p.size == c.shape[1] else p for p in peepholes]
        maps = [p.reshape(c.shape[1:]) if p.size == c[0].size else p for p in maps]
        h, c_out = variant.reference(
            z.astype(np.float32), c.astype(np.float32), *(p.astype(np.float32) for p in maps)
        )
        if fields["h_type"] == 2:
            h = np.clip(np.rint(h / np.float32(fields["h_scale"])), -128, 127)
        return h.astype(H_DTYPES[fields["h_type"]]), c_out.astype(c.dtype)


def plugged(step: StepModel, **options: bool) -> StepModel:
    before = step.to_bytes()
    low = lower(step, "tensorrt", "plugin", **options)
    assert step.to_bytes() == before
    assert low.signature == step.signature
    assert not low.model.functions
    assert {n.domain for n in low.model.graph.node} <= {"", "edgelstm"}
    assert all(is_plugin(n) for n in low.model.graph.node if n.domain)
    return low


def assert_same_numbers(step: StepModel, low: StepModel, limit: float = 1e-5, steps: int = 4) -> None:
    """limit: relative error in the 2-norm; a code that rounds the other way is an error of a whole code."""
    reference = ReferenceEvaluator(low.model, new_ops=[FusedGates])
    stepper = Stepper(step)
    mine = theirs = stepper.initial(2)
    for k in range(steps):
        x = {n: v[:, 0] for n, v in some_frames(step, 2, 1, seed=k).items()}
        want, theirs = stepper(x, theirs)
        names = [t.name for t in step.signature.outputs] + [s.output for s in step.signature.states]
        feeds = x | {s.input: mine[s.name] for s in step.signature.states}
        got = dict(zip(names, reference.run(names, feeds), strict=True))
        mine = {s.name: got[s.output] for s in step.signature.states}
        for name, value in want.items():
            off = got[name].astype(np.float64) - value.astype(np.float64)
            assert np.linalg.norm(off) <= limit * np.linalg.norm(value.astype(np.float64)), name


STEPS = {
    "lstm": zoo.lstm(),
    "peephole conv_lstm": zoo.conv_lstm(),
    "window": unroll(zoo.lstm(), 3),
    "no gates": zoo.two_inputs(),
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_numbers(name: str, in_place: bool) -> None:
    step = STEPS[name]
    assert_same_numbers(step, plugged(step, in_place=in_place))


@pytest.mark.parametrize(
    "variant",
    [
        GateVariant(gate="hard_sigmoid"),
        GateVariant(gate="hard_sigmoid", alpha=1 / 6, beta=0.5, candidate="relu"),
        GateVariant(coupled=True, cell_clip=0.5, output="relu"),
        GateVariant(peephole=True, coupled=True),
    ],
    ids=lambda v: v.op_type,
)
def test_variants(variant: GateVariant) -> None:
    peepholes = variant.inputs[2:]
    weights = ", ".join(f"float[3] {p} = {{0.1, -0.2, 0.3}}" for p in peepholes)
    step = from_text(
        f"g (float[N, {len(variant.gates) * 3}] z, float[N, 3] c) => (float[N, 3] h, float[N, 3] c2)\n"
        f"<{weights}>\n{{ h, c2 = edgelstm.{variant.op_type}({', '.join(['z', 'c', *peepholes])}) }}",
        c="c2",
    )
    low = plugged(step)
    (node,) = low.model.graph.node
    told = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    wanted = {k: v for k, v in variant.plugin_fields().items() if k != "coded"}
    assert {k: told[k] for k in wanted} == pytest.approx(wanted)
    assert (node.op_type, told["plugin_version"], told["plugin_namespace"]) == (
        "FusedGates",
        b"1",
        b"edgelstm",
    )
    assert_same_numbers(step, low)


@pytest.mark.parametrize(("precision", "h_type"), [("fp16", 1), ("int8", 2)])
def test_the_kernel_loads_and_stores_what_the_graph_holds(precision: str, h_type: int) -> None:
    step = zoo.conv_lstm(4, 8, 6)
    made = quantize(
        step,
        calibrated(step) if precision == "int8" else None,
        runtime="tensorrt",
        precision=precision,
        rest="fp16" if precision == "int8" else "fp32",
    ).step
    low = plugged(made)
    (node,) = [n for n in low.model.graph.node if is_plugin(n)]
    if precision == "fp16":
        # h leaves as an output in float32 and as a state in fp16: two readers, so the Cast stays apart.
        assert attribute(node, "h_type") in (0, h_type)
    assert_same_numbers(made, low, 2e-3 if precision == "fp16" else 0.05)


def test_casts_and_codes_go_into_the_node() -> None:
    """z in fp16, c kept in fp16, h stored as codes: three conversions, none of them a node any more."""
    step = from_text(
        """g (float16[N, 8] z16, float16[N, 2] c16, int8[N, 2] h) => (int8[N, 2] h2, float16[N, 2] c2)
        <float s = {0.01}, int8 zero = {0}>
        {
            z = Cast<to = 1>(z16)
            c = Cast<to = 1>(c16)
            hf, cf = edgelstm.FusedGates_lstm(z, c)
            h2 = QuantizeLinear(hf, s, zero)
            c2 = Cast<to = 10>(cf)
        }""",
        c16="c2",
        h="h2",
    )
    low = plugged(step)
    assert low.op_types() == ["FusedGates"]
    (node,) = low.model.graph.node
    assert (list(node.input), list(node.output)) == (["z16", "c16"], ["h2", "c2"])
    assert attribute(node, "h_type") == 2
    assert attribute(node, "h_scale") == pytest.approx(0.01)
    assert_same_numbers(step, low, 0.01)


def test_values_others_read_stay() -> None:
    step = from_text(
        """g (float16[N, 8] z16, float[N, 2] c) => (float[N, 2] h, float[N, 2] c2, float[N, 8] twice, float16[N, 2] half)
        {
            z = Cast<to = 1>(z16)
            h, c2 = edgelstm.FusedGates_lstm(z, c)
            twice = Add(z, z)
            half = Cast<to = 10>(h)
        }""",
        c="c2",
    )
    low = plugged(step)
    assert sorted(low.op_types()) == ["Add", "Cast", "Cast", "FusedGates"]
    assert_same_numbers(step, low)


def test_only_inner_cell_states_are_overwritten() -> None:
    window = unroll(zoo.lstm(hidden=(4,)), 3)
    nodes = [n for n in plugged(window, in_place=True).model.graph.node if is_plugin(n)]
    # The first reads the state of the step before, the last writes that of the next.
    assert [attribute(n, "in_place") for n in nodes] == [0, 1, 0]
    assert not any(attribute(n, "in_place") for n in plugged(window).model.graph.node if is_plugin(n))


def test_codes_for_the_cpu_are_refused() -> None:
    step = zoo.conv_lstm(4, 8, 6)
    made = quantize(step, calibrated(step), runtime="onnxruntime").step
    with pytest.raises(EdgeLstmError, match="Quantise the float model again"):
        lower(made, "tensorrt", "plugin")


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt_rtx"])
def test_plugin_nodes_only_where_there_are_plugins(target: Any) -> None:
    with pytest.raises(EdgeLstmError, match="expected target tensorrt"):
        lower(zoo.lstm(), target, "plugin")


def test_stored_models_say_what_they_are_worth() -> None:
    """The quantised graph behind these nodes follows its float model; else the tests above would compare noise."""
    step = zoo.conv_lstm(4, 8, 6)
    made = quantize(step, calibrated(step), runtime="tensorrt").step
    assert max(drift(step, made, 60).values()) < 0.1
