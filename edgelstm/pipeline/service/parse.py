"""From the text of a pipeline file to what it declares; an error names line, key, what was found and what is allowed."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, read_bytes
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.service.redact import HIDDEN, SECRET, Redactor, hidden

if TYPE_CHECKING:
    from edgelstm.pipeline.service.config import Config, StreamSection

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: No pipeline file is larger (bytes).
MAX_BYTES = 4 * 1024**2
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
#: Before a user or password of a URL, or inside it.
_IN_USER = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@]*$")
_HEADER = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
Path_ = tuple[str, ...]
#: What pydantic calls the forms that a sink may have.
BRANCHES = ("<one>", "<several>", "<text>", "<table>")


@dataclass(frozen=True)
class Parsed:
    """config: what the file declares. redactor: takes out what it got from the environment."""

    config: Config
    redactor: Redactor


def schema() -> dict[str, Any]:
    """JSON schema of a pipeline file."""
    _pydantic()
    from edgelstm.pipeline.service.config import Config

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def read(path: PathLike, environment: Mapping[str, str] | None = None) -> Parsed:
    """The pipeline file at ``path``. Raises EdgeLstmError."""
    data = read_bytes(path, MAX_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EdgeLstmError(f"{path} is no text", found=str(error), expected="TOML in UTF-8") from error
    return parse(text, str(path), environment)


def parse(text: str, where: str, environment: Mapping[str, str] | None = None) -> Parsed:
    """A pipeline file's text. ``${NAME}`` in a string is the variable of the environment."""
    pydantic = _pydantic()
    from edgelstm.pipeline.service.config import Config, cross_check
    from edgelstm.pipeline.service.config import secrets as confided

    text = text.replace("\r\n", "\n")
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise EdgeLstmError(f"{where} is no TOML", found=str(error) or type(error).__name__) from None
    lines, secrets = _lines(text), set[str]()
    raw = _filled(raw, (), os.environ if environment is None else environment, secrets, lines, where)
    redactor = Redactor(secrets)
    try:
        config = Config.model_validate(raw)
    except pydantic.ValidationError as error:
        raise redactor.error(_error(error.errors(), lines, where)) from None
    redactor = Redactor(secrets | confided(config))
    wrong = cross_check(config)
    if wrong is not None:
        key, found, expected = wrong
        raise redactor.error(EdgeLstmError(_at(key, lines, where), found=found, expected=expected))
    return Parsed(config, redactor)


def section(given: Mapping[str, Any]) -> StreamSection:
    """A stream's section that did not come from a file. Raises EdgeLstmError that names the key."""
    pydantic = _pydantic()
    from edgelstm.pipeline.service.config import StreamSection

    try:
        return StreamSection.model_validate(dict(given))
    except pydantic.ValidationError as error:
        errors = [{**e, "loc": ("streams", "NAME", *e["loc"])} for e in error.errors()]
        raise _error(errors, {}, "stream") from None


def _pydantic() -> Any:
    return require("pydantic", "serve", "a pipeline file")


def _filled(
    value: Any,
    key: Path_,
    variables: Mapping[str, str],
    secrets: set[str],
    lines: Mapping[Path_, int],
    where: str,
) -> Any:
    """``value`` with the environment's variables in place."""
    if isinstance(value, dict):
        return {k: _filled(v, (*key, k), variables, secrets, lines, where) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, key, variables, secrets, lines, where) for v in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in variables:
            raise EdgeLstmError(
                _at(key, lines, where),
                found=f"${{{name}}}, which the environment does not have",
                hint=f"Set {name}, for a service with systemd's EnvironmentFile",
            )
        secrets.add(variables[name])
        if _IN_USER.match(match.string[: match.start()]) and "@" in match.string[match.end() :]:
            quoted = quote(variables[name], safe="")  # what a password holds must not end it
            secrets.add(quoted)
            return quoted
        return variables[name]

    return _VARIABLE.sub(fill, value)


def _lines(text: str) -> dict[Path_, int]:
    """Line of every table and key, counted from 1. A line inside a string of several lines may be taken for a key: it then
    stands for a key that nobody asks for."""
    found: dict[Path_, int] = {}
    table: Path_ = ()
    for number, line in enumerate(text.split("\n"), 1):
        header = _HEADER.match(line)
        if header:
            table = _parts(header.group(1))
            found.setdefault(table, number)
            continue
        key = _KEY.match(line)
        if key:
            found.setdefault((*table, *_parts(key.group(1))), number)
    return found


def _parts(text: str) -> Path_:
    return tuple(part.strip("\"'") for part in _PART.findall(text))


def _at(key: Path_, lines: Mapping[Path_, int], where: str) -> str:
    """File, line and key; the line is that of the deepest part that stands in the file."""
    name = ".".join(key)
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return f"{where}, line {lines[key[:length]]}: {name}"
        below = [number for path, number in lines.items() if path[:length] == key[:length]]
        if below:
            return f"{where}, line {min(below)}: {name}"
    return f"{where}: {name}" if name else where


def _error(errors: list[Any], lines: Mapping[Path_, int], where: str) -> EdgeLstmError:
    """The first thing that is wrong, in the file's order."""

    def line(error: Any) -> tuple[bool, int]:
        """Keys that are missing come last: one that is spelt wrongly is why."""
        key = _key(error)
        return error["type"] == "missing", next(
            (lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in lines), 0
        )

    first = min(errors, key=line)
    key, kind = _key(first), first["type"]
    expected: str | None
    found: object = _shown(key[-1], first["input"])
    expected = _expected(first)
    hint = None
    if kind in ("model_type", "dict_type", "model_attributes_type") and isinstance(first["input"], str):
        found = "a text"  # whose key is a name: it may be anything
    if kind == "missing":
        found, expected = "nothing", f"{key[-1]} = ..."
    elif kind == "extra_forbidden":
        found, expected = f"the key {key[-1]}", ", ".join(_allowed(key)) or None
    elif kind == "string_pattern_mismatch" and first["loc"][-1] == "[key]":
        expected = "a name of letters, digits, - and _, at most 100"
    elif kind == "string_pattern_mismatch" and key[-1] == "gap":
        expected = "hold, reset, repeat:N or blank:N"
    if len(errors) > 1:
        hint = f"{len(errors) - 1} more thing{'s are' if len(errors) > 2 else ' is'} wrong in this file"
    return EdgeLstmError(_at(key, lines, where), found=found, expected=expected, hint=hint)


def _key(error: Any) -> Path_:
    """Where in the file; pydantic also names the branch of a union and places in lists."""
    key = tuple(
        str(part) for part in error["loc"] if part not in ("[key]", *BRANCHES) and isinstance(part, str)
    )
    if key[0] == "streams" and key[2:3] in (("sink",), ("alarms",)):
        return key[: 6 if key[2] == "alarms" else 4]
    return key[:3] if key[0] in ("models", "streams") else key[:2]


def _shown(key: str, value: object) -> str:
    """What was found, where it may be seen: texts in tables and lists may be anything."""
    if isinstance(value, str):
        text = json.dumps(hidden(key, value))
    elif isinstance(value, dict):
        text = f"a table of {', '.join(map(str, value))}" if value else "an empty table"
    elif SECRET.search(key):
        text = HIDDEN
    elif isinstance(value, list) and '"' in json.dumps(value, default=str):
        text = f"a list of {len(value)}"
    else:
        text = json.dumps(value) if isinstance(value, (int, float, bool, list)) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _expected(error: Any) -> str:
    message: str = error["msg"]
    message = re.sub(r"^(Input|Value|String|List) should (be|have|match) ?", "", message)
    return re.sub(r"^a (?=[aeiou])", "an ", re.sub(r"^a valid ", "a ", message))


def _allowed(key: Path_) -> list[str]:
    from edgelstm.pipeline.service.config import (
        Config,
        ModelSection,
        ServiceSection,
        StreamSection,
    )
    from edgelstm.pipeline.service.config_sinks import AlarmSection, SinkSection

    if key[0] == "streams" and len(key) in (4, 6):
        return list(SinkSection.model_fields)
    if key[0] == "streams" and len(key) == 5:
        return list(AlarmSection.model_fields)
    sections: dict[str, Any] = {"models": ModelSection, "streams": StreamSection, "service": ServiceSection}
    deep = 2 if key[0] == "service" else 3
    return list((sections[key[0]] if len(key) >= deep and key[0] in sections else Config).model_fields)
