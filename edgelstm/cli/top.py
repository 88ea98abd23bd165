"""Command: top."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgelstm.cli.shared import Json, app, out, print_json
from edgelstm.errors import EdgeLstmError

COLOURS = {
    "running": "green",
    "paused": "yellow",
    "connecting": "yellow",
    "lost": "red",
    "silent": "red",
    "failed": "red",
    "ended": "dim",
}
LEVELS = {"warning": "yellow", "error": "red", "critical": "red"}
LINES = 8
#: Columns that a name has, at most and at least, and between two columns.
NAME, NAME_AT_LEAST, GAP = 24, 12, 2
STATUS = "status"
_TITLES = (STATUS, "frames/s", "step", "age", "overdue", "wait", "stepped", "dropped", "resets", "guard", "again", "state")  # fmt: skip
#: What is left out of a narrow terminal, first to last.
_LEAST = ("state", "again", "step", "wait", "resets", "overdue", "guard", "stepped", "age")


@app.command(
    epilog="Examples: `edgelstm top` · `edgelstm top http://10.0.0.7:8080` (with the token in EDGELSTM_TOKEN) · `edgelstm top --once --json`"
)
def top(
    url: Annotated[
        str | None,
        typer.Argument(help="Where a service answers; default: http://127.0.0.1:8080.", show_default=False),
    ] = None,
    every: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds from look to look.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and stop.")] = False,
    ca: Annotated[
        Path | None, typer.Option(help="A certificate (PEM) to trust, for https.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a running service does: streams, their rates, ages, counters and states, and the last log lines."""
    from edgelstm.workflows.top import URL, Top

    service = Top(URL if url is None else url, ca=ca)
    if once or as_json:
        while True:
            found = service.look()
            print_json(found) if as_json else out.print(picture(service.url, found, out.width))
            if once:
                return
            time.sleep(every)
    with Live(
        picture(service.url, service.look(), out.width),
        console=out,
        screen=out.is_terminal,
        auto_refresh=False,
    ) as live:
        while True:
            time.sleep(every)
            try:
                live.update(picture(service.url, service.look(), out.width), refresh=True)
            except EdgeLstmError as error:  # restarted, perhaps: it is asked again
                live.update(Text(clean(error), style="red"), refresh=True)


def picture(url: str, found: Mapping[str, Any], width: int) -> Group:
    """The screen, ``width`` columns wide."""
    from edgelstm.pipeline.web.words import age, number

    streams = found["streams"]
    running = sum(s["status"] == "running" for s in streams)
    head = Text.assemble(
        (url, "bold"),
        f"  up {age(found['uptime'])}  {running} of {len(streams)} running  {number(sum(s['rate'] for s in streams))} frames/s",
        *(
            f"  {clean(name)} {number(value)} {unit}"
            for kind, unit in (("power", "W"), ("temperature", "°C"))
            for name, value in found["board"][kind].items()
        ),
    )
    rows = [_row(s) for s in streams]
    titles, left_out, name = _that_fit(rows, width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    table.add_column("stream", no_wrap=True, overflow="ellipsis", max_width=name)
    for title in titles:
        side: Literal["left", "right"] = "left" if title in (STATUS, "state") else "right"
        table.add_column("" if title == STATUS else title, justify=side, no_wrap=True)
    for s, row in zip(streams, rows, strict=True):
        table.add_row(Text(clean(s["name"])), *(row[title] for title in titles))
    more = [Text(f"a wider terminal shows {', '.join(left_out)} too", style="dim")] if left_out else []
    lines = [
        Text(
            f"{line['time'][11:19]} {clean(line['message'])}",
            style=LEVELS.get(line["level"], "dim"),
            no_wrap=True,
            overflow="ellipsis",
        )
        for line in found["log"][-LINES:]
    ]
    return Group(head, Text(), table, *more, Text(), *lines)


def _row(s: Mapping[str, Any]) -> dict[str, Text]:
    """What there is to say of a stream, by column."""
    from edgelstm.pipeline.web.words import count, milliseconds, number

    counts = s["counts"]
    dropped, resets, guard = (
        sum(n for k, n in counts.items() if k.startswith(f"{kind}:"))
        for kind in ("dropped", "reset", "guard")
    )
    overdue = Text("–" if s["deadline"] is None else count(s["overdue"]), style="red" if s["overdue"] else "")
    return {
        STATUS: Text(_status(s), style=COLOURS.get(s["status"], "")),
        "frames/s": Text(number(s["rate"])),
        "step": Text(milliseconds(s["step"])),
        "age": Text(milliseconds(s["age"])),
        "overdue": overdue,
        "wait": Text(f"{s['queue']}/{s['room']}"),
        "stepped": Text(count(counts.get("stepped", 0))),
        "dropped": Text(count(dropped)),
        "resets": Text(count(resets)),
        "guard": Text(count(guard), style="red" if guard else ""),
        "again": Text(count(s["reconnects"])),
        "state": _state(s.get("states", [])),
    }


def _that_fit(rows: list[dict[str, Text]], width: int) -> tuple[list[str], list[str], int]:
    """Columns for ``width``, those there is no room for, and how wide a name may be. Names give way, figures don't: half a number is a
    wrong one. Columns that say nothing of any stream go first."""
    titles = list(_TITLES)
    silent = [t for t in _LEAST if all(row[t].plain in ("", "0", "–") for row in rows)]

    def left() -> int:
        wide = (
            max([0 if t == STATUS else len(t), *(cell_len(row[t].plain) for row in rows)]) for t in titles
        )
        return width - sum(wide) - GAP * len(titles)

    for title in (*silent, *(t for t in _LEAST if t not in silent)):
        if left() >= NAME_AT_LEAST:
            break
        titles.remove(title)
    name = max(NAME_AT_LEAST, min(NAME, left()))
    return titles, [t for t in _TITLES if t not in titles and t not in silent], name


def _status(stream: Mapping[str, Any]) -> str:
    fired = [clean(name) for name, on in stream["alarms"].items() if on]
    return " ".join([stream["status"], *(f"!{name}" for name in fired)])


def _state(states: list[Mapping[str, Any]]) -> Text:
    """The state that is nearest to the end of its range; without ranges, the largest norm."""
    from edgelstm.pipeline.web.words import number

    known = [s for s in states if s["share"] is not None]
    if known:
        worst = max(known, key=lambda s: s["share"])
        return Text(f"{clean(worst['name'])} {worst['share']:.0%}", style="red" if worst["share"] > 1 else "")
    largest = max(states, key=lambda s: s["rms"], default=None)
    return Text("" if largest is None else f"{clean(largest['name'])} {number(largest['rms'])}")


def clean(text: object) -> str:
    """Without what a terminal takes for an order: names and lines come from elsewhere."""
    return "".join(c if c.isprintable() else " " for c in str(text))
