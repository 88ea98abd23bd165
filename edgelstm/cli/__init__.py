"""The command line: parse, call one workflow, print a table or JSON. One file a group of commands.

May import: every room; it parses, calls one workflow and prints.
"""

from __future__ import annotations

import copy
import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

# NumPy only checks and copies here; its own thread pool would fight with ONNX Runtime's for the cores. It reads this when
# it is loaded, so it has to stand before what loads it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import typer

from edgelstm import __version__
from edgelstm.cli import (
    build,
    detect,
    engine,
    inspect,
    machine,
    models,
    quantisation,
    report,
    run,
    score,
    serve,
    top,
)
from edgelstm.cli.command import Command
from edgelstm.cli.shared import app, err
from edgelstm.errors import EdgeLstmError

__all__ = [
    "app",
    "build",
    "detect",
    "engine",
    "inspect",
    "machine",
    "main",
    "models",
    "quantisation",
    "report",
    "run",
    "score",
    "serve",
    "top",
]

#: As `edgelstm --help` lists them: in the order of the work.
ORDER = (
    "export",
    "verify",
    "calibrate",
    "quantize",
    "build_engine",
    "build_plugin",
    "config",
    "lower",
    "run",
    "report",
    "serve",
    "top",
    "score",
    "scales",
    "fit_detector",
    "detect",
    "inspect",
    "bench",
    "doctor",
    "demo",
)
for registered in app.registered_commands:
    registered.cls = Command
app.registered_commands.sort(key=lambda c: ORDER.index(c.callback.__name__) if c.callback else 0)
#: What `pip install edgelstm` brings along and streaming does without: a device may have left it out.
NEEDED = ("onnx", "safetensors")
#: What typer raises for wrong options and arguments; it is click's, which typer may bring along under its own name.
UsageError: Any = typer.BadParameter.__mro__[1]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edgelstm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script: a clear line and exit code 2 on bad input, no traceback."""
    # A module named on the command line is looked for where the user stands.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 (sys.path holds strings)
    # A stopped service ends like an error: what was begun is taken away.
    signal.signal(signal.SIGTERM, _terminated)
    # So does one whose terminal or connection is gone, unless nohup says that it goes on.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _terminated)
    try:
        # Not standalone, so that wrong options end like all other bad input, in one line.
        code = _with_one_command(sys.argv[1:])(prog_name="edgelstm", standalone_mode=False)
    except EdgeLstmError as error:
        _fail(str(error))
    except UsageError as error:
        if not error.format_message():  # no arguments at all: the help was printed
            sys.exit(2)
        command = error.ctx.command_path if error.ctx else "edgelstm"
        _fail(f"{error.format_message()} Try: {command} --help")
    except ModuleNotFoundError as error:
        # Our own packages only: a module of the user's that imports what is not there is told with its traceback.
        if error.name not in NEEDED:
            raise
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "this")
        _fail(
            f"{command} needs the Python package {error.name}, which is not installed. pip install {error.name}"
        )
    except BrokenPipeError:  # who read has enough
        _drop_output()
        sys.exit(1)
    except OSError as error:
        # Files say for themselves what they can't; what is left is standard output, such as a file on a full disk.
        if errno.errorcode.get(error.errno or 0) not in ("ENOSPC", "EDQUOT", "EFBIG", "EIO"):
            raise
        _drop_output()
        _fail(f"can't write {error.filename or 'standard output'}: found {error.strerror}")
    except (KeyboardInterrupt, typer.Abort):
        err.print("edgelstm: interrupted", markup=False)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _with_one_command(arguments: Sequence[str]) -> typer.Typer:
    """The application without the commands that are not called: typer would read the signatures of all, which takes 0.07 s."""
    called = [
        c
        for c in app.registered_commands
        if c.callback and arguments[:1] == [_name(c.name, c.callback.__name__)]
    ]
    if not called:  # options before it, help, or no such command
        return app
    alone = copy.copy(app)
    alone.registered_commands = called
    return alone


def _name(given: str | None, function: str) -> str:
    return given or function.replace("_", "-")


def _drop_output() -> None:
    """What waits to be written would fail once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminated(number: int, frame: Any) -> NoReturn:
    sys.exit(128 + number)


def _fail(message: str) -> NoReturn:
    err.print(f"edgelstm: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)
