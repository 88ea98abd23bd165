"""The FusedGates kernels on the host: the arithmetic and index code that the GPU runs, against GateVariant.reference."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from host_library import (
    BF16,
    CHW32,
    DTYPES,
    FLOAT,
    HALF,
    HWC8,
    INT8,
    LINEAR,
    PLUGINS,
    Forms,
    Params,
    Peephole,
    Tensor,
    TensorForm,
    compile_host_loop,
    markdown_table,
    table,
    variant_struct,
    watched,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelstm.graph.gates import GateVariant

Array = npt.NDArray[Any]
Form = tuple[int, int]

EPS = float(np.finfo(np.float32).eps)
#: Below this the hardware's 2^x and 1/x give zero.
TINY = float(np.finfo(np.float32).tiny)


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    return compile_host_loop()


@pytest.fixture(
    params=[0, *(pytest.param(k, marks=pytest.mark.thorough) for k in (-1, 1)), 2],
    ids=["rounded", "low", "high", "mixed"],
)
def approximating(host: ctypes.CDLL, request: pytest.FixtureRequest) -> Any:
    """2^x and 1/x as the host rounds them, and off by what PTX allows: all low, all high, now low now high."""
    host.approximate(request.param)
    yield host
    host.approximate(0)


def _address(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _call(function: Any, x: Array, out: npt.DTypeLike, *before: Any) -> Array:
    y = np.empty(x.shape, out)
    function(*before, _address(x), _address(y), ctypes.c_uint64(x.size))
    return y


# ---- Numbers


def test_every_half_reads_and_writes_as_numpy_does(host: ctypes.CDLL) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = _call(host.from_half, bits, np.float32)
    np.testing.assert_array_equal(values, bits.view(np.float16).astype(np.float32))
    # Each value, what lies halfway to the next, and the floats beside those.
    finite = np.sort(values[np.isfinite(values)])
    middle = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    around = [np.nextafter(middle, np.float32(side)) for side in (-np.inf, np.inf)]
    edge = np.array([65519.99, 65520, 65521, np.inf, -np.inf, np.nan, 1e-30, -0.0], np.float32)
    x = np.concatenate([values, middle, *around, edge]).astype(np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            _call(host.to_half, x, np.uint16).view(np.float16), x.astype(np.float16)
        )


def test_bf16_rounds_to_nearest_even(host: ctypes.CDLL) -> None:
    rng = np.random.default_rng(1)
    bits = np.concatenate(
        [rng.integers(0, 1 << 32, 200_000, np.uint32), np.arange(1 << 16, dtype=np.uint32) << 16 | 0x8000]
    )
    x = bits.view(np.float32)
    found = _call(host.to_bf16, x, np.uint16).view(ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))


def test_division_by_multiplication(host: ctypes.CDLL) -> None:
    rng = np.random.default_rng(2)
    for divisor in (1, 2, 3, 5, 7, 255, 256, 257, 4096, 65537, 2**30, 2**31 - 1, *rng.integers(1, 2**31, 50)):
        top = np.arange(max(0, 2**31 - 1000), 2**31)
        near = (rng.integers(0, 2**31 // divisor + 1, 1000) * divisor)[:, None] + np.array([-1, 0, 1])
        n = np.concatenate([np.arange(1000), top, near.ravel().clip(0, 2**31 - 1)]).astype(np.uint32)
        np.testing.assert_array_equal(
            _call(host.quotients, n, np.uint32, ctypes.c_uint32(int(divisor))), n // divisor
        )


def test_codes_are_those_of_a_division(host: ctypes.CDLL) -> None:
    rng = np.random.default_rng(3)
    special = np.array([np.inf, -np.inf, np.nan, 0, -0.0, 3e38], np.float32)
    for scale in (*np.exp(rng.uniform(-30, 5, 40)), 1 / 127, 0.0078125, 2**-126, 1e30):
        scale = np.float32(scale)
        ties = ((np.arange(-140, 140) + 0.5) * scale).astype(np.float32)
        h = np.concatenate([rng.uniform(-200, 200, 5000).astype(np.float32) * scale, ties, special])
        h = np.concatenate([h, np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, np.float32(-9e9))])
        with np.errstate(over="ignore"):
            expected = np.nan_to_num(np.rint(np.clip(h / scale, -128, 127)), nan=0)
        found = np.empty_like(h)
        host.codes(_address(h), ctypes.c_float(scale), _address(found), ctypes.c_uint64(h.size))
        np.testing.assert_array_equal(found, expected)


def _arguments() -> Array:
    """Floats of every size and sign, densest where the functions bend, and both sides of each change of formula."""
    rng = np.random.default_rng(4)
    sizes = np.exp(rng.uniform(np.log(1e-30), np.log(100), 200_000))
    dense = np.concatenate(
        [rng.uniform(0, 1, 300_000), rng.uniform(0, 12, 300_000), rng.uniform(0, 90, 100_000)]
    )
    edges = np.array([0.5, 87.3, 88, 88.7, 89, 103, 1e4, 3e38, np.inf, 0, 1e-45])
    edges = np.concatenate([edges, np.nextafter(edges.astype(np.float32), np.float32(0))])
    x = np.concatenate([sizes, dense, edges]).astype(np.float32)
    return np.concatenate([x, -x])


def _relative(found: Array, exact: Array) -> Array:
    """Relative error in units of float32's eps, 2^-23; what flushing to zero loses is not counted."""
    error = np.abs(found.astype(np.float64) - exact)
    error[error <= TINY] = 0
    return error / (EPS * np.maximum(np.abs(exact), TINY))


#: Combinations of three types and three layouts that there are kernels for.
FORMS = 90

#: Relative errors in units of 2^-23, hardware included: what plugins/README.md states.
SIGMOID, TANH = 4.0, 4.0


def test_activations_are_within_their_bounds(approximating: ctypes.CDLL) -> None:
    x = _arguments()
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-wide))
    plain, exact, tanh = (_call(approximating.activate, x, np.float32, which) for which in range(3))
    assert _relative(exact, sigmoid).max() < SIGMOID
    assert _relative(tanh, np.tanh(wide)).max() < TANH
    assert _relative(tanh, np.tanh(wide))[np.abs(wide) < 0.5].max() < 2
    # z in 16 bits: the exponent's rounding adds |x| units where the sigmoid is small, never to what matters beside 1.
    near = np.abs(wide) < 88
    assert (_relative(plain, sigmoid) - np.maximum(-wide, 0))[near].max() < SIGMOID
    assert np.abs(plain - sigmoid).max() < 2 * EPS
    # And they stay in their range, in order.
    for y, lowest in ((plain, 0), (exact, 0), (tanh, -1)):
        assert y.min() >= lowest - 2 * EPS
        assert y.max() <= 1 + 2 * EPS


def test_what_is_not_a_number_stays_so(host: ctypes.CDLL) -> None:
    x = np.array([np.nan, np.inf, -np.inf], np.float32)
    for which, expected in ((0, [np.nan, 1, 0]), (1, [np.nan, 1, 0]), (2, [np.nan, 1, -1])):
        np.testing.assert_allclose(_call(host.activate, x, np.float32, which), expected, rtol=EPS, atol=TINY)


# ---- FusedGates


@dataclass
class Case:
    """One call: what it computes, on tensors drawn from ``seed``."""

    variant: GateVariant
    forms: tuple[Form, Form, Form]
    streams: int
    channels: int
    spatial: int
    maps: tuple[bool, bool, bool] = (False, False, False)
    idle: tuple[bool, ...] | None = None
    count: bool = False
    in_place: bool = False
    shift: int = 0  # bytes that every tensor, or the one called ``shifted``, starts past a multiple of 64
    shifted: str = ""
    spoil: int = 0  # how many values of z are made NaN or infinite
    seed: int = 0
    h_scale: float = 1 / 127
    c_size: float = 2.0  # standard deviations
    z_size: float = 3.0

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """z, c, h_old and peepholes as the kernel finds them in memory."""
        rng = np.random.default_rng(self.seed)
        z_form, c_form, h_form = self.forms
        n, c, s = self.streams, self.channels, self.spatial
        by = self._shift
        z_shape = (n, len(self.variant.gates) * c, s)
        z = rng.normal(0, self.z_size, z_shape)
        bad = rng.integers(0, z.size, self.spoil)
        z.ravel()[bad] = rng.choice([np.nan, np.inf, -np.inf], self.spoil)
        make: dict[str, Tensor] = {}
        make["z"] = Tensor.of(z, z_form, z_shape, by("z"))
        make["c"] = Tensor.of(rng.normal(0, self.c_size, (n, c, s)), c_form, (n, c, s), by("c"))
        old = rng.integers(-128, 128, (n, c, s)) if h_form[0] == INT8 else rng.normal(size=(n, c, s))
        make["h_old"] = Tensor.of(old, h_form, (n, c, s), by("h_old"))
        for name, is_map in zip(("p_i", "p_f", "p_o"), self.maps, strict=True):
            width = s if is_map else 1
            make[name] = Tensor.of(
                rng.normal(size=(1, c, width)), (c_form[0], LINEAR), (1, c, width), by(name)
            )
        return make

    def _shift(self, name: str) -> int:
        return self.shift if self.shifted in ("", name) else 0

    def run(self, host: ctypes.CDLL, *, watch: bool = False) -> dict[str, Any]:
        """h, c_out (Tensors), non_finite, and with ``watch`` the accesses."""
        _, c_form, h_form = self.forms
        n, c, s = shape = (self.streams, self.channels, self.spatial)
        h = Tensor.of(None, h_form, shape, self._shift("h"))
        c_in = Tensor.of(self.inputs["c"].values(), c_form, shape, self._shift("c"))
        c_out = c_in if self.in_place else Tensor.of(None, c_form, shape, self._shift("c_out"))
        active = None if self.idle is None else np.array([not i for i in self.idle], np.int32)
        non_finite = np.full(n, -1, np.int32)
        params = Params(
            variant=variant_struct(self.variant),
            forms=Forms(*(TensorForm(*form) for form in self.forms)),
            h_scale=self.h_scale if h_form[0] == INT8 else 0.0,
            streams=n,
            channels=c,
            spatial=s,
            z=self.inputs["z"].address,
            c=c_in.address,
            h_old=self.inputs["h_old"].address if active is not None else None,
            active=None if active is None else active.ctypes.data,
            h=h.address,
            c_out=c_out.address,
            non_finite=non_finite.ctypes.data if self.count else None,
        )
        for name, is_map in zip(("p_i", "p_f", "p_o"), self.maps, strict=True):
            if name in self.variant.inputs:
                setattr(params, name, Peephole(self.inputs[name].address, is_map))
        refused = host.fused_gates(ctypes.byref(params))
        assert refused is None, refused
        found = {
            "h": h,
            "c_out": c_out,
            "c": c_in,
            "non_finite": non_finite,
            "params": params,
            "active": active,
        }
        assert all(t.guards_intact() for t in (h, c_out, c_in))
        if watch:
            found["accesses"] = watched(host, params)
        return found

    def wide(self, name: str) -> Array:
        """An input as the kernel finds it in memory, in float64, [N, K, S]."""
        values: Array = self.inputs[name].values().astype(np.float64)
        return values

    def expected(self) -> tuple[Array, Array, Array, Array]:
        """h and c_out by GateVariant.reference in float64, and how far off float32 may be."""
        v = self.variant
        z, c = self.wide("z"), self.wide("c")
        weights = {name: self.wide(name)[0] for name in ("p_i", "p_f", "p_o")}
        with np.errstate(all="ignore"):
            h, c_out = v.reference(z, c, *(weights[name] for name in v.inputs[2:]))
            return h, c_out, *self._bounds(z, c, weights, c_out)

    def _bounds(self, z: Array, c: Array, p: dict[str, Array], c_out: Array) -> tuple[Array, Array]:
        """First-order error of every step: its own rounding, and its inputs' errors times its slope."""
        v = self.variant
        part = dict(zip(v.gates, np.split(z, len(v.gates), 1), strict=True))

        def gate(x: Array, dx: Array) -> tuple[Array, Array]:
            if v.gate == "hard_sigmoid":
                y = np.clip(np.float32(v.alpha) * x + np.float32(v.beta), 0, 1)
                return y, np.minimum(abs(v.alpha) * dx + EPS * (1 + np.abs(v.alpha * x)), 1)
            y = 1 / (1 + np.exp(-x))
            # A relative error of x, from 16 bits' exponents, is an error of the sigmoid of |x| times its slope.
            dx = np.minimum(dx + 2 * EPS * np.abs(x), 1e30)  # of an infinity too, where the slope is 0
            # The reference itself, 0.5 tanh(x / 2) + 0.5 in float64, is off by that much where the sigmoid is small.
            return y, y * (1 - y) * dx + SIGMOID * EPS * y + np.finfo(np.float64).eps

        def activate(kind: str, x: Array, dx: Array) -> tuple[Array, Array]:
            if kind == "relu":
                return np.maximum(x, 0), dx
            y = np.tanh(x)
            return y, (1 - y * y) * np.minimum(dx, 1e30) + TANH * EPS * np.abs(y)

        def sees(name: str, value: Array, error: Array) -> tuple[Array, Array]:
            x = part[name]
            if not v.peephole:
                return x, np.zeros_like(x)
            w = p["p_" + name]
            return x + w * value, np.abs(w) * error + EPS * (np.abs(x) + np.abs(w * value))

        still = np.zeros_like(c)
        i, di = gate(*sees("i", c, still))
        f, df = (1 - i, di + EPS * (1 - i)) if v.coupled else gate(*sees("f", c, still))
        g, dg = activate(v.candidate, part["g"], still)
        dc = np.abs(c) * df + i * dg + np.abs(g) * di + 2 * EPS * (np.abs(f * c) + np.abs(i * g))
        o, do = gate(*sees("o", c_out, dc))
        a, da = activate(v.output, c_out, dc)
        dh = o * da + np.abs(a) * do + 2 * EPS * np.abs(o * a)
        return dh + TINY, dc + TINY


def _rounding(values: Array, kind: int) -> Array:
    """Half the distance between neighbours of that type at each value; infinite where it overflows."""
    if kind == FLOAT:
        return np.zeros_like(values)
    bits, least, most = (10, -24, 65504.0) if kind == HALF else (7, -133, 3.39e38)
    with np.errstate(divide="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.abs(values))) - bits, least)
    return np.where(np.abs(values) > most, np.inf, 0.5001 * 2.0**exponent)


def check(case: Case, host: ctypes.CDLL) -> dict[str, Any]:
    """Run it and compare every value with the reference."""
    found = case.run(host)
    h, c_out, dh, dc = case.expected()
    idle = np.array(case.idle if case.idle is not None else [False] * case.streams)
    kind = case.forms[2][0]
    stored_h, stored_c = found["h"].values(), found["c_out"].values()
    # Idle streams keep what they had, bit for bit; padding is zero.
    np.testing.assert_array_equal(stored_h[idle], case.inputs["h_old"].values()[idle])
    np.testing.assert_array_equal(stored_c[idle], case.inputs["c"].values()[idle])
    assert not found["h"].padded()[:, case.channels :].astype(np.float32).any()

    got_c = stored_c.astype(np.float64)
    _assert_within(got_c[~idle], c_out[~idle], (dc + _rounding(c_out, case.forms[1][0]))[~idle])
    if kind == INT8:
        with np.errstate(invalid="ignore"):
            exact = h / np.float64(np.float32(case.h_scale))
            wanted = np.clip(np.rint(np.nan_to_num(exact, nan=0, posinf=999, neginf=-999)), -128, 127)
            # Another code only where h is as near to the next one as its error.
            tie = np.abs(np.abs(exact - np.floor(exact)) - 0.5) <= dh / case.h_scale + 1e-6 * np.abs(exact)
        off = np.abs(stored_h.astype(int) - wanted)[~idle]
        assert (off <= np.where(tie[~idle], 1, 0)).all()
    else:
        _assert_within(stored_h.astype(np.float64)[~idle], h[~idle], (dh + _rounding(h, kind))[~idle])
    if case.count and kind != INT8:
        bad = ~np.isfinite(stored_h.astype(np.float32)), ~np.isfinite(stored_c.astype(np.float32))
        np.testing.assert_array_equal(found["non_finite"], sum(b.sum((1, 2)) for b in bad))
    if not case.in_place:
        np.testing.assert_array_equal(found["c"].values(), case.inputs["c"].values())
    return found


def _assert_within(found: Array, exact: Array, bound: Array) -> None:
    with np.errstate(invalid="ignore"):
        right = (np.abs(found - exact) <= bound) | (found == exact) | (np.isnan(found) & np.isnan(exact))
        right |= np.isinf(found) & np.isinf(bound) & (np.sign(found) == np.sign(exact))
    if not right.all():
        k = int(np.argmin(right))
        raise AssertionError(
            f"{(~right).sum()} of {right.size} values are off; the first, number {k}: {found.ravel()[k]!r}, "
            f"expected {exact.ravel()[k]!r} within {bound.ravel()[k]:.3g}"
        )


def _kernels() -> list[GateVariant]:
    """One variant for each kernel of a walk: the two usual ones and the one with options."""
    return [
        GateVariant(),
        GateVariant(peephole=True),
        GateVariant(peephole=True, coupled=True, cell_clip=1.0),
    ]


def variants() -> st.SearchStrategy[GateVariant]:
    gates = st.sampled_from(
        [("sigmoid", 0.2, 0.5)] * 2 + [("hard_sigmoid", 0.2, 0.5), ("hard_sigmoid", 1 / 6, 0.5)]
    )
    return st.builds(
        lambda peephole, gate, candidate, output, clip, coupled: GateVariant(
            peephole, *gate, candidate, output, clip, coupled
        ),
        st.booleans(),
        gates,
        st.sampled_from(["tanh", "relu"]),
        st.sampled_from(["tanh", "relu"]),
        st.sampled_from([None, None, 0.5, 3.0]),
        st.booleans(),
    )


@st.composite
def cases(draw: st.DrawFn, rows: list[tuple[Form, Form, Form]]) -> Case:
    streams = draw(st.integers(1, 4))
    return Case(
        variant=draw(st.just(GateVariant()) | st.just(GateVariant(peephole=True)) | variants()),
        forms=draw(st.sampled_from(rows)),
        streams=streams,
        channels=draw(st.integers(1, 70) | st.sampled_from([8, 16, 24, 32, 40, 64])),
        spatial=draw(st.integers(1, 40) | st.sampled_from([1, 16, 64])),
        maps=draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
        idle=draw(st.none() | st.tuples(*[st.booleans()] * streams)),
        count=draw(st.booleans()),
        in_place=draw(st.booleans()),
        shift=draw(st.sampled_from([0, 0, 0, 16, 4])),
        spoil=draw(st.sampled_from([0, 0, 0, 5])),
        seed=draw(st.integers(0, 2**32 - 1)),
        h_scale=draw(st.sampled_from([1 / 127, 0.01, 0.004])),
        c_size=draw(st.sampled_from([2.0, 2.0, 1e-3, 4e4])),
    )


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_kernels_equal_the_reference(host: ctypes.CDLL, data: st.DataObject) -> None:
    check(data.draw(cases(table(host))), host)


@pytest.mark.parametrize("shape", [(12, 1), (12, 7), (36, 4), (33, 8)], ids=str)
def test_tails_in_every_form(host: ctypes.CDLL, shape: tuple[int, int]) -> None:
    """Sizes that are multiples of some run and not of another, with each kernel in turn."""
    for k, forms in enumerate(table(host)):
        variant = _kernels()[k % 3]
        check(Case(variant, forms, 2, *shape, (True, False, True), idle=(False, k % 2 == 0), seed=k), host)


ALL_VARIANTS = [
    GateVariant(peephole, *gate, candidate, output, clip, coupled)  # type: ignore[arg-type]
    for peephole, gate, candidate, output, clip, coupled in itertools.product(
        [False, True],
        [("sigmoid", 0.2, 0.5), ("hard_sigmoid", 1 / 6, 0.5)],
        ["tanh", "relu"],
        ["tanh", "relu"],
        [None, 1.0],
        [False, True],
    )
]


@pytest.mark.parametrize("approximation", [0, 2])
def test_every_variant_with_and_without_numbers_that_are_none(host: ctypes.CDLL, approximation: int) -> None:
    """NaN and infinity in any gate end where the reference has them, are counted, and no clip or relu hides them."""
    host.approximate(approximation)
    try:
        for k, variant in enumerate(ALL_VARIANTS):
            for forms in (((FLOAT, LINEAR),) * 3, ((HALF, HWC8), (FLOAT, LINEAR), (HALF, HWC8))):
                for spoil in (0, 200):
                    check(
                        Case(variant, forms, 2, 16, 40, (True, True, False), count=True, spoil=spoil, seed=k),
                        host,
                    )
    finally:
        host.approximate(0)


def test_what_overflows_is_counted(host: ctypes.CDLL) -> None:
    """A finite value that fp16 holds as infinity counts, in h and in c, stream by stream."""
    single, half = (FLOAT, LINEAR), (HALF, LINEAR)
    unbounded = GateVariant(candidate="relu", output="relu")
    for forms, overflows in (((single, half, single), "c_out"), ((single, single, half), "h")):
        case = Case(unbounded, forms, 3, 8, 64, count=True, z_size=1e5)
        found = check(case, host)
        assert np.isfinite(case.expected()[0]).all()
        assert np.isinf(found[overflows].values()).any()
        assert (found["non_finite"] > 0).all()


# ---- Accesses


@pytest.mark.parametrize(
    "shape",
    [
        (16, 24),
        (13, 5),
        # Seconds each, and the two have runs that fit and tails that do not.
        *(pytest.param(s, marks=pytest.mark.thorough) for s in ((40, 33), (64, 1))),
    ],
    ids=str,
)
@pytest.mark.parametrize("in_place", [False, True], ids=["beside", "in place"])
def test_every_byte_has_one_writer(host: ctypes.CDLL, shape: tuple[int, int], in_place: bool) -> None:
    """No kernel leaves a gap, writes twice, strays, is misaligned, or reads what another thread writes."""
    for k, forms in enumerate(table(host)):
        for variant in _kernels():
            idle = (True, False) if k % 4 == 0 else None
            _check_accesses(
                Case(variant, forms, 2, *shape, (True, False, True), idle, in_place=in_place, seed=k), host
            )


def _check_accesses(case: Case, host: ctypes.CDLL) -> dict[str, Any]:
    found = case.run(host, watch=True)
    accesses = found["accesses"]
    at, width, write = (accesses[name].astype(np.int64) for name in ("address", "bytes", "write"))
    assert (at % width == 0).all()

    def within(tensor: Tensor) -> Array:
        inside: Array = (at >= tensor.address) & (at + width <= tensor.address + tensor.size)
        return inside

    names = ("z", "p_i", "p_f", "p_o", "h_old")
    read = np.any([within(t) for t in (found["c"], *(case.inputs[name] for name in names))], axis=0)
    written = within(found["h"]) | within(found["c_out"])
    assert np.where(write, written, read).all()

    for tensor in (found["h"], found["c_out"]):
        writes, writer = np.zeros(tensor.size, np.int64), np.full(tensor.size, -1, np.int64)
        reads = []
        for size in np.unique(width):
            for kind in (0, 1):
                mine = within(tensor) & (width == size) & (write == kind)
                spots = (at[mine] - tensor.address)[:, None] + np.arange(size)
                threads = np.broadcast_to(accesses["thread"][mine].astype(np.int64)[:, None], spots.shape)
                if kind:
                    np.add.at(writes, spots, 1)
                    writer[spots] = threads
                else:
                    reads.append((spots, threads))
        once = np.ones_like(writes).reshape(case.streams, -1)
        if tensor is found["c_out"] and case.in_place and case.idle is not None:
            once[list(case.idle)] = 0  # what stays is not written again
        np.testing.assert_array_equal(writes, once.ravel())
        assert all(((writer[spots] == threads) | (writer[spots] == -1)).all() for spots, threads in reads)
    return found


def _sectors(case: Case, host: ctypes.CDLL) -> dict[str, float]:
    """For z, c, h and c_out: the bytes a warp's accesses use of the 32-byte sectors they touch, as a share."""
    found = case.run(host, watch=True)
    accesses = found["accesses"]
    tensors = {"z": case.inputs["z"], "c": found["c"], "h": found["h"], "c_out": found["c_out"]}
    shares = {}
    for name, tensor in tensors.items():
        begin = np.uint64(tensor.address)
        mine = accesses[
            (accesses["address"] >= begin) & (accesses["address"] < begin + np.uint64(tensor.size))
        ]
        # One instruction of one warp: the threads' accesses of the same number.
        instruction = mine["thread"].astype(np.uint64) // 32 << 12 | mine["order"]
        touched = np.unique(instruction << np.uint64(32) | (mine["address"] - begin) // 32).size
        shares[name] = float(mine["bytes"].sum() / (32 * touched))
    return shares


def test_warps_use_whole_sectors(host: ctypes.CDLL) -> None:
    """64 channels on 16 x 16 places: no warp reads a sector of z or c in part, or writes one of c; nor of h, where h
    has the layout of z and is not int8."""
    for forms in table(host):
        shares = _sectors(Case(GateVariant(), forms, 1, 64, 256), host)
        assert shares["z"] == shares["c"] == shares["c_out"] == 1, forms
        (_, z_layout), _, (h_type, h_layout) = forms
        assert shares["h"] == 1 or h_type == INT8 or h_layout != z_layout, forms
        assert shares["h"] >= 0.25, forms


@pytest.mark.parametrize(
    ("forms", "shape", "shift", "run"),
    [
        (((HALF, LINEAR), (HALF, LINEAR), (HALF, LINEAR)), (5, 8), 0, 8),
        (((HALF, LINEAR), (FLOAT, LINEAR), (HALF, LINEAR)), (3, 4), 0, 4),
        (((FLOAT, LINEAR), (FLOAT, LINEAR), (INT8, LINEAR)), (3, 4), 0, 4),
        (((HALF, LINEAR), (HALF, LINEAR), (HALF, LINEAR)), (5, 7), 0, 1),
        (((HALF, LINEAR), (HALF, LINEAR), (HALF, LINEAR)), (5, 8), 4, 1),
        (((HALF, HWC8), (FLOAT, LINEAR), (HALF, HWC8)), (8, 7), 0, 8),
        (((BF16, HWC8), (FLOAT, LINEAR), (BF16, HWC8)), (9, 7), 0, 1),
        (((FLOAT, CHW32), (FLOAT, LINEAR), (INT8, CHW32)), (36, 7), 0, 4),
    ],
)
def test_accesses_are_wide_where_they_can_be(
    host: ctypes.CDLL, forms: tuple[Form, Form, Form], shape: tuple[int, int], shift: int, run: int
) -> None:
    found = check(Case(GateVariant(), forms, 2, *shape, shift=shift), host)
    assert host.run_length(ctypes.byref(found["params"])) == run


def test_one_misaligned_tensor_is_enough_to_go_element_by_element(host: ctypes.CDLL) -> None:
    half = (HALF, LINEAR)
    for name in ("z", "c", "h", "c_out", "h_old", "p_i", "p_f", "p_o"):
        case = Case(
            GateVariant(peephole=True), (half, half, half), 2, 8, 8, idle=(False, True), shift=4, shifted=name
        )
        assert host.run_length(ctypes.byref(_check_accesses(case, host)["params"])) == 1, name


# ---- Bad input


def _refusal(host: ctypes.CDLL, **changes: Any) -> str:
    case = Case(GateVariant(), ((FLOAT, LINEAR), (FLOAT, LINEAR), (INT8, LINEAR)), 1, 8, 8)
    found = case.run(host)  # its tensors must outlive the call
    params = found["params"]
    for name, value in changes.items():
        setattr(params, name, value)
    before = found["h"].raw.copy()
    refused = host.fused_gates(ctypes.byref(params))
    np.testing.assert_array_equal(found["h"].raw, before)
    return refused.decode() if refused else ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"z": None}, "null"),
        ({"channels": 0}, "1 or more"),
        ({"streams": -1}, "0 or more"),
        ({"spatial": 0}, "1 or more"),
        ({"channels": 2**31 - 1, "spatial": 2**31 - 1}, "2^31"),
        ({"spatial": 2**62}, "2^31"),
        ({"streams": 2**31 - 1}, "2^31"),
        ({"h_scale": 0.0}, "hScale"),
        ({"h_scale": float("nan")}, "hScale"),
        ({"active": 64}, "hOld"),
        ({"variant": variant_struct(GateVariant(peephole=True))}, "peephole"),
        ({"forms": Forms(*[TensorForm(BF16, LINEAR)] * 3)}, "no kernel"),
        (
            {"forms": Forms(TensorForm(-1, -1), TensorForm(FLOAT, LINEAR), TensorForm(FLOAT, LINEAR))},
            "not set",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_computed_is_refused_before_anything_is_written(
    host: ctypes.CDLL, changes: dict[str, Any], words: str
) -> None:
    assert words in _refusal(host, **changes)


def test_no_streams_are_nothing_to_do(host: ctypes.CDLL) -> None:
    assert _refusal(host, streams=0, z=None, h=None) == ""


def test_supported_forms(host: ctypes.CDLL) -> None:
    """What the plugin offers TensorRT: linear for all types, and the layouts that convolutions prefer."""
    rows = table(host)
    assert len(rows) == len(set(rows)) == FORMS
    linear = {(z[0], c[0], h[0]) for z, c, h in rows if z[1] == c[1] == h[1] == LINEAR}
    floats = (FLOAT, HALF, BF16)
    assert linear == {(z, c, h) for z in floats for c in (FLOAT, HALF) for h in DTYPES}
    for half in (HALF, BF16):
        assert ((half, HWC8), (FLOAT, LINEAR), (half, HWC8)) in rows
        assert ((half, HWC8), (HALF, LINEAR), (INT8, CHW32)) in rows
    assert ((FLOAT, CHW32), (FLOAT, LINEAR), (INT8, CHW32)) in rows
    assert all(c[1] == LINEAR for _, c, _ in rows)

    def possible(*forms: Form) -> bool:
        known = [TensorForm(*form) for form in forms]
        return bool(host.supported(ctypes.byref(Forms(*known, *[TensorForm(-1, -1)] * (3 - len(known))))))

    # Asked tensor by tensor, as TensorRT does.
    assert possible()
    assert possible((HALF, HWC8))
    assert possible((HALF, HWC8), (FLOAT, LINEAR))
    assert not possible((HALF, HWC8), (FLOAT, HWC8))
    assert not possible((FLOAT, HWC8))
    assert not possible((INT8, LINEAR))


def test_readme_shows_the_forms(host: ctypes.CDLL) -> None:
    lines = markdown_table(host)
    assert "\n".join(lines) in (PLUGINS / "README.md").read_text(), "\n".join(
        ["plugins/README.md lacks:", *lines]
    )
