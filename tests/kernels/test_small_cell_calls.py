"""SmallCell as a user calls it, on the CPU: modules of torch, rows of a pool, what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.kernels import SmallCell


def torch_cells() -> list[Any]:
    torch = pytest.importorskip("torch")
    from edgelstm import nn

    torch.manual_seed(0)
    peephole = nn.PeepholeLSTMCell(5, 7)
    for name in ("p_i", "p_f", "p_o"):
        torch.nn.init.normal_(getattr(peephole, name))
    return [
        torch.nn.LSTMCell(5, 7),
        torch.nn.GRUCell(5, 7),
        torch.nn.GRUCell(5, 7, bias=False),
        nn.LSTMCell(5, 7),
        peephole,
    ]


@pytest.mark.parametrize("k", range(5))
def test_it_is_the_module_it_was_made_of(k: int) -> None:
    torch = pytest.importorskip("torch")
    module = torch_cells()[k].double()
    gru = isinstance(module, torch.nn.GRUCell)
    cell = SmallCell.from_torch(module)
    x, h, c = torch.randn(4, 3, 5), torch.randn(3, 7), torch.randn(3, 7)
    wanted_h, wanted_c = h.double(), c.double()
    with torch.no_grad():
        for frame in x.double():
            if gru:
                wanted_h = module(frame, wanted_h)
            else:
                wanted_h, wanted_c = module(frame, (wanted_h, wanted_c))
    y = cell(x, h, None if gru else c)
    torch.testing.assert_close(h.double(), wanted_h, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(y[-1], h, rtol=0, atol=0)
    if not gru:
        torch.testing.assert_close(c.double(), wanted_c, rtol=1e-6, atol=1e-6)


def test_a_layer_of_a_stack_and_frames_one_by_one() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.LSTM(5, 7, num_layers=2)
    x = torch.randn(6, 3, 5)
    with torch.no_grad():
        wanted, (_, last_c) = module(x)
    cells = [SmallCell.from_torch(module, k) for k in range(2)]
    states = [(torch.zeros(3, 7), torch.zeros(3, 7)) for _ in cells]
    for t, frame in enumerate(x):
        for cell, state in zip(cells, states, strict=True):
            frame = cell(frame, *state)
        torch.testing.assert_close(frame, wanted[t], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.stack([s[1] for s in states]), last_c, rtol=1e-5, atol=1e-6)


def test_rows_choose_the_state_and_idle_streams_keep_theirs() -> None:
    rng = np.random.default_rng(0)
    cell = SmallCell.lstm(rng.normal(size=(28, 12)), rng.normal(size=28))
    h, c = (rng.normal(size=(6, 7)).astype(np.float32) for _ in range(2))
    x, y = rng.normal(size=(3, 5)).astype(np.float32), np.full((3, 7), 9, np.float32)
    x[1] = np.nan
    alone_h, alone_c, before = h[[4, 2]], c[[4, 2]], (h.copy(), c.copy())
    cell(x, h, c, rows=np.array([4, -1, 2], np.int32), y=y)
    wanted = cell(x[[0, 2]], alone_h, alone_c)
    np.testing.assert_array_equal(y, [wanted[0], np.full(7, 9), wanted[1]])
    np.testing.assert_array_equal(h[[4, 2]], alone_h)
    for state, old in zip((h, c), before, strict=True):
        np.testing.assert_array_equal(state[[0, 1, 3, 5]], old[[0, 1, 3, 5]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.zeros((3, 6), np.float32)}, r"x of a small cell.*\[3, 5\]"),
        ({"x": np.zeros((3, 5))}, "found float64"),
        ({"h": np.zeros((3, 14), np.float32)[:, ::2]}, "not contiguous"),
        ({"c": None}, r"missing: found \['c'\]"),
        ({"c": np.zeros((4, 7), np.float32)}, "c of a small cell"),
        ({"rows": np.zeros(3, np.int64)}, r"rows.*int32\[3\]"),
        ({"x": np.zeros((99, 5), np.float32)}, "N up to 64"),
    ],
)
def test_what_does_not_fit_is_said(change: dict[str, Any], words: str) -> None:
    arrays: dict[str, Any] = {
        "x": np.zeros((3, 5), np.float32),
        "h": np.zeros((3, 7), np.float32),
        "c": np.zeros((3, 7), np.float32),
    }
    arrays |= change
    with pytest.raises(EdgeLstmError, match=words):
        SmallCell.lstm(np.zeros((28, 12)), np.zeros(28))(arrays.pop("x"), **arrays)


def test_cells_that_are_none_are_refused() -> None:
    torch = pytest.importorskip("torch")
    for make, words in (
        (lambda: SmallCell.lstm(np.zeros((27, 12)), np.zeros(28)), "weights of a small cell"),
        (lambda: SmallCell.lstm(np.zeros((28, 12)), np.zeros(27)), "bias of a small cell"),
        (lambda: SmallCell.lstm(np.zeros((4 * 1025, 1030)), np.zeros(4 * 1025)), "1 to 1024 units"),
        (lambda: SmallCell.lstm(np.zeros((28, 12)), np.zeros(28), dtype="float64"), "dtype"),
        (
            lambda: SmallCell.lstm(np.zeros((28, 12)), np.zeros(28), variant=GateVariant(peephole=True)),
            "peepholes",
        ),
        (lambda: SmallCell.from_torch(torch.nn.LSTM(5, 7, bidirectional=True)), "two directions"),
        (lambda: SmallCell.from_torch(torch.nn.RNNCell(5, 7)), "found RNNCell"),
    ):
        with pytest.raises(EdgeLstmError, match=words):
            make()


def test_closed_it_says_so() -> None:
    with SmallCell.gru(np.zeros((21, 12)), np.zeros(21), np.zeros(7)) as cell:
        cell(np.zeros((1, 5), np.float32), np.zeros((1, 7), np.float32))
    cell.close()
    with pytest.raises(EdgeLstmError, match="closed"):
        cell(np.zeros((1, 5), np.float32), np.zeros((1, 7), np.float32))
