"""Checkpoints without a module, TorchScript, and files that are refused: what is made of them and what is said."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import torch_sequences as nets  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import edgelstm  # noqa: E402
from edgelstm.errors import EdgeLstmError  # noqa: E402
from edgelstm.frontends.torch.checkpoint import read_tensors  # noqa: E402
from edgelstm.frontends.torch.factory import load_weights  # noqa: E402
from edgelstm.frontends.torch.program import TorchProgram  # noqa: E402
from edgelstm.frontends.torch.recognise import as_step  # noqa: E402
from edgelstm.runtime.onnxruntime import OrtProgram  # noqa: E402
from edgelstm.verify.compare import compare  # noqa: E402
from edgelstm.workflows.export import Exported  # noqa: E402

nn = torch.nn
State = tuple[torch.Tensor, torch.Tensor]


def against(module: Any, frame: tuple[int, ...], exported: Exported, steps: int = 50) -> float:
    """The worst relative error of an export against a module it was not made from, by name of output and state."""
    rng = np.random.default_rng(0)
    frames = [{"x": rng.normal(size=frame).astype(np.float32)} for _ in range(steps)]
    source = TorchProgram(as_step(module, frame))
    return compare(source, OrtProgram(exported.step.to_bytes(), threads=1), frames).worst.worst


# -- weights alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_an_lstm_by_its_names(tmp_path: Path, suffix: str) -> None:
    """torch.nn.LSTM's weights say everything, whatever prefix a hub's file gives them."""
    torch.manual_seed(0)
    module = nn.LSTM(3, 4, 2)
    weights = {f"encoder.rnn.{name}": value for name, value in module.state_dict().items()}
    path = tmp_path / f"model.{suffix}"
    if suffix == "pth":
        torch.save({"epoch": 1, "state_dict": weights}, path)
    else:
        save_file(weights, path, {"format": "pt"})
    exported = edgelstm.export(str(path), limit=20)
    assert exported.step.op_types() == ["Concat", "Gemm", "FusedGates_lstm"] * 2
    assert against(module, (3,), exported) < 1e-5


@pytest.mark.parametrize("order", ["ifog", "ifgo", pytest.param("fiog", marks=pytest.mark.thorough)])
def test_a_conv_lstm_in_the_order_that_is_told(tmp_path: Path, order: str) -> None:
    torch.manual_seed(0)
    module = nets.CopiedConvLSTM(return_all_layers=False)  # its gates: i, f, o, g
    path = tmp_path / "model.pth"
    torch.save(module.state_dict(), path)
    exported = edgelstm.export(str(path), frame=nets.FRAME, gate_order=order, limit=5)
    assert exported.step.op_types() == ["Concat", "Conv", "FusedGates_lstm"] * 2
    assert "x before h" in exported.notes[0]
    assert (against(module, nets.FRAME, exported, steps=20) < 1e-5) == (order == "ifog")


def lstm(**options: Any) -> Callable[[], Any]:
    return lambda: nn.LSTM(3, 4, **options).state_dict()


BARE: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "gate order": (
        lambda: nets.CopiedConvLSTM().state_dict(),
        {"frame": nets.FRAME},
        r"does not tell the order of its gates: found cell_list\.0\.conv\.weight \[12, 5, 3, 3\].*whose four blocks of rows "
        r"look alike; expected --gate-order ifog.*a wrong order gives plausible results and can even score better",
    ),
    "no gate order": (
        lambda: nets.CopiedConvLSTM().state_dict(),
        {"gate_order": "ifoo"},
        r"^gate order: found ifoo; expected the letters i, f, g and o",
    ),
    "frame": (
        lambda: nets.CopiedConvLSTM().state_dict(),
        {"gate_order": "ifog", "frame": (3, 6, 5)},
        r"found 3,6,5; expected --frame 2,HEIGHT,WIDTH",
    ),
    "not recurrent": (
        lambda: nn.Sequential(nn.Linear(2, 2)).state_dict(),
        {},
        r"holds no recurrent weights: found 2 tensors: 0\.weight, 0\.bias; .*plain Python list are not saved",
    ),
    "a network": (
        lambda: nets.Detector().state_dict(),
        {"gate_order": "ifog", "frame": nets.FRAME},
        r"is not a plain stack of ConvLSTM cells.*others encoder\.0\.weight.*edgelstm export package\.module:Class",
    ),
    "a head": (
        lambda: nets.Classifier().state_dict(),
        {},
        r"holds more than one LSTM.*found recurrent lstm; others fc\.weight, fc\.bias.*package\.module:Class",
    ),
    "GRU": (
        lambda: nn.GRU(3, 4).state_dict(),
        {},
        r"found a torch\.nn\.GRU \(three gates\).*torch\.nn:GRU --init",
    ),
    "RNN": (
        lambda: nn.RNN(3, 4).state_dict(),
        {},
        r"found a torch\.nn\.RNN \(one gate\), whose activation no weight tells",
    ),
    "bidirectional": (lstm(bidirectional=True), {}, r"found a bidirectional module: a window, not a step"),
    "projected": (lstm(proj_size=2), {}, r"found an LSTM with proj_size"),
    "an order that is known": (
        lstm(),
        {"gate_order": "ifog"},
        r"expected none: torch\.nn\.LSTM's is i, f, g, o",
    ),
    "a layer missing": (
        lambda: {k: v for k, v in nn.LSTM(3, 4, 3).state_dict().items() if "_l1" not in k},
        {},
        r"is not the weights of a plain torch\.nn\.LSTM",
    ),
    "NaN": (
        lambda: {k: v * float("nan") for k, v in nn.LSTM(3, 4).state_dict().items()},
        {},
        r"holds weights that are NaN or infinite",
    ),
}


@pytest.mark.parametrize("name", BARE)
def test_weights_that_do_not_tell_enough(tmp_path: Path, name: str) -> None:
    make, options, message = BARE[name]
    path = tmp_path / "model.pth"
    torch.save(make(), path)
    with pytest.raises(EdgeLstmError, match=message):
        edgelstm.export(str(path), tmp_path / "out.onnx", **options)
    assert not (tmp_path / "out.onnx").exists()


def test_a_gate_order_is_for_checkpoints_alone() -> None:
    with pytest.raises(
        EdgeLstmError,
        match=r"^gate_order given for LSTMCell: expected no gate_order: it is for checkpoints alone",
    ):
        edgelstm.export(nn.LSTMCell(3, 4), frame=(3,), gate_order="ifog")


# -- TorchScript --------------------------------------------------------------------------------------------------


class ScriptedLstm(nn.Module):
    """Typed as TorchScript wants it, two layers of torch.nn.LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, 2, batch_first=True)

    def forward(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y, (h, c) = self.lstm(x.unsqueeze(1), (h, c))
        return y[:, 0] * 2, h, c


class ScriptedCell(nn.Module):
    """A ConvLSTM cell, which knows its first state itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 + 3, 12, 3, padding=1)

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None = None) -> State:
        if state is None:
            zeros = torch.zeros(x.shape[0], 3, x.shape[2], x.shape[3])
            state = (zeros, zeros)
        i, f, o, g = self.gates(torch.cat([x, state[0]], 1)).chunk(4, 1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "frame", "states", "cells"),
    [
        (ScriptedLstm, (3,), {"h": (2, 4), "c": (2, 4)}, 2),
        (ScriptedCell, (2, 5, 4), None, 1),
    ],
)
def test_a_torchscript_file(tmp_path: Path, make: Any, frame: Any, states: Any, cells: int) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    torch.jit.script(make().eval()).save(path)
    exported = edgelstm.export(str(path), frame=frame, states=states, limit=20)
    found = exported.step.op_types()
    assert found.count("FusedGates_lstm") == cells
    assert not {"LSTM", "If"} & set(found)
    assert exported.step.signature.stream_axis == "N"
    with pytest.raises(
        EdgeLstmError, match=r"model\.pt is a TorchScript module, with its code, not weights for one"
    ):
        load_weights(make(), path)


def test_a_torchscript_file_that_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/constants.pkl", b"")
        archive.writestr("model/code/__torch__.py", "nonsense(")
    with pytest.raises(EdgeLstmError, match=r"torch can't open the TorchScript file .*model\.pt"):
        edgelstm.export(str(tmp_path / "model.pt"), frame=(3,))


# -- what is refused ----------------------------------------------------------------------------------------------


class Callback:
    """A class that a checkpoint may name."""


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("this must never be printed",))


WEIGHTS = {name: value.clone() for name, value in nn.LSTM(3, 4).state_dict().items()}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "under a key": (
        lambda: {"epoch": 1, "state_dict": WEIGHTS, "callbacks": {"early": [{"stop": Evil()}]}, "lr": 0.1},
        r"holds more than weights, under the key 'callbacks': found a pickled builtins\.print.*torch\.save\(model\.state_dict",
    ),
    "among the weights": (
        lambda: {"state_dict": {**WEIGHTS, "extra": Evil()}},
        r"under the key 'state_dict': found a pickled builtins\.print",
    ),
    "a whole model": (
        lambda: nets.Inline(),
        r"holds more than weights: found a pickled torch_sequences\.Inline",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_run_is_refused_with_its_key(tmp_path: Path, name: str, capsys: Any) -> None:
    make, message = REFUSED[name]
    torch.save(make(), tmp_path / "model.pt")
    with pytest.raises(EdgeLstmError, match=message):
        read_tensors(tmp_path / "model.pt")
    assert capsys.readouterr().out == ""


def test_what_is_only_named_is_passed_over(tmp_path: Path) -> None:
    """Lightning names its callbacks' classes; NumPy's numbers are notes. Neither is imported, nor are weights lost."""
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": WEIGHTS, "callbacks": {Callback: {"best": np.float64(0.5)}}}, path)
    saved = path.read_bytes()
    assert b"Callback\n" in saved
    path.write_bytes(saved.replace(b"Callback\n", b"Nowhere_\n"))  # a class that exists nowhere
    assert {name: value.tolist() for name, value in read_tensors(path).items()} == {
        name: value.tolist() for name, value in WEIGHTS.items()
    }


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "joblib"])
def test_pickles_are_not_opened(tmp_path: Path, suffix: str, capsys: Any) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(EdgeLstmError, match=rf"model\.{suffix} is a pickle, which can run any code"):
        edgelstm.export(str(path))
    assert capsys.readouterr().out == ""


class PlainList(nn.Module):
    """Cells where torch does not see them."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = [nn.LSTMCell(3, 4)]
        self.head = nn.Linear(4, 1)


def test_cells_in_a_plain_list_have_no_weights_in_a_checkpoint(tmp_path: Path) -> None:
    torch.save(PlainList().state_dict(), tmp_path / "model.pt")
    with pytest.raises(
        EdgeLstmError, match=r"found modules in a plain list or dictionary, cells, which torch does not see"
    ):
        load_weights(PlainList(), tmp_path / "model.pt")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_checkpoints_are_one_error(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, cut off or added anywhere: weights or an EdgeLstmError, and nothing else."""
    source = tmp_path / "whole.pt"
    if not source.exists():
        torch.save({"state_dict": WEIGHTS, "callbacks": {Callback: [Evil()]}}, source)
    whole = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.pt"
    path.write_bytes(bytes(whole[: data.draw(st.integers(1, len(whole)))]))
    with pytest.raises(EdgeLstmError):
        read_tensors(path)
