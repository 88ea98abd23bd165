"""What the pages and the API stand on: a running service, who steers it, and what must not be said."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgelstm.pipeline.service.config import ServiceSection, StreamSection
from edgelstm.pipeline.service.control import Control
from edgelstm.pipeline.service.redact import Redactor
from edgelstm.pipeline.service.service import Service
from edgelstm.pipeline.web.logs import Recent


@dataclass
class Site:
    """section: a stream's section of what somebody sent, or EdgeLstmError. reload: reads the file again; None without one. swap: puts another
    file in a model's place, by its name; None where the service can't."""

    service: Service
    control: Control
    redactor: Redactor
    recent: Recent
    settings: ServiceSection
    section: Callable[[Mapping[str, Any]], StreamSection]
    version: str
    reload: Callable[[], dict[str, str]] | None = None
    swap: Callable[..., float | None] | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def may_change(self) -> bool:
        """Whether streams are added and changed over HTTP: they name files, so whoever may do that has to know the token."""
        return self.settings.token is not None

    @property
    def may_swap(self) -> bool:
        """Whether models are swapped over HTTP."""
        return self.swap is not None and self.may_change
