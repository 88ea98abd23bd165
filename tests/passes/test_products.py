"""Products and sites: what shares a scale."""

from __future__ import annotations

import zoo
from edgelstm.passes.products import find_products
from edgelstm.passes.unroll import unroll
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
