"""The TensorRT adapters, compiled against each release's headers and asked through TensorRT's own virtual functions."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from adapter_library import (
    ARCHITECTURE,
    BF16,
    CDHW32,
    CHW4,
    CHW32,
    DHWC8,
    FIELD_FLOAT32,
    FIELD_INT32,
    FLOAT,
    HALF,
    HWC8,
    INT8,
    INT32,
    LINEAR,
    VERSIONS,
    Adapter,
    Adapters,
    Plugin,
    Tensor,
    headers_folders,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgelstm import machine
from edgelstm.graph.gates import GateVariant
from edgelstm.runtime.plugin_library import read_plugin_library

on_every_example = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


#: The newest stands for them in `make test`; `make thorough` and `make plugin-check` have all.
OLDER = VERSIONS[:-1]


@pytest.fixture(params=[pytest.param(v, marks=pytest.mark.thorough if v in OLDER else ()) for v in VERSIONS])
def adapter(request: pytest.FixtureRequest, adapters: Adapters) -> Adapter:
    return adapters[request.param]


def made(adapter: Adapter, **fields: Any) -> Plugin:
    plugin = adapter.create(fields)
    assert plugin is not None, adapter.messages()
    return plugin


def test_which_headers_are_here() -> None:
    """Not a check of the plugin: the others below skip, by name, for each release that is missing."""
    missing = [version for version in VERSIONS if version not in headers_folders()]
    if missing:
        pytest.skip(f"headers of TensorRT {', '.join(missing)} are not here")


# ---- The file


def test_the_library_tells_what_it_was_built_for(adapter: Adapter) -> None:
    library = read_plugin_library(adapter.library)
    assert library.tensorrt.startswith(".".join(map(str, adapter.version)) + ".")
    assert library.architectures == (f"{ARCHITECTURE[:-1]}.{ARCHITECTURE[-1]}",)
    library.check(tensorrt=library.tensorrt, capability="8.6", driver=library.cuda)


def test_nothing_of_tensorrt_or_cuda_is_linked(adapter: Adapter) -> None:
    """It needs whatever loads it, and no library of NVIDIA's on the path; and only its entry points show."""
    needed = subprocess.run(
        ["readelf", "--dynamic", adapter.library], capture_output=True, text=True, check=True
    ).stdout
    assert not re.search(r"NEEDED.*(nvinfer|cudart|cuda)", needed)
    shown = subprocess.run(
        ["nm", "-D", "--defined-only", adapter.library], capture_output=True, text=True, check=True
    )
    entries = {line.split()[-1] for line in shown.stdout.splitlines()}
    v3 = {"getCreators", "setLoggerFinder", "edgelstmPluginInfo"}
    v2 = {"getPluginCreators", "edgelstmRegister", "edgelstmPluginInfo"}
    assert entries == (v3 if adapter.v3 else v2)


# ---- Fields

FLAGS = ("peephole", "hard_sigmoid", "candidate_relu", "output_relu", "coupled", "masked", "count_non_finite")
OWN = {"h_type": FIELD_INT32, "h_scale": FIELD_FLOAT32, "in_place": FIELD_INT32, "masked": FIELD_INT32}
finite = st.floats(-1e3, 1e3, width=32)


@st.composite
def all_fields(draw: st.DrawFn) -> dict[str, int | float]:
    fields: dict[str, int | float] = {name: draw(st.integers(0, 1)) for name in FLAGS}
    fields |= {"alpha": draw(finite), "beta": draw(finite), "cell_clip": draw(st.floats(0, 100, width=32))}
    fields["h_type"] = draw(st.sampled_from([-1, FLOAT, HALF, INT8, BF16]))
    fields["h_scale"] = (
        draw(st.floats(2**-20, 10, width=32)) if fields["h_type"] == INT8 else draw(st.just(0.0))
    )
    return fields


def test_fields_are_those_of_the_gate_variant(adapter: Adapter) -> None:
    name, fields = adapter.names()
    assert name == "FusedGates 1 edgelstm"
    variant = GateVariant().plugin_fields()
    del variant["coded"]
    expected = {n: FIELD_FLOAT32 if isinstance(v, float) else FIELD_INT32 for n, v in variant.items()}
    assert fields == {**expected, **OWN, "count_non_finite": FIELD_INT32}


def test_a_node_without_attributes_is_the_plain_lstm(adapter: Adapter) -> None:
    variant = GateVariant().plugin_fields()
    del variant["coded"]
    explicit = {**variant, "h_type": -1, "h_scale": 0.0, "in_place": 0, "masked": 0, "count_non_finite": 0}
    assert made(adapter).describe() == made(adapter, **explicit).describe()


@on_every_example
@given(fields=all_fields())
def test_fields_survive_a_plan(adapter: Adapter, fields: dict[str, int | float]) -> None:
    plugin = made(adapter, **fields)
    back, clone = plugin.round_trip(), plugin.clone()
    assert back is not None
    assert back.describe() == clone.describe() == plugin.describe()
    if adapter.v3:
        shown = dict(word.split("=") for word in plugin.describe().split())
        assert {n: np.float32(shown[n]) for n in fields} == {n: np.float32(v) for n, v in fields.items()}
    for each in (plugin, back, clone):
        each.destroy()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gate": 1}, "unknown field 'gate'"),
        ({"peephole": 1.0}, "field 'peephole' must be one int32, found type 1"),
        ({"alpha": 1}, "field 'alpha' must be one float32, found type 5"),
        ({"alpha": np.ones(2, np.float32)}, "field 'alpha' must be one float32, found type 1, length 2"),
        ({"alpha": np.ones(0, np.float32)}, "field 'alpha' must be one float32, found type 1, length 0"),
        ({"coupled": np.ones(1, np.int64)}, "field 'coupled' must be one int32, found type 10"),
        ({"coupled": 2}, "field 'coupled' must be 0 or 1, found 2"),
        ({"masked": -1}, "field 'masked' must be 0 or 1, found -1"),
        ({"beta": float("nan")}, "field 'beta' must be finite"),
        ({"cell_clip": float("inf")}, "field 'cell_clip' must be finite"),
        ({"cell_clip": -1.0}, "field 'cell_clip' must be 0 (off) or more"),
        (
            {"h_type": INT32},
            "field 'h_type' must be -1 (as z), 0 (float), 1 (half), 2 (int8) or 7 (bfloat16)",
        ),
        ({"h_type": INT8}, "field 'h_scale' must be above 0 for h_type 2 (int8)"),
        (
            {"h_type": HALF, "h_scale": 0.5},
            "field 'h_scale' must be above 0 for h_type 2 (int8) and 0 for others",
        ),
        ({"h_type": INT8, "h_scale": -0.5}, "field 'h_scale' must be above 0"),
    ],
    ids=str,
)
def test_fields_that_make_no_sense(
    adapter: Adapter, fields: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    adapter.messages()
    assert adapter.create(fields) is None
    assert message in adapter.messages() + capfd.readouterr().err


def test_a_plan_of_another_version_of_the_library(adapter: Adapter) -> None:
    if adapter.v3:
        pytest.skip("TensorRT itself stores the fields of V3 plugins")
    plugin = made(adapter, cell_clip=3.0)
    assert all(plugin.round_trip(damaged) is None for damaged in range(8))


# ---- Tensors


def nodes(adapter: Adapter) -> Iterator[tuple[Plugin, list[str], list[str]]]:
    """Plugins of every number of tensors, with the names of their inputs and outputs."""
    for peephole, coupled, masked, count in itertools.product((0, 1), repeat=4):
        flags = {"peephole": peephole, "coupled": coupled, "masked": masked, "count_non_finite": count}
        inputs = list(GateVariant(peephole=bool(peephole), coupled=bool(coupled)).inputs)
        inputs += ["h_old", "active"] * masked
        yield made(adapter, **flags), inputs, ["h", "c_out", *["non_finite"] * count]


def test_outputs_of_every_kind_of_node(adapter: Adapter) -> None:
    types = {"z": HALF, "c": FLOAT, "h_old": HALF, "active": INT32}
    for plugin, inputs, outputs in nodes(adapter):
        assert plugin.outputs == len(outputs)
        found = plugin.output_types([types.get(name, FLOAT) for name in inputs], len(outputs))
        assert found == [HALF, FLOAT, INT32][: len(outputs)]
        shapes = plugin.output_shapes([Tensor.of([1, 2, 3, 4])] * len(inputs), len(outputs))
        as_c = [(1, axis) for axis in range(4)]
        assert shapes == [as_c, as_c, [(1, 0)]][: len(outputs)]


@pytest.mark.parametrize("h_type", [-1, FLOAT, HALF, INT8, BF16])
def test_type_of_h(adapter: Adapter, h_type: int) -> None:
    plugin = made(adapter, h_type=h_type, h_scale=0.1 if h_type == INT8 else 0.0)
    for z in (FLOAT, HALF, BF16):
        assert plugin.output_types([z, FLOAT], 2) == [z if h_type == -1 else h_type, FLOAT]


def test_a_node_with_another_number_of_tensors(adapter: Adapter, capfd: pytest.CaptureFixture[str]) -> None:
    plugin = made(adapter, peephole=1, masked=1)
    adapter.messages()
    assert plugin.output_shapes([Tensor.of([1, 2, 3])] * 3, 2) is None
    said = adapter.messages() + capfd.readouterr().err
    assert "expected inputs z, c, p_i, p_f, p_o, h_old, active and 2 outputs, found 3 inputs" in said
    assert not plugin.supports(0, [Tensor.of([1, 2, 3])] * 5, 2)


def test_c_is_overwritten_only_where_that_was_asked_for(
    adapter: Adapter, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [made(adapter, count_non_finite=1).aliased(i) for i in range(-1, 4)] == [-1] * 5
    if adapter.version < (10, 3):
        assert adapter.create({"in_place": 1}) is None
        assert "TensorRT 8 has no outputs over inputs" in adapter.messages() + capfd.readouterr().err
        return
    in_place = made(adapter, in_place=1, count_non_finite=1)
    assert [in_place.aliased(output) for output in range(-1, 4)] == [-1, -1, 1, -1, -1]


# ---- Types and layouts

TYPES = (FLOAT, HALF, INT8, INT32, BF16)
LAYOUTS = (LINEAR, HWC8, CHW4, CHW32, DHWC8, CDHW32)
#: The layouts that hold an [N, C, ...] tensor's channels together, by rank: TensorRT counts axes from the end.
KNOWN = {
    2: {LINEAR: LINEAR},
    3: {LINEAR: LINEAR},
    4: {LINEAR: LINEAR, HWC8: HWC8, CHW32: CHW32},
    5: {LINEAR: LINEAR, DHWC8: HWC8, CDHW32: CHW32},
}


@pytest.mark.parametrize("rank", sorted(KNOWN))
def test_combinations_are_those_with_kernels(adapter: Adapter, rank: int) -> None:
    """What TensorRT is told fits, tensor by tensor, is the kernels' table; and it never runs into a dead end."""
    known = KNOWN[rank]
    forms = list(itertools.product(TYPES, LAYOUTS))
    shape = [1, 8, 4, 6, 2][:rank]
    for h_type in (-1, HALF, INT8):
        plugin = made(adapter, h_type=h_type, h_scale=0.1 if h_type == INT8 else 0.0)
        expected = {
            (z, c, h)
            for z, c, h in itertools.product(forms, repeat=3)
            if {z[1], c[1], h[1]} <= set(known)
            and h[0] == (z[0] if h_type == -1 else h_type)
            and adapter.has_kernel([(kind, known[layout]) for kind, layout in (z, c, h)])
        }
        found = set()
        for z in forms:
            tensors = [Tensor.of(shape, *z), Tensor.of(shape), Tensor.of(shape), Tensor.of(shape)]
            assert plugin.supports(0, tensors, 2) == any(row[0] == z for row in expected), z
            if not plugin.supports(0, tensors, 2):
                continue
            for c in forms:
                tensors[1] = tensors[3] = Tensor.of(shape, *c)
                assert plugin.supports(1, tensors, 2) == any(row[:2] == (z, c) for row in expected), (z, c)
                for h in forms if plugin.supports(1, tensors, 2) else ():
                    tensors[2] = Tensor.of(shape, *h)
                    if plugin.accepts(tensors, 2):
                        found.add((z, c, h))
        assert found == expected
        if h_type == -1:  # the type of z
            assert ((HALF, LINEAR), (FLOAT, LINEAR), (HALF, LINEAR)) in found
        if rank == 4 and h_type != -1:  # those that convolutions like are among them
            liked = (HALF, HWC8) if h_type == HALF else (INT8, CHW32)
            assert ((HALF, HWC8), (FLOAT, LINEAR), liked) in found


def test_tensors_beside_z_c_and_h(adapter: Adapter) -> None:
    """Peepholes are as c and linear, h_old is as h, c_out as c, streams' numbers are int32: nothing else passes."""
    plugin = made(adapter, peephole=1, masked=1, count_non_finite=1)
    shape, half = [2, 8, 4, 6], (HALF, HWC8)
    right = {
        "z": half, "c": (FLOAT, LINEAR), "p_i": (FLOAT, LINEAR), "p_f": (FLOAT, LINEAR), "p_o": (FLOAT, LINEAR),
        "h_old": half, "active": (INT32, LINEAR), "h": half, "c_out": (FLOAT, LINEAR), "non_finite": (INT32, LINEAR),
    }  # fmt: skip
    tensors = [Tensor.of(shape, *form) for form in right.values()]
    assert plugin.accepts(tensors, 3)
    alone = ("z", "c", "h_old")  # others of these are right too; that is tested above
    for position, (name, form) in enumerate(right.items()):
        for other in itertools.product(TYPES, LAYOUTS):
            changed = [*tensors[:position], Tensor.of(shape, *other), *tensors[position + 1 :]]
            if name not in alone and other != form:
                assert not plugin.supports(position, changed, 3), (name, other)
    linear = [*tensors[:7], Tensor.of(shape, HALF, LINEAR), *tensors[8:]]
    assert not plugin.supports(7, linear, 3)  # h in another layout than h_old


# ---- Shapes

GOOD = {
    "fixed": ([2, 32, 5, 6], [2, 8, 5, 6], [8], [8, 5, 6], [1, 8, 1, 1], [2, 8, 5, 6], [2]),
    "any number of streams": ([-1, 32, 5, 6], [-1, 8, 5, 6], [8, 1, 1], [240], [8], [-1, 8, 5, 6], [-1]),
    "a vector": ([3, 32], [3, 8], [8], [8], [1, 8], [3, 8], [3]),
    "unknown": ([-1, -1, -1, -1], [-1, -1, -1, -1], [8], [-1], [-1], [-1, -1, -1, -1], [-1]),
}
BAD = {
    "z's channels": (0, [2, 31, 5, 6], "z must be [N, 4 C, ...] and c [N, C, ...], found [2, 31, 5, 6] and [2, 8, 5, 6]"),
    "z's rank": (0, [2, 32, 30], "z must be [N, 4 C, ...]"),
    "z's places": (0, [2, 32, 5, 7], "z must be [N, 4 C, ...]"),
    "z's streams": (0, [3, 32, 5, 6], "z must be [N, 4 C, ...]"),
    "no channels": (1, [2], "z must be [N, 4 C, ...]"),
    "a peephole": (3, [5, 6], "p_f has shape [5, 6], which does not go with c [2, 8, 5, 6]: expected one number a channel"),
    "h_old": (5, [2, 8, 6, 5], "h_old has shape [2, 8, 6, 5], which does not go with c [2, 8, 5, 6]: expected the same"),
    "active": (6, [3], "active has shape [3], which does not go with c [2, 8, 5, 6]: expected one number a stream"),
    "active's rank": (6, [2, 1], "expected one number a stream"),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_shapes_that_go_together(adapter: Adapter, case: str) -> None:
    if not adapter.v3:
        pytest.skip("V2 plugins are not asked about shapes")
    plugin = made(adapter, peephole=1, masked=1)
    inputs = [Tensor.of(shape) for shape in GOOD[case]]
    assert plugin.takes_shapes(inputs, 2), adapter.messages()
    assert plugin.takes_shapes(inputs, 2, at_runtime=True), adapter.messages()


@pytest.mark.parametrize("case", BAD)
def test_shapes_that_do_not(adapter: Adapter, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    position, shape, message = BAD[case]
    plugin = made(adapter, peephole=1, masked=1)
    inputs = [Tensor.of(given) for given in GOOD["fixed"]]
    inputs[position] = Tensor.of(shape)
    adapter.messages()
    if adapter.v3:
        assert not plugin.takes_shapes(inputs, 2)
        assert message in adapter.messages()
        assert not plugin.takes_shapes(inputs, 2, at_runtime=True)
    else:  # enqueue is the only place where this interface can say no
        assert plugin.enqueue([*inputs, Tensor.of([2, 8, 5, 6]), Tensor.of([2, 8, 5, 6])], 2) != 0
    assert message in adapter.messages() + capfd.readouterr().err


# ---- Launching


def test_a_launch_that_can_not_be_is_refused(adapter: Adapter, capfd: pytest.CaptureFixture[str]) -> None:
    """Null pointers, and a combination no kernel is for: an error code and a message, nothing is launched."""
    plugin = made(adapter)
    cuda_error_invalid_value = 1
    for layout, message in ((LINEAR, "FusedGates: "), (CHW4, "no kernel for these types and layouts")):
        z, c = Tensor.of([1, 32, 5, 6], HALF, layout), Tensor.of([1, 8, 5, 6], FLOAT)
        adapter.messages()
        assert plugin.enqueue([z, c, Tensor.of([1, 8, 5, 6], HALF, layout), c], 2) == cuda_error_invalid_value
        assert message in adapter.messages() + capfd.readouterr().err


def test_without_a_gpu_a_launch_fails_with_cudas_error(adapter: Adapter) -> None:
    cuda = machine.cuda()
    if cuda is not None and cuda.gpus:
        pytest.skip("there is a GPU")
    place = np.zeros(4096, np.float32)
    z, c = (Tensor.of([1, k, 5, 6], FLOAT, LINEAR, place.ctypes.data) for k in (32, 8))
    assert made(adapter).enqueue([z, c, c, c], 2) > 1
    assert not place.any()
