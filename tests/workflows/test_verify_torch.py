"""verify beside torch modules that have to be told how they are called, with the words that export was told."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgelstm
from command_line import Run
from edgelstm.errors import EdgeLstmError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

NETS = """
import torch
from torch import nn

class Swapped(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.LSTMCell(3, 4), nn.Linear(4, 2)
    def forward(self, x, c, h):
        h, c = self.cell(x, (h, c))
        return self.head(h), h, c

class Stacked(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(3, 4, 2), nn.Linear(4, 2)
    def forward(self, x, state):
        y, (h, c) = self.lstm(x[None], state)
        return self.head(y[0]), c, h

class Ids(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.cell = nn.Embedding(11, 3), nn.GRUCell(3, 4)
    def forward(self, x, h):
        h = self.cell(self.table(x >> 1), h)
        return h * 2, h
"""
CASES: dict[str, tuple[list[str], list[str]]] = {
    "Swapped": (["--frame", "3", "--state", "c=4", "--state", "h=4"], ["--results", "y,h,c"]),
    "Stacked": (["--frame", "3"], ["--state", "h=2,4", "--state", "c=2,4", "--results", "y,c,h"]),
    "Ids": (["--frame", ":int64", "--state", "h=4"], []),
}


@pytest.mark.parametrize(
    "name", ["Swapped", *(pytest.param(n, marks=pytest.mark.thorough) for n in ("Stacked", "Ids"))]
)
def test_verify_takes_what_export_was_told(tmp_path: Path, run: Run, name: str) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    exported, both = CASES[name]
    source, path = f"{tmp_path / 'nets.py'}:{name}", tmp_path / "m.onnx"
    code, _, text = run("export", source, *exported, *both, "-o", path, "--limit", "5")
    assert code == 0, text
    for a, b in ((source, path), (path, source)):
        code, _, text = run("verify", a, b, *both, "--limit", "20", "--tolerance", "1e-4")
        assert code == 0, text


def test_what_export_asks_verify_asks_too(tmp_path: Path, run: Run) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    source, path = f"{tmp_path / 'nets.py'}:Swapped", tmp_path / "m.onnx"
    edgelstm.export(
        source, path, frame=(3,), states={"c": (4,), "h": (4,)}, results=["y", "h", "c"], limit=5, threads=1
    )
    with pytest.raises(EdgeLstmError, match="--results y,h,c"):
        edgelstm.verify(source, str(path), limit=5)
    assert edgelstm.verify(source, str(path), limit=5, results=["y", "h", "c"]).worst.worst < 1e-4


def test_words_that_nobody_takes_are_refused(tmp_path: Path, run: Run) -> None:
    code, _, text = run("verify", "a.onnx", "b.onnx", "--results", "y,h")
    assert code == 2
    assert "results given for a.onnx and b.onnx: expected no results" in text


@pytest.mark.parametrize("kind", ["weights", pytest.param("TorchScript", marks=pytest.mark.thorough)])
def test_files_that_torch_wrote(tmp_path: Path, run: Run, kind: str) -> None:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(3, 4, 1)
    path, graph, frame = tmp_path / "m.pt", tmp_path / "m.onnx", []
    if kind == "TorchScript":
        cell = torch.nn.GRUCell(3, 4).eval()
        torch.jit.save(torch.jit.trace(cell, (torch.zeros(2, 3), torch.zeros(2, 4))), path)
        frame = ["--frame", "3", "--state", "h=4"]
    else:
        torch.save(lstm.state_dict(), path)
    code, _, text = run("export", path, *frame, "-o", graph, "--limit", "5")
    assert code == 0, text
    code, _, text = run("verify", path, graph, "--limit", "10", "--tolerance", "1e-4")
    assert code == 0, text
