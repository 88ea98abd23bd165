"""Whole recurrent networks as public PyTorch code writes them: what they take, give and keep to themselves.

Frames are maps of 2 x 6 x 5, or vectors of 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_cells import HIDDEN, INPUTS, joint_conv

FRAME, VECTOR = (2, 6, 5), (3,)


class CopiedCell(nn.Module):
    """One convolution, gates i, f, o, g; the state is an argument with a name, made by ``init_hidden``."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden_dim = hidden
        self.conv = joint_conv(4 * hidden, inputs + hidden)

    def forward(self, input_tensor: Tensor, cur_state: Any) -> Any:
        h_cur, c_cur = cur_state
        combined_conv = self.conv(torch.cat([input_tensor, h_cur], dim=1))
        cc_i, cc_f, cc_o, cc_g = torch.split(combined_conv, self.hidden_dim, dim=1)
        c_next = torch.sigmoid(cc_f) * c_cur + torch.sigmoid(cc_i) * torch.tanh(cc_g)
        return torch.sigmoid(cc_o) * torch.tanh(c_next), c_next

    def init_hidden(self, batch_size: int, image_size: tuple[int, int]) -> Any:
        shape = (batch_size, self.hidden_dim, *image_size)
        device = self.conv.weight.device
        return torch.zeros(shape, device=device), torch.zeros(shape, device=device)


class CopiedConvLSTM(nn.Module):
    """The stack that many repositories copied: layer by layer over all of time; ``hidden_state`` is an argument that is
    refused (``stateful=False``) or taken, and the states of all layers or of the last come back."""

    def __init__(
        self, batch_first: bool = True, stateful: bool = False, return_all_layers: bool = True
    ) -> None:
        super().__init__()
        self.batch_first_, self.stateful, self.return_all_layers = batch_first, stateful, return_all_layers
        self.cell_list = nn.ModuleList([CopiedCell(INPUTS, HIDDEN), CopiedCell(HIDDEN, 2)])

    def forward(self, input_tensor: Tensor, hidden_state: Any = None) -> Any:
        if not self.batch_first_:
            input_tensor = input_tensor.permute(1, 0, 2, 3, 4)
        b, _, _, height, width = input_tensor.size()
        if hidden_state is None:
            hidden_state = [cell.init_hidden(b, (height, width)) for cell in self.cell_list]
        elif not self.stateful:
            raise NotImplementedError()
        layer_output_list, last_state_list = [], []
        cur_layer_input = input_tensor
        for layer, cell in enumerate(self.cell_list):
            h, c = hidden_state[layer]
            output_inner = []
            for t in range(input_tensor.size(1)):
                h, c = cell(input_tensor=cur_layer_input[:, t], cur_state=[h, c])
                output_inner.append(h)
            cur_layer_input = torch.stack(output_inner, dim=1)
            layer_output_list.append(cur_layer_input)
            last_state_list.append([h, c])
        if not self.return_all_layers:
            layer_output_list, last_state_list = layer_output_list[-1:], last_state_list[-1:]
        if not self.batch_first_:
            layer_output_list = [y.permute(1, 0, 2, 3, 4) for y in layer_output_list]
        return layer_output_list, last_state_list


class Detector(nn.Module):
    """A network over windows, ``[B, T, C, H, W] -> maps of all frames or of the last``: its state starts anew each call."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.encoder = nn.Sequential(joint_conv(INPUTS, INPUTS), nn.BatchNorm2d(INPUTS), nn.ReLU())
        self.convlstm = CopiedConvLSTM(return_all_layers=False)
        self.head = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        features = self.encoder(x.flatten(0, 1)).unflatten(0, (b, t))
        outputs, _ = self.convlstm(features)
        if self.last:
            return self.head(outputs[0][:, -1])
        return self.head(outputs[0].flatten(0, 1)).unflatten(0, (b, t))


class Classifier(nn.Module):
    """torch.nn.LSTM from zeros that forward makes itself, and the last frame's h to class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.num_layers = 4, 2
        self.lstm = nn.LSTM(3, 4, 2, batch_first=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size).to(x.device)
        c0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size).to(x.device)
        self.lstm.flatten_parameters()
        out, _ = self.lstm(x, (h0, c0))
        return self.fc(out[:, -1, :])


class TwoRecurrences(nn.Module):
    """A GRU and an LSTM one after the other, states left out; time first."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm = nn.GRU(3, 4), nn.LSTM(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.gru(x)[0])[0]


class Flattens(nn.Module):
    """A Linear layer over all time steps at once: it knows windows of four frames only."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.fc = nn.Linear(4 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0].flatten(1))


class LearnedStart(nn.Module):
    """A cell in a loop that starts from a value it has learned."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.tensor([0.5, -1.0, 0.25, 2.0]))
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start.expand(x.shape[0], -1)
        out = []
        for frame in x.unbind(1):
            h = self.cell(frame, h)
            out.append(h)
        return torch.stack(out, 1)


class LaterArgument(nn.Module):
    """The state is not the argument after the frames, and comes back as a list with one pair a layer; time first."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([CopiedCell(INPUTS, HIDDEN), CopiedCell(HIDDEN, HIDDEN)])

    def forward(self, x: Tensor, future: int = 0, hidden_states: Any = None) -> Any:
        if hidden_states is None:
            hidden_states = [cell.init_hidden(x.size(1), (x.size(3), x.size(4))) for cell in self.cells]
        states, outputs = list(hidden_states), []
        for frame in x:
            y = frame
            for layer, cell in enumerate(self.cells):
                y, c = cell(y, states[layer])
                states[layer] = (y, c)
            outputs.append(y)
        return torch.stack(outputs), states


class Inline(nn.Module):
    """The cell is written out in forward, its state a local variable: nothing to carry it by."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(3 + 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 4)
        for frame in x.unbind(1):
            h = torch.tanh(self.gates(torch.cat([frame, h], 1)))
        return h


class QuasiRecurrent(nn.Module):
    """A QRNN with a window of two frames (Bradbury et al., arXiv:1611.01576, equation 3): it takes its state, and keeps the frame before in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Tensor | None = None
        self.gates = nn.Linear(2 * 3, 3 * 4)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        before = torch.zeros_like(x[:, :1]) if self.before is None else self.before
        z, f, o = self.gates(torch.cat([x, torch.cat([before, x[:, :-1]], 1)], 2)).chunk(3, -1)
        h = torch.zeros(x.shape[0], 4) if hidden is None else hidden
        outputs = []
        for t in range(x.shape[1]):
            h = torch.sigmoid(f[:, t]) * torch.tanh(z[:, t]) + (1 - torch.sigmoid(f[:, t])) * h
            outputs.append(torch.sigmoid(o[:, t]) * h)
        self.before = x[:, -1:]
        return torch.stack(outputs, 1), h
