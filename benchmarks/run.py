"""The figures of benchmarks/README.md: ``python benchmarks/run.py`` (what ``make bench`` calls).

Every figure is a ratio of times measured in turn on this machine. Writes one JSON file a part into
benchmarks/results/ and prints a table; ``--readme`` also puts the table into README.md. ``--scale 0.1`` takes a tenth
of the rounds: quick, and good for nothing but a try.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import models
from rich.console import Console
from rich.table import Table

from edgelstm import machine
from edgelstm.bench import ModelResult, bench
from edgelstm.bench.result import format_time
from edgelstm.files import write_text
from edgelstm.frontends.described.graph import load_described, to_step
from edgelstm.passes.unroll import unroll

HERE = Path(__file__).resolve().parent
THREADS = 2
MIB = 2**20
console = Console()


@dataclass(frozen=True)
class Figure:
    """One measured number: what it is, what was measured, what is wanted of it, and whether it is so."""

    name: str
    measured: str
    aim: str
    reached: bool | None


@dataclass(frozen=True)
class Setting:
    """Where temporary files go, and how much of the full number of rounds to take."""

    folder: Path
    scale: float

    def rounds(self, full: int) -> int:
        """At least two."""
        return max(2, round(full * self.scale))


def conv_lstm(setting: Setting) -> tuple[dict[str, object], Iterator[Figure]]:
    """The reference ConvLSTM step against everyone."""
    path = models.conv_lstm(setting.folder)
    result = bench(
        [path],
        ["edgelstm-bare", "onnxruntime", "torch", "torch-compile", "openvino"],
        plain={str(path): models.conv_lstm_plain_export(setting.folder)},
        rounds=setting.rounds(15),
        steps=100,
        threads=THREADS,
    )
    console.print(result.table())
    model = result.models[0]

    def figures() -> Iterator[Figure]:
        name = "ConvLSTM 16 -> 64, 3x3, 64x64:"
        yield ratio(f"{name} PyTorch eager / edgelstm", model, "torch", 1.1)
        yield ratio(f"{name} torch.compile / edgelstm", model, "torch-compile")
        yield ratio(f"{name} hand-written ONNX Runtime loop / edgelstm", model, "onnxruntime", 0.99)
        yield ratio(f"{name} OpenVINO fp32 / edgelstm", model, "openvino")

    return result.to_json(), figures()


def lstm(setting: Setting) -> tuple[dict[str, object], Iterator[Figure]]:
    """Two LSTM layers at batch 1 against everyone, at three sizes."""
    aims = {32: 6.0, 256: 3.5, 1024: 6.0}
    results, cells = {}, {}
    for hidden in models.LSTM_HIDDEN:
        steps = {32: 3000, 256: 1000, 1024: 100}[hidden]
        result = bench(
            [models.lstm(setting.folder, hidden)],
            ["edgelstm-bare", "onnxruntime", "torch", "torch-compile", "openvino"],
            module=f"models:torch_lstm_{hidden}",
            rounds=setting.rounds(15),
            steps=steps,
            threads=THREADS,
        )
        console.print(result.table())
        results[hidden] = result
        # The same weights without the factory: our own module, in which a cell is one Linear over x and h.
        cells[hidden] = bench(
            [models.lstm(setting.folder, hidden)],
            ["torch"],
            rounds=setting.rounds(7),
            steps=steps,
            threads=THREADS,
        )

    def figures() -> Iterator[Figure]:
        for hidden, result in results.items():
            model, name = result.models[0], f"LSTM 2 x {hidden}, batch 1:"
            yield ratio(f"{name} PyTorch (torch.nn.LSTM) / edgelstm", model, "torch", aims[hidden])
            yield ratio(
                f"{name} PyTorch (cells of one Linear each) / edgelstm", cells[hidden].models[0], "torch"
            )
            yield ratio(f"{name} hand-written ONNX Runtime loop / edgelstm", model, "onnxruntime")
            yield ratio(f"{name} OpenVINO fp32 / edgelstm", model, "openvino")

    details = {"torch.nn.LSTM": results, "cells": cells}
    return {k: {h: r.to_json() for h, r in v.items()} for k, v in details.items()}, figures()


def own_cost(setting: Setting) -> tuple[dict[str, object], Iterator[Figure]]:
    """What the Runner adds to the bare session, in one process."""
    sizes = {"ConvLSTM 16 -> 64": (models.conv_lstm(setting.folder), 20)}
    sizes["LSTM 2 x 32"] = (models.lstm(setting.folder, 32), 2000)
    times = {}
    for name, (path, steps) in sizes.items():
        model = setting.folder / "own_cost.onnx"
        to_step(load_described(path)).save(model)
        numbers = (steps, setting.rounds(30), THREADS)
        times[name] = json.loads(script("own_cost.py", model, *numbers))

    def figures() -> Iterator[Figure]:
        for name, t in times.items():
            bare = statistics.median(t["session"])
            added = {
                layer: statistics.median(a - b for a, b in zip(t[layer], t["session"], strict=True))
                for layer in ("program", "runner", "by hand")
            }
            cost = added["runner"]
            small = name.startswith("LSTM")
            yield Figure(
                f"{name}: the Runner's own cost over the bare session",
                f"{cost:.1f} us of {bare + cost:.1f} ({cost / bare:.1%})",
                "at most 10 us" if small else "at most 5%",
                cost <= 10 if small else cost <= 0.05 * bare,
            )
            yield Figure(
                f"{name}: cost of a hand-written loop over the same session",
                f"{added['by hand']:.1f} us",
                "",
                None,
            )
            yield Figure(
                f"{name}: the Runner's part below the checks", f"{added['program']:.1f} us", "", None
            )

    return {"microseconds": times}, figures()


def memory(setting: Setting) -> tuple[dict[str, object], Iterator[Figure]]:
    """Resident memory over 100,000 steps."""
    model = setting.folder / "memory.onnx"
    to_step(load_described(models.lstm(setting.folder, 32))).save(model)
    marks = {}
    for kind in ("one", "mixed"):
        marks[kind] = json.loads(script("memory.py", model, 100_000, kind))

    def figures() -> Iterator[Figure]:
        labels = {"one": "one stream", "mixed": "streams joining, leaving, restored, partial steps"}
        for kind, label in labels.items():
            sizes = [size for _, size in marks[kind]]
            growth = max(sizes) - sizes[0]
            yield Figure(
                f"resident memory, steps 1,000 to 100,000, LSTM 2 x 32, {label}",
                f"{growth / 1024:+.0f} KiB",
                "at most 1 MiB",
                growth <= MIB,
            )

    return {"steps_and_bytes": marks}, figures()


def streams(setting: Setting) -> tuple[dict[str, object], Iterator[Figure]]:
    """64 streams in one call: the time of one of them against that of a lone stream."""
    sizes = {"ConvLSTM 16 -> 64": (models.conv_lstm(setting.folder), 40, 2)}
    for hidden, steps in ((32, 2000), (256, 500), (1024, 50)):
        sizes[f"LSTM 2 x {hidden}"] = (models.lstm(setting.folder, hidden), steps, steps // 20)
    times = {}
    for name, (path, alone, together) in sizes.items():
        times[name] = in_turn(
            {
                "1": lambda path=path, steps=alone: p50(path, steps),
                "64": lambda path=path, steps=together: p50(path, steps, streams=64) / 64,
            },
            setting.rounds(7),
        )

    def figures() -> Iterator[Figure]:
        for name, t in times.items():
            share = statistics.median(b / a for a, b in zip(t["1"], t["64"], strict=True))
            yield Figure(f"{name}: time a stream, 64 in one call / 1", f"{share:.2f}", "", None)

    return {"microseconds_a_stream": times}, figures()


def window(setting: Setting) -> tuple[dict[str, object], Iterator[Figure]]:
    """An unrolled window of 10 frames against 10 single steps."""
    sizes = {"ConvLSTM 16 -> 64": (models.conv_lstm(setting.folder), 40)}
    for hidden, steps in ((32, 2000), (256, 500), (1024, 50)):
        sizes[f"LSTM 2 x {hidden}"] = (models.lstm(setting.folder, hidden), steps)
    for example, steps in (("moving_digits", 60), ("nowcast_radar", 40), ("sensor_lstm", 2000)):
        sizes[f"examples/{example}"] = (HERE.parent / "examples" / example / "model.safetensors", steps)
    times = {}
    for name, (path, steps) in sizes.items():
        step = to_step(load_described(path))
        one, ten = setting.folder / "step.onnx", setting.folder / "window.onnx"
        step.save(one)
        unroll(step, 10).save(ten)
        times[name] = in_turn(
            {
                "step": lambda one=one, steps=steps: p50(one, steps),
                "window": lambda ten=ten, steps=steps: p50(ten, max(2, steps // 10)) / 10,
            },
            setting.rounds(7),
        )

    def figures() -> Iterator[Figure]:
        for name, t in times.items():
            gain = statistics.median(a / b for a, b in zip(t["step"], t["window"], strict=True))
            yield Figure(f"{name}: 10 steps / one window of 10", f"{gain:.2f}", "above 1", gain > 1)

    return {"microseconds_a_frame": times}, figures()


PARTS = {
    "conv_lstm": conv_lstm,
    "lstm": lstm,
    "own_cost": own_cost,
    "memory": memory,
    "streams": streams,
    "window": window,
}


def wanted(model: ModelResult, contestant: str) -> float:
    """A contestant's ratio, or an exit that says why there is none."""
    entry = model[contestant]
    if entry.ratio is None:
        sys.exit(f"{contestant} was not measured: {entry.note}")
    return entry.ratio


def ratio(name: str, model: ModelResult, contestant: str, aim: float | None = None) -> Figure:
    """How many times our time a contestant takes."""
    value = wanted(model, contestant)
    detail = f"{value:.2f} ({format_time(model[contestant].p50)} / {format_time(model['edgelstm'].p50)})"
    return Figure(
        name, detail, "" if aim is None else f"at least {aim:g}", None if aim is None else value >= aim
    )


def script(name: str, *arguments: object) -> str:
    """What a script beside this one prints, run in a process of its own."""
    command = [sys.executable, str(HERE / name), *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def p50(path: Path, steps: int, **options: int) -> float:
    """Microseconds of our Runner's step, in a fresh process."""
    entry = bench([path], [], rounds=1, steps=steps, threads=THREADS, **options).models[0]["edgelstm"]
    assert entry.p50 is not None
    return entry.p50


def in_turn(actions: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each action gives, in ``rounds`` alternating rounds."""
    results: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            results[name].append(action())
    return results


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rounds to take (default 1)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder for the JSON files")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    os.environ["EDGELSTM_NATIVE"] = (
        "0"  # whether the library is built here or not; its figures: native/run.py
    )
    # Workers import models.py by its name.
    os.environ["PYTHONPATH"] = str(HERE)
    arguments.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.parts or PARTS:
            console.rule(name)
            details, figures = PARTS[name](Setting(Path(folder), arguments.scale))
            cpu = machine.cpu()
            data = {
                "date": date.today().isoformat(),
                "machine": {"processor": cpu.model, "features": cpu.features, "processors": cpu.usable},
                "threads": THREADS,
                "scale": arguments.scale,
                "figures": [asdict(f) for f in figures],
                "details": details,
            }
            write_text(arguments.results / f"{name}.json", json.dumps(data, indent=1) + "\n")
            show(data["figures"])
    if arguments.readme:
        import plot

        plot.main(arguments.results)
        write_readme(arguments.results)


def show(figures: list[dict[str, object]]) -> None:
    """A table on the terminal."""
    table = Table()
    for heading in ("figure", "measured", "aim", ""):
        table.add_column(heading)
    for f in figures:
        mark = {True: "[green]reached[/]", False: "[red]missed[/]", None: ""}[f["reached"]]
        table.add_row(str(f["name"]), str(f["measured"]), str(f["aim"]), mark)
    console.print(table)


def write_readme(results: Path) -> None:
    """Replace what stands between the two marks in README.md by the figures in ``results``."""
    lines = ["| figure | measured | aim | |", "|---|---|---|---|"]
    said = ""
    for name in PARTS:
        path = results / f"{name}.json"
        if not path.is_file():
            continue
        data = json.loads(path.read_text())
        m = data["machine"]
        said = f"{m['processor']}, {m['processors']} processors, {data['threads']} threads, {data['date']}."
        marks = {True: "reached", False: "missed", None: ""}
        lines += [
            f"| {f['name']} | {f['measured']} | {f['aim']} | {marks[f['reached']]} |" for f in data["figures"]
        ]
    readme = HERE / "README.md"
    text = f"<!-- figures -->\n{said}\n\n" + "\n".join(lines) + "\n<!-- /figures -->"
    old = readme.read_text()
    write_text(readme, re.sub(r"<!-- figures -->.*<!-- /figures -->", lambda _: text, old, flags=re.DOTALL))


if __name__ == "__main__":
    main()
