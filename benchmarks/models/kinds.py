"""Every kind of model the table in docs/models.md tells of: how a small one of it is made, from the tests' own."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "models"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "frontends")]


@dataclass(frozen=True)
class Kind:
    """A row: where the model comes from, what it is, ``make(folder)`` giving what ``edgelstm.export`` takes, and its options.

    window: it is exported as windows of so many frames, since no step of it exists; ``why`` says the reason.
    """

    source: str
    name: str
    make: Callable[[Path], Any]
    options: dict[str, Any] = field(default_factory=dict)
    window: int | None = None
    why: str = ""


def kinds() -> list[Kind]:
    """All of them that can be made here."""
    rows = [*_torch(), *_torch_cells(), *_onnx(), *_described(), *_systems()]
    if importlib.util.find_spec("keras") is not None:
        rows += _keras()
    if importlib.util.find_spec("edgelstm.frontends.currennt.graph") is not None:
        rows += _currennt()
    return rows + (_published() if SHARED.is_dir() else [])


def _torch() -> list[Kind]:
    from torch import nn

    def lstm(kind: Any = nn.LSTM, **options: Any) -> Callable[[Path], Any]:
        return lambda _: kind(4, 8, batch_first=True, **options).eval()

    frame = {"frame": (4,)}
    return [
        Kind("PyTorch", "nn.LSTM, two layers", lstm(num_layers=2), frame),
        Kind("PyTorch", "nn.LSTM, projected", lstm(proj_size=3), frame),
        Kind("PyTorch", "nn.GRU", lstm(nn.GRU), frame),
        Kind("PyTorch", "nn.LSTMCell", lambda _: nn.LSTMCell(4, 8), frame),
        Kind(
            "PyTorch",
            "nn.LSTM, bidirectional",
            lstm(bidirectional=True),
            {**frame, "window": 10},
            10,
            "its backward half begins at the last frame",
        ),
    ]


def _torch_cells() -> list[Kind]:
    from test_torch_cells import CASES

    frame = {"frame": (2, 6, 5)}
    return [
        Kind("PyTorch cells", name, lambda _, make=make: make(), frame) for name, (make, _) in CASES.items()
    ]


def _keras() -> list[Kind]:
    import keras_zoo as zoo

    layers = zoo.layers

    def model(frame: tuple[int, ...], *stack: Callable[[], Any], length: int | None = None) -> Any:
        def make(folder: Path) -> str:
            made = zoo.sequential(*(layer() for layer in stack), frame=frame, length=length)
            return str(zoo.save(made, folder))

        return make

    seq = {"return_sequences": True}
    maps = (6, 5, 2)
    return [
        Kind("Keras", "LSTM, Dense", model((4,), lambda: layers.LSTM(8, **seq), lambda: layers.Dense(3))),
        Kind("Keras", "GRU, reset_after", model((4,), lambda: layers.GRU(8, **seq))),
        Kind("Keras", "GRU, reset before", model((4,), lambda: layers.GRU(8, reset_after=False, **seq))),
        Kind("Keras", "SimpleRNN", model((4,), lambda: layers.SimpleRNN(8, **seq))),
        Kind(
            "Keras",
            "ConvLSTM2D, BatchNormalization",
            model(maps, lambda: layers.ConvLSTM2D(4, 3, padding="same", **seq), layers.BatchNormalization),
        ),
        Kind(
            "Keras",
            "ConvLSTM2D, hard_sigmoid, strides",
            model(
                maps,
                lambda: layers.ConvLSTM2D(4, 3, strides=2, recurrent_activation="hard_sigmoid", **seq),
            ),
        ),
        Kind(
            "Keras",
            "TimeDistributed(Conv2D), Flatten, LSTM",
            model(
                maps,
                lambda: layers.TimeDistributed(layers.Conv2D(3, 3, activation="relu")),
                lambda: layers.TimeDistributed(layers.Flatten()),
                lambda: layers.LSTM(8, **seq),
            ),
        ),
        Kind(
            "Keras",
            "Conv1D over time (causal), LSTM",
            model((4,), lambda: layers.Conv1D(6, 3, padding="causal"), lambda: layers.LSTM(8, **seq)),
        ),
        Kind(
            "Keras",
            "Bidirectional(LSTM)",
            model((4,), lambda: layers.Bidirectional(layers.LSTM(8, **seq)), length=10),
            {"window": 10},
            10,
            "its backward half begins at the last frame",
        ),
    ]


def _onnx() -> list[Kind]:
    import onnx_zoo as zoo

    def file(data: Callable[[], bytes]) -> Callable[[Path], str]:
        def make(folder: Path) -> str:
            path = folder / "other.onnx"
            path.write_bytes(data())
            return str(path)

        return make

    agree = {"confirm": lambda *_: True, "fix": {"time": 1}}
    rows = [
        Kind(
            "ONNX",
            f"{kind} operators, states given",
            file(lambda kind=kind: zoo.stateful(kind)),
            {"states": {s: s.replace("_in", "_out") for s in names}},
        )
        for kind, names in (("LSTM", ("h_in", "c_in")), ("GRU", ("h_in",)), ("RNN", ("h_in",)))
    ]
    rows += [
        Kind("ONNX", f"{kind} operators that start anew", file(lambda kind=kind: zoo.forgetful(kind)), agree)
        for kind in ("LSTM", "GRU", "RNN")
    ]
    return rows + [
        Kind(
            "ONNX",
            f"ConvLSTM in a {kind}",
            file(lambda kind=kind: zoo.looping(kind, named=True)),
            {"confirm": lambda *_: True, "fix": {"T": 1}},
        )
        for kind in ("Loop", "Scan")
    ]


def _described() -> list[Kind]:
    return [
        Kind("our modules", name, lambda _, name=name: str(ROOT / "examples" / name / "model.safetensors"))
        for name in ("sensor_lstm", "moving_digits", "nowcast_radar")
    ]


def _systems() -> list[Kind]:
    def example(folder: str, build: Callable[[Any], Any]) -> Callable[[Path], Any]:
        def make(_: Path) -> Any:
            spec = importlib.util.spec_from_file_location(
                f"{folder}_model", ROOT / "examples" / folder / "model.py"
            )
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return build(module).eval()

        return make

    units = {f"{kind}{k}": (8,) for k in (1, 2) for kind in "hc"}
    ring = {"ring1": (1, 4, 3), "ring2": (4, 4, 3), "ring3": (4, 4, 3), "ring4": (4, 4, 3), "gates": (7, 32)}
    return [
        Kind(
            "literature",
            "DeepConvLSTM, ring buffers",
            example("deep_conv_lstm", lambda m: m.RingStep(m.DeepConvLSTM(3, 4, filters=4, units=8))),
            {"frame": (3,), "states": ring},
        ),
        Kind(
            "literature",
            "LSTM-AD, its statistics as states",
            example("anomaly_detection", lambda m: m.GaussianDetector(m.Forecaster(6, 8, 3))),
            {"frame": (6,), "states": {**units, "made": (3, 3, 6), "age": (1,)}},
        ),
        Kind(
            "literature",
            "an LSTM a variable, merged",
            example("merged_lstms", lambda m: m.Merged(6, 8)),
            {"frame": (6,), "states": {"h": (6, 8), "c": (6, 8)}},
        ),
        Kind(
            "literature",
            "Conv2D, then LSTM",
            example("cnn_lstm", lambda m: m.ConvThenLstm(8)),
            {"frame": (1, 16, 16), "states": {"h": (32,), "c": (32,)}},
        ),
    ]


def _currennt() -> list[Kind]:
    import test_currennt as zoo

    def network(*layers: tuple[str, int]) -> Callable[[Path], str]:
        return lambda folder: str(zoo.saved(zoo.written(4, layers), folder))

    return [
        Kind("CURRENNT", "lstm, softmax", network(("lstm", 8), ("softmax", 3))),
        Kind(
            "CURRENNT",
            "blstm, feedforward_tanh",
            network(("blstm", 8), ("feedforward_tanh", 3)),
            {"window": 10},
            10,
            "its backward half begins at the last frame",
        ),
    ]


def _published() -> list[Kind]:
    dtln = SHARED / "dtln"
    return [
        Kind(
            "published",
            f"DTLN {k}",
            lambda _, k=k: str(dtln / f"model_{k}.onnx"),
            {"states": states},
        )
        for k, states in (
            (1, {"input_3": "tf_op_layer_stack_2"}),
            (2, {"input_5": "tf_op_layer_stack_5"}),
        )
    ]
