"""Products and sites: what shares a scale."""

from __future__ import annotations

import math

import pytest

import zoo
from edgelstm.frontends.described.architecture import EncoderForecaster
from edgelstm.frontends.described.graph import to_step
from edgelstm.passes.products import find_products
from edgelstm.passes.unroll import unroll
from frontends.architectures import random_described
from stepping import from_text


def test_both_ends_of_a_state_are_one_site() -> None:
    found = find_products(zoo.lstm())
    assert [(p.kind, p.weight, p.in_axis, p.out_axis) for p in found.products] == [
        ("Gemm", "w0", 1, 0),
        ("Gemm", "w1", 1, 0),
        ("MatMul", "head.w", 0, 1),
    ]
    assert [part.channels for part in found.products[0].parts] == [3, 4]
    # h of layer 0 is read by its own next step and by layer 1 in this one.
    assert set(found.sites["z9_h"].members) == {"z9_h", "z9_h_next"}
    assert found.products[1].parts[0].site == "z9_h"
    assert [(s.name, s.role) for s in found.sites.values()] == [
        ("x", "frame"),
        ("z9_h", "state"),
        ("g0", "preactivation"),
        ("z8_h", "state"),
        ("g1", "preactivation"),
        ("y", "activation"),
    ]
    assert all(not s.startswith("a") for site in found.sites.values() for s in site.states), "c is in no site"


def test_multiplications() -> None:
    products = find_products(zoo.lstm(3, (4, 5), head=2)).products
    assert [p.macs for p in products] == [16 * 7, 20 * 9, 5 * 2]
    conv = find_products(zoo.conv_lstm(2, 3, 5)).products[0]
    assert conv.macs == 12 * 25 * 5 * 9


def test_copies_of_a_cell_share_their_sites() -> None:
    window = unroll(zoo.lstm(), 4)
    found = find_products(window)
    by_weight = found.by_weight()
    for products in by_weight.values():
        assert len({tuple(p.site for p in product.parts) for product in products}) == 1
        assert len({found.site_of[product.output] for product in products}) == 1


def test_a_concat_along_another_axis_makes_its_inputs_one_site() -> None:
    step = from_text(
        """rows (float[N, 2, 3, 3] a, float[N, 2, 3, 3] b, float[N, 1, 6, 3] e) => (float[N, 4, 6, 3] y)
        <float[4, 3, 1, 1] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}>
        { ab = Concat <axis = 2> (a, b)  all = Concat <axis = 1> (ab, e)  y = Conv (all, w) }"""
    )
    found = find_products(step)
    assert [(p.site, p.channels) for p in found.products[0].parts] == [("a", 2), ("e", 1)]
    assert found.sites["a"].members == ("a", "b")


def test_what_is_no_product() -> None:
    step = from_text(
        """none (float[N, 2] x) => (float[N, 2] y)
        <double[2, 2] d = {1, 2, 3, 4}, float[2, 2] w = {1, 2, 3, 4}>
        { k = Cast <to = 11> (x)  m = MatMul (k, d)  t = Cast <to = 1> (m)  y = Gemm <alpha = 0.5> (t, w) }"""
    )
    assert find_products(step).products == ()


def test_groups_and_dimensions() -> None:
    step = from_text(
        """maps (float[N, 4, 9] x) => (float[N, 6, 7] y)
        <float[6, 2, 3] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}>
        { y = Conv <group = 2> (x, w) }"""
    )
    (product,) = find_products(step).products
    assert (product.groups, product.kernel, product.macs) == (2, (3,), 6 * 7 * 6)


def numbers(*shape: int) -> str:
    """ONNX text of a weight: how it is filled matters to no site."""
    return "{" + ", ".join(["0.5"] * math.prod(shape)) + "}"


def test_sites_of_channels_laid_together_and_of_rows_laid_together() -> None:
    """A ring buffer of past frames: the state, what it becomes and the frame are one tensor in time."""
    step = from_text(
        f"""ring (float[N, 3, 2] x, float[N, 3, 4] s) => (float[N, 5, 2] y, float[N, 3, 4] t)
        <float[5, 3, 5] w = {numbers(5, 3, 5)}, int64[1] two = {{2}}, int64[1] six = {{6}}>
        {{ b = Concat <axis = 2> (s, x)  y = Conv (b, w)  t = Slice (b, two, six, two) }}""",
        s="t",
    )
    found = find_products(step)
    assert [(s.name, s.role, s.states) for s in found.sites.values()] == [
        ("s", "state", ("s",)),
        ("y", "activation", ()),
    ]
    assert set(found.sites["s"].members) == {"s", "x", "t"}


@pytest.mark.parametrize(
    ("node", "in_axis", "out_axis"),
    [("Gemm <transB = 1> (x, w, b)", 1, 0), ("Gemm (x, w, b)", 0, 1), ("MatMul (x, w)", 0, 1)],
)
def test_which_axis_of_a_weight_is_read(node: str, in_axis: int, out_axis: int) -> None:
    shape = (4, 3) if in_axis else (3, 4)
    step = from_text(
        f"""plain (float[N, 3] x) => (float[N, 4] y) <float[{shape[0]}, {shape[1]}] w = {numbers(12)}, float[4] b = {numbers(4)}>
        {{ y = {node} }}"""
    )
    (product,) = find_products(step).products
    assert (product.in_axis, product.out_axis, product.macs) == (in_axis, out_axis, 12)
    assert [p.channels for p in product.parts] == [3]
    assert (product.bias is None) == ("b" not in node)


@pytest.mark.parametrize("spatial", [(9,), (9, 8), (9, 8, 7)])
def test_convolutions_of_any_rank(spatial: tuple[int, ...]) -> None:
    inside, kernel = (", ".join(map(str, s)) for s in (spatial, [2] * len(spatial)))
    step = from_text(
        f"""maps (float[N, 2, {inside}] x) => (float[N, 3, {", ".join(str(n - 1) for n in spatial)}] y)
        <float[3, 2, {kernel}] w = {numbers(6 * 2 ** len(spatial))}> {{ y = Conv (x, w) }}"""
    )
    found = find_products(step)
    (product,) = found.products
    assert product.kernel == (2,) * len(spatial)
    assert product.macs == 3 * math.prod(n - 1 for n in spatial) * 2 * 2 ** len(spatial)
    assert (found.sites["y"].axis, found.sites["y"].channels) == (1, 3)


def test_a_weight_used_in_two_ways_is_quantised_for_the_first() -> None:
    """Tied weights, once transposed: scales folded into its columns would be wrong for its rows."""
    step = from_text(
        f"""tied (float[N, 4] x, float[N, 4] s) => (float[N, 4] y, float[N, 4] t) <float[4, 4] w = {numbers(4, 4)}>
        {{ a = MatMul (s, w)  k = Add (a, x)  t = Tanh (k)  y = Gemm <transB = 1> (t, w) }}""",
        s="t",
    )
    found = find_products(step)
    assert [p.kind for p in found.products] == ["MatMul"]
    assert set(found.sites) == {"s", "a"}


def test_a_value_with_channels_along_two_axes_has_those_of_its_first_product() -> None:
    step = from_text(
        f"""both (float[N, 4, 5] x) => (float[N, 4, 5] y) <float[5, 5] w = {numbers(5, 5)}, float[4, 4, 1] u = {numbers(4, 4)}>
        {{ a = Conv (x, u)  b = MatMul (x, w)  y = Add (a, b) }}"""
    )
    found = find_products(step)
    assert [p.weight for p in found.products] == ["u"]
    assert (found.sites["x"].axis, found.sites["x"].channels) == (1, 4)


def test_weights_that_no_product_multiplies_with_are_in_no_product() -> None:
    step = zoo.conv_lstm()
    assert list(find_products(step).by_weight()) == ["w"], "peepholes and bias are not"
    swapped = from_text(
        f"left (float[3, 4] x) => (float[3, 4] y) <float[3, 3] w = {numbers(3, 3)}> {{ y = MatMul (w, x) }}"
    )
    assert find_products(swapped).products == ()


def test_cells_of_a_forecaster_are_one_cell() -> None:
    """Every copy of a decoder's cell reads the same weights, so their states and inputs are one site each."""
    network = EncoderForecaster(1, (8, 8), patch=2, stem=4, hidden=(4, 5), kernel=3, horizon=3)
    step = to_step(random_described(network))
    found = find_products(step)
    for products in found.by_weight().values():
        assert len({(tuple(p.site for p in q.parts), found.site_of[q.output]) for q in products}) == 1
    times = {w: len(p) for w, p in found.by_weight().items()}
    assert max(times.values()) == 3, times
