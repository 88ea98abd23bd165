"""The peers' side of the quantisation benchmark: ``python benchmarks/quantisation/peers_run.py [CASE ...]``.

Quantises the fp32 step graph of every case with every peer, streams test frames through each, and prints drift, time of
a step and size. Everything made is kept in build/quantisation, and made again only where it is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import peer_modelopt
import peer_onnxruntime
from cases import CASES, ROOT, available, step_graph
from data import frames
from feeds import Feed, States, plain_step, record_feeds
from peer_onnxruntime import Setting, quantize_static
from race import Contestant, Result, race
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgelstm.errors import EdgeLstmError

FOLDER = ROOT / "build" / "quantisation"
#: The Q/DQ graph that OpenVINO reads: of quantize_static's the most accurate, and for OpenVINO as quick as any. One with
#: signed activations is no contestant: OpenVINO 2026.4.1 computes Concat, QuantizeLinear to int8, Conv wrong (by 30%
#: with normal inputs on the reference cell's weights; right with uint8, and right without the Concat).
READ_BY_OPENVINO = "quantize_static u8s8-inputs"
console = Console(width=100)


def peers(case: str, original: Path, folder: Path) -> Iterator[Contestant | Result]:
    """Our fp32 step first, then every peer's contestant; a Result that says why, where a peer gave none."""
    yield Contestant("edgelstm fp32", original)
    made: dict[str, Path] = {}
    for name, make in _quantisers(case, original):
        path = folder / f"{case}.{name.replace(' ', '.')}.onnx"
        try:
            if not path.exists():
                make(path)
        except Exception as error:  # a peer that can't quantise a model is a result
            yield Result(case, name, note=" ".join(str(error).split())[:300])
            continue
        made[name] = path
        yield Contestant(name, path)
    plain = folder / f"{case}.plain.onnx"
    plain_step(original, plain)
    for stateful in (False, True):
        suffix = " stateful" if stateful else ""
        graphs = [("bf16", plain, "bf16")]
        if READ_BY_OPENVINO in made:
            graphs += [
                (label, made[READ_BY_OPENVINO], p) for label, p in (("int8", "f32"), ("int8+bf16", "bf16"))
            ]
        for label, path, precision in graphs:
            options = {"precision": precision, "stateful": stateful}
            yield Contestant(f"openvino {label}{suffix}", path, "openvino", options)


def calibration(case: str, original: Path, states: States = "carried") -> Iterator[Feed]:
    """The feeds that every peer calibrates on."""
    count = CASES[case].calibration
    return record_feeds(original, frames(case, count, seed=0, part="calibration"), states)


def _quantisers(case: str, original: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    def static(setting: Setting, states: States, out: Path) -> None:
        quantize_static(original, calibration(case, original, states), out, setting)

    def nvidia(options: dict[str, Any], out: Path) -> None:
        peer_modelopt.modelopt(original, calibration(case, original), out, options)

    settings = peer_onnxruntime.SETTINGS
    for name, setting in settings.items():
        yield f"quantize_static {name}", partial(static, setting, "carried")
    for name in ("u8s8", "u8s8-weighted"):
        yield f"quantize_static {name} zero-states", partial(static, settings[name], "zero")
    for name, options in peer_modelopt.SETTINGS.items():
        yield f"modelopt {name}", partial(nvidia, options)


def table(results: list[Result]) -> Table:
    """One row a contestant."""
    sheet = Table(title=results[0].case)
    sheet.caption = "\n".join(escape(f"{r.name}: {r.note}") for r in results if r.note)
    for heading in ("contestant", "drift of h", "p50 us", "ratio", "KB"):
        sheet.add_column(heading, justify="left" if heading == "contestant" else "right", no_wrap=True)
    for r in results:
        if r.drift is None or r.p50 is None or r.size is None:
            sheet.add_row(r.name, "[yellow]failed[/]")
            continue
        ratio = "" if r.ratio is None else f"{r.ratio:.2f}"
        sheet.add_row(r.name, f"{r.drift:.4f}", f"{r.p50:.1f}", ratio, f"{r.size / 1000:.0f}")
    return sheet


def main() -> None:
    """Measure, print, and write build/quantisation/peers.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "cases", nargs="*", help=f"some of {', '.join(CASES)}; default: all there is data for"
    )
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Result]] = {}
    for case in options.cases or available():
        original = step_graph(case, FOLDER)
        entries = list(peers(case, original, FOLDER))
        runs = [e for e in entries if isinstance(e, Contestant)]
        numbers = {"frames": options.frames, "rounds": options.rounds, "threads": options.threads}
        found[case] = race(case, original, runs, steps=CASES[case].steps, **numbers)
        found[case] += [e for e in entries if isinstance(e, Result)]
        console.print(table(found[case]))
    text = json.dumps({case: [asdict(r) for r in results] for case, results in found.items()})
    (FOLDER / "peers.json").write_text(text)


if __name__ == "__main__":
    try:
        main()
    except EdgeLstmError as error:
        raise SystemExit(str(error)) from error
