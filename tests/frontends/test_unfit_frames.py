"""A frame that does not fit a torch module is what is said to be wrong, with the frame that works: the message is tried here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import edgelstm
from command_line import Run
from edgelstm.errors import EdgeLstmError

torch = pytest.importorskip("torch")
nn = torch.nn


class Sensors(nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x, s=None):  # type: ignore[no-untyped-def]
        h, s = self.lstm(x, s)
        return self.out(h), s


class ConvLstm(nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3 + 8, 4 * 8, 3, padding=1)

    def forward(self, x, h, c):  # type: ignore[no-untyped-def]
        i, f, g, o = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, h, c


class ConvGru(nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gru = nn.Conv1d(4, 8, 3, padding=1), nn.GRUCell(8 * 10, 16)

    def forward(self, x, h):  # type: ignore[no-untyped-def]
        h = self.gru(self.conv(x).flatten(1), h)
        return h, h


#: Module, its states, a frame that does not fit, what is said of the first layer, the frame that works.
CASES = {
    "LSTM, size": (Sensors, None, (5,), "lstm, LSTM of 6 values", "6"),
    "LSTM, no size": (Sensors, None, (), "lstm, LSTM of 6 values", "6"),
    "ConvLSTM, channels": (ConvLstm, (8, 8, 8), (1, 8, 8), "conv, Conv2d of 11 channels", "3,8,8"),
    "ConvLSTM, channels last": (ConvLstm, (8, 8, 8), (8, 8, 3), "of frame and state together", "3,8,8"),
    "ConvLSTM, no channels": (ConvLstm, (8, 8, 8), (8, 8), "[11, H, W]", "3,8,8"),
    "ConvLSTM, an axis of space forgotten": (ConvLstm, (8, 8, 8), (3, 8), "[11, H, W]", "3,8,8"),
    "ConvLSTM, a batch": (ConvLstm, (8, 8, 8), (1, 3, 8, 8), "[11, H, W]", "3,8,8"),
    "conv and GRU, channels": (ConvGru, (16,), (3, 10), "conv, Conv1d of 4 channels, [4, L]", "4,10"),
    "conv and GRU, length": (ConvGru, (16,), (4, 9), "[4, L]", "4,10"),
    "conv and GRU, turned": (ConvGru, (16,), (10, 4), "[4, L]", "4,10"),
    "conv and GRU, rank": (ConvGru, (16,), (4,), "[4, L]", "4,10"),
}


SHORT = ("LSTM, size", "ConvLSTM, channels", "conv and GRU, length")


@pytest.mark.parametrize(
    "case", [case if case in SHORT else pytest.param(case, marks=pytest.mark.thorough) for case in CASES]
)
def test_the_frame_is_blamed_and_one_that_works_is_named(case: str) -> None:
    make, state, frame, said, works = CASES[case]
    names = ("h", "c") if make is ConvLstm else ("h",)
    states = None if state is None else dict.fromkeys(names, state)
    module = make().eval()
    with pytest.raises(EdgeLstmError) as caught:
        edgelstm.export(module, frame=frame, states=states, limit=4, threads=1)
    text = str(caught.value)
    assert text.startswith(
        f"a frame of shape {list(frame)} does not fit {make.__name__}: found that it raised "
    )
    assert said in text
    named = re.search(r"--frame ([\d,]+) \(frame=\(.*\)\) works", text)
    assert named is not None, text
    assert named[1] == works
    edgelstm.export(
        module, frame=tuple(map(int, works.split(","))), states=states, limit=4, threads=1
    )  # as it says


def test_what_is_wrong_with_the_module_stays_so() -> None:
    class Broken(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x, h):  # type: ignore[no-untyped-def]
            raise RuntimeError("out of luck")

    with pytest.raises(EdgeLstmError, match=r"not step-shaped.*out of luck"):
        edgelstm.export(Broken(), frame=(3,), states={"h": (3,)}, limit=4)


@pytest.mark.thorough
def test_the_command_line_names_the_option(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("import torch\nNet = lambda: torch.nn.LSTM(6, 8)\n")
    code, _, error = run("export", "nets.py:Net", "--frame", "5", "-o", "m.onnx")
    assert code == 2
    assert "--frame 6 (frame=(6,)) works: it was tried" in error
    assert not (tmp_path / "m.onnx").exists()
    assert run("export", "nets.py:Net", "--frame", "6", "-o", "m.onnx", "--limit", 5)[0] == 0
