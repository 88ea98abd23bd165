"""Weights that torch computes from others: exported as the values they have, the user's module left as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgelstm
from edgelstm.runtime.onnxruntime import OrtProgram

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

nn: Any = torch.nn
P: Any = torch.nn.utils.parametrizations


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.cell, self.out = nn.LSTM(6, 8, batch_first=True), nn.GRUCell(8, 8), nn.Linear(8, 3)

    def forward(self, x: Any, state: Any, g: Any) -> Any:
        y, state = self.lstm(x[:, None], state)
        g = self.cell(y[:, 0], g)
        return self.out(g), state, g


PLACES = {"head": ("out", "weight"), "gru": ("cell", "weight_hh"), "lstm": ("lstm", "weight_hh_l0")}


def parametrized(kind: str, place: str) -> Any:
    net = Net().eval()
    part, name = PLACES[place]
    getattr(P, kind)(getattr(net, part), name)
    return net


KINDS = ("orthogonal", "weight_norm", "spectral_norm")
SHORT = {("orthogonal", "head")}


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (k, p) if (k, p) in SHORT else pytest.param(k, p, marks=pytest.mark.thorough)
        for k in KINDS
        for p in PLACES
    ],
)
def test_parametrized_weights_are_exported_as_they_are(kind: str, place: str) -> None:
    net = parametrized(kind, place)
    keys = list(net.state_dict())
    x = torch.randn(3, 1, 6)
    zeros = (torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)), torch.zeros(1, 8)

    def run() -> np.ndarray:
        (state, g), ys = zeros, []
        with torch.no_grad():
            for frame in x:
                y, state, g = net(frame, state, g)
                ys.append(y.numpy())
        return np.stack(ys)

    want = run()
    done = edgelstm.export(Adapter(net), None, frame=(6,), states={"h": (8,), "c": (8,), "g": (8,)}, limit=5)
    program = OrtProgram(done.step.to_bytes(), threads=1)
    state = program.new_state()
    got = [program.step([{"x": frame[0].numpy()}], state, [0])[0]["y"].copy() for frame in x]
    np.testing.assert_allclose(np.stack(got), want[:, 0], rtol=1e-4, atol=1e-5)
    assert list(net.state_dict()) == keys
    np.testing.assert_array_equal(run(), want)


class Adapter(nn.Module):
    """States one by one."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Any, h: Any, c: Any, g: Any) -> Any:
        y, (h, c), g = self.net(x, (h[None], c[None]), g)
        return y, h[0], c[0], g
