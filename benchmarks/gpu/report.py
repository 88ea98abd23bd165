"""What a run found, as figures against their aims, as a table and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import contestants

from edgelstm.bench.result import Entry, format_time

#: Share of the copy bandwidth the kernel is to reach past the L2.
COPY_SHARE = 0.9
#: How many times our step at one stream others are to take.
AIMS = {contestants.BASELINE: 3.0, contestants.COMPILED: 1.3}
PAST_L2 = "64 streams"
#: Forms of ours that are what torch.compile is given: rows of positions, c in float32.
SAME_AS_COMPILED = ("linear", "linear, c fp32")


def entry(e: Entry) -> dict[str, Any]:
    """An entry of a race as JSON, without what is None."""
    return {name: value for name, value in asdict(e).items() if value is not None and value != ()}


def bandwidth(row: dict[str, Any]) -> float:
    """GB/s of a kernel: bytes it has to move over the median of its rounds."""
    return float(row["bytes"]) / statistics.median(row["microseconds"]) / 1e3


def figures(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The numbers that have an aim, and whether they reach it: for each type the kernel, for each case the step."""
    return [*_kernel_figures(data["kernels"]), *_step_figures(data["steps"])]


def _kernel_figures(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    timed = [r for r in rows if "microseconds" in r]
    torch = {(r["name"], r["dtype"]): bandwidth(r) for r in timed if r["size"] == PAST_L2}
    for row in timed:
        if row.get("past_l2"):
            label = _label(row)
            yield _figure(
                f"{label}: share of the copy bandwidth", bandwidth(row) / row["copy_gb_per_s"], COPY_SHARE
            )
            compiled = torch.get(("torch compile", row["dtype"]))
            if compiled is not None and row["layout"] in SAME_AS_COMPILED:
                yield _figure(f"{label}: GB/s over torch.compile's", bandwidth(row) / compiled, None)
    for (name, dtype), rate in torch.items():
        copied = torch.get(("torch copy", dtype))
        if name != "torch copy" and copied is not None:
            yield _figure(f"{name} {dtype}: share of torch's copy bandwidth", rate / copied, None)


def _step_figures(races: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for race in races:
        rounds = {e["contestant"]: e["rounds"] for e in race["entries"] if e["status"] == "measured"}
        ours = [name for name in contestants.OURS if name in rounds]
        if race["streams"] != 1 or not ours:
            continue
        best = min(ours, key=lambda name: statistics.median(rounds[name]))
        for name, aim in AIMS.items():
            if name in rounds:
                ratio = statistics.median(a / b for a, b in zip(rounds[name], rounds[best], strict=True))
                yield _figure(f"{race['title']}, {race['precision']}: {name} / {best}", ratio, aim)


def _figure(name: str, value: float, aim: float | None) -> dict[str, Any]:
    return {"name": name, "measured": value, "aim": aim, "reached": None if aim is None else value >= aim}


def text(data: dict[str, Any]) -> str:
    """Everything as tables for a terminal."""
    device, versions = data["device"], data["versions"]
    parts = [
        ", ".join([device["name"], *(f"{k} {v}" for k, v in {**device, **versions}.items() if k != "name")])
    ]
    if data["quick"]:
        parts.append("A TRY WITH SMALL SIZES: these figures mean nothing.")
    rows = [["kernel", "layout", "size", "type", "median", "GB/s", "error", ""]]
    for r in data["kernels"]:
        if "microseconds" in r:
            times = [
                format_time(statistics.median(r["microseconds"])),
                f"{bandwidth(r):.0f}",
                _error(r.get("error")),
            ]
            share = f"{bandwidth(r) / r['copy_gb_per_s']:.2f} of a copy" if "copy_gb_per_s" in r else ""
            rows.append([r["name"], r.get("layout", ""), r["size"], r["dtype"], *times, share])
        else:
            rows.append([r["name"], "", "", "", "", "", "", f"{r['status']}: {r['note']}"])
    parts.append(_table(rows))
    rows = [["case", "type", "streams", "contestant", "p50", "p99", f"/ {contestants.BASELINE}", "error", ""]]
    for race in data["steps"]:
        for e in race["entries"]:
            head = [race["title"], race["precision"], str(race["streams"]), e["contestant"]]
            if e["status"] == "measured":
                ratio = f"{e['ratio']:.2f}" if "ratio" in e else "-"
                rows.append(
                    [*head, format_time(e["p50"]), format_time(e["p99"]), ratio, _error(e.get("error")), ""]
                )
            else:
                rows.append([*head, "", "", "", "", f"{e['status']}: {e.get('note', '')}"])
    parts.append(_table(rows))
    rows = [["figure", "measured", "aim", ""]]
    for f in data["figures"]:
        mark = {True: "reached", False: "missed", None: ""}[f["reached"]]
        rows.append([f["name"], f"{f['measured']:.2f}", "" if f["aim"] is None else f"{f['aim']:g}", mark])
    parts.append(_table(rows) if len(rows) > 1 else "No figure with an aim was measured.")
    return "\n\n".join(parts)


def draw(data: dict[str, Any], path: Path) -> str:
    """One panel a race: the median step of everyone, every round a dot. Returns what to say of it."""
    races = [r for r in data["steps"] if any(e["status"] == "measured" for e in r["entries"])]
    if not races:
        return "; nothing to draw"
    try:
        import matplotlib as mpl
    except ImportError:
        return "; no plot: matplotlib is not installed"
    mpl.use("svg")
    from matplotlib import pyplot as plt

    # With fixed ids the same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "edgelstm"
    columns = min(3, len(races))
    lines = -(-len(races) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(5 * columns, 2.6 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(races) :]:
        axis.set_axis_off()
    for axis, race in zip(axes.flat, races, strict=False):
        entries = [e for e in race["entries"] if e["status"] == "measured"]
        for row, e in enumerate(entries):
            color = "tab:blue" if e["contestant"].startswith("edgelstm") else "lightgrey"
            axis.barh(row, e["p50"], color=color)
            axis.plot(e["rounds"], [row] * len(e["rounds"]), ".", color="black", markersize=2)
            axis.text(max(e["rounds"]), row, f" {format_time(e['p50'])}", va="center", fontsize=7)
        axis.set_yticks(range(len(entries)), [e["contestant"] for e in entries], fontsize=7)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.2 * axis.get_xlim()[1])
        axis.set_xlabel("microseconds a step", fontsize=7)
        axis.set_title(f"{race['title']}, {race['precision']}, {race['streams']} streams", fontsize=8)
    figure.suptitle(
        f"{data['device']['name']}, {data['date']}" + (": a try, no measurement" if data["quick"] else "")
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return f" and {path.name}"


def _label(row: dict[str, Any]) -> str:
    return f"{row['name']} {row['dtype']} {row['layout']}"


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.0e}"


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )
