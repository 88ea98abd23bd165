"""Secrets stay out of logs, errors and reports: passwords in URLs, and what the file took from the environment."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable

from edgelstm.errors import EdgeLstmError

#: What stands in a secret's place.
HIDDEN = "***"
#: Shorter values from the environment are no secrets, and hiding them would blot out every "1" in a log.
SHORTEST = 4
#: Before what must not be seen: user and password of an address, also where a path of it lost one of its slashes.
_USER = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+:/{1,2})[^\s\"']*@")
_ASKS = re.compile(r"://[^/?#\s\"']*@")
_QUERY = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+:/{1,2}[^\s\"'?]*\?)[^\s\"']+")
#: The paths of web addresses may be secrets alone, as those of hooks are.
_HOOK = re.compile(r"(https?:/{1,2}[^\s\"'/]+/)[^\s\"']+")
_PATH = re.compile(r"(https?:/(?!/)[^\s\"'/]+/)[^\s\"']+")
#: Keys, and names of headers, whose values are secrets.
SECRET = re.compile(r"auth|token|key|secret|cookie|passw|pwd|credential|signature|user", re.IGNORECASE)
#: A text without spaces that nobody would write by hand.
_BY_CHANCE = re.compile(r"(?=.*[A-Za-z])(?=.*[0-9])[A-Za-z0-9+/=_.~-]{16,}")


def hidden(key: str, value: str) -> str:
    """A value of the pipeline file that is wrong, for an error: addresses without what may be a secret, and nothing of what
    looks like one."""
    if SECRET.search(key) or value.lower().startswith(("bearer ", "basic ")) or _BY_CHANCE.fullmatch(value):
        return HIDDEN
    return _HOOK.sub(rf"\1{HIDDEN}", without_secrets(value))


def without_secrets(text: str) -> str:
    """A text whose addresses have neither user, password nor query, and those that were taken for paths no path either."""
    return _PATH.sub(rf"\1{HIDDEN}", _bare(text))


def without_user(text: str) -> str:
    """A text whose addresses say nothing of who asks, only where: no user and no password before the host."""
    return _ASKS.sub("://", text)


def _bare(text: str) -> str:
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", text))


class Redactor(logging.Filter):
    """Takes secrets out of texts; as a filter of a handler, out of everything that it logs."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._secrets = sorted({s for s in secrets if len(s) >= SHORTEST}, key=len, reverse=True)

    def learn(self, other: Redactor) -> None:
        """Take out what ``other`` does, too."""
        self._secrets = sorted({*self._secrets, *other._secrets}, key=len, reverse=True)

    def text(self, value: object) -> str:
        """``value`` as text, without secrets."""
        text = without_secrets(str(value))
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text

    def error(self, error: EdgeLstmError) -> EdgeLstmError:
        """The same error, without secrets."""
        found, expected = (None if v is None else self.text(v) for v in (error.found, error.expected))
        hint = None if error.hint is None else self.text(error.hint)
        return EdgeLstmError(self.text(error.what), found=found, expected=expected, hint=hint)

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes, its text redacted."""
        record.msg, record.args = self.text(record.getMessage()), None
        if record.exc_info is not None:
            kind, value, _ = record.exc_info
            record.msg += f": {kind.__name__ if kind else ''}: {self.text(value)}"
            record.exc_info = record.exc_text = None
        return True


def redact_logs(package: str, redactor: Redactor) -> Callable[[], None]:
    """What the loggers of ``package`` log goes through ``redactor``, whoever handles it; gives how to undo that."""
    names = [n for n in logging.root.manager.loggerDict if n == package or n.startswith(f"{package}.")]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(redactor)

    def undo() -> None:
        for logger in loggers:
            logger.removeFilter(redactor)

    return undo
