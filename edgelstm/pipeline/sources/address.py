"""What stands behind a source's name: ``:name=value`` of files; of live sources what is opened, what people are shown, and ``#name=value``."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelstm.errors import EdgeLstmError

_URL = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
#: Seconds to open a source, and without anything from it, after which it failed.
SECONDS = 10.0
#: Names of options that hold seconds.
TIMES = ("open_timeout", "read_timeout")


def split_options(spec: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """``FILE:name=value:...`` as the file and the options behind it, of which ``known`` are. Raises EdgeLstmError for one given twice.

    A path that is there is a path, whatever its name.
    """
    if Path(spec).exists():
        return spec, {}
    parts, options = spec.split(":"), dict[str, str]()
    while len(parts) > 1 and "=" in parts[-1] and parts[-1].partition("=")[0] in known:
        name, _, value = parts.pop().partition("=")
        if name in options:
            raise EdgeLstmError(
                f"source {spec}: {name}", found=f"{value}, {options[name]}", expected="it once"
            )
        options[name] = value
    return ":".join(parts), options


@dataclass(frozen=True)
class Address:
    """url: with user and password, never to be shown. shown: without them, and without what stands behind ``?``."""

    url: str
    shown: str
    options: dict[str, str]

    @property
    def timeouts(self) -> tuple[float, float]:
        """Seconds to open, and from one piece of data to the next."""
        return tuple(_seconds(self, name) for name in TIMES)  # type: ignore[return-value]


def split_fragment(spec: str, known: Sequence[str], shown: str) -> tuple[str, dict[str, str]]:
    """``ADDRESS#name=value&name=value`` as address and options, which are ``known``."""
    url, _, fragment = spec.partition("#")
    options: dict[str, str] = {}
    for part in filter(None, fragment.split("&")):
        name, equals, value = part.partition("=")
        if name not in known or not equals or not value or name in options:
            raise EdgeLstmError(
                f"source {shown}: option",
                found=name if re.fullmatch("[a-z_]{1,30}", name) else "something else",
                expected=f"#NAME=VALUE&NAME=VALUE, names: {', '.join(known)}",
                hint="A # in a user or password is written %23",
            )
        options[name] = value
    return url, options


def parse_url(spec: str, known: Sequence[str]) -> Address:
    """``scheme://user:password@host:port/path?query#options``. Raises EdgeLstmError, without anything secret in it."""
    match = _URL.fullmatch(spec)
    assert match is not None
    scheme = match["scheme"].lower()
    authority = re.split(r"[/?#]", match["rest"], maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    path, _, query = match["rest"][len(authority) :].partition("#")[0].partition("?")
    # An @ further on: a / in the password, most likely, and then the host is none either.
    if re.search(r"[\s\x00-\x1f]", spec) or not _HOST.fullmatch(host) or "@" in path:
        raise EdgeLstmError(
            f"source {scheme}://...: address",
            found="no host, or characters that do not belong there",
            expected=f"{scheme}://USER:PASSWORD@HOST:PORT/PATH",
            hint="/ ? # @ % and blanks in a user or password are written as %2F %3F %23 %40 %25 %20; in a pipeline file, "
            "${NAME} there is written so by itself",
        )
    shown = f"{scheme}://{host}{path}{'?***' if query else ''}"
    url, options = split_fragment(spec, known, shown)
    return Address(url, shown, options)


def shown(spec: str) -> str:
    """``spec`` without user, password, query and options, for messages about what may be wrong with it."""
    match = _URL.match(spec)
    if match is None:
        return spec
    return f"{match['scheme']}://{re.split(r'[?#]', match['rest'].rpartition('@')[2])[0]}"


def _seconds(address: Address, name: str) -> float:
    text = address.options.get(name)
    if text is None:
        return SECONDS
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise EdgeLstmError(f"source {address.shown}: {name}", found=text, expected="0.1 to 3600 seconds")
    return value
