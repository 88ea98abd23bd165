"""The architectures a weights file can state in its header: plain data, their JSON, and the tensors they need.

Standard library only. ``edgelstm.frontends.torch.nn`` writes them from torch modules, ``described`` turns them into ONNX
and ``reference`` computes them with NumPy. The header's key ``edgelstm.architecture`` holds for example

    {"schema": 1, "architecture": "lstm", "inputs": 5, "hidden": [32, 32], "peephole": false,
     "head": {"outputs": 5}, "residual": false}

Every cell joins its input and its hidden state, in this order, and has its gates in the order i, f, g, o.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgelstm.errors import EdgeLstmError, count_of

SCHEMA = 1
ARCHITECTURE_KEY = "edgelstm.architecture"
PREPROCESSING_KEY = "edgelstm.preprocessing"

#: A file may claim anything; beyond these a graph is no graph of one time step any more.
MAX_LAYERS = 64
MAX_HORIZON = 1000
MAX_SIZE = 2**24

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """One recurrent layer: the prefix of its tensors and its sizes.

    inputs: features or channels from below; 0 when only the hidden state comes in.
    grid: () for a dense cell, (H, W) for a convolutional one with ``kernel`` x ``kernel`` weights.
    """

    name: str
    inputs: int
    hidden: int
    peephole: bool
    grid: Shape = ()
    kernel: int = 1

    @property
    def state_shape(self) -> Shape:
        """Shape of h and of c for one stream."""
        return (self.hidden, *self.grid)

    @property
    def peepholes(self) -> tuple[str, ...]:
        """Names of the peephole tensors, in FusedGates's order; none without peepholes."""
        return tuple(f"{self.name}.{p}" for p in ("p_i", "p_f", "p_o")) if self.peephole else ()

    def tensors(self) -> dict[str, Shape]:
        """Name and shape of every tensor of the cell."""
        window = (self.kernel,) * len(self.grid)
        return {
            f"{self.name}.weight": (4 * self.hidden, self.inputs + self.hidden, *window),
            f"{self.name}.bias": (4 * self.hidden,),
            **dict.fromkeys(self.peepholes, self.state_shape),
        }


@dataclass(frozen=True)
class LinearHead:
    """A Linear layer from the last h to ``outputs`` numbers."""

    outputs: int

    def __post_init__(self) -> None:
        _whole("head.outputs", self.outputs)


@dataclass(frozen=True)
class ConvHead:
    """A Conv2d, zero-padded to keep the size, from the last h to ``channels`` maps."""

    channels: int
    kernel: int

    def __post_init__(self) -> None:
        _whole("head.channels", self.channels)
        _odd("head.kernel", self.kernel)


@dataclass(frozen=True)
class Lstm:
    """A stack of LSTM cells (Gers, Schmidhuber & Cummins 1999; peepholes: Gers & Schmidhuber 2000).

    Frame ``x`` [N, inputs]; output ``y``: the last h [N, hidden[-1]], or ``head.outputs`` numbers. With ``residual``
    x, repeated, is added to the output of the head.
    """

    name: ClassVar[str] = "lstm"
    output_name: ClassVar[str] = "y"
    inputs: int
    hidden: tuple[int, ...]
    peephole: bool = False
    head: LinearHead | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        _whole("inputs", self.inputs)
        _wholes("hidden", self.hidden)
        _flag("peephole", self.peephole)
        _flag("residual", self.residual)
        if self.residual and (self.head is None or self.head.outputs % self.inputs):
            raise EdgeLstmError(
                "head of a residual lstm",
                found=None if self.head is None else f"{count_of(self.head.outputs, 'output')}",
                expected=f"a head whose outputs are a multiple of the {count_of(self.inputs, 'input')}",
            )

    @property
    def frame_shape(self) -> Shape:
        """Shape of one stream's frame."""
        return (self.inputs,)

    @property
    def output_shape(self) -> Shape:
        """Shape of one stream's output."""
        return (self.hidden[-1] if self.head is None else self.head.outputs,)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells whose states are carried from frame to frame, bottom first."""
        return _stack("cells", self.inputs, self.hidden, self.peephole)

    def tensors(self) -> dict[str, Shape]:
        """Name and shape of every weight."""
        head = {} if self.head is None else _layer("head", self.head.outputs, self.hidden[-1])
        return _tensors(self.cells) | head


@dataclass(frozen=True)
class ConvLstm:
    """A stack of ConvLSTM cells (Shi et al. 2015, eq. 3), zero padding, stride 1.

    Frame ``x`` [N, channels, H, W]; output ``y``: the last h, or ``head.channels`` maps of the same size.
    """

    name: ClassVar[str] = "conv_lstm"
    output_name: ClassVar[str] = "y"
    channels: int
    hidden: tuple[int, ...]
    kernel: int
    size: tuple[int, int]
    peephole: bool = False
    head: ConvHead | None = None

    def __post_init__(self) -> None:
        _whole("channels", self.channels)
        _wholes("hidden", self.hidden)
        _odd("kernel", self.kernel)
        _wholes("size", self.size, count=2)
        _flag("peephole", self.peephole)

    @property
    def frame_shape(self) -> Shape:
        """Shape of one stream's frame."""
        return (self.channels, *self.size)

    @property
    def output_shape(self) -> Shape:
        """Shape of one stream's output."""
        return (self.hidden[-1] if self.head is None else self.head.channels, *self.size)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells whose states are carried from frame to frame, bottom first."""
        return _stack("cells", self.channels, self.hidden, self.peephole, self.size, self.kernel)

    def tensors(self) -> dict[str, Shape]:
        """Name and shape of every weight."""
        if self.head is None:
            return _tensors(self.cells)
        window = (self.head.kernel, self.head.kernel)
        return _tensors(self.cells) | _layer("head", self.head.channels, self.hidden[-1], *window)


@dataclass(frozen=True)
class EncoderForecaster:
    """The encoding-forecasting network of Shi et al. 2015, fig. 3: each frame in gives ``horizon`` frames ahead.

    Frame ``x`` [N, channels, H, W]; output ``forecast`` [N, horizon, channels, H, W]. A convolution with stride
    ``patch`` takes the frame to ``stem`` channels on the H/patch x W/patch grid; the encoder's states are carried; the
    forecaster starts from the new ones and runs ``horizon`` times inside the step, its first layer without an input;
    a 1x1 convolution over the h of all its layers and a pixel shuffle give each predicted frame, to which
    ``residual`` adds x.
    """

    name: ClassVar[str] = "encoder_forecaster"
    output_name: ClassVar[str] = "forecast"
    channels: int
    size: tuple[int, int]
    patch: int
    stem: int
    hidden: tuple[int, ...]
    kernel: int
    horizon: int
    peephole: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        for label in ("channels", "patch", "stem"):
            _whole(label, getattr(self, label))
        _whole("horizon", self.horizon, most=MAX_HORIZON)
        _wholes("hidden", self.hidden)
        _odd("kernel", self.kernel)
        _wholes("size", self.size, count=2)
        _flag("peephole", self.peephole)
        _flag("residual", self.residual)
        if any(side % self.patch for side in self.size):
            raise EdgeLstmError("size", found=list(self.size), expected=f"multiples of patch {self.patch}")

    @property
    def frame_shape(self) -> Shape:
        """Shape of one stream's frame."""
        return (self.channels, *self.size)

    @property
    def output_shape(self) -> Shape:
        """Shape of one stream's output."""
        return (self.horizon, self.channels, *self.size)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the maps the cells work on."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The encoder's cells: theirs are the states carried from frame to frame, bottom first."""
        return _stack("encoder", self.stem, self.hidden, self.peephole, self.grid, self.kernel)

    @property
    def forecaster(self) -> tuple[Cell, ...]:
        """The forecaster's cells, bottom first."""
        return _stack("forecaster", 0, self.hidden, self.peephole, self.grid, self.kernel)

    def tensors(self) -> dict[str, Shape]:
        """Name and shape of every weight."""
        return (
            _layer("stem", self.stem, self.channels, self.patch, self.patch)
            | _tensors((*self.cells, *self.forecaster))
            | _layer("head", self.channels * self.patch**2, sum(self.hidden), 1, 1)
        )


Architecture = Lstm | ConvLstm | EncoderForecaster

_KINDS: dict[str, type[Architecture]] = {kind.name: kind for kind in (Lstm, ConvLstm, EncoderForecaster)}
_HEADS: dict[str, type[LinearHead | ConvHead]] = {Lstm.name: LinearHead, ConvLstm.name: ConvHead}


def to_json(architecture: Architecture) -> dict[str, Any]:
    """JSON-ready data, all keys written out; ``from_json`` is its inverse."""
    data = {"schema": SCHEMA, "architecture": architecture.name, **dataclasses.asdict(architecture)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}


def from_json(data: Any, where: str = "architecture") -> Architecture:
    """The architecture that ``data`` states.

    Raises EdgeLstmError, naming ``where``, for an unknown schema, architecture or key, a missing key and an
    impossible value.
    """
    if not isinstance(data, Mapping):
        raise EdgeLstmError(
            f"{where}: not an architecture", found=type(data).__name__, expected="a JSON object"
        )
    if data.get("schema") != SCHEMA:
        raise EdgeLstmError(
            f"{where}: architecture schema",
            found=data.get("schema"),
            expected=SCHEMA,
            hint="A newer edgelstm may have written it: upgrade",
        )
    name = data.get("architecture")
    if not isinstance(name, str) or name not in _KINDS:
        raise EdgeLstmError(f"{where}: architecture", found=name, expected=f"one of {', '.join(_KINDS)}")
    values = {key: value for key, value in data.items() if key not in ("schema", "architecture")}
    try:
        if values.get("head") is not None and name in _HEADS:
            values["head"] = _build(_HEADS[name], values["head"], f"head of {name}")
        architecture: Architecture = _build(_KINDS[name], values, name)
        return architecture
    except EdgeLstmError as error:
        raise EdgeLstmError(
            f"{where}: {error.what}", found=error.found, expected=error.expected, hint=error.hint
        ) from error


def loads(text: str, where: str = "architecture") -> Architecture:
    """``from_json`` of JSON text."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EdgeLstmError(f"{where}: architecture is not JSON", found=str(error)) from error
    return from_json(data, where)


def _build(kind: type[Any], values: Any, label: str) -> Any:
    fields = dataclasses.fields(kind)
    if not isinstance(values, Mapping):
        raise EdgeLstmError(label, found=values, expected="a JSON object")
    unknown = sorted(set(values) - {f.name for f in fields})
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
    if unknown or missing:
        found = [f"unknown {key!r}" for key in unknown] + [f"no {key!r}" for key in missing]
        raise EdgeLstmError(
            f"keys of {label}", found=", ".join(found), expected=", ".join(f.name for f in fields)
        )
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _stack(
    name: str, inputs: int, hidden: Shape, peephole: bool, grid: Shape = (), kernel: int = 1
) -> tuple[Cell, ...]:
    return tuple(
        Cell(f"{name}.{layer}", below, size, peephole, grid, kernel)
        for layer, (below, size) in enumerate(zip((inputs, *hidden), hidden, strict=False))
    )


def _layer(name: str, outputs: int, inputs: int, *window: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs, *window), f"{name}.bias": (outputs,)}


def _tensors(cells: tuple[Cell, ...]) -> dict[str, Shape]:
    return {name: shape for cell in cells for name, shape in cell.tensors().items()}


def _whole(name: str, value: object, most: int = MAX_SIZE) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise EdgeLstmError(name, found=value, expected=f"a whole number from 1 to {most}")


def _wholes(name: str, values: object, count: int | None = None) -> None:
    if (
        not isinstance(values, tuple)
        or not 1 <= len(values) <= MAX_LAYERS
        or count not in (None, len(values))
    ):
        many = f"1 to {MAX_LAYERS}" if count is None else str(count)
        found = list(values) if isinstance(values, tuple) else values
        raise EdgeLstmError(name, found=found, expected=f"a list of {many} whole numbers")
    for value in values:
        _whole(name, value)


def _odd(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or value % 2 == 0:
        raise EdgeLstmError(name, found=value, expected="an odd number, so that padding keeps the size")


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise EdgeLstmError(name, found=value, expected="true or false")
