"""`export` and `verify` of torch modules on the command line: steps, carried steps, windows, checkpoints alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Run

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


NETS = """
import torch

class Net(torch.nn.Module):
    def __init__(self, hidden=4):
        super().__init__()
        self.lstm = torch.nn.LSTM(3, hidden, batch_first=True)
        self.head = torch.nn.Linear(hidden, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])
"""


@pytest.mark.thorough
def test_a_window_is_one_unless_its_state_is_to_be_carried(run: Run) -> None:
    Path("nets.py").write_text(NETS)
    lstm = torch.nn.LSTM(3, 6)
    weights = {f"net.lstm.{name}": value for name, value in lstm.state_dict().items()}
    weights |= {f"net.head.{name}": value for name, value in torch.nn.Linear(6, 2).state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 7}, "net.ckpt")
    net = ("nets.py:Net", "--init", '{"hidden": 6}', "--weights", "net.ckpt")

    code, _, error = run("export", *net, "--frame", "3", "-o", "net.onnx")
    assert code == 2
    assert "Net is a window: it starts anew at every call: found states inside (lstm)" in error
    assert not Path("net.onnx").exists()

    code, text, error = run(
        "export", *net, "--frame", "3", "--window", "5", "--limit", 20, "-o", "window.onnx"
    )
    assert (code, error) == (0, "")
    assert "exported as windows of 5 frames, nothing is carried between them" in text
    code, text, error = run(
        "export", *net, "--frame", "3", "--carry-state", "--limit", 20, "-o", "step.onnx", "--json"
    )
    assert (code, error) == (0, "")
    report = json.loads(text)
    assert report["notes"][0].startswith("states of lstm are carried from frame to frame, though Net itself")
    assert [s["name"] for s in report["signature"]["states"]] == ["h0", "c0"]

    for model in ("window.onnx", "step.onnx"):
        code, _, error = run("verify", *net[:1], model, *net[1:], "--limit", "20", "--tolerance", "1e-5")
        assert (code, error) == (0, ""), model
    # The window starts anew every five frames, the step does not.
    code, _, _ = run("verify", "window.onnx", "step.onnx", "--limit", "5", "--tolerance", "1e-5")
    assert code == 0
    code, _, _ = run("verify", "window.onnx", "step.onnx", "--limit", "10", "--tolerance", "1e-5")
    assert code == 1


def test_a_gate_order_is_asked_for(run: Run) -> None:
    torch.save({"cells.0.weight": torch.randn(12, 5, 3, 3), "cells.0.bias": torch.randn(12)}, "conv.pth")
    code, _, error = run("export", "conv.pth", "--frame", "2,6,5", "-o", "conv.onnx")
    assert code == 2
    assert "conv.pth does not tell the order of its gates" in error
    assert "--gate-order ifog" in error
    code, text, error = run(
        "export", "conv.pth", "--frame", "2,6,5", "--gate-order", "fiog", "-o", "conv.onnx"
    )
    assert (code, error) == (0, "")
    assert "gates f, i, o, g as told" in text


def test_random_weights_are_told(run: Run) -> None:
    Path("nets.py").write_text(NETS)
    net = ("nets.py:Net", "--init", '{"hidden": 6}', "--frame", "3", "--carry-state", "--limit", 5)
    code, text, error = run("export", *net, "-o", "net.onnx")
    assert (code, error) == (0, "")
    assert (
        "untrained: no weights were given, and nets.py:Net draws 6 tensors at random at every call (lstm."
        in text
    )
    torch.save(nets_state(), "net.pt")
    code, text, _ = run("export", *net, "--weights", "net.pt", "-o", "net.onnx")
    assert code == 0
    assert "untrained" not in text


def nets_state() -> dict[str, torch.Tensor]:
    lstm, head = torch.nn.LSTM(3, 6), torch.nn.Linear(6, 2)
    return {f"lstm.{n}": v for n, v in lstm.state_dict().items()} | {
        f"head.{n}": v for n, v in head.state_dict().items()
    }
