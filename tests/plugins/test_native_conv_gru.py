"""A ConvGRU's step as one operator, by Winograd's algorithm, against the convolutions' definition in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native_maps import CHANNELS, MAPS
from test_native_operators import model

import native_library
from native_library import naive
from tolerances import assert_close

Array = np.ndarray[Any, Any]


class ConvGru:
    """One ConvGRU cell with random weights: as a model, and as the equations in float64."""

    def __init__(
        self, after: bool, inputs: int, units: int, rows: int, size: tuple[int, int], **given: Any
    ) -> None:
        rng = np.random.default_rng(inputs * 1000 + units)
        self.after = after
        self.w, self.r = (
            rng.normal(0, 1 / np.sqrt(9 * (inputs + units)), (3 * units, channels, 3, 3)).astype(np.float32)
            for channels in (inputs, units)
        )
        self.b = rng.normal(0, 0.5, 4 * units).astype(np.float32)
        self.feeds = {
            name: rng.normal(size=(rows, channels, *size)).astype(np.float32)
            for name, channels in (("x", inputs), ("h", units))
        }
        weights = {"w": self.w.reshape(3 * units, -1), "r": self.r.reshape(3 * units, -1), "b": self.b}
        self.model = model(
            "FusedConvGRUCell", self.feeds, weights, 1, linear_before_reset=int(after), **given
        )

    def expected(self) -> Array:
        found: Array = naive.conv_gru_cell(
            *(a.astype(float) for a in (*self.feeds.values(), self.w, self.r, self.b)), after=self.after
        )
        return found


def check_gru_maps(library: Path) -> None:
    """Some cells, by the kernels that are chosen here: for native_isa.py."""
    for after in (False, True):
        for inputs, units, size in ((1, 3, (5, 7)), (3, 17, (8, 8)), (17, 40, (3, 69))):
            cell = ConvGru(after, inputs, units, 2, size)
            cell.feeds["x"][1, 0, 2, 1] = 1e6  # a tile by the definition
            (found,) = native_library.session(cell.model, library).run(None, cell.feeds)
            assert_close(found, cell.expected(), np.float32)


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


@settings(max_examples=25, deadline=None)
@given(after=st.booleans(), inputs=CHANNELS, units=CHANNELS, rows=st.sampled_from([1, 2, 5]), size=MAPS)
def test_a_conv_gru_cell_gives_what_the_equations_give(
    library: Path, after: bool, inputs: int, units: int, rows: int, size: tuple[int, int]
) -> None:
    cell = ConvGru(after, inputs, units, rows, size)
    (found,) = native_library.session(cell.model, library).run(None, cell.feeds)
    assert_close(found, cell.expected(), np.float32)


@pytest.mark.parametrize("after", [False, True])
def test_a_stream_has_the_same_bits_alone_beside_others_and_however_it_is_divided(
    library: Path, after: bool
) -> None:
    one, three = (ConvGru(after, 5, 19, 3, (50, 50), threads=n) for n in (1, 3))
    session, divided = (
        native_library.session(cell.model, library, threads=n) for cell, n in ((one, 1), (three, 3))
    )
    (together,) = session.run(None, one.feeds)
    broken = {name: a.copy() for name, a in one.feeds.items()}
    broken["h"][1], broken["x"][1] = np.nan, np.inf
    (beside,) = session.run(None, broken)
    for row in range(3):
        (alone,) = session.run(None, {name: a[row : row + 1] for name, a in one.feeds.items()})
        assert alone[0].tobytes() == together[row].tobytes()
        assert np.isnan(beside[row]).all() if row == 1 else beside[row].tobytes() == together[row].tobytes()
    for _ in range(20):
        assert divided.run(None, one.feeds)[0].tobytes() == together.tobytes()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("source", ["x", "h"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20, -9999.0])
def test_what_is_no_ordinary_number_reaches_as_far_as_in_a_direct_convolution(
    library: Path, after: bool, source: str, value: float
) -> None:
    """3x3 places; where the reset gate works on h itself, a place of r that h shows in is convolved once more: 5x5."""
    cell = ConvGru(after, 3, 17, 2, (12, 13))
    session = native_library.session(cell.model, library)
    (usual,) = session.run(None, cell.feeds)
    cell.feeds[source][1, 1, 5, 6] = value
    (found,) = session.run(None, cell.feeds)
    with np.errstate(all="ignore"):
        expected = cell.expected()
    reach = 1 if after else 2
    near = np.zeros(found.shape, bool)
    near[1, :, 5 - reach : 6 + reach, 6 - reach : 7 + reach] = True
    assert_close(found[~near], usual[~near], np.float32, k=32)
    assert_close(found[~near], expected[~near], np.float32)
    ordinary = near & np.isfinite(expected)
    assert (np.isnan(found) == np.isnan(expected)).all()
    if abs(value) < 1e4:
        assert_close(found[ordinary], expected[ordinary], np.float32, k=1024)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"h": (2, 5, 4, 5)}, r"h is \[2, 5, 4, 5\], expected \[2, 5, 4, 6\]"),
        ({"h": (1, 5, 4, 6)}, r"h is \[1, 5, 4, 6\], expected \[2, 5, 4, 6\]"),
        ({"x": (2, 7, 4, 6)}, r"x has to be \[N, 2, height, width\]"),
    ],
)
def test_frames_that_do_not_fit_are_an_error_that_names_them(
    library: Path, change: dict[str, tuple[int, ...]], said: str
) -> None:
    cell = ConvGru(True, 2, 5, 2, (4, 6))
    feeds = cell.feeds | {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(Exception, match=said):
        native_library.session(cell.model, library).run(None, feeds)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"w": np.zeros((15, 17)), "r": np.zeros((15, 45))}, r"W is \[15, 17\] and R \[15, 45\], expected"),
        ({"w": np.zeros((15, 18)), "r": np.zeros((12, 45))}, r"R \[12, 45\], expected"),
        ({"w": np.zeros((15, 18)), "r": np.zeros((15, 45)), "b": np.zeros(15)}, r"b is \[15\], expected \[20\]"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_when_the_graph_is_opened(
    library: Path, weights: dict[str, Array], said: str
) -> None:
    cell = ConvGru(True, 2, 5, 1, (4, 4))
    with pytest.raises(Exception, match=said):
        native_library.session(model("FusedConvGRUCell", cell.feeds, weights, 1), library)


def test_no_streams_and_no_places(library: Path) -> None:
    for after, rows, size in ((True, 0, (4, 6)), (False, 0, (4, 6)), (False, 2, (0, 6))):
        cell = ConvGru(after, 2, 5, rows, size)
        (found,) = native_library.session(cell.model, library).run(None, cell.feeds)
        assert found.shape == (rows, 5, *size)
