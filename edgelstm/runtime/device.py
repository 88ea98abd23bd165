"""Devices by name: cpu, cuda, cuda:1; and where outputs are left."""

from __future__ import annotations

import re
from typing import Literal

from edgelstm.errors import EdgeLstmError

OutputPlace = Literal["host", "device"]
ENGINE_SUFFIXES = (".plan", ".engine")


def gpu_index(device: str) -> int | None:
    """Number of the GPU that ``device`` names; None for "cpu". Raises EdgeLstmError for anything else."""
    if device == "cpu":
        return None
    found = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if not found:
        raise EdgeLstmError("device", found=device, expected="cpu, cuda or cuda:N (as in cuda:1)")
    return int(found[1] or 0)
