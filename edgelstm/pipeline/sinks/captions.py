"""Pictures that say what they show: the input, the output and what came then, with times, lead times, units and a colour bar."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sinks.colours import rgb
from edgelstm.pipeline.sinks.panels import INPUT, Panels, View
from edgelstm.pipeline.sources.source import Array, Frame

#: Cells are enlarged by a whole factor as long as the picture stays within.
WIDTH, HEIGHT = 1600, 900
#: Cells of more pixels than this across all are made smaller by a whole factor.
WIDEST = 3840
#: A cell is at least so wide, so that its caption can be read.
NARROWEST = 96
GAP, TEXT, SMALL = 8, 17, 13
BACK, PALE, BRIGHT, EMPTY = (18, 20, 24), (150, 156, 166), (236, 238, 242), (30, 33, 39)


@dataclass
class _Shot:
    """One output with what stands beside it; truths come later, by lead time from 0."""

    frame: Frame
    input: Array | None
    cells: list[Array]
    age: int = 0
    truths: dict[int, Array] = field(default_factory=dict)


class Captioned:
    """``add`` a frame's outputs and get the pictures that are complete; ``rest`` gives those whose truth never came.

    interval: seconds from frame to frame, if known.
    """

    def __init__(self, panels: Panels, view: View, context: Context, interval: float | None) -> None:
        draw = require("PIL.ImageDraw", "images", "captions in pictures")
        image = require("PIL.Image", "images", "captions in pictures")
        fonts = require("PIL.ImageFont", "images", "captions in pictures")
        self._paper = _Paper(draw, image, fonts.load_default(TEXT), fonts.load_default(SMALL))
        self._panels, self._view, self._context = panels, view, context
        self._interval = context.interval or interval
        self._forecast = panels.spec.name in context.leads
        if view.truth and not self._forecast:
            raise EdgeLstmError(
                f"what came then, beside output {panels.spec.name!r}",
                found=f"{list(panels.spec.frame_shape)}, no forecast of the input",
                expected="[K, *shape of a frame], of a model with one input that takes frame by frame",
            )
        self._waiting: dict[str | None, deque[_Shot]] = {}
        self._factor: int | None = None

    def add(self, frame: Frame, outputs: Mapping[str, Array]) -> Iterator[tuple[Frame, Array]]:
        """The pictures that this frame completes, oldest first."""
        shot = self._shot(frame, outputs)
        if not self._view.truth:
            yield frame, self._drawn(shot)
            return
        waiting = self._waiting.setdefault(frame.stream, deque())
        if frame.gap is not None:  # what came after a gap is another time's
            yield from self._emptied(waiting)
        truth = self._panels.frame(outputs[INPUT])
        for one in waiting:
            if one.age in self._panels.leads:
                one.truths[one.age] = truth
            one.age += 1
        waiting.append(shot)
        while waiting[0].age > max(self._panels.leads):
            one = waiting.popleft()
            yield one.frame, self._drawn(one)
        if frame.last:
            yield from self._emptied(waiting)

    def rest(self) -> Iterator[tuple[Frame, Array]]:
        """At the end: what was still waiting."""
        for waiting in self._waiting.values():
            yield from self._emptied(waiting)

    def _emptied(self, waiting: deque[_Shot]) -> Iterator[tuple[Frame, Array]]:
        while waiting:
            one = waiting.popleft()
            yield one.frame, self._drawn(one)

    def _shot(self, frame: Frame, outputs: Mapping[str, Array]) -> _Shot:
        found = outputs.get(INPUT)
        cells = self._panels.cells(outputs[self._panels.spec.name], found)
        if self._view.truth and (found is None or not self._panels.like(found.shape)):
            raise EdgeLstmError(
                "what came then",
                found="no input" if found is None else list(found.shape),
                expected=f"frames like the forecast's, {list(self._panels.spec.frame_shape[1:])}",
            )
        beside = None
        if self._view.beside:
            raw = frame.data if isinstance(frame.data, np.ndarray) else None
            beside = self._panels.beside(raw, frame.values, found)
        return _Shot(frame, beside, cells)

    def _drawn(self, shot: _Shot) -> Array:
        height, width = shot.cells[0].shape[:2]
        columns = len(shot.cells) * (1 if len(shot.cells) > 1 else 1 + self._view.truth)
        rows = 1 + (self._view.truth and len(shot.cells) > 1)
        if self._factor is None:
            across = width * columns
            if shot.input is not None:
                across += round(shot.input.shape[1] * height / shot.input.shape[0])
            self._factor = _factor(across, height * rows, width)
        cells = [_scaled(cell, self._factor) for cell in shot.cells]
        size = cells[0].shape[:2]
        leads = self._panels.leads
        said = [self._said(shot.frame, lead) for lead in leads]
        top = [(cell, *words) for cell, words in zip(cells, said, strict=True)]
        truths = [
            (
                _scaled(shot.truths[lead], self._factor) if lead in shot.truths else None,
                "what came" if lead in shot.truths else "not known",
                said[k][1],
            )
            for k, lead in enumerate(leads)
        ]
        left = [] if shot.input is None else [(resized(shot.input, size[0]), "input", self._when(shot.frame))]
        bands: list[list[tuple[Array | None, str, str]]] = [[*left, *top]]
        if self._view.truth and len(cells) > 1:
            bands.append([*((None, "", "") for _ in left), *truths])
        elif self._view.truth:
            bands[0] += truths
        return self._paper.sheet(bands, size, self._title(), self._stamp(shot.frame), self._bar())

    def _title(self) -> str:
        name = self._panels.spec.name
        if self._view.channel is not None:
            name += f", channel {self._view.channel}"
        return "  ·  ".join(filter(None, (self._context.model, name)))

    def _stamp(self, frame: Frame) -> str:
        start = self._context.start
        stamp = frame.name
        if start is not None and frame.time is not None:
            stamp = f"{start + timedelta(seconds=frame.time):%Y-%m-%d %H:%M} UTC"
        return stamp if frame.stream is None else f"{frame.stream}  ·  {stamp}"

    def _when(self, frame: Frame, later: float = 0.0) -> str:
        if self._context.start is None or frame.time is None:
            return "" if later else "now"
        return f"{self._context.start + timedelta(seconds=frame.time + later):%H:%M} UTC"

    def _said(self, frame: Frame, lead: int) -> tuple[str, str]:
        """What a cell of the output is, and for when."""
        if not self._forecast:
            several = self._panels.leads != (0,)
            name = self._panels.spec.name
            return (f"{name} {lead + 1}" if several else name), self._when(frame)
        if self._interval is None:
            return "forecast", f"+{lead + 1} frame{'s' if lead else ''}"
        seconds = (lead + 1) * self._interval
        return "forecast", f"+{_duration(seconds)}  {self._when(frame, seconds)}".strip()

    def _bar(self) -> tuple[Any, str] | None:
        """The scale and its unit, where colours mean values."""
        unit = self._panels.unit
        if self._panels.colour or (unit is None and self._view.colours is None):
            return None
        return self._panels.scale, unit or ""


class _Paper:
    """Puts cells and words on a sheet."""

    def __init__(self, draw: Any, image: Any, font: Any, small: Any) -> None:
        self._draw, self._image, self._font, self._small = draw, image, font, small

    def sheet(
        self,
        bands: list[list[tuple[Array | None, str, str]]],
        size: tuple[int, int],
        title: str,
        stamp: str,
        bar: tuple[Any, str] | None,
    ) -> Array:
        """uint8 [H, W, 3], both even. bands: rows of (picture or None, what, when), all of the height of ``size``."""
        widths = [max(size[1] if p is None else p.shape[1], NARROWEST) for p, _, _ in bands[0]]
        least = max(self._wide(title) + self._wide(stamp) + 3 * GAP, 420 if bar else 0)
        width = max(sum(widths) + GAP * (len(widths) + 1), round(least) + 2 * GAP)
        head, words = TEXT + 2 * GAP, 2 * SMALL + GAP
        band = size[0] + words + GAP
        foot = 3 * GAP + SMALL + 12 if bar else 0
        height = head + band * len(bands) + foot
        sheet = np.empty((height + height % 2, width + width % 2, 3), np.uint8)
        sheet[:] = BACK
        for k, row in enumerate(bands):
            x = (width - sum(widths) - GAP * (len(widths) - 1)) // 2
            for (picture, what, _), wide in zip(row, widths, strict=True):
                y = head + k * band + words
                if picture is not None:
                    left = x + (wide - picture.shape[1]) // 2
                    sheet[y : y + size[0], left : left + picture.shape[1]] = rgb(picture)
                elif what:
                    sheet[y : y + size[0], x : x + wide] = EMPTY
                x += wide + GAP
        if bar is not None:
            wide = min(width - 2 * GAP, 480)
            x, y = width - wide - GAP, height - foot + GAP
            sheet[y : y + 12, x : x + wide] = bar[0].bar(12, wide)
        page = self._image.fromarray(sheet)
        pen = self._draw.Draw(page)
        pen.text((GAP, GAP), title, PALE, self._font)
        pen.text((width - GAP, GAP), stamp, BRIGHT, self._font, anchor="ra")
        for k, row in enumerate(bands):
            x = (width - sum(widths) - GAP * (len(widths) - 1)) // 2
            for (_, what, when), wide in zip(row, widths, strict=True):
                y = head + k * band
                pen.text((x, y), self._cut(what, wide), BRIGHT, self._small)
                pen.text((x, y + SMALL + 2), self._cut(when, wide), PALE, self._small)
                x += wide + GAP
        if bar is not None:
            self._ticks(pen, bar, width, height - foot + GAP + 12 + 4)
        return np.array(page)

    def _ticks(self, pen: Any, bar: tuple[Any, str], width: int, y: int) -> None:
        wide = min(width - 2 * GAP, 480)
        x = width - wide - GAP
        for place, text in bar[0].ticks():
            anchor = "la" if place == 0 else "ra" if place == 1 else "ma"
            pen.text((x + place * wide, y), text, PALE, self._small, anchor=anchor)
        if bar[1]:
            pen.text((x - GAP, y - 16), bar[1], BRIGHT, self._small, anchor="ra")

    def _wide(self, text: str) -> float:
        return float(self._font.getlength(text))

    def _cut(self, text: str, width: int) -> str:
        if self._small.getlength(text) <= width:
            return text
        while text and self._small.getlength(text + "...") > width:
            text = text[:-1]
        return text.rstrip() + "..."


def _duration(seconds: float) -> str:
    if seconds < 60 or seconds % 60:
        return f"{seconds:.3g} s" if seconds < 60 else f"{seconds:g} s"
    minutes = round(seconds / 60)
    if minutes < 120 and minutes != 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def _factor(across: int, down: int, width: int) -> int:
    """How many times larger cells are shown; below 0, how many times smaller."""
    if across > WIDEST:
        return -math.ceil(across / WIDEST)
    return max(1, min(WIDTH // across, HEIGHT // down), -(-NARROWEST // width))


def _scaled(picture: Array, factor: int) -> Array:
    if factor > 0:
        return picture.repeat(factor, 0).repeat(factor, 1)
    n = -factor
    rows, columns = (side // n for side in picture.shape[:2])
    blocks = picture[: rows * n, : columns * n].reshape(rows, n, columns, n, *picture.shape[2:])
    mean: Array = np.rint(blocks.mean((1, 3))).astype(np.uint8)
    return mean


def resized(picture: Array, height: int) -> Array:
    """Brought to a height, nearest pixels, the proportions kept."""
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    rows = (np.arange(height) + 0.5) * picture.shape[0] // height
    columns = (np.arange(width) + 0.5) * picture.shape[1] // width
    nearest: Array = picture[rows.astype(int)][:, columns.astype(int)]
    return nearest
