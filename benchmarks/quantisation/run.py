"""Ours against the peers: ``python benchmarks/quantisation/run.py [CASE ...] [--readme]``.

Calibrates and quantises every case with our tools and with every peer's, on the same frames, and prints drift, time of a
step and size. Writes benchmarks/results/quantisation.json; ``--readme`` puts the tables into this folder's README.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cases import CASES, ROOT, available, step_graph
from ours import ours
from peers_run import FOLDER, console, peers, table
from race import Contestant, Result, race

from edgelstm.errors import EdgeLstmError
from edgelstm.files import write_text
from edgelstm.machine import cpu

RESULTS = ROOT / "benchmarks" / "results" / "quantisation.json"
README = Path(__file__).with_name("README.md")
#: What ``--brief`` leaves of the peers: the settings that err least or run fastest.
STRONGEST = (
    "quantize_static u8s8",
    "quantize_static u8s8-weighted",
    "quantize_static u8s8-inputs",
    "modelopt int8",
    "modelopt int8-weighted",
    "openvino bf16",
    "openvino int8+bf16",
    "openvino int8+bf16 stateful",
)
MARK, END = "<!-- figures -->", "<!-- end of figures -->"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "cases", nargs="*", help=f"some of {', '.join(CASES)}; default: all there is data for"
    )
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ours", action="store_true", help="without the peers")
    parser.add_argument("--brief", action="store_true", help="of each peer only its strongest settings")
    parser.add_argument("--readme", action="store_true", help="put the tables into the README")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Result]] = {}
    for case in options.cases or available():
        original = step_graph(case, FOLDER)
        theirs = (
            [Contestant("edgelstm fp32", original)] if options.ours else list(peers(case, original, FOLDER))
        )
        mine = list(ours(case, original, FOLDER))
        if options.brief:
            mine = mine[:1]
            theirs = [theirs[0], *(e for e in theirs[1:] if e.name in STRONGEST)]
        entries = [theirs[0], *mine, *theirs[1:]]
        runs = [e for e in entries if isinstance(e, Contestant)]
        numbers = {"frames": options.frames, "rounds": options.rounds, "threads": options.threads}
        results = race(case, original, runs, steps=CASES[case].steps, **numbers)
        found[case] = results + [e for e in entries if isinstance(e, Result)]
        console.print(table(found[case]))
        write_text(RESULTS, json.dumps(_report(found, numbers), indent=1) + "\n")
    if options.readme:
        _fill_readme(found)


def _report(found: dict[str, list[Result]], numbers: dict[str, int]) -> dict[str, Any]:
    cases = {}
    for case, results in found.items():
        rows = [asdict(r) for r in results]
        for row in rows:
            # Every twentieth frame shows the course of an error.
            row["errors"] = {k: [float(f"{e:.4g}") for e in v[::20]] for k, v in row["errors"].items()}
        cases[case] = rows
    return {"machine": asdict(cpu()), **numbers, "cases": cases}


def _fill_readme(found: dict[str, list[Result]]) -> None:
    lines = [f"{cpu().model}, {cpu().usable} processors, {', '.join(cpu().features)}."]
    for case, results in found.items():
        lines += [
            "",
            f"### {case}",
            "",
            "| contestant | drift of h | time / ours fp32 | size / fp32 |",
            "|---|---|---|---|",
        ]
        size = results[0].size or 1
        for r in results:
            if r.drift is None or r.ratio is None or r.size is None:
                lines.append(f"| {r.name} | failed: {r.note[:90]} | | |")
            else:
                lines.append(f"| {r.name} | {r.drift:.4f} | {r.ratio:.2f} | {r.size / size:.2f} |")
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARK)
    after = rest.partition(END)[2]
    write_text(README, before + MARK + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    try:
        main()
    except EdgeLstmError as error:
        raise SystemExit(str(error)) from error
