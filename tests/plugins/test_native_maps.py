"""A ConvLSTM's step as one operator, by Winograd's algorithm, against the convolution's definition in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native_operators import VARIANTS, attributes, model

import native_library
from edgelstm.graph.gates import GateVariant
from native_library import naive
from tolerances import assert_close

Array = np.ndarray[Any, Any]
#: The last is wider than the stretch of a row that is read at once; the first ones are smaller than a tile.
MAPS = st.sampled_from([(1, 1), (3, 5), (4, 4), (5, 7), (8, 12), (13, 11), (2, 69)])
CHANNELS = st.sampled_from([1, 2, 3, 5, 13, 16, 17, 37])


class ConvLstm:
    """One ConvLSTM cell with random weights: as a model, and as the equations in float64. spread: a peephole's shape."""

    def __init__(
        self,
        variant: GateVariant,
        inputs: int,
        units: int,
        rows: int,
        size: tuple[int, int],
        spread: str = "maps",
        **given: Any,
    ) -> None:
        rng = np.random.default_rng(inputs * 1000 + units)
        gates = len(variant.gates)
        self.variant = variant
        self.w = rng.normal(
            0, 1 / np.sqrt(9 * (inputs + units)), (gates * units, inputs + units, 3, 3)
        ).astype(np.float32)
        self.b = rng.normal(0, 0.5, gates * units).astype(np.float32)
        shape = {"one": (1, 1, 1), "channels": (units, 1, 1), "maps": (units, *size)}[spread]
        self.p = [rng.normal(0, 0.5, shape).astype(np.float32) for _ in variant.inputs[2:]]
        self.feeds = {
            name: rng.normal(size=(rows, channels, *size)).astype(np.float32)
            for name, channels in (("x", inputs), ("h", units), ("c", units))
        }
        weights: dict[str, Array] = {"w": self.w.reshape(gates * units, -1), "b": self.b}
        weights |= dict(zip(variant.inputs[2:], self.p, strict=True))
        if variant.peephole and variant.coupled:
            weights = {**{n: weights[n] for n in ("w", "b", "p_i")}, "_": self.p[0], "p_o": self.p[1]}
        self.model = model("FusedConvLSTMCell", self.feeds, weights, 2, **attributes(variant), **given)

    def expected(self) -> tuple[Array, Array]:
        found: tuple[Array, Array] = naive.conv_lstm_cell(
            self.variant, *(a.astype(float) for a in (*self.feeds.values(), self.w, self.b, *self.p))
        )
        return found


def check_maps(library: Path) -> None:
    """Some cells, by the kernels that are chosen here: for native_isa.py."""
    for variant in (
        GateVariant(),
        GateVariant(peephole=True, gate="hard_sigmoid"),
        GateVariant(coupled=True),
    ):
        for inputs, units, size in ((1, 3, (5, 7)), (3, 17, (8, 8)), (17, 8, (3, 69))):
            cell = ConvLstm(variant, inputs, units, 2, size)
            cell.feeds["x"][1, 0, 2, 1] = 1e6  # a tile by the definition
            found = native_library.session(cell.model, library).run(None, cell.feeds)
            for a, b in zip(found, cell.expected(), strict=True):
                assert_close(a, b, np.float32)


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


@settings(max_examples=25, deadline=None)
@given(
    variant=VARIANTS,
    inputs=CHANNELS,
    units=CHANNELS,
    rows=st.sampled_from([1, 2, 5]),
    size=MAPS,
    spread=st.sampled_from(["one", "channels", "maps"]),
)
def test_a_conv_lstm_cell_gives_what_the_equations_give(
    library: Path,
    variant: GateVariant,
    inputs: int,
    units: int,
    rows: int,
    size: tuple[int, int],
    spread: str,
) -> None:
    cell = ConvLstm(variant, inputs, units, rows, size, spread)
    found = native_library.session(cell.model, library).run(None, cell.feeds)
    for a, b in zip(found, cell.expected(), strict=True):
        assert_close(a, b, np.float32)


def test_a_step_s_error_is_about_that_of_a_direct_convolution(library: Path) -> None:
    """Of the pre-activations, relative to their size: 8e-7 in the mean, where a direct sum in float32 gives 5e-7."""
    cell = ConvLstm(GateVariant(), 16, 64, 1, (16, 16))
    for a, b in zip(
        native_library.session(cell.model, library).run(None, cell.feeds), cell.expected(), strict=True
    ):
        assert np.sqrt(((a - b) ** 2).mean() / (b**2).mean()) < 1e-6


def test_a_stream_has_the_same_bits_alone_beside_others_and_however_it_is_divided(library: Path) -> None:
    """Enough tiles for several passes; on three threads, on one, as it is tried out which is faster."""
    one, three = (ConvLstm(GateVariant(peephole=True), 5, 19, 3, (50, 50), threads=n) for n in (1, 3))
    session, divided = (
        native_library.session(cell.model, library, threads=n) for cell, n in ((one, 1), (three, 3))
    )
    together = session.run(None, one.feeds)
    broken = {name: a.copy() for name, a in one.feeds.items()}
    broken["h"][1], broken["x"][1] = np.nan, np.inf
    beside = session.run(None, broken)
    for row in range(3):
        alone = session.run(None, {name: a[row : row + 1] for name, a in one.feeds.items()})
        for a, b, c in zip(alone, together, beside, strict=True):
            assert a[0].tobytes() == b[row].tobytes()
            assert np.isnan(c[row]).all() if row == 1 else c[row].tobytes() == b[row].tobytes()
    for _ in range(40):
        for a, b in zip(divided.run(None, one.feeds), together, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20, -9999.0, 3e38])
def test_what_is_no_ordinary_number_reaches_as_far_as_in_a_direct_convolution(
    library: Path, value: float
) -> None:
    """A transform mixes 6x6 places, which nothing beyond the 3x3 around such a number may show."""
    cell = ConvLstm(GateVariant(), 3, 17, 2, (12, 13))
    session = native_library.session(cell.model, library)
    usual = session.run(None, cell.feeds)
    cell.feeds["x"][1, 1, 5, 6] = value
    found = session.run(None, cell.feeds)
    near = np.zeros((2, 17, 12, 13), bool)
    near[1, :, 4:7, 5:8] = True
    for a, b, c in zip(found, usual, cell.expected(), strict=True):
        assert_close(a[~near], b[~near], np.float32, k=32)
        assert_close(a[~near], c[~near], np.float32)
        if np.isnan(value):
            assert np.isnan(a[near]).all()
        else:  # the gates are open or shut there
            assert_close(a[near], c[near], np.float32)


@pytest.mark.parametrize("value", [0.0, np.inf])
def test_weights_without_size_or_limit(library: Path, value: float) -> None:
    cell = ConvLstm(GateVariant(), 2, 5, 1, (5, 9))
    cell.w[:, 1], cell.feeds["x"][:, 1] = value, np.abs(cell.feeds["x"][:, 1]) + 1
    weights = {"w": cell.w.reshape(20, -1), "b": cell.b}
    made = model("FusedConvLSTMCell", cell.feeds, weights, 2, **attributes(cell.variant))
    for a, b in zip(
        native_library.session(made, library).run(None, cell.feeds), cell.expected(), strict=True
    ):
        inside = (
            slice(None),
            slice(None),
            slice(1, -1),
            slice(1, -1),
        )  # at the border the padding's 0 * infinity
        assert_close(a[inside], b[inside], np.float32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"h": (2, 5, 4, 5)}, r"h is \[2, 5, 4, 5\], expected \[2, 5, 4, 6\]"),
        ({"c": (1, 5, 4, 6)}, r"c is \[1, 5, 4, 6\], expected \[2, 5, 4, 6\]"),
        ({"x": (2, 7, 4, 6)}, r"x is \[2, 7, 4, 6\], W takes 7 channels"),
        ({"x": (2, 2, 5, 6), "h": (2, 5, 5, 6), "c": (2, 5, 5, 6)}, "a peephole has 120 numbers, which does not go with c"),
    ],
)  # fmt: skip
def test_frames_that_do_not_fit_are_an_error_that_names_them(
    library: Path, change: dict[str, tuple[int, ...]], said: str
) -> None:
    cell = ConvLstm(GateVariant(peephole=True), 2, 5, 2, (4, 6))
    feeds = cell.feeds | {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(Exception, match=said):
        native_library.session(cell.model, library).run(None, feeds)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"w": np.zeros((20, 62))}, r"W is \[20, 62\], expected rows for 4 gates and 9 columns for each channel"),
        ({"w": np.zeros((18, 63))}, r"W is \[18, 63\]"),
        ({"w": np.zeros((20, 63)), "b": np.zeros(5)}, r"b is \[5\], expected \[20\]"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_when_the_graph_is_opened(
    library: Path, weights: dict[str, Array], said: str
) -> None:
    cell = ConvLstm(GateVariant(), 2, 5, 1, (4, 4))
    with pytest.raises(Exception, match=said):
        native_library.session(model("FusedConvLSTMCell", cell.feeds, weights, 2), library)


def test_no_streams_and_no_places(library: Path) -> None:
    for rows, size in ((0, (4, 6)), (2, (0, 6))):
        cell = ConvLstm(GateVariant(), 2, 5, rows, size)
        for a, b in zip(
            native_library.session(cell.model, library).run(None, cell.feeds), (5, 5), strict=True
        ):
            assert a.shape == (rows, b, *size)
