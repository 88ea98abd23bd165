"""Devices by name: cpu, cuda, cuda:1; and where outputs are left."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from edgelstm.errors import EdgeLstmError

OutputPlace = Literal["host", "device"]
ENGINE_SUFFIXES = (".plan", ".engine")


def device_kind(device: str, kinds: Iterable[str] = ("cpu", "cuda")) -> tuple[str, int]:
    """Kind, one of ``kinds``, and number that ``device`` names: ("cuda", 1) of "cuda:1". Only "cpu" has no number.

    Raises EdgeLstmError for anything else.
    """
    others = sorted(set(kinds) - {"cpu"})
    found = re.fullmatch(r"(\w+)(?::(\d{1,3}))?", device)
    if device != "cpu" and (not found or found[1] not in others):
        names = ", ".join(f"{kind} or {kind}:N" for kind in others)
        example = f" (as in {others[0]}:1)" if others else ""
        raise EdgeLstmError("device", found=device, expected=f"cpu, {names}{example}")
    return (device, 0) if found is None or device == "cpu" else (found[1], int(found[2] or 0))
