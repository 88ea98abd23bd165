"""Tables and plots of contact.py's results: ``python contact_report.py [FILE ...]``.

Without files: every results/gpu-*.json that contact.py wrote; README.md gets a section of them, and each file an .svg beside it.
With files: the tables on standard output, nothing written.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
BEGIN, END = "<!-- contact: made by contact_report.py -->", "<!-- end of contact -->"
AIM_SHARE = 0.9
AIMS_STEP = {"torch": 3.0, "torch.compile, graphs": 1.3}


def main() -> None:
    """Write the section, or show the files named."""
    if sys.argv[1:]:
        print("\n".join(section(json.loads(Path(name).read_text())) for name in sys.argv[1:]))
        return
    found = []
    for path in sorted(RESULTS.glob("gpu-*.json")):
        data = json.loads(path.read_text())
        if data.get("kind") == "contact" and not data["rehearsal"]:
            plot = draw(data, path.with_suffix(".svg"))
            found.append(section(data) + (f"\n![steps](../results/{path.stem}.svg)\n" if plot else ""))
    readme = HERE / "README.md"
    readme.write_text(replaced(readme.read_text(), "\n".join(found) or "No GPU has run it yet.\n"))
    print(f"{len(found)} results in {readme}")


def replaced(text: str, section: str) -> str:
    """``text`` with the section between its two marks."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md lacks the line {BEGIN} or {END}")
    return f"{head}{BEGIN}\n\n{section}\n{END}{tail}"


def section(data: dict[str, Any]) -> str:
    """One device on one day, as Markdown."""
    device = data["device"]
    about = [f"{k} {v}" for k, v in device.items() if k not in ("name", "memory")]
    about += [f"{k} {v}" for k, v in data.get("versions", {}).items()]
    parts = [f"### {device['name']}, {data['date']}\n", ", ".join(about) + f"; commit {data['commit']}.\n"]
    if data["rehearsal"]:
        parts.append("**A rehearsal without a GPU: these figures mean nothing.**\n")
    figures = list(figures_of(data))
    if figures:
        rows = [[f["figure"], f"{f['measured']:.3g}", _aim(f), _mark(f)] for f in figures]
        parts.append(table(["figure", "measured", "aim", ""], rows))
    times = list(times_of(data))
    if times:
        parts.append(table(["what", "size", "median us", "GB/s", "of a copy"], times))
    races = [row["race"] for s in data["slices"] for row in s["rows"] if "race" in row]
    if races:
        parts.append(table(["step", "streams", "contestant", "p50 us", "error", ""], list(steps_of(races))))
    said = [
        [s["name"], s["status"], f"{s['seconds']:.0f}", _tests(s) or s.get("note", "")]
        for s in data["slices"]
    ]
    parts.append(table(["slice", "status", "s", ""], said))
    return "\n".join(parts)


def figures_of(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What has an aim: rows that say so themselves, kernels against a copy, host times, steps against each other.

    below: the aim is the most it may be.
    """
    for row in (row for s in data["slices"] for row in s["rows"]):
        if "figure" in row:
            yield row
        elif row.get("past_l2"):
            share = bandwidth(row) / row["copy_gb_per_s"]
            yield {"figure": f"{row['name']}, {row['dtype']} {row['layout']}: share of a copy's bandwidth", "measured": share, "aim": AIM_SHARE}  # fmt: skip
        elif row.get("name", "").startswith("host time") and row["aim"] is not None:
            what = (
                f"{row['name']}, {row['streams']} streams, {row['driver']} driver: us a step, fastest round"
            )
            yield {"figure": what, "measured": min(row["microseconds"]), "aim": row["aim"], "below": True}  # fmt: skip
        elif "race" in row and row["race"]["streams"] == 1:
            yield from _race_figures(row["race"])
    yield from _own_figures([row for s in data["slices"] for row in s["rows"] if "microseconds" in row])


def _own_figures(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The gates as an operator against a copy of as many bytes; what else edgelstm.kernels is to beat, its own rows say."""
    medians = {
        (row["name"], row["size"], row["dtype"]): statistics.median(row["microseconds"])
        for row in rows
        if {"size", "dtype"} <= set(row)
    }
    for (name, size, dtype), own in medians.items():
        copy = medians.get(("torch copy", size, dtype))
        if name == "edgelstm.kernels" and copy:
            aim = AIM_SHARE if size == "64 streams" else None
            yield {"figure": f"gates as an operator, {size}, {dtype}: share of torch's copy bandwidth", "measured": copy / own, "aim": aim}  # fmt: skip


def _race_figures(race: dict[str, Any]) -> Iterator[dict[str, Any]]:
    rounds = {e["contestant"]: e["rounds"] for e in race["entries"] if e["status"] == "measured"}
    ours = min(
        (n for n in rounds if n.startswith("edgelstm")),
        key=lambda n: statistics.median(rounds[n]),
        default=None,
    )
    for name, aim in AIMS_STEP.items() if ours else ():
        if name in rounds:
            ratio = statistics.median(a / b for a, b in zip(rounds[name], rounds[ours], strict=True))
            yield {
                "figure": f"{race['title']}, {race['precision']}: {name} / {ours}",
                "measured": ratio,
                "aim": aim,
            }


def times_of(data: dict[str, Any]) -> Iterator[list[str]]:
    """Rows with times, races left out."""
    for row in (row for s in data["slices"] for row in s["rows"]):
        if "microseconds" not in row:
            continue
        what = " ".join(str(row[k]) for k in ("name", "dtype", "layout") if row.get(k))
        told = [f"{k} {row[k]}" for k in ("size", "streams", "hidden", "steps", "units", "tile") if k in row]
        size = ", ".join(told).removeprefix("size ")
        median = statistics.median(row["microseconds"])
        rate = f"{bandwidth(row):.0f}" if row.get("bytes") else ""
        share = f"{bandwidth(row) / row['copy_gb_per_s']:.2f}" if row.get("copy_gb_per_s") else ""
        yield [what, size, f"{median:.3g}", rate, share]


def steps_of(races: list[dict[str, Any]]) -> Iterator[list[str]]:
    """A row for each contestant of each race."""
    for race in races:
        for e in race["entries"]:
            head = [f"{race['title']}, {race['precision']}", str(race["streams"]), e["contestant"]]
            if e["status"] == "measured":
                error = "" if e.get("error") is None else f"{e['error']:.0e}"
                yield [*head, f"{e['p50']:.3g}", error, ""]
            else:
                yield [*head, "", "", f"{e['status']}: {e.get('note', '')}"]


def bandwidth(row: dict[str, Any]) -> float:
    """GB/s."""
    return float(row["bytes"]) / statistics.median(row["microseconds"]) / 1e3


def draw(data: dict[str, Any], path: Path) -> bool:
    """Steps as bars; whether there was something to draw, and matplotlib to draw it with."""
    import report

    races = [row["race"] for s in data["slices"] for row in s["rows"] if "race" in row]
    said = report.draw({**data, "steps": races, "quick": data["rehearsal"]}, path)
    return path.name in said


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [
        head,
        ["---"] * len(head),
        *([cell.replace("|", "/").replace("\n", " ") for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _aim(f: dict[str, Any]) -> str:
    return "" if f.get("aim") is None else f"{'at most' if f.get('below') else 'at least'} {f['aim']:g}"


def _mark(f: dict[str, Any]) -> str:
    if f.get("aim") is None:
        return ""
    return (
        "reached"
        if (f["measured"] <= f["aim"] if f.get("below") else f["measured"] >= f["aim"])
        else "missed"
    )


def _tests(s: dict[str, Any]) -> str:
    return ", ".join(f"{count} {word}" for word, count in s.get("tests", {}).items())


if __name__ == "__main__":
    main()
