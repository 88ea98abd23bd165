"""The typer application, and what its commands share: options, the progress bar, how things are printed."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from edgelstm.cli.command import LARGEST
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import MAX_ELEMENTS

app = typer.Typer(
    name="edgelstm",
    help="Run trained ConvLSTM and LSTM models live: export, verify, stream, with the state kept for you.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(emoji=False)  # a source may be called t.csv:key=a:x:
err = Console(stderr=True, emoji=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="Threads (default: all processors).")]
Weights = Annotated[Path | None, typer.Option(help="Weights for a torch factory: .safetensors, .pt or .pth.")]
Init = Annotated[str | None, typer.Option(help="JSON keyword arguments for a torch factory.")]
Frame = Annotated[
    list[str] | None,
    typer.Option(
        help="Shape of a frame, '1,64,64', where the file does not say; 'NAME:1,64,64' if several, 'NAME:' for one number. "
        "Torch: '40:int64', 'NAME:40:bool' for ids, masks and other types."
    ),
]
States = Annotated[
    list[str] | None,
    typer.Option(
        help="ONNX files: a state pair INPUT=OUTPUT. Torch: a state's shape NAME=64,32,32. Either with :1.0 (ONNX files also "
        ":FILE.npy) where it does not start at 0; torch also NAME=FILE.npy."
    ),
]
Results = Annotated[
    str | None,
    typer.Option(
        help="Torch: names of what forward gives back, in order, 'y,h,c': states by their names, '_' left out."
    ),
]
GateOrder = Annotated[
    str | None, typer.Option(help="Checkpoints without a module: the order of the gates, such as 'ifog'.")
]
Preprocess = Annotated[
    list[str] | None,
    typer.Option(
        "--preprocess",
        help="What is done to raw frames, such as 'resize=64,64;grey;scale=0.0039'; 'INPUT:...' for one of several. "
        "Operations: nodata, scale, log1p, clip, normalize, grey, crop, average, resize, channels_first, samples, magnitude; what each takes "
        "stands in docs/preprocessing.md.",
    ),
]
Postprocess = Annotated[
    list[str] | None,
    typer.Option(
        "--postprocess",
        help="What is done to outputs: mask_spectrum, overlap_add, threshold (docs/preprocessing.md); 'OUTPUT:...' for one of several.",
    ),
]
Hop = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Models whose step takes T frames together: a window every so many frames, 1 slides, T is end to end. Of sound: samples from frame to frame.",
    ),
]


Limit = Annotated[int | None, typer.Option(min=1, help="Frames at most, of each source.")]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda or cuda:N; default: cpu for .onnx, cuda for an engine (.plan).", show_default=False
    ),
]


def within(low: float, high: float | None = None) -> Callable[[Any, Any, float | None], float | None]:
    """A callback of an option: its value lies above ``low`` and is at most ``high``."""

    def check(context: typer.Context, parameter: typer.CallbackParam, value: float | None) -> float | None:
        if value is not None and not (low < value and (high is None or value <= high)):
            said = f"above {low:g}" + ("" if high is None else f", at most {high:g}")
            raise EdgeLstmError(parameter.opts[0], found=value, expected=said)
        return value

    return check


class Bar:
    """A bar on standard error, so that --json on standard output stays clean; it shows with the first tick or word.

    asks: a question may be asked before the first tick, and a bar that redraws itself would write over it.
    """

    def __init__(self, what: str, total: int | None, asks: bool = False) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._asks = asks
        self._task = self._bar.add_task(what, total=total)

    def __call__(self, count: int) -> None:
        """So many more are done."""
        self._bar.start()
        self._bar.advance(self._task, count)

    def say(self, what: str) -> None:
        """What is being done."""
        self._bar.update(self._task, description=what)
        if not self._asks:
            self._bar.start()

    def stop(self) -> None:
        """Wipe it away."""
        self._bar.stop()


@contextmanager
def progress_bar(what: str, total: int | None, asks: bool = False) -> Iterator[Bar]:
    """See :class:`Bar`."""
    bar = Bar(what, total, asks)
    try:
        yield bar
    finally:
        bar.stop()


def say(line: str) -> None:
    """How a source is read, on standard error."""
    err.print(f"source: {line}", highlight=False, markup=False, soft_wrap=True)


def say_sources(*sources: str | None) -> None:
    """How each source is read, for commands that open it more than once."""
    from edgelstm.pipeline import open_source

    for spec in filter(None, sources):
        logging.disable(logging.WARNING)  # gaps are told when the frames are read
        try:
            # What can't be opened is told by the workflow, after what comes first there.
            with suppress(EdgeLstmError), open_source(spec) as source:
                for line in source.said:
                    say(line)
        finally:
            logging.disable(logging.NOTSET)


@contextmanager
def phases() -> Iterator[Callable[[str, int, int], None]]:
    """A bar of the outermost phase, the innermost named beside it."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[inner]}"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    with bar:
        task = bar.add_task("building", total=None, inner="")
        outer: list[str] = []

        def show(phase: str, done: int, of: int) -> None:
            if not outer and of:
                outer.append(phase)
            if outer == [phase]:
                bar.update(task, completed=done, total=of or None)
            else:
                bar.update(task, inner=phase if of else "")

        yield show


def print_json(data: dict[str, Any], *, error: bool = False) -> None:
    """``error``: on standard error, where standard output is for something else."""
    typer.echo(json.dumps(data, indent=2, allow_nan=False), err=error)


#: What frames may be made of, as --frame names it.
FRAME_TYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def frame_shapes(texts: list[str] | None) -> Any:
    """'1,64,64' is the shape of the only input; 'a:3' and 'b:1,64,64' name several; 'a:' is one number; 'a:3:int64' has a type."""
    if not texts:
        return None
    named: dict[str, Any] = {}
    for text in texts:
        rest, _, kind = text.rpartition(":")
        rest, kind = (rest, kind) if kind in FRAME_TYPES else (text, "")
        name, colon, dims = rest.rpartition(":")
        if dims.strip() and not dims.replace(",", "").replace(" ", "").lstrip("-").isdigit() and colon:
            raise EdgeLstmError(
                f"--frame {text}",
                expected=f"[NAME:]SHAPE[:TYPE] such as x:1,64,64 or ids:40:int64; a TYPE is {', '.join(FRAME_TYPES)}",
            )
        if name in named:
            raise EdgeLstmError(
                f"--frame {text}", found=f"{name or 'a frame'} given twice", expected="each once"
            )
        # A lone number of no name is no shape anyone means: it takes a colon.
        shape = () if not dims.strip() and (colon or kind) else _ints("--frame", text, dims)
        named[name] = _example(shape, kind) if kind not in ("", "float32") else shape
    return named[""] if set(named) == {""} else named


def _example(shape: tuple[int, ...], kind: str) -> Any:
    import numpy as np

    if np.prod(shape, dtype=float) > MAX_ELEMENTS:
        return shape  # which is refused where frames are read
    return np.zeros(shape, kind)


def states_option(texts: list[str] | None) -> Any:
    """NAME=OUTPUT pairs of an ONNX file, NAME=OUTPUT:FIRST; or for torch NAME=64,32,32, that with :FIRST, NAME=FIRST.npy."""
    if not texts:
        return None
    pairs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise EdgeLstmError(
                f"--state {text}",
                expected="INPUT=OUTPUT or INPUT=OUTPUT:FIRST, or NAME=SHAPE such as h=64,32,32",
            )
        shape, colon, first = value.partition(":")
        if all(part.strip().isdigit() for part in shape.split(",")):
            pairs[name] = _ints("--state", text, shape)
            if colon:
                pairs[name] = _filled(text, pairs[name], first)
        elif value.endswith(".npy") and Path(value).is_file():
            pairs[name] = _array(text, value)
        else:
            pairs[name] = value
    return pairs


def _filled(text: str, shape: tuple[int, ...], first: str) -> Any:
    import numpy as np

    try:
        return np.full(shape, float(first), np.float32)
    except ValueError as error:
        raise EdgeLstmError(f"--state {text}", found=first, expected="a number after the shape") from error


def _array(text: str, path: str) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise EdgeLstmError(f"--state {text}", found=str(error), expected="a .npy file") from error


def fix_option(texts: list[str] | None) -> dict[str, int | float | bool] | None:
    """NAME=VALUE: whole numbers, decimals, true or false."""
    if not texts:
        return None
    values: dict[str, int | float | bool] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            number = json.loads(value) if name and equals else None
        except ValueError:
            number = None
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise EdgeLstmError(f"--fix {text}", expected="NAME=VALUE, such as sr=16000 or time=1")
        values[name] = number
    return values


def confirm_pairs(yes: bool) -> Callable[[Sequence[Any]], bool] | None:
    """Who says whether proposed state pairs are right: --yes, the user at a terminal, or nobody."""
    if not yes and not (sys.stdin.isatty() and err.is_terminal):
        return None

    def confirm(pairs: Sequence[Any]) -> bool:
        for pair in pairs:
            doubt = f"; doubtful: {pair.doubt}" if pair.doubt else ""
            err.print(
                f"{pair.option}  ({', '.join(pair.reasons)}{doubt})",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if yes:  # never what is doubtful
            return not any(pair.doubt for pair in pairs)
        return typer.confirm("Are these the states?", err=True)

    return confirm


def _ints(option: str, text: str, dims: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(d) for d in dims.split(","))
    except ValueError as error:
        raise EdgeLstmError(f"{option} {text}", expected="whole numbers such as 1,64,64") from error
    if any(d < 1 for d in shape):
        raise EdgeLstmError(f"{option} {text}", expected="sizes of at least 1")
    if math.prod(shape) > LARGEST:
        raise EdgeLstmError(f"{option} {text}", expected=f"at most {LARGEST} numbers in all")
    return shape


def two_numbers(option: str, text: str | None) -> tuple[float, float] | None:
    """LOW,HIGH."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise EdgeLstmError(f"{option} {text}", expected="two numbers with a comma, such as 0,1") from error
    if not -math.inf < low < high < math.inf:
        raise EdgeLstmError(f"{option} {text}", expected="a low and a higher number, such as 0,1")
    return low, high


def names_option(text: str | None) -> list[str] | None:
    """NAME,NAME,..."""
    return None if text is None else [name.strip() for name in text.split(",")]


def json_option(option: str, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EdgeLstmError(f"{option} {text}", found=str(error), expected="a JSON object") from error
    if not isinstance(value, dict):
        raise EdgeLstmError(f"{option} {text}", found=type(value).__name__, expected="a JSON object")
    return value


def shape_text(shape: tuple[int | str, ...]) -> str:
    return " x ".join(map(str, shape))


def size_text(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
