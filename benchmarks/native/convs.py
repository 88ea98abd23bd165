"""The second table of benchmarks/native/README.md: ``python benchmarks/native/convs.py [--scale 0.2] [--readme] [--dtln FOLDER]``.

DTLN's two published models (where they are) beside their own files run by hand in ONNX Runtime, the reference ConvLSTM beside torch, ONNX
Runtime by hand and OpenVINO, in float32 and in INT8, and 64 streams in one call beside one. Every contestant in its own process, in turn.
Beside each the machine's limit, by what limits.cpp measured a moment before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import run as native  # sets the threads of NumPy's own library, and the path of benchmarks/

# isort: split
import models
import numpy as np

from edgelstm import calibrate, export, machine, quantize
from edgelstm.bench import bench
from edgelstm.bench.result import ModelResult, format_time
from edgelstm.files import write_text
from edgelstm.runtime.native.library import VARIABLE

THREADS = native.THREADS
#: State pairs, numbers in the matrices, and how much of a step's time its own file may take.
DTLN = {
    1: ({"input_3": "tf_op_layer_stack_2"}, 4 * 128 * (257 + 128 + 2 * 128) + 128 * 257),
    2: ({"input_5": "tf_op_layer_stack_5"}, 4 * 128 * (256 + 128 + 2 * 128) + 2 * 512 * 256 + 128 * 256),
}
STREAMS = 64
#: Places of the maps in the comparison of streams: 64 states of the full size take 134 MB.
SMALL_MAP = 16


def conv_flops(size: int) -> float:
    """Of a direct convolution in a step of the reference ConvLSTM on maps of that size. The products of ours (Winograd's) are a quarter."""
    return 2.0 * size * size * 4 * 64 * (16 + 64) * 9


def row(
    name: str,
    model: ModelResult,
    against: Sequence[str],
    at_most: float | None,
    limit: float,
    what: str,
    ours: str = "edgelstm",
) -> dict[str, Any]:
    """Times in microseconds; the aim is of the fastest of ``against``. limit: the machine's, in microseconds."""
    entries = {e.contestant: e for e in model.entries}
    there = [n for n in against if entries[n].p50 is not None]

    def ratio(kind: str) -> float | None:
        mine = getattr(entries[ours], kind)
        return None if mine is None or not there else mine / min(getattr(entries[n], kind) for n in there)

    return {
        "model": name,
        "us": {n: e.p50 for n, e in entries.items()},
        "best_us": {n: e.best for n, e in entries.items()},
        "notes": {n: e.note for n, e in entries.items() if e.note},
        "error": {n: e.error for n, e in entries.items()},
        "ratio": ratio("p50"),
        "ratio_of_best": ratio("best"),
        "aim": {"against": there, "at_most": at_most},
        "limit_us": limit,
        "limit": what,
    }


def streams_row(name: str, one: ModelResult, many: ModelResult, limit: float, what: str) -> dict[str, Any]:
    """A stream's share of a step of many beside a step of one."""
    a, b = one["edgelstm"], many["edgelstm"]
    assert None not in (a.p50, a.best, b.p50, b.best)
    others = {n: many[n].p50 for n in ("edgelstm-plain", "onnxruntime")}
    return {
        "model": f"{name}, {STREAMS} streams, each",
        "us": {"edgelstm": b.p50 / STREAMS, "one": a.p50}
        | {n: None if t is None else t / STREAMS for n, t in others.items()},
        "best_us": {"edgelstm": b.best / STREAMS, "one": a.best}
        | {n: None if (t := many[n].best) is None else t / STREAMS for n in others},
        "notes": {},
        "error": {},
        "ratio": b.p50 / STREAMS / a.p50,
        "ratio_of_best": b.best / STREAMS / a.best,
        "aim": {"against": ["one"], "at_most": 0.6},
        "limit_us": limit,
        "limit": what,
    }


LABELS = {
    "edgelstm-plain": "without our operators",
    "onnxruntime": "by hand",
    "openvino": "OpenVINO",
    "torch": "torch",
    "one": "one stream alone",
}


def table(data: dict[str, Any]) -> str:
    """The rows for README.md."""
    load = data["load"]
    lines = [
        f"{data['machine']['processor']}, {data['machine']['processors']} processors (load average {load['before']:.1f} before, "
        f"{load['after']:.1f} after), {data['threads']} threads, kernels {data['kernels']}, {data['date']}. Fastest step / median.",
        "",
        "| model | ours | others | ours / best of them: fastest | medians | aim | limit of this machine | limit / ours, fastest |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def both(r: dict[str, Any], name: str) -> str:
        return f"{format_time(r['best_us'][name])} / {format_time(r['us'][name])}"

    for r in data["rows"]:
        others = ", ".join(
            f"{LABELS[n]} {both(r, n)}" for n in r["us"] if n != "edgelstm" and r["us"][n] is not None
        )
        found, aim = r["ratio_of_best"], r["aim"]["at_most"]
        said = "not measured" if found is None else "reached" if found <= (aim or 0) else "missed"
        named = ", ".join(LABELS[n] for n in r["aim"]["against"])
        ratios = ["-" if r[k] is None else f"{r[k]:.2f}" for k in ("ratio_of_best", "ratio")]
        cells = [
            r["model"],
            both(r, "edgelstm"),
            others,
            *ratios,
            f"{aim} of {named}: {said}" if aim else "none",
        ]
        cells += [
            f"{format_time(r['limit_us'])} ({r['limit']})",
            f"{r['limit_us'] / r['best_us']['edgelstm']:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def int8(folder: Path) -> Path:
    """The reference ConvLSTM in INT8, calibrated on random frames."""
    rng = np.random.default_rng(0)
    frames = [rng.normal(size=(16, 64, 64)).astype(np.float32) for _ in range(24)]
    path = folder / "conv_int8.onnx"
    step = export(models.conv_lstm(folder), folder / "conv.onnx", limit=3).step
    found = calibrate(step, [frames], threads=THREADS)
    quantize(step, found.calibration, path, verify=False, threads=THREADS)
    return path


def measure(folder: Path, dtln: Path | None, scale: float) -> list[dict[str, Any]]:
    """All rows."""
    sizes = [4 * count for _, count in DTLN.values()]
    read, gflops = native.limits(folder, sizes)
    rounds = max(3, round(9 * scale))
    common: dict[str, Any] = {"rounds": rounds, "threads": THREADS}
    rows = []
    for (number, (states, _)), size in zip(DTLN.items(), sizes, strict=True):
        own = None if dtln is None else dtln / f"model_{number}.onnx"
        if own is None or not own.is_file():
            continue
        path = folder / f"dtln_{number}.onnx"
        export(own, path, states=states, limit=3)
        result = bench([path], ["onnxruntime"], plain={str(path): own}, steps=600, **common).models[0]
        rows.append(row(f"DTLN model_{number}", result, ["onnxruntime"], 0.6, read[size], "weights"))
    full = conv_flops(64) / gflops / 1e3
    against = ["onnxruntime", "openvino", "torch"]
    result = bench([models.conv_lstm(folder)], against, steps=30, **common).models[0]
    rows.append(row("ConvLSTM 16 -> 64, 64x64", result, against, 0.6, full / 4, "arithmetic of its products"))
    result = bench(
        [models.conv_gru(folder)],
        ["edgelstm-plain", *against],
        steps=30,
        module=f"{models.__file__}:torch_conv_gru",
        **common,
    ).models[0]
    gru = 0.75 * full / 4  # three gates, not four
    everyone = ["edgelstm-plain", *against]
    rows.append(row("ConvGRU 16 -> 64, 64x64", result, everyone, None, gru, "arithmetic of its products"))
    result = bench([int8(folder)], ["onnxruntime"], steps=40, **common).models[0]
    rows.append(
        row(
            "ConvLSTM 16 -> 64, 64x64, INT8",
            result,
            ["edgelstm-plain"],
            1.0,
            full / 4,
            "arithmetic of a direct convolution, 4 times that of float32",
        )
    )
    few: dict[str, Any] = {"rounds": max(3, round(5 * scale)), "threads": THREADS}
    for name, path, steps, work in (
        ("LSTM 2 x 32", models.lstm(folder, 32), 800, 2.0 * native.weights("lstm", 32)),
        ("LSTM 2 x 256", models.lstm(folder, 256), 200, 2.0 * native.weights("lstm", 256)),
        (
            f"ConvLSTM 16 -> 64, {SMALL_MAP}x{SMALL_MAP}",
            models.conv_lstm(folder, SMALL_MAP),
            60,
            conv_flops(SMALL_MAP) / 4,
        ),
    ):
        one = bench([path], ["onnxruntime"], steps=steps, **few).models[0]
        many = bench([path], ["onnxruntime"], steps=max(4, steps // 16), streams=STREAMS, **few).models[0]
        rows.append(streams_row(name, one, many, work / gflops / 1e3, "arithmetic"))
    return rows


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rounds to take (default 1)")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument(
        "--dtln", type=Path, metavar="FOLDER", help="with model_1.onnx and model_2.onnx of breizhn/DTLN"
    )
    arguments = parser.parse_args()
    shared = native.HERE.parents[2] / "shared" / "models" / "dtln"
    built = native.library()
    os.environ.pop("EDGELSTM_NATIVE", None)
    os.environ[VARIABLE] = str(built.path)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.dtln or (shared if shared.is_dir() else None), arguments.scale)
    cpu = machine.cpu()
    data = {
        "date": date.today().isoformat(),
        "machine": {"processor": cpu.model, "features": cpu.features, "processors": cpu.usable},
        "threads": THREADS,
        "load": {"before": load, "after": os.getloadavg()[0]},
        "kernels": built.instructions(),
        "scale": arguments.scale,
        "rows": rows,
    }
    write_text(native.HERE / "convs.json", json.dumps(data, indent=1) + "\n")
    text = table(data)
    print(text)
    if arguments.readme:
        readme = native.HERE / "README.md"
        marked = f"<!-- convs -->\n{text}\n<!-- /convs -->"
        old = readme.read_text(encoding="utf-8")
        write_text(readme, re.sub("<!-- convs -->.*<!-- /convs -->", lambda _: marked, old, flags=re.DOTALL))


if __name__ == "__main__":
    main()
