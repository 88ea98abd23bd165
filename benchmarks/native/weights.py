"""Weights alone in fewer bits, for run.py: our time over our own in float32, how far outputs drift, and what others do with the same file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np

from edgelstm import quantize
from edgelstm.bench.coordinator import OURS, _job
from edgelstm.bench.race import Race
from edgelstm.bench.result import format_time
from edgelstm.frontends.described.graph import load_described, to_step
from edgelstm.graph.step import StepModel
from edgelstm.runtime import Runner

PRECISIONS = {"int8": "int8-weights", "bf16": "bf16-weights"}
#: Bytes of a weight.
BYTES = {"int8": 1, "bf16": 2}
#: Of int8: our time over our own in float32, and the drift, at most; of the large models.
AIM_RATIO, AIM_DRIFT, AIM_SIZE = 0.35, 0.005, 1024
DRIFT_STEPS = 1000
STEPS = {256: 400, 1024: 20}


def measure(
    folder: Path,
    kind: str,
    hidden: int,
    source: Path,
    read: dict[int, float],
    count: int,
    rounds: int,
    threads: int,
) -> dict[str, Any]:
    """One row: every contestant in its own process, in turn, on the same seeded frames."""
    step = to_step(load_described(source)) if source.suffix == ".safetensors" else StepModel.load(source)
    paths = {"fp32": folder / f"{kind}_{hidden}.step.onnx"}
    step.save(paths["fp32"])
    for name, precision in PRECISIONS.items():
        paths[name] = folder / f"{kind}_{hidden}.{name}.onnx"
        quantize(step, None, paths[name], precision=precision, verify=False)
    jobs = {}
    for name, path in paths.items():
        job = replace(_job(path, folder / f"race_{kind}_{hidden}_{name}", None), threads=threads)
        jobs[name] = replace(job, contestant=OURS)
        if name != "bf16":
            jobs |= {f"{c} {name}": replace(job, contestant=c) for c in ("onnxruntime", "openvino")}
    with Race(str(source), jobs, "fp32") as race:
        result = race.run(rounds, STEPS[hidden])
    entries = {name: result[name] for name in jobs}
    ours = {name: entries[name].best for name in paths}
    return {
        "model": f"{kind.upper()} 2 x {hidden}",
        "us": {name: e.p50 for name, e in entries.items()},
        "best_us": {name: e.best for name, e in entries.items()},
        "ratio": {name: entries[name].ratio for name in PRECISIONS},  # of the medians, to ours in float32
        "ratio_of_best": {name: _ratio(ours[name], ours["fp32"]) for name in PRECISIONS},
        "notes": {name: e.note for name, e in entries.items() if e.note},
        "drift": {name: drift(paths["fp32"], paths[name]) for name in PRECISIONS},
        "file_bytes": {name: path.stat().st_size for name, path in paths.items()},
        "limit_us": {name: read[size * count] for name, size in BYTES.items()},
        "aim": {"ratio": AIM_RATIO, "drift": AIM_DRIFT} if hidden == AIM_SIZE else None,
    }


def drift(one: Path, other: Path) -> dict[str, float]:
    """The 2-norm of the difference of the outputs over that of the outputs, of all steps and of the last quarter."""
    rng = np.random.default_rng(1)
    frames = rng.normal(size=(DRIFT_STEPS, models.LSTM_INPUTS)).astype(np.float32)
    with Runner.open(one, threads=1) as a, Runner.open(other, threads=1) as b:
        first, second = a.stream("s"), b.stream("s")
        apart = np.zeros((DRIFT_STEPS, 2))
        for k, frame in enumerate(frames):
            x, y = first.step(frame), second.step(frame)
            apart[k] = np.sum([[np.sum((x[n] - y[n]) ** 2), np.sum(x[n] ** 2)] for n in x], axis=0)
    parts = {"all": apart, "last_quarter": apart[-DRIFT_STEPS // 4 :]}
    return {name: float(np.sqrt(part[:, 0].sum() / part[:, 1].sum())) for name, part in parts.items()}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines for README.md."""
    lines = []
    for title, times, ratios in (
        ("Weights alone in fewer bits, medians", "us", "ratio"),
        ("Weights alone, the fastest step", "best_us", "ratio_of_best"),
    ):
        lines += [
            "",
            f"{title}:",
            "",
            "| model | ours, float32 | int8 weights | int8 / float32 | drift | bf16 weights | bf16 / float32 | drift | "
            "OpenVINO fp32 | OpenVINO, the int8 file | ONNX Runtime by hand, the int8 file | limit: int8 weights | aim |",
            "|" + "---|" * 13,
        ]
        for r in rows:
            cells = [r["model"], format_time(r[times]["fp32"])]
            for name in PRECISIONS:
                cells += [
                    format_time(r[times][name]),
                    f"{r[ratios][name]:.2f}",
                    f"{r['drift'][name]['all']:.2%}",
                ]
            cells += [
                format_time(r[times][n]) for n in ("openvino fp32", "openvino int8", "onnxruntime int8")
            ]
            cells += [format_time(r["limit_us"]["int8"]), _aim(r, ratios)]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _aim(row: dict[str, Any], ratios: str) -> str:
    aim = row["aim"]
    if aim is None:
        return ""
    reached = row[ratios]["int8"] <= aim["ratio"] and row["drift"]["int8"]["all"] <= aim["drift"]
    return f"{aim['ratio']} at {aim['drift']:.1%}: {'reached' if reached else 'missed'}"


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs
