"""Recurrent torch modules as the literature states them, made to be streamed: `edgelstm.nn`.

Cells take ``cell(x, (h, c))`` and return ``(h, c)``. Step modules (``LSTM``, ``ConvLSTM``, ``EncoderForecaster``)
take ``module(x, *states)`` and return ``(output, states)``, with the states in the order h0, c0, h1, c1, ...

Every cell joins its input and its hidden state and computes all gates at once, in the order i, f, g, o:

    z = W · [x ; h] + b
    i = sigmoid(z_i + p_i∘c)    f = sigmoid(z_f + p_f∘c)    g = tanh(z_g)
    c' = f∘c + i∘g              o = sigmoid(z_o + p_o∘c')   h' = o∘tanh(c')

where the peepholes p are there only when asked for. Tensors are float32 unless the module is converted.

``save`` and ``load`` keep a module in one .safetensors file whose header states its architecture, so that it can
be exported on a machine without torch.

Sources: Gers, Schmidhuber & Cummins 1999, "Learning to forget" (the forget gate); Gers & Schmidhuber 2000,
"Recurrent nets that time and count" (peepholes); Shi et al. 2015, "Convolutional LSTM network" (eq. 3, fig. 3).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike, atomic_path
from edgelstm.frontends.described import architecture as arch

State = tuple[Tensor, Tensor]


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
        self,
        inputs: int,
        hidden: int,
        window: tuple[int, ...] = (),
        peephole_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4 * hidden, inputs + hidden, *window))
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        bound = ((inputs + hidden) * math.prod(window)) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        # An open forget gate lets gradients reach far back from the start (Gers 1999; Jozefowicz et al. 2015).
        nn.init.ones_(self.bias[hidden : 2 * hidden])
        self.peephole = peephole_shape is not None
        if peephole_shape is not None:
            for name in ("p_i", "p_f", "p_o"):
                self.register_parameter(name, nn.Parameter(torch.zeros(peephole_shape)))

    def _update(self, z: Tensor, c: Tensor) -> State:
        return lstm_update(z, c, (self.p_i, self.p_f, self.p_o) if self.peephole else None)


class LSTMCell(_Cell):
    """LSTM with a forget gate (Gers, Schmidhuber & Cummins 1999), tanh as both squashing functions.

    x [N, inputs], h and c [N, hidden]; ``weight`` [4·hidden, inputs+hidden], ``bias`` [4·hidden].
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        return self._update(functional.linear(torch.cat([x, h], dim=1), self.weight, self.bias), c)


class PeepholeLSTMCell(_Cell):
    """LSTM whose gates see the cell state (Gers & Schmidhuber 2000): an LSTMCell with ``p_i, p_f, p_o`` [hidden]."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, peephole_shape=(hidden,))

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
        if kernel % 2 == 0:
            raise EdgeLstmError(
                "kernel", found=kernel, expected="an odd number, so that padding keeps the size"
            )
        if peephole and size is None:
            raise EdgeLstmError(
                "a ConvLSTM cell with peepholes needs its size", expected="size=(height, width)"
            )
        super().__init__(channels, hidden, (kernel, kernel), (hidden, *size) if peephole and size else None)
        self.padding = kernel // 2

    def forward(self, x: Tensor | None, state: State) -> State:
        h, c = state
        joined = h if x is None else torch.cat([x, h], dim=1)
        return self._update(functional.conv2d(joined, self.weight, self.bias, padding=self.padding), c)


class StepModule(nn.Module):
    """One time step of a network with explicit states: ``module(x, *states) -> (output, states)``."""

    def __init__(self, architecture: arch.Architecture) -> None:
        super().__init__()
        self.architecture = architecture

    def initial_states(self, streams: int = 1) -> tuple[Tensor, ...]:
        """Zeros for ``streams`` streams, in the order h0, c0, h1, c1, ..."""
        return self._zeros(streams, [cell.state_shape for cell in self.architecture.cells])

    def config(self) -> dict[str, Any]:
        """The architecture as JSON-ready data; ``from_config`` is its inverse."""
        return arch.to_json(self.architecture)

    def _zeros(self, streams: int, shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        like = next(self.parameters())
        return tuple(like.new_zeros(streams, *shape) for shape in shapes for _ in "hc")


class LSTM(StepModule):
    """A stack of LSTM cells and an optional linear head.

    x [N, inputs]; states h, c [N, hidden[l]] per layer; output [N, outputs], or the last layer's h without a head.
    ``peephole`` takes PeepholeLSTMCell. ``residual`` adds x to the output, repeated when outputs is a multiple of
    inputs: the head then learns the change from now.
    """

    architecture: arch.Lstm

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        *,
        peephole: bool = False,
        outputs: int | None = None,
        residual: bool = False,
    ) -> None:
        head = None if outputs is None else arch.LinearHead(outputs)
        super().__init__(arch.Lstm(inputs, tuple(hidden), peephole, head, residual))
        kind = PeepholeLSTMCell if peephole else LSTMCell
        self.cells = nn.ModuleList([kind(cell.inputs, cell.hidden) for cell in self.architecture.cells])
        self.head = None if outputs is None else nn.Linear(hidden[-1], outputs)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, following = _stack(self.cells, x, states)
        if self.head is not None:
            y = self.head(y)
            if self.architecture.residual:
                y = y + torch.cat([x] * (self.head.out_features // self.architecture.inputs), dim=1)
        return y, following


class ConvLSTM(StepModule):
    """A stack of ConvLSTM cells and an optional convolutional head.

    x [N, channels, H, W]; states h, c [N, hidden[l], H, W] per layer; output [N, outputs, H, W], or the last layer's
    h without a head. ``size`` is (H, W); without peepholes the module takes other sizes too.
    """

    architecture: arch.ConvLstm

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
        head = None if outputs is None else arch.ConvHead(outputs, output_kernel)
        super().__init__(arch.ConvLstm(channels, tuple(hidden), kernel, _pair(size), peephole, head))
        self.cells = _conv_stack(self.architecture.cells)
        self.head = (
            None
            if outputs is None
            else nn.Conv2d(hidden[-1], outputs, output_kernel, padding=output_kernel // 2)
        )

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, following = _stack(self.cells, x, states)
        return (y if self.head is None else self.head(y)), following

    def initial_states(self, streams: int = 1, size: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Zeros; ``size`` (H, W) of the frames when it is not the module's own (no peepholes then)."""
        grid = self.architecture.size if size is None else _pair(size)
        return self._zeros(streams, [(cell.hidden, *grid) for cell in self.architecture.cells])


class EncoderForecaster(StepModule):
    """The encoding-forecasting network of Shi et al. 2015, fig. 3: each frame in gives ``horizon`` frames ahead.

    x [N, channels, H, W] -> forecast [N, horizon, channels, H, W]. A strided convolution (patch x patch, the learned
    form of the paper's patch reshape) takes the frame to ``stem`` channels on the H/patch x W/patch grid. Encoder
    cells carry their (h, c) [N, hidden[l], H/patch, W/patch] from frame to frame. Forecaster cells start from the
    encoder's new states and run ``horizon`` times with no frame coming in; a 1x1 convolution over all their hidden
    states and a pixel shuffle give each predicted frame. ``residual`` adds x to every predicted frame.

    To train on a sequence, call ``encode`` on every frame and ``forecast`` only where there is a loss.
    """

    architecture: arch.EncoderForecaster
    output_names = ("forecast",)

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
        super().__init__(
            arch.EncoderForecaster(
                channels, _pair(size), patch, stem, tuple(hidden), kernel, horizon, peephole, residual
            )
        )
        self.stem = nn.Conv2d(channels, stem, patch, stride=patch)
        self.encoder = _conv_stack(self.architecture.cells)
        self.forecaster = _conv_stack(self.architecture.forecaster)
        self.head = nn.Conv2d(sum(hidden), channels * patch**2, 1)

    def encode(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The encoder's states after frame ``x`` [N, channels, H, W]."""
        return _stack(self.encoder, self.stem(x), states)[1]

    def forecast(self, x: Tensor, states: Sequence[Tensor]) -> Tensor:
        """``horizon`` frames ahead [N, horizon, channels, H, W] from the encoder's ``states`` after frame ``x``."""
        ahead, frames = tuple(states), []
        for _ in range(self.architecture.horizon):
            _, ahead = _stack(self.forecaster, None, ahead)
            frame = functional.pixel_shuffle(
                self.head(torch.cat(ahead[0::2], dim=1)), self.architecture.patch
            )
            frames.append(frame + x if self.architecture.residual else frame)
        return torch.stack(frames, dim=1)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        following = self.encode(x, states)
        return self.forecast(x, following), following

    def initial_states(self, streams: int = 1, size: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Zeros; ``size`` (H, W) of the frames when it is not the module's own (no peepholes then)."""
        patch = self.architecture.patch
        grid = [side // patch for side in (self.architecture.size if size is None else _pair(size))]
        return self._zeros(streams, [(cell.hidden, *grid) for cell in self.architecture.cells])


def from_config(config: Any, where: str = "architecture") -> StepModule:
    """The step module that ``config`` describes (the inverse of ``StepModule.config``), freshly initialised.

    Raises EdgeLstmError, naming ``where``, for an unknown schema or architecture and for missing, unknown or
    impossible values.
    """
    return _from_architecture(arch.from_json(config, where))


def save(
    module: StepModule, path: PathLike, preprocessing: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
) -> None:
    """Write ``module`` to a .safetensors file with its architecture in the header, whole or not at all.

    ``preprocessing`` maps the input's name, ``x``, to the operations that turn a raw frame into it
    (``edgelstm.pipeline.preprocess``). Weights are stored as float32.
    """
    from safetensors.torch import save_file

    metadata = {arch.ARCHITECTURE_KEY: json.dumps(module.config())}
    if preprocessing:
        operations = {name: [dict(op) for op in ops] for name, ops in preprocessing.items()}
        metadata[arch.PREPROCESSING_KEY] = json.dumps(operations)
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in module.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load(path: PathLike) -> StepModule:
    """The module that ``save`` wrote, in evaluation mode.

    Raises EdgeLstmError as ``edgelstm.frontends.described.graph.load_described`` does: when the file is no .safetensors
    file, states no architecture, or holds weights that don't fit it (each such tensor is named).
    """
    from edgelstm.frontends.described.graph import load_described

    described = load_described(path)
    module = _from_architecture(described.architecture)
    module.load_state_dict({name: torch.tensor(weight) for name, weight in described.weights.items()})
    return module.eval()


def _from_architecture(architecture: arch.Architecture) -> StepModule:
    arguments = {key: value for key, value in vars(architecture).items() if key != "head"}
    match architecture:
        case arch.Lstm(head=head):
            return LSTM(**arguments, outputs=None if head is None else head.outputs)
        case arch.ConvLstm(head=None):
            return ConvLSTM(**arguments)
        case arch.ConvLstm(head=arch.ConvHead(channels, kernel)):
            return ConvLSTM(**arguments, outputs=channels, output_kernel=kernel)
    return EncoderForecaster(**arguments)


def _stack(
    cells: nn.ModuleList, x: Tensor | None, states: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One step through a stack: the last layer's new h, and all new states; layer l takes the new h of layer l-1."""
    if len(states) != 2 * len(cells):
        raise EdgeLstmError(
            "states of one step",
            found=len(states),
            expected=f"{2 * len(cells)}: h and c of {count_of(len(cells), 'layer')}",
        )
    following: list[Tensor] = []
    for layer, cell in enumerate(cells):
        x, c = cast(State, cell(x, (states[2 * layer], states[2 * layer + 1])))
        following += [x, c]
    return following[-2], tuple(following)


def _conv_stack(cells: Sequence[arch.Cell]) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ConvLSTMCell(cell.inputs, cell.hidden, cell.kernel, peephole=cell.peephole, size=cell.grid)
            for cell in cells
        ]
    )


def _pair(size: Sequence[int]) -> tuple[int, int]:
    return cast(tuple[int, int], tuple(size))  # the architecture checks that there are two
