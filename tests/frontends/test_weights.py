"""Weights files and factories: what is taken, and what is said of those that don't fit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from edgelstm.errors import EdgeLstmError  # noqa: E402
from edgelstm.frontends.torch.factory import load_weights, resolve  # noqa: E402

SOURCE = """
import torch
from dataclasses import dataclass

@dataclass
class Config:
    hidden: int = 4

def make(hidden=4):
    return torch.nn.LSTM(3, Config(hidden).hidden)

ready = torch.nn.Linear(1, 1)
number = 3
def breaks():
    raise RuntimeError("no GPU here")
def makes_nothing():
    return None
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "my_nets.py"
    path.write_text(SOURCE)
    return path


def test_factories(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(f"{nets}:make").hidden_size == 4
    assert resolve(f"{nets}:make", {"hidden": 7}).hidden_size == 7
    assert not resolve(f"{nets}:ready").training
    assert "my_nets" not in sys.modules
    monkeypatch.syspath_prepend(nets.parent)
    assert resolve("my_nets:make").hidden_size == 4
    assert resolve("torch.nn:Identity") is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"has no 'nothing': expected one of torch, dataclass, Config, make, ready and 3 more"),
        ("number", r"number: found int; expected a function or class to call"),
        ("breaks", r"breaks failed: found RuntimeError: no GPU here"),
        ("makes_nothing", r"makes_nothing: found NoneType; expected a factory of a torch.nn.Module"),
    ],
)
def test_what_is_no_factory(nets: Path, name: str, message: str) -> None:
    with pytest.raises(EdgeLstmError, match=message):
        resolve(f"{nets}:{name}")


def test_modules_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(EdgeLstmError, match=r"no Python module 'not_a_package.nets'"):
        resolve("not_a_package.nets:make")
    with pytest.raises(EdgeLstmError, match=r"none\.py does not exist"):
        resolve(f"{tmp_path}/none.py:make")
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(EdgeLstmError, match=r"running .*bad\.py failed: found ZeroDivisionError"):
        resolve(f"{tmp_path}/bad.py:make")
    with pytest.raises(EdgeLstmError, match=r"Arguments go in as --init"):
        resolve("torch.nn:Linear", {"colour": 1})


Wrap = Callable[[dict[str, Any]], Any]
FILES: dict[str, Wrap] = {
    "plain.pt": lambda w: w,
    "nested.pth": lambda w: {"epoch": 3, "model_state_dict": w},
    "lightning.ckpt": lambda w: {"state_dict": {f"model.{n}": t for n, t in w.items()}},
    "parallel.pt": lambda w: {f"module.{n}": t for n, t in w.items()},
}


@pytest.mark.parametrize("name", [*FILES, "plain.safetensors"])
def test_weights_are_loaded(tmp_path: Path, name: str) -> None:
    source, target = torch.nn.LSTM(3, 4), torch.nn.LSTM(3, 4)
    weights = dict(source.state_dict())
    if name.endswith(".safetensors"):
        save_file(weights, tmp_path / name)
    else:
        torch.save(FILES[name](weights), tmp_path / name)
    load_weights(target, tmp_path / name)
    x = torch.randn(2, 1, 3)
    assert torch.equal(source(x)[0], target(x)[0])


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    weights = dict(torch.nn.LSTM(3, 5).state_dict())
    weights["extra"] = torch.zeros(1)
    del weights["bias_hh_l0"]
    save_file(weights, tmp_path / "w.safetensors")
    module = torch.nn.LSTM(3, 4)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with pytest.raises(EdgeLstmError) as error:
        load_weights(module, tmp_path / "w.safetensors")
    text = str(error.value)
    for part in (
        "w.safetensors does not fit LSTM",
        "1 missing: bias_hh_l0",
        "1 left over: extra",
        "3 of another shape: weight_ih_l0 [20, 3] for [16, 3]",
    ):
        assert part in text
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("this must never be printed",))


def test_pickles_are_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "callback": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(EdgeLstmError, match=r"evil\.pt holds more than weights.*found .*print.*torch\.save"):
        load_weights(torch.nn.LSTM(3, 4), tmp_path / "evil.pt")
    assert capsys.readouterr().out == ""


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    module = torch.nn.LSTM(3, 4)
    (tmp_path / "w.safetensors").write_bytes(b"no")
    (tmp_path / "w.pt").write_bytes(b"no")
    (tmp_path / "w.bin").write_bytes(b"no")
    torch.save({"note": "nothing"}, tmp_path / "empty.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    for name, message in {
        "w.safetensors": "is not a .safetensors file, or is truncated",
        "w.pt": "holds more than weights, or is damaged",
        "w.bin": r"found \.bin; expected \.safetensors, \.pt or \.pth",
        "empty.pt": "holds no tensors: found keys note",
        "list.pt": "found list; expected a state dict",
        "none.pt": "does not exist",
    }.items():
        with pytest.raises(EdgeLstmError, match=message):
            load_weights(module, tmp_path / name)
