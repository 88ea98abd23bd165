"""Log lines: the last ones, for those who look at the page, and lines of JSON for those who collect them."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgelstm.pipeline.service.redact import Redactor

#: Lines that are kept.
KEPT = 200
_WHOSE = re.compile(r"^(stream|sink|model) ([^\s,]+?):? ")


def entry(record: logging.LogRecord) -> dict[str, Any]:
    """A record as JSON: time (UTC), level, message, and whose it is (``stream``, ``sink`` or ``model``) where it begins with that."""
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + logging.Formatter().formatException(record.exc_info)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    made = {
        "time": f"{stamp}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "message": message,
    }
    whose = _WHOSE.match(message)
    if whose:
        made[whose.group(1)] = whose.group(2).rstrip(":")
    return made


class JsonLines(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return json.dumps(entry(record), ensure_ascii=False)


class Recent(logging.Handler):
    """The last log lines."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it. The handler's lock is held."""
        self._count += 1
        self._lines.append({"number": self._count, **entry(record)})

    def lines(self, after: int = 0) -> list[dict[str, Any]]:
        """Those behind number ``after``, oldest first."""
        self.acquire()
        try:
            return [line for line in self._lines if line["number"] > after]
        finally:
            self.release()


@contextmanager
def listening(redactor: Redactor) -> Iterator[Recent]:
    """The package's log lines from here on, without secrets; at least those of level INFO are made."""
    handler, logger = Recent(), logging.getLogger("edgelstm")
    handler.addFilter(redactor)
    level = logger.level
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
