"""How the models of a service share the processors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgelstm.pipeline.service.config import Config


def share(config: Config, models: Mapping[str, Path]) -> dict[str, int | None]:
    """Threads of each model: as it says, else an even share of the processors, for those that run on them."""
    cpu = {n for n, m in config.models.items() if m.device in (None, "cpu") and models[n].suffix == ".onnx"}
    total = config.service.threads or _processors()
    side_by_side = {config.head(name) for name in cpu}  # models in series wait for each other
    even = max(1, total // max(1, len(side_by_side)))
    return {n: m.threads or (even if n in cpu else None) for n, m in config.models.items()}


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
