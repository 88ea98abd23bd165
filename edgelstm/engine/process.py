"""Runs :mod:`edgelstm.engine.child` and turns however it ends into a plan or one clear error."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.machine import python_command
from edgelstm.runtime.sidecar import RuntimeName

log = logging.getLogger("edgelstm.tensorrt")
_LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "VERBOSE": logging.DEBUG,
}

#: Called with a phase's name, how many of its steps are done, and how many there are (0: it is over).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What the child is asked to build. Paths are of files that exist, or that it writes (``plan``, ``timing_cache_out``)."""

    runtime: RuntimeName
    model: str
    plan: str
    name: str
    profiles: tuple[tuple[int, int, int], ...]
    tf32: bool = False
    workspace: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla_core: int | None = None
    gpu_fallback: bool = False
    in_place: bool = False
    plugin_library: str | None = None
    compile_for: tuple[str, ...] = ()
    timing_cache: str | None = None
    timing_cache_out: str | None = None


def build_in_child(request: Request, where: str, progress: Progress | None = None) -> int:
    """Build, and return the plan's size in bytes.

    ``where`` names the model in messages. TensorRT's log goes to the logger ``edgelstm.tensorrt``. Raises EdgeLstmError when
    the parser refuses a node (named), the builder fails, or the process that builds dies.
    """
    errors: list[str] = []
    with tempfile.TemporaryFile() as stderr:
        command = python_command("edgelstm.engine.child")
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                with suppress(BrokenPipeError):  # it died already; how, is told below
                    child.stdin.write(json.dumps(asdict(request)).encode())
                    child.stdin.close()
                for message in _messages(child.stdout):
                    if "bytes" in message:
                        child.wait()
                        return int(message["bytes"])
                    if "parse" in message:
                        raise _parser_error(message["parse"], where)
                    if "error" in message:
                        raise EdgeLstmError(f"can't build {where}", found=message["error"])
                    if "phase" in message and progress is not None:
                        progress(message["phase"], message["done"], message["of"])
                    if "log" in message:
                        severity, text = message["log"]
                        log.log(_LEVELS.get(severity, logging.INFO), text)
                        if "ERROR" in severity:
                            errors.append(text)
            except BaseException:
                child.kill()
                raise
        stderr.seek(0)
        said = stderr.read().decode(errors="replace").strip().splitlines()
    raise _builder_error(child.returncode, errors, said, request, where)


def _messages(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:  # a library printed something
            message = {"log": ["INFO", line.decode(errors="replace").rstrip()]}
        if isinstance(message, dict):
            yield message


def _parser_error(found: list[dict[str, str]], where: str) -> EdgeLstmError:
    first = found[0] if found else {"text": "no reason given"}
    node = first.get("node_name") or first.get("node_operator")
    operator = f" ({first['node_operator']})" if first.get("node_name") and first.get("node_operator") else ""
    return EdgeLstmError(
        f"TensorRT can't parse {where}" + (f": node {node!r}{operator}" if node else ""),
        found=" ".join(first["text"].split()),
        hint="Run it with ONNX Runtime, or keep this node out of the model",
    )


def _builder_error(
    code: int, errors: list[str], said: list[str], request: Request, where: str
) -> EdgeLstmError:
    """Why there is no plan: the log's first error, or what the dying process said."""
    text = " ".join((errors or said[-1:] or ["no reason given"])[0].split())
    if code < 0:
        try:
            how = signal.Signals(-code).name
        except ValueError:
            how = f"signal {-code}"
        if how == "SIGKILL" and not errors:
            text = "the system killed it, as it does when memory runs out"
        return EdgeLstmError(
            f"TensorRT's builder crashed on {where} ({how})",
            found=text,
            hint="Please report the model; the .onnx file itself runs in ONNX Runtime",
        )
    if "Cannot compile for target" in text:
        return EdgeLstmError(
            f"{where} holds a type that a target has no arithmetic for",
            found=text,
            hint="fp8 needs compute capability 8.9 or later: build for another, or quantise to int8",
        )
    if any(word in text.lower() for word in ("out of memory", "outofmemory", "insufficient memory")):
        limit = (
            f"a workspace of {count_of(request.workspace, 'byte')}"
            if request.workspace
            else "the memory there is"
        )
        return EdgeLstmError(
            f"building {where} needs more than {limit}",
            found=text,
            hint="Raise --workspace, use fewer --streams, or close what else uses the GPU",
        )
    return EdgeLstmError(f"TensorRT can't build {where}", found=text)
