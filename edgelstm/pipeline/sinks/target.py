"""What a sink is opened for: an address or a path, and options."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sinks.panels import View


@dataclass(frozen=True)
class Options:
    """What a table in a pipeline file says of a sink beside its address; None where it says nothing. Each kind takes some of them.

    MQTT: user, password, qos (0, 1 or 2), retain, will (a topic), client. HTTP: headers, retries, batch (lines in one request, at
    most), every (seconds from one request to the next, at least). Both: timeout (seconds); ca, cert, key (PEM files for TLS).
    ODIM: output, quantity (such as RATE). Files that are put in place at the end: rotate (seconds from one file to the next), keep (how many of them).
    Pictures: output, channel, lead, range, colours, and of .mp4 and folders beside, caption, truth, as in :class:`View`.
    """

    user: str | None = None
    password: str | None = None
    qos: int | None = None
    retain: bool | None = None
    will: str | None = None
    client: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    headers: Mapping[str, str] | None = None
    timeout: float | None = None
    retries: int | None = None
    batch: int | None = None
    every: float | None = None
    output: str | None = None
    channel: int | None = None
    lead: int | None = None
    range: tuple[float, float] | None = None
    colours: str | None = None
    beside: bool | None = None
    caption: bool | None = None
    truth: bool | None = None
    quantity: str | None = None
    rotate: float | None = None
    keep: int | None = None

    def given(self) -> list[str]:
        """Names of those that were."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    def from_folder(self, folder: Path) -> Options:
        """With the paths of PEM files starting at ``folder``."""

        def placed(path: str | None) -> str | None:
            return None if path is None else str(folder / path)

        return replace(self, ca=placed(self.ca), cert=placed(self.cert), key=placed(self.key))

    def view(self) -> View:
        """What pictures show."""
        return View(
            self.output,
            self.channel,
            self.lead,
            self.range,
            self.colours,
            bool(self.beside),
            bool(self.caption),
            bool(self.truth),
        )


#: Options of TLS, of pictures, of those that are kept in files, and of files that are put in place at the end.
TLS = ("ca", "cert", "key")
PICTURES = ("output", "channel", "lead", "range", "colours")
CAPTIONS = ("beside", "caption", "truth")
PARTS = ("rotate", "keep")


@dataclass(frozen=True)
class Address:
    """``scheme://user:password@host:port/path?query``; user and password percent-decoded, ``path`` without its first slash."""

    scheme: str
    host: str
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    path: str = ""
    query: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises EdgeLstmError, which does not repeat user and password."""
        try:
            parts = urlsplit(url)
            # urlsplit asks for the port only here
            host, port, user, password = parts.hostname or "", parts.port, parts.username, parts.password
        except ValueError as error:
            raise EdgeLstmError(
                f"address {shown(url)}",
                found=f"no port and no host to make out ({str(error).split(' ')[0]} ...)",
                expected="SCHEME://HOST:PORT/PATH",
                hint="A password with / ? # or @ in it is given as `password`, or percent-encoded",
            ) from None
        return cls(
            parts.scheme.lower(),
            host,
            port,
            None if user is None else unquote(user),
            None if password is None else unquote(password),
            parts.path.removeprefix("/"),
            parts.query,
        )


def is_address(spec: str) -> bool:
    """Whether ``spec`` is one, not a path."""
    return "://" in spec


def shown(spec: str) -> str:
    """``spec`` for people: no user, no password, no query, and of a web address no path, since all of these may be secrets."""
    if not is_address(spec):
        return spec
    scheme, _, rest = spec.partition("://")
    place = rest.rpartition("@")[2] if "@" in rest else rest
    place = place.partition("?")[0].partition("#")[0]
    if scheme.lower() in ("http", "https"):
        host, slash, path = place.partition("/")
        return f"{scheme}://{host}{'/...' if slash and path else ''}"
    return f"{scheme}://{place}"


@dataclass(frozen=True)
class Target:
    """What a sink is opened for.

    where: the path or address as given. fps: frames a second, None when unknown. append: to the lines of a file that is there. events: what comes are not
    outputs but mappings that are ready for JSON, such as those of alarms. stop: set when the sink is to give up what it can't deliver.
    """

    where: str
    signature: Signature
    fps: float | None
    view: View
    context: Context
    append: bool = False
    options: Options = field(default_factory=Options)
    events: bool = False
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def path(self) -> Path:
        """Of a file or folder."""
        return Path(self.where)

    @property
    def address(self) -> Address:
        """Of what is no file."""
        return Address.parse(self.where)

    @property
    def name(self) -> str:
        """For people."""
        return shown(self.where)
