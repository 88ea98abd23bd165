"""Draws results/*.json: ``python benchmarks/plot.py`` writes results/speed.svg."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from edgelstm.bench.result import format_time

mpl.use("svg")

RESULTS = Path(__file__).resolve().parent / "results"
#: Contestant and how it is called in the picture, top to bottom.
SHOWN = {
    "edgelstm": "edgelstm",
    "onnxruntime": "ONNX Runtime by hand",
    "openvino": "OpenVINO fp32",
    "torch-compile": "torch.compile",
    "torch": "PyTorch",
}


def main(results: Path = RESULTS) -> None:
    """One panel a model: time of a step over ours, and every round's as a dot."""
    models = list(_models(results))
    figure, axes = plt.subplots(
        1, len(models), figsize=(3.2 * len(models), 2.2), sharey=True, layout="constrained"
    )
    for axis, (title, entries) in zip(axes, models, strict=True):
        ours = entries["edgelstm"]["rounds"]
        for row, name in enumerate(SHOWN):
            entry = entries[name]
            dots = [theirs / us for theirs, us in zip(entry["rounds"], ours, strict=True)]
            axis.barh(row, entry["ratio"], color="tab:blue" if name == "edgelstm" else "lightgrey")
            axis.plot(dots, [row] * len(dots), ".", color="black", markersize=2)
            label = f" {entry['ratio']:.2f}" if entry["ratio"] < 10 else f" {entry['ratio']:.0f}"
            axis.text(max(dots), row, label, va="center", fontsize=8)
        axis.set_xlim(0, 1.2 * axis.get_xlim()[1])
        axis.set_title(f"{title}: {format_time(entries['edgelstm']['p50'])}", fontsize=9)
        axis.set_xlabel("time of a step / edgelstm's", fontsize=8)
    axes[0].set_yticks(range(len(SHOWN)), list(SHOWN.values()), fontsize=8)
    axes[0].invert_yaxis()
    # Without a date and with fixed ids the same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "edgelstm"
    figure.savefig(results / "speed.svg", metadata={"Date": None})


def _models(results: Path) -> Any:
    conv = json.loads((results / "conv_lstm.json").read_text())["details"]
    yield "ConvLSTM 16 -> 64, 3x3, 64x64", _entries(conv)
    for hidden, result in json.loads((results / "lstm.json").read_text())["details"]["torch.nn.LSTM"].items():
        yield f"LSTM 2 x {hidden}, batch 1", _entries(result)


def _entries(result: dict[str, Any]) -> dict[str, Any]:
    return {e["contestant"]: e for e in result["models"][0]["entries"]}


if __name__ == "__main__":
    main()
