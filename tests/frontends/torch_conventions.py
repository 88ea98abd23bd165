"""A few cells, and every way people wrap a cell: arguments, results, attributes. Frames are [N, 2, 4, 4] or [N, 3]."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class LSTM(nn.Module):
    frame, shapes = (3,), ((4,), (4,))

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 4), nn.Linear(4, 4)

    def update(self, x: Tensor, states: Any) -> Any:
        h, c = self.cell(x, tuple(states))
        return self.head(h), [h, c]


class GRU(nn.Module):
    frame, shapes = (3,), ((4,),)

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 4), nn.Linear(4, 4)

    def update(self, x: Tensor, states: Any) -> Any:
        h = self.cell(x, states[0])
        return self.head(h), [h]


class ConvLSTM(nn.Module):
    frame, shapes = (2, 4, 4), ((3, 4, 4), (3, 4, 4))

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(5, 12, 3, padding=1), nn.Conv2d(3, 3, 1)

    def update(self, x: Tensor, states: Any) -> Any:
        h, c = states
        i, f, o, g = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return self.head(h), [h, c]


class LeakyAverage(nn.Module):
    frame, shapes = (3,), ((3,),)

    def update(self, x: Tensor, states: Any) -> Any:
        mean = 0.9 * states[0] + 0.1 * x
        return x - mean, [mean]


class Ring(nn.Module):
    frame, shapes = (3,), ((4, 3),)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 2)

    def update(self, x: Tensor, states: Any) -> Any:
        ring = torch.cat([states[0][:, 1:], x.unsqueeze(1)], 1)
        return self.head(ring.flatten(1)), [ring]


CELLS = {c.__name__: c for c in (LSTM, GRU, ConvLSTM, LeakyAverage, Ring)}


class Wrapper(nn.Module):
    """``given``: the user says what the states are. carry: asks for --carry-state."""

    given, carry, sequence = True, False, False

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.cell = cell

    def zeros(self, x: Tensor) -> list[Tensor]:
        return [x.new_zeros(x.shape[0], *shape) for shape in self.cell.shapes]


class Flat(Wrapper):
    def forward(self, x: Tensor, *states: Tensor) -> Any:
        y, after = self.cell.update(x, states)
        return (y, *after)


class Pair(Wrapper):
    def forward(self, x: Tensor, states: Any) -> Any:
        y, after = self.cell.update(x, states)
        return y, tuple(after)


class StatesFirst(Wrapper):
    def forward(self, x: Tensor, *states: Tensor) -> Any:
        y, after = self.cell.update(x, states)
        return (*after, y)


class TwoOutputs(Wrapper):
    def forward(self, x: Tensor, *states: Tensor) -> Any:
        y, after = self.cell.update(x, states)
        return (y, torch.tanh(y), *after)


class NotOnlyTensors(Wrapper):
    def forward(self, x: Tensor, *states: Tensor) -> Any:
        y, after = self.cell.update(x, states)
        return (y, *after, None, 0.5)


class Detached(Wrapper):
    @torch.no_grad()
    def forward(self, x: Tensor, *states: Tensor) -> Any:
        y, after = self.cell.update(x, states)
        return (y, *(t.detach() for t in after))


class InDicts(Wrapper):
    given = False

    def forward(self, x: Tensor, state: Any = None) -> Any:
        names = [f"s{k}" for k in range(len(self.cell.shapes))]
        state = state or dict(zip(names, self.zeros(x), strict=True))
        y, after = self.cell.update(x, [state[name] for name in names])
        return {"y": y, "state": dict(reversed(list(zip(names, after, strict=True))))}


@dataclasses.dataclass
class Output:
    logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


class Dataclass(Wrapper):
    given = False

    def forward(self, x: Tensor, hidden_states: Any = None, return_dict: bool = True) -> Any:
        y, after = self.cell.update(x, self.zeros(x) if hidden_states is None else hidden_states)
        return Output(y, after)


class Result(NamedTuple):
    y: Any
    state: Any


class Named(Wrapper):
    given = False

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return Result(*self.cell.update(x, self.zeros(x) if state is None else state))


class OwnTuple(tuple):
    """A class of the user's own."""

    __slots__ = ()


class OwnTuples(Wrapper):
    given = False

    def forward(self, x: Tensor, state: OwnTuple | None = None) -> Any:
        assert state is None or isinstance(state, OwnTuple)
        y, after = self.cell.update(x, self.zeros(x) if state is None else state)
        return y, OwnTuple(after)


class Sequence(Wrapper):
    given, sequence = False, True

    def forward(self, x: Tensor, state: Any = None) -> Any:
        state, outputs = self.zeros(x[:, 0]) if state is None else state, []
        for frame in x.unbind(1):
            y, state = self.cell.update(frame, state)
            outputs.append(y)
        return torch.stack(outputs, 1), state


class SequenceLength(Wrapper):
    given, sequence = False, True

    def forward(self, inputs: Any = None, hidden_state: Any = None, seq_len: int = 10) -> Any:
        state, outputs = self.zeros(inputs[0]) if hidden_state is None else hidden_state, []
        for t in range(seq_len):
            y, state = self.cell.update(inputs[t], state)
            outputs.append(y)
        return torch.stack(outputs), tuple(state)


class BatchSize(Wrapper):
    def forward(self, x: Tensor, hidden: Any, batch_size: int) -> Any:
        y, after = self.cell.update(x.reshape(batch_size, *self.cell.frame), hidden)
        return y, tuple(after)


class Attribute(Wrapper):
    given, carry = False, True

    def __init__(self, cell: Any) -> None:
        super().__init__(cell)
        self.state: Any = None

    def forward(self, x: Tensor) -> Any:
        if self.state is None or self.state[0].shape[0] != x.shape[0]:
            self.state = self.zeros(x)
        y, self.state = self.cell.update(x, self.state)
        return y


class InPlace(Wrapper):
    given, carry = False, True

    def __init__(self, cell: Any) -> None:
        super().__init__(cell)
        for k, shape in enumerate(cell.shapes):
            self.register_buffer(f"state{k}", torch.zeros(1, *shape))

    def forward(self, x: Tensor) -> Any:
        states = [getattr(self, f"state{k}") for k in range(len(self.cell.shapes))]
        y, after = self.cell.update(x, states)
        for old, new in zip(states, after, strict=True):
            old[:] = new
        return y


class AttributeDict(Wrapper):
    given, carry = False, True

    def __init__(self, cell: Any) -> None:
        super().__init__(cell)
        self.cache: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Any:
        y, after = self.cell.update(x, self.cache.get("state") or self.zeros(x))
        self.cache["state"] = after
        return y


WRAPPERS = {
    w.__name__: w
    for w in (
        Flat,
        Pair,
        StatesFirst,
        TwoOutputs,
        NotOnlyTensors,
        Detached,
        InDicts,
        Dataclass,
        Named,
        OwnTuples,
        Sequence,
        SequenceLength,
        BatchSize,
        Attribute,
        InPlace,
        AttributeDict,
    )
}

# -- what robots' policies look like when they are exported ----------------------------------------------------------------


class Policy(nn.Module):
    """Hidden buffers written in place, as policies of legged robots are exported: ``forward(x) -> actions``."""

    def __init__(self, kind: Any = nn.LSTM, layers: int = 1) -> None:
        super().__init__()
        self.rnn, self.normalizer = kind(3, 4, layers), nn.Identity()
        self.actor = nn.Sequential(nn.Linear(4, 8), nn.ELU(), nn.Linear(8, 2))
        self.register_buffer("hidden_state", torch.zeros(layers, 1, 4))
        if kind is nn.LSTM:
            self.register_buffer("cell_state", torch.zeros(layers, 1, 4))
            self.forward = self.forward_lstm  # type: ignore[method-assign]
        else:
            self.forward = self.forward_gru  # type: ignore[method-assign]

    def forward_lstm(self, x: Tensor) -> Tensor:
        x = self.normalizer(x)
        x, (h, c) = self.rnn(x.unsqueeze(0), (self.hidden_state, self.cell_state))
        self.hidden_state[:] = h
        self.cell_state[:] = c
        x = x.squeeze(0)
        return self.actor(x)

    def forward_gru(self, x: Tensor) -> Tensor:
        x = self.normalizer(x)
        x, h = self.rnn(x.unsqueeze(0), self.hidden_state)
        self.hidden_state[:] = h
        x = x.squeeze(0)
        return self.actor(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.actor(self.normalizer(x))

    @torch.jit.export
    def reset(self) -> None:
        self.hidden_state[:] = 0.0


class PolicyMemory(nn.Module):
    """States in an attribute of an inner module, None until the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4)
        self.hidden_states: Any = None

    def forward(self, input: Tensor, masks: Any = None, hidden_states: Any = None) -> Tensor:
        if masks is not None:
            raise ValueError("Hidden states not passed to memory module during policy update")
        out, self.hidden_states = self.rnn(input.unsqueeze(0), self.hidden_states)
        return out

    def reset(self, dones: Any = None) -> None:
        self.hidden_states = None


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory_a, self.actor = PolicyMemory(), nn.Linear(4, 2)

    def forward(self, observations: Tensor) -> Tensor:
        return self.actor(self.memory_a(observations).squeeze(0))


class StatesInAndOut(nn.Module):
    """The same policy as it is written for ONNX: ``forward(x_in, h_in, c_in) -> actions, h, c``."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.actor = nn.LSTM(3, 4, 2), nn.Linear(4, 2)

    def forward(self, x_in: Tensor, h_in: Tensor, c_in: Tensor) -> Any:
        x, (h, c) = self.rnn(x_in.unsqueeze(0), (h_in, c_in))
        return self.actor(x.squeeze(0)), h, c


class EpisodeStarts(nn.Module):
    """Frames on both sides of the states; a stream starts anew where ``episode_starts`` is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.actor, self.value = nn.LSTM(3, 4), nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(
        self, obs: Tensor, lstm_states: Any, episode_starts: Tensor, deterministic: bool = False
    ) -> Any:
        keep = (1.0 - episode_starts).view(1, -1, 1)
        out, lstm_states = self.lstm(obs.unsqueeze(0), tuple(s * keep for s in lstm_states))
        return self.actor(out[0]), self.value(out[0]), lstm_states


class MappingIn(nn.Module):
    """One mapping of all there is: ``forward({'obs': ..., 'rnn_states': ...}) -> mu, sigma, value, states``."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.mu, self.value = nn.LSTM(3, 4), nn.Linear(4, 2), nn.Linear(4, 1)
        self.sigma = nn.Parameter(torch.zeros(2))

    def forward(self, input_dict: Any) -> Any:
        obs, states = input_dict["obs"], input_dict.get("rnn_states")
        if states is None:
            states = (obs.new_zeros(1, obs.shape[0], 4),) * 2
        out, states = self.rnn(obs.unsqueeze(0), tuple(states))
        mu = self.mu(out[0])
        return mu, mu * 0 + self.sigma, self.value(out[0]), states


# -- what is kept in other ways -----------------------------------------------------------------------------------------------


class Deque(nn.Module):
    """The last frames, zeros before them."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: Any = collections.deque(maxlen=4)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.frames.append(x)
        frames = [torch.zeros_like(x)] * (4 - len(self.frames)) + list(self.frames)
        return self.head(torch.cat(frames, 1))


class FilledDeque(nn.Module):
    """The last frames; the first one stands for all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: Any = collections.deque(maxlen=3)
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.frames.extend([x] * (1 if self.frames else 3))
        return self.head(torch.cat(list(self.frames), 1))


class Difference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.previous: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.previous is None:
            self.previous = x
        difference, self.previous = x - self.previous, x
        return difference


class RunningMean(nn.Module):
    """A number of Python's that counts, and a mean that is a number at first."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.mean = 0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean = self.mean + (x - self.mean) / self.count
        return x - self.mean


class OneStream(nn.Module):
    """What is kept has no place for a second stream."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.cell, self.head = torch.zeros(4), nn.GRUCell(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.cell(x, self.h.unsqueeze(0))[0]
        return self.head(self.h.unsqueeze(0))


KEEPERS = {
    "LSTM policy, two layers": lambda: Policy(nn.LSTM, 2),
    "GRU policy": lambda: Policy(nn.GRU),
    "actor with a memory": ActorCritic,
    "deque": Deque,
    "deque filled with the first frame": FilledDeque,
    "difference": Difference,
    "running mean": RunningMean,
    "one stream": OneStream,
}
