"""Recurrent torch modules as the literature states them, made to be streamed: `edgelstm.nn`.

Cells take ``cell(x, (h, c))`` and return ``(h, c)``. Step modules (``LSTM``, ``ConvLSTM``, ``EncoderForecaster``)
take ``module(x, *states)`` and return ``(output, states)``, with the states in the order h0, c0, h1, c1, ...

Every cell joins its input and its hidden state and computes all gates at once, in the order i, f, g, o:

    z = W · [x ; h] + b
    i = sigmoid(z_i + p_i∘c)    f = sigmoid(z_f + p_f∘c)    g = tanh(z_g)
    c' = f∘c + i∘g              o = sigmoid(z_o + p_o∘c')   h' = o∘tanh(c')

where the peepholes p are zero unless asked for. All tensors are float32 unless the module is converted.

``save`` and ``load`` keep a module in one .safetensors file whose header states its architecture, so that it can
be exported on a machine without torch.

Sources: Gers, Schmidhuber & Cummins 1999, "Learning to forget" (the forget gate); Gers & Schmidhuber 2000,
"Recurrent nets that time and count" (peepholes); Shi et al. 2015, "Convolutional LSTM network" (eq. 3, fig. 3).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, atomic_path

State = tuple[Tensor, Tensor]
SCHEMA = 1
ARCHITECTURE_KEY = "edgelstm.architecture"
PREPROCESSING_KEY = "edgelstm.preprocessing"


def lstm_update(z: Tensor, c: Tensor, peepholes: tuple[Tensor, Tensor, Tensor] | None = None) -> State:
    """New (h, c) from the joint pre-activations ``z`` [N, 4C, ...], order i, f, g, o, and ``c`` [N, C, ...].

    ``peepholes`` are p_i, p_f, p_o, each of ``c``'s shape without N. Shi et al. 2015, eq. 3: the gates i and f
    look at the old cell state, o at the new one.
    """
    z_i, z_f, z_g, z_o = torch.chunk(z, 4, dim=1)
    if peepholes is not None:
        p_i, p_f, p_o = peepholes
        z_i = z_i + p_i * c
        z_f = z_f + p_f * c
    c = torch.sigmoid(z_f) * c + torch.sigmoid(z_i) * torch.tanh(z_g)
    if peepholes is not None:
        z_o = z_o + p_o * c
    return torch.sigmoid(z_o) * torch.tanh(c), c


class _Cell(nn.Module):
    """What all cells share: joint weights, and peepholes of shape ``peephole_shape`` when it is given."""

    p_i: Tensor
    p_f: Tensor
    p_o: Tensor

    def __init__(
        self, inputs: int, hidden: int, kernel: tuple[int, ...], peephole_shape: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        self.hidden = _size("hidden", hidden)
        self.peephole = peephole_shape is not None
        fan_in = (inputs + hidden) * math.prod(kernel)
        self.weight = nn.Parameter(torch.empty(4 * hidden, inputs + hidden, *kernel))
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        nn.init.uniform_(self.weight, -(fan_in**-0.5), fan_in**-0.5)
        # An open forget gate lets gradients reach far back from the start (Gers 1999; Jozefowicz et al. 2015).
        nn.init.ones_(self.bias[hidden : 2 * hidden])
        if peephole_shape is not None:
            for name in ("p_i", "p_f", "p_o"):
                self.register_parameter(name, nn.Parameter(torch.zeros(peephole_shape)))

    def _update(self, z: Tensor, c: Tensor) -> State:
        return lstm_update(z, c, (self.p_i, self.p_f, self.p_o) if self.peephole else None)


class LSTMCell(_Cell):
    """LSTM with a forget gate (Gers, Schmidhuber & Cummins 1999), with tanh as both squashing functions.

    x [N, inputs], h and c [N, hidden]; ``weight`` [4·hidden, inputs+hidden], ``bias`` [4·hidden].
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(_size("inputs", inputs), hidden, (), None)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        return self._update(functional.linear(torch.cat([x, h], dim=1), self.weight, self.bias), c)


class PeepholeLSTMCell(_Cell):
    """LSTM whose gates see the cell state (Gers & Schmidhuber 2000): as LSTMCell, with ``p_i, p_f, p_o`` [hidden]."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(_size("inputs", inputs), hidden, (), (hidden,))

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        return self._update(functional.linear(torch.cat([x, h], dim=1), self.weight, self.bias), c)


class ConvLSTMCell(_Cell):
    """Convolutional LSTM (Shi et al. 2015, eq. 3), zero padding, stride 1.

    x [N, channels, H, W], h and c [N, hidden, H, W]; ``weight`` [4·hidden, channels+hidden, kernel, kernel],
    ``bias`` [4·hidden]; ``kernel`` is odd. With ``peephole`` the paper's Hadamard weights ``p_i, p_f, p_o``
    [hidden, H, W] tie the cell to one ``size`` (H, W); without them it takes any. A cell with ``channels=0``
    has no input: call it with x None.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel: int = 3,
        *,
        peephole: bool = False,
        size: Sequence[int] | None = None,
    ) -> None:
        if _size("kernel", kernel) % 2 == 0:
            raise EdgeLstmError(
                "kernel", found=kernel, expected="an odd number, so that padding keeps the size"
            )
        if peephole and size is None:
            raise EdgeLstmError(
                "a ConvLSTM cell with peepholes needs its size", expected="size=(height, width) of the frames"
            )
        shape = (hidden, *_sizes("size", size, 2)) if peephole else None
        super().__init__(_size("channels", channels, least=0), hidden, (kernel, kernel), shape)
        self.padding = kernel // 2

    def forward(self, x: Tensor | None, state: State) -> State:
        h, c = state
        joined = h if x is None else torch.cat([x, h], dim=1)
        return self._update(functional.conv2d(joined, self.weight, self.bias, padding=self.padding), c)


class StepModule(nn.Module):
    """One time step of a network with explicit states: ``module(x, *states) -> (output, states)``."""

    architecture: ClassVar[str]

    def initial_states(self, streams: int = 1) -> tuple[Tensor, ...]:
        """Zeros for ``streams`` streams, in the order h0, c0, h1, c1, ..."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The architecture as JSON-ready data; ``from_config`` is its inverse."""
        raise NotImplementedError

    def _zeros(self, streams: int, shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        like = next(self.parameters())
        return tuple(like.new_zeros(streams, *shape) for shape in shapes for _ in range(2))

    def _header(self, **fields: Any) -> dict[str, Any]:
        return {"schema": SCHEMA, "architecture": self.architecture, **fields}


class LSTM(StepModule):
    """A stack of LSTM cells and an optional linear head.

    x [N, inputs]; states h, c [N, hidden[l]] per layer; output [N, outputs], or the last layer's h without a head.
    ``peephole`` takes PeepholeLSTMCell. ``residual`` adds x to the output, repeated when outputs is a multiple of
    inputs: the head then learns the change from now.
    """

    architecture = "lstm"

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        *,
        peephole: bool = False,
        outputs: int | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.inputs, self.hidden = _size("inputs", inputs), _sizes("hidden", hidden)
        self.peephole, self.outputs, self.residual = peephole, outputs, residual
        if residual and (outputs is None or _size("outputs", outputs) % inputs):
            raise EdgeLstmError(
                "residual LSTM: outputs of the head",
                found=outputs,
                expected=f"a multiple of the {inputs} inputs",
            )
        cell = PeepholeLSTMCell if peephole else LSTMCell
        self.cells = nn.ModuleList(
            [cell(below, size) for below, size in zip((inputs, *self.hidden), self.hidden, strict=False)]
        )
        self.head = None if outputs is None else nn.Linear(self.hidden[-1], _size("outputs", outputs))

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, following = _stack(self.cells, x, states)
        if self.head is not None:
            y = self.head(y)
            if self.residual:
                y = y + torch.cat([x] * (y.shape[1] // self.inputs), dim=1)
        return y, following

    def initial_states(self, streams: int = 1) -> tuple[Tensor, ...]:
        return self._zeros(streams, [(size,) for size in self.hidden])

    def config(self) -> dict[str, Any]:
        return self._header(
            inputs=self.inputs,
            hidden=list(self.hidden),
            peephole=self.peephole,
            head=None if self.outputs is None else {"outputs": self.outputs},
            residual=self.residual,
        )


class ConvLSTM(StepModule):
    """A stack of ConvLSTM cells and an optional convolutional head.

    x [N, channels, H, W]; states h, c [N, hidden[l], H, W] per layer; output [N, outputs, H, W], or the last layer's
    h without a head. ``size`` is (H, W); without peepholes the module takes other sizes too.
    """

    architecture = "conv_lstm"

    def __init__(
        self,
        channels: int,
        hidden: Sequence[int],
        *,
        size: Sequence[int],
        kernel: int = 3,
        peephole: bool = False,
        outputs: int | None = None,
        output_kernel: int = 1,
    ) -> None:
        super().__init__()
        self.channels, self.hidden = _size("channels", channels), _sizes("hidden", hidden)
        self.size, self.kernel, self.peephole = _sizes("size", size, 2), kernel, peephole
        self.outputs, self.output_kernel = outputs, output_kernel
        self.cells = _conv_stack(channels, self.hidden, kernel, peephole, self.size)
        self.head = None
        if outputs is not None:
            if _size("head kernel", output_kernel) % 2 == 0:
                raise EdgeLstmError("head kernel", found=output_kernel, expected="an odd number")
            self.head = nn.Conv2d(
                self.hidden[-1], _size("outputs", outputs), output_kernel, padding=output_kernel // 2
            )

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, following = _stack(self.cells, x, states)
        return (y if self.head is None else self.head(y)), following

    def initial_states(self, streams: int = 1, size: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        height, width = self.size if size is None else _sizes("size", size, 2)
        return self._zeros(streams, [(channels, height, width) for channels in self.hidden])

    def config(self) -> dict[str, Any]:
        head = None if self.outputs is None else {"channels": self.outputs, "kernel": self.output_kernel}
        return self._header(
            channels=self.channels,
            hidden=list(self.hidden),
            kernel=self.kernel,
            size=list(self.size),
            peephole=self.peephole,
            head=head,
        )


class EncoderForecaster(StepModule):
    """The encoding-forecasting network of Shi et al. 2015, fig. 3: each frame in gives ``horizon`` frames ahead.

    x [N, channels, H, W] -> forecast [N, horizon, channels, H, W]. A strided convolution (patch x patch, the learned
    form of the paper's patch reshape) takes the frame to ``stem`` channels on the H/patch x W/patch grid. Encoder
    cells carry their (h, c) [N, hidden[l], H/patch, W/patch] from frame to frame. Forecaster cells start from the
    encoder's new states and run ``horizon`` times with no frame coming in; a 1x1 convolution over all their hidden
    states and a pixel shuffle give each predicted frame. ``residual`` adds x to every predicted frame.

    To train on a sequence, call ``encode`` on every frame and ``forecast`` only where there is a loss.
    """

    architecture = "encoder_forecaster"

    def __init__(
        self,
        channels: int,
        hidden: Sequence[int],
        *,
        size: Sequence[int],
        horizon: int,
        patch: int = 4,
        stem: int = 16,
        kernel: int = 3,
        peephole: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.hidden = _size("channels", channels), _sizes("hidden", hidden)
        self.size, self.horizon = _sizes("size", size, 2), _size("horizon", horizon)
        self.patch, self.stem_channels = _size("patch", patch), _size("stem", stem)
        self.kernel, self.peephole, self.residual = kernel, peephole, residual
        if any(side % patch for side in self.size):
            raise EdgeLstmError(
                "size of the frames", found=list(self.size), expected=f"multiples of patch {patch}"
            )
        grid = self._grid(self.size)
        self.stem = nn.Conv2d(channels, stem, patch, stride=patch)
        self.encoder = _conv_stack(stem, self.hidden, kernel, peephole, grid)
        self.forecaster = _conv_stack(0, self.hidden, kernel, peephole, grid)
        self.head = nn.Conv2d(sum(self.hidden), channels * patch * patch, 1)

    def encode(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The encoder's states after frame ``x`` [N, channels, H, W]."""
        return _stack(self.encoder, self.stem(x), states)[1]

    def forecast(self, x: Tensor, states: Sequence[Tensor]) -> Tensor:
        """``horizon`` frames ahead [N, horizon, channels, H, W] from the encoder's ``states`` after frame ``x``."""
        frames = []
        ahead = tuple(states)
        for _ in range(self.horizon):
            _, ahead = _stack(self.forecaster, None, ahead)
            frame = functional.pixel_shuffle(self.head(torch.cat(ahead[0::2], dim=1)), self.patch)
            frames.append(frame + x if self.residual else frame)
        return torch.stack(frames, dim=1)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        following = self.encode(x, states)
        return self.forecast(x, following), following

    def initial_states(self, streams: int = 1, size: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Zeros; ``size`` (H, W) of the frames when it is not the module's own (no peepholes then)."""
        grid = self._grid(self.size if size is None else _sizes("size", size, 2))
        return self._zeros(streams, [(channels, *grid) for channels in self.hidden])

    def config(self) -> dict[str, Any]:
        return self._header(
            channels=self.channels,
            size=list(self.size),
            patch=self.patch,
            stem=self.stem_channels,
            hidden=list(self.hidden),
            kernel=self.kernel,
            peephole=self.peephole,
            horizon=self.horizon,
            residual=self.residual,
        )

    def _grid(self, size: Sequence[int]) -> tuple[int, int]:
        return size[0] // self.patch, size[1] // self.patch


def from_config(config: Any, where: str = "architecture") -> StepModule:
    """The step module that ``config`` describes (the inverse of ``StepModule.config``), freshly initialised.

    Raises EdgeLstmError, naming ``where``, for an unknown schema or architecture and for missing, unknown or
    impossible values.
    """
    if not isinstance(config, Mapping):
        raise EdgeLstmError(
            f"{where}: not an architecture", found=type(config).__name__, expected="a JSON object"
        )
    if config.get("schema") != SCHEMA:
        raise EdgeLstmError(
            f"{where}: architecture schema",
            found=config.get("schema"),
            expected=SCHEMA,
            hint="A newer edgelstm may have written it: upgrade",
        )
    kinds = {kind.architecture: kind for kind in (LSTM, ConvLSTM, EncoderForecaster)}
    name = config.get("architecture")
    if not isinstance(name, str) or name not in kinds:
        raise EdgeLstmError(f"{where}: architecture", found=name, expected=f"one of {', '.join(kinds)}")
    arguments = {key: value for key, value in config.items() if key not in ("schema", "architecture")}
    try:
        head = arguments.pop("head", None)
        if head is not None:
            arguments |= {"outputs": head["outputs"]} if name == "lstm" else _conv_head(head)
        for key in ("peephole", "residual"):
            if not isinstance(arguments.get(key, False), bool):
                raise EdgeLstmError(key, found=arguments[key], expected="true or false")
        return cast(StepModule, kinds[name](**arguments))
    except EdgeLstmError as error:
        raise EdgeLstmError(
            f"{where}: {error.what}", found=error.found, expected=error.expected, hint=error.hint
        ) from error
    except (TypeError, KeyError) as error:
        raise EdgeLstmError(f"{where}: malformed {name} architecture", found=str(error)) from error


def save(
    module: StepModule, path: PathLike, preprocessing: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
) -> None:
    """Write ``module`` to a .safetensors file with its architecture in the header, whole or not at all.

    ``preprocessing`` maps the input's name, ``x``, to the operations that turn a raw frame into it
    (``edgelstm.pipeline.preprocess``).
    """
    from safetensors.torch import save_file

    metadata = {ARCHITECTURE_KEY: json.dumps(module.config())}
    if preprocessing:
        metadata[PREPROCESSING_KEY] = json.dumps(
            {name: [dict(op) for op in ops] for name, ops in preprocessing.items()}
        )
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in module.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load(path: PathLike) -> StepModule:
    """The module that ``save`` wrote, in evaluation mode.

    Raises EdgeLstmError when the file is no .safetensors file, states no architecture, or holds weights that don't
    fit it (every such tensor is named).
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            module = _empty_module((file.metadata() or {}).get(ARCHITECTURE_KEY), str(path))
            _check_weights(
                str(path),
                found={
                    name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape())
                    for name in file.keys()
                },
                expected={name: list(value.shape) for name, value in module.state_dict().items()},
            )
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as error:
        raise EdgeLstmError(f"{path} does not exist", hint="Check the path") from error
    except (SafetensorError, OSError) as error:
        raise EdgeLstmError(f"{path} is not a readable .safetensors file", found=str(error)) from error
    module.load_state_dict(weights, assign=True)
    return module.requires_grad_().eval()


def _empty_module(architecture: str | None, where: str) -> StepModule:
    if architecture is None:
        raise EdgeLstmError(
            f"{where} states no architecture",
            expected=f"{ARCHITECTURE_KEY} in its header",
            hint="Write it with edgelstm.nn.save",
        )
    try:
        config = json.loads(architecture)
    except (ValueError, RecursionError) as error:
        raise EdgeLstmError(f"{where}: architecture is not JSON", found=str(error)) from error
    # On the meta device nothing is allocated: a header may claim any size before its tensors are checked.
    with torch.device("meta"):
        return from_config(config, where)


def _check_weights(
    where: str, *, found: Mapping[str, tuple[str, list[int]]], expected: Mapping[str, list[int]]
) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of the architecture" for name in found if name not in expected]
    for name in sorted(found.keys() & expected.keys()):
        dtype, shape = found[name]
        if dtype != "F32" or shape != expected[name]:
            problems.append(f"{name} is {dtype}{shape} where F32{expected[name]} is expected")
    if problems:
        raise EdgeLstmError(f"{where}: weights don't fit the architecture", found="; ".join(problems))


def _stack(
    cells: nn.ModuleList, x: Tensor | None, states: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one step through a stack; layer l takes the new h of layer l-1."""
    if len(states) != 2 * len(cells):
        raise EdgeLstmError(
            "states of one step",
            found=len(states),
            expected=f"{2 * len(cells)}: h and c of each of {len(cells)} layers",
        )
    following: list[Tensor] = []
    for layer, cell in enumerate(cells):
        x, c = cell(x, (states[2 * layer], states[2 * layer + 1]))
        following += [cast(Tensor, x), c]
    return cast(Tensor, x), tuple(following)


def _conv_stack(
    channels: int, hidden: Sequence[int], kernel: int, peephole: bool, size: Sequence[int]
) -> nn.ModuleList:
    below = (channels, *hidden)
    return nn.ModuleList(
        [ConvLSTMCell(below[n], hidden[n], kernel, peephole=peephole, size=size) for n in range(len(hidden))]
    )


def _conv_head(head: Mapping[str, Any]) -> dict[str, Any]:
    return {"outputs": head["channels"], "output_kernel": head["kernel"]}


def _size(name: str, value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise EdgeLstmError(name, found=value, expected=f"a whole number of at least {least}")
    return value


def _sizes(name: str, values: Any, count: int | None = None) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not values or count not in (None, len(values)):
        many = "one or more" if count is None else str(count)
        raise EdgeLstmError(name, found=values, expected=f"a list of {many} whole numbers")
    return tuple(_size(name, value) for value in values)
