"""Figures as people read them: the page and the terminal say them alike."""

from __future__ import annotations

from collections.abc import Mapping


def number(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        return f"{value:.1e}"
    return f"{value:.3g}" if size < 999.5 else f"{value:.0f}"


def milliseconds(seconds: float) -> str:
    """Of a time that is usually short."""
    if seconds < 1e-3:
        return f"{seconds * 1000:.2g} ms"
    return f"{number(seconds * 1000)} ms" if seconds < 1 else f"{number(seconds)} s"


def count(value: int) -> str:
    """With thousands set apart."""
    return f"{value:,}".replace(",", "\u202f")


def age(seconds: float) -> str:
    """In the two largest units."""
    whole = int(seconds)
    for unit, size, small, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {small}"
    return f"{whole} s"


def reasons(counts: Mapping[str, int]) -> str:
    """What was dropped, reset and the like, and why."""
    kinds = ("dropped", "left_out", "unpaired", "reset", "guard", "rolled_back", "undelivered", "unfilled")
    return " · ".join(
        f"{kind.replace('_', ' ')} {reason} {count(n)}"
        for key, n in counts.items()
        for kind, colon, reason in (key.partition(":"),)
        if colon and kind in kinds
    )
