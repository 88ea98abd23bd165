"""What a benchmark found, as JSON and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgelstm.errors import count_of

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1
Status = Literal["measured", "missing", "failed"]


@dataclass(frozen=True)
class Entry:
    """One contestant on one model. Times are microseconds a step; a window of T frames counts as one step.

    ``p50``, ``p99``, ``best`` are over all steps of all rounds; ``rounds`` holds each round's median. ``ratio`` is this
    contestant's time over ours: the median over rounds of the medians' ratio, so that slow rounds touch both sides.
    ``error``: largest difference of its outputs from ours, relative to the output's largest value.
    ``peak_memory``: most bytes the process ever had in RAM; ``memory``: that less what it had before it opened the
    model. ``idle``: seconds of processor time it took, all rounds together, while others had their turn.
    When it was not measured all these are None and ``note`` says why.
    """

    contestant: str
    status: Status
    note: str | None = None
    p50: float | None = None
    p99: float | None = None
    best: float | None = None
    ratio: float | None = None
    rounds: tuple[float, ...] = ()
    error: float | None = None
    peak_memory: int | None = None
    memory: int | None = None
    idle: float | None = None


@dataclass(frozen=True)
class ModelResult:
    """All contestants on one model, ours first. ``frames``: frames in one step (T of a window, else 1)."""

    model: str
    frames: int
    entries: tuple[Entry, ...]

    def __getitem__(self, contestant: str) -> Entry:
        """The entry of ``contestant``."""
        for entry in self.entries:
            if entry.contestant == contestant:
                return entry
        raise KeyError(contestant)


@dataclass(frozen=True, repr=False)
class BenchResult:
    """Everything one call of ``bench`` measured, and under which conditions."""

    models: tuple[ModelResult, ...]
    threads: int
    streams: int
    rounds: int
    steps: int
    seed: int
    processor: str
    versions: dict[str, str]

    def __repr__(self) -> str:
        return f"BenchResult({count_of(len(self.models), 'model')}, {self.rounds} rounds of {count_of(self.steps, 'step')})"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; times in microseconds, memory in bytes."""
        return {"schema": SCHEMA, **asdict(self)}

    def table(self) -> Table:
        """For people: one row a contestant."""
        from rich.markup import escape
        from rich.table import Table

        several = len(self.models) > 1
        title = f"one step on {count_of(self.threads, 'thread')}, {count_of(self.streams, 'stream')}, {self.rounds} rounds of {self.steps}"
        if not several:
            title = f"{escape(Path(self.models[0].model).name)}: {title}"
        table = Table(title=title)
        if several:
            table.add_column("model", overflow="fold")
        table.add_column("contestant", no_wrap=True)
        for heading in ("p50", "p99", "ratio", "error", "peak MiB", "model MiB"):
            table.add_column(heading, justify="right", no_wrap=len(heading) < 6)
        notes = ["ratio: time over ours, so above 1 we are faster"]
        for model in self.models:
            for i, e in enumerate(model.entries):
                name = ["" if i else escape(Path(model.model).name)] if several else []
                if e.status == "measured":
                    times = [format_time(e.p50), format_time(e.p99), f"{e.ratio:.2f}", f"{e.error:.0e}"]
                    table.add_row(*name, e.contestant, *times, _mib(e.peak_memory), _mib(e.memory))
                else:
                    table.add_row(*name, e.contestant, f"[yellow]{e.status}[/]")
                    notes.append(f"{e.contestant} {e.status}: {escape(e.note or '')}")
            table.add_section()
        table.caption = "\n".join(dict.fromkeys(notes))
        return table


def measured(
    contestant: str,
    rounds: list[list[int]],
    base: list[list[int]] | None,
    *,
    error: float | None,
    peak_memory: int | None,
    memory: int | None,
    idle: float,
) -> Entry:
    """The entry for a contestant's ``rounds``: nanoseconds of every step; ``base`` are those its ratio is of."""
    steps = np.concatenate(rounds) / 1e3
    medians = [float(np.median(r)) / 1e3 for r in rounds]
    pairs = [] if base is None else zip(medians, base, strict=True)
    ratios = [m / (float(np.median(r)) / 1e3) for m, r in pairs]
    return Entry(
        contestant,
        "measured",
        p50=float(np.median(steps)),
        p99=float(np.percentile(steps, 99)),
        best=float(steps.min()),
        ratio=float(np.median(ratios)) if ratios else None,
        rounds=tuple(medians),
        error=error,
        peak_memory=peak_memory,
        memory=memory,
        idle=idle,
    )


def format_time(microseconds: float | None) -> str:
    """Three digits and a unit."""
    if microseconds is None:
        return "-"
    return f"{microseconds:.3g} us" if microseconds < 1000 else f"{microseconds / 1000:.3g} ms"


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f}"
