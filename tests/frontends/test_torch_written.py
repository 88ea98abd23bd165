"""What modules write though no frame of a trial changes it, write into what they were given, or keep where no attribute shows it."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelstm
from edgelstm.errors import EdgeLstmError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
nn = torch.nn

import torch_latch  # noqa: E402

from edgelstm.frontends.torch.recognise import as_step  # noqa: E402


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(3, 4)


class Latch(Gru):
    """Rings once a frame is as large as no frame of noise is, and until one as large the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("alarm", torch.zeros(1, 1, dtype=torch.bool))

    def forward(self, x: Any, h: Any = None) -> Any:
        h = self.cell(x, h)
        peak = x.mean(1, keepdim=True)
        self.alarm = torch.where(self.alarm, peak > -50, peak > 50)
        return torch.cat([h, self.alarm.float()], 1), h


@pytest.mark.thorough
def test_a_latch_that_noise_never_sets_is_a_state(tmp_path: Path) -> None:
    edgelstm.export(Latch(), tmp_path / "latch.onnx", frame=(3,), carry_state=True)
    source = Latch().eval()
    h = None
    with edgelstm.Runner.open(tmp_path / "latch.onnx") as runner, torch.no_grad():
        stream = runner.stream("a")
        rung = []
        for k in range(12):
            x = np.full(3, {3: 60.0, 8: -60.0}.get(k, 0.1 * k), np.float32)
            wanted, h = source(torch.tensor(x[None]), h)
            given = stream.step(x)["y"]
            np.testing.assert_allclose(given, wanted[0].numpy(), atol=1e-5)
            rung.append(given[-1])
    assert rung == [0] * 3 + [1] * 5 + [0] * 4


class Count(Gru):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("large", torch.zeros(1, 1))

    def forward(self, x: Any, h: Any = None) -> Any:
        h = self.cell(x, h)
        self.large += (x.mean(1, keepdim=True) > 50).float()
        return h + self.large, h


class Number(Gru):
    """A True or False of Python's in place of a tensor."""

    on = False

    def forward(self, x: Any, h: Any = None) -> Any:
        h = self.cell(x, h)
        peak = x.mean()
        self.on = bool((peak > -50).item()) if self.on else bool((peak > 50).item())
        return h * float(self.on), h


class InAttribute(Number):
    def __init__(self) -> None:
        super().__init__()
        self.on = False


class InDict(Number):
    def __init__(self) -> None:
        super().__init__()
        self.kept = {"h": None, "on": False, "size": 4}

    def forward(self, x: Any) -> Any:
        kept = self.kept
        kept["h"] = self.cell(x, kept["h"])
        peak = x.mean().item()
        kept["on"] = peak > -50 if kept["on"] else peak > 50
        return kept["h"] * kept["on"] * kept["size"]


def test_what_is_rare_is_counted_and_numbers_of_pythons_are_refused() -> None:
    for module, name in ((Count, "large"), (Latch, "alarm")):
        with pytest.raises(EdgeLstmError, match=rf"'{name}' \(a buffer\).*--carry-state"):
            as_step(module(), (3,))
    with pytest.raises(EdgeLstmError, match=r"keeps 'kept' \(a bool of Python's\)"):
        as_step(InDict(), (3,), carry_state=True)
    with pytest.raises(
        EdgeLstmError, match=r"keeps 'on' \(a bool of Python's\).*made from the frames at .*written\.py:"
    ):
        as_step(InAttribute(), (3,))


class Clean(Gru):
    """Writes what is no memory: it is written again before it is read, or handed on as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.ready, self.last = False, torch.zeros(1)
        self.register_buffer("scale", torch.full((1,), 2.0))

    def forward(self, x: Any, h: Any = None) -> Any:
        self.ready = bool((x.mean() > 50).item()) and False
        self.scale = self.scale.clone()
        self.weight = self.cell.weight_hh * 1.0
        h = self.cell(x * self.scale, h)
        self.last = torch.zeros(1)
        return h, h


def test_what_is_written_and_is_no_memory_stays_where_it_is() -> None:
    assert [s.name for s in as_step(Clean(), (3,)).signature.states] == ["h0"]


class Dropped(nn.Module):
    """Weight drop: the weights of an LSTM are put there anew at every call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.raw = nn.Parameter(self.lstm.weight_hh_l0.data)
        del self.lstm.weight_hh_l0
        self.lstm.weight_hh_l0 = self.raw.clone()

    def forward(self, x: Any, states: Any = None) -> Any:
        self.lstm.weight_hh_l0 = self.raw.clone()
        return self.lstm(x, states)


class InPlace(Gru):
    def forward(self, x: Any, state: Any) -> Any:
        x /= 2
        state.copy_(self.cell(x, state))
        return state.sum(1, keepdim=True)


class Both(Gru):
    """Writes into its state, which it gives back as well."""

    def forward(self, x: Any, state: Any) -> Any:
        state.copy_(self.cell(x, state))
        return state.sum(1, keepdim=True), state


class Cache(Gru):
    def forward(self, x: Any, cache: Any) -> Any:
        cache["h"] = self.cell(x, cache["h"])
        return cache["h"].sum(1, keepdim=True)


class OnGpu(Gru):
    def init_hidden(self, batch: int) -> Any:
        return torch.zeros(batch, 4, device="cuda")

    def forward(self, x: Any, h: Any = None) -> Any:
        h = self.init_hidden(x.shape[0]) if h is None else h.to(torch.device("cuda:0"))
        h = self.cell(x.cuda(), h)
        return h, h


@pytest.mark.parametrize(
    ("module", "states"),
    [
        (InPlace, {"state": (4,)}),
        (Both, {"state": (4,)}),
        (Cache, {"h": (4,)}),
        (OnGpu, None),
        (Dropped, None),
    ],
)
def test_states_written_in_place_dropped_weights_and_code_for_a_gpu(module: Any, states: Any) -> None:
    step = as_step(module(), (3,), states=states)
    source = module().eval()
    x = torch.ones(2, 3)
    state = [torch.zeros(2, s.frame_shape[-1]) for s in step.signature.states]
    with torch.no_grad():
        for _ in range(3):
            before = [t.clone() for t in state]
            (y,), after = step(x, *state)
            assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
            state = list(after)
        cell = source.cell if hasattr(source, "cell") else None
        if cell is None:
            wanted = source.lstm(torch.ones(2, 3, 3))[0][:, -1]
        else:
            h = None
            for _ in range(3):
                h = cell(torch.ones(2, 3) / (2 if module is InPlace else 1), h)
            wanted = h if module is OnGpu else h.sum(1, keepdim=True)
    torch.testing.assert_close(y, wanted)


class OfClass(Gru):
    hidden: Any = None

    def forward(self, x: Any) -> Any:
        cls = type(self)
        if cls.hidden is None or len(cls.hidden) != len(x):
            cls.hidden = x.new_zeros(len(x), 4)
        cls.hidden = self.cell(x, cls.hidden)
        return cls.hidden


def around() -> Any:
    held: list[Any] = [None]

    class Inner(Gru):
        def forward(self, x: Any) -> Any:
            held[0] = self.cell(x, held[0] if held[0] is not None and len(held[0]) == len(x) else None)
            return held[0]

    return Inner()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (OfClass, r"keeps OfClass\.hidden \(an attribute of the class"),
        (around, r"keeps 'held' \(a variable of the function round Inner\)"),
    ],
)
def test_what_is_kept_outside_the_module_is_named(make: Any, said: str) -> None:
    with pytest.raises(EdgeLstmError, match=said + r".*such as self\.state, which --carry-state carries"):
        as_step(make(), (3,), carry_state=True)


class LatchOfClass(Gru):
    on = False

    def forward(self, x: Any, h: Any = None) -> Any:
        h, peak = self.cell(x, h), float(x.mean())
        cls = type(self)
        cls.on = peak > -50 if cls.on else peak > 50
        return h * float(cls.on), h


ALARM = torch.zeros(1, 1, dtype=torch.bool)
SEEN = {"largest": 50.0, "calls": 0}
IN_LIST = [torch.zeros(1, 1)]


class LatchInGlobal(Gru):
    def forward(self, x: Any, h: Any = None) -> Any:
        global ALARM
        h, peak = self.cell(x, h), x.mean(1, keepdim=True)
        ALARM = torch.where(ALARM, peak > -50, peak > 50)
        return h * ALARM, h


class LargestInGlobal(Gru):
    """A number that noise never passes, in a dict."""

    def forward(self, x: Any, h: Any = None) -> Any:
        h = self.cell(x, h)
        SEEN["largest"] = max(float(x.max()), SEEN["largest"] + 0.0)
        return h * SEEN["largest"], h


class LatchInList(Gru):
    def forward(self, x: Any, h: Any = None) -> Any:
        h = self.cell(x, h)
        IN_LIST[0] = torch.maximum(IN_LIST[0], (x.mean(1, keepdim=True) > 50).float())
        return h + IN_LIST[0], h


def latch_around() -> Any:
    alarm = torch.zeros(1, 1)

    class Inner(Gru):
        def forward(self, x: Any, h: Any = None) -> Any:
            h = self.cell(x, h)
            alarm.logical_or_(x.mean(1, keepdim=True) > 50)
            return h + alarm, h

    return Inner()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (LatchOfClass, r"keeps LatchOfClass\.on \(an attribute of the class"),
        (LatchInGlobal, r"keeps 'ALARM' \(a global of test_torch_written\.py\)"),
        (LargestInGlobal, r"keeps 'SEEN' \(a global of test_torch_written\.py\)"),
        (LatchInList, r"keeps 'IN_LIST' \(a global of test_torch_written\.py\)"),
        (latch_around, r"keeps 'alarm' \(a variable of the function round Inner\)"),
    ],
)
def test_a_latch_outside_the_module_that_noise_never_sets_is_named(make: Any, said: str) -> None:
    with pytest.raises(
        EdgeLstmError, match=said + ".*a value that each call writes and the next one goes by"
    ):
        as_step(make(), (3,))
    assert not ALARM.any()
    assert LatchOfClass.on is False
    assert (SEEN["largest"], type(SEEN["largest"])) == (50.0, float)


GAIN, TABLE, LAST = 2.0, torch.linspace(0, 1, 4), torch.zeros(4)
MODE = {"scale": 0.5, "offsets": [0.0, 1.0], "size": -1}


class Kept(Gru):
    """Constants, a count for the log, what is made anew at every call, what is made again where the number of streams is another."""

    calls = 0
    shift: Any = torch.zeros(4)

    def forward(self, x: Any, h: Any = None) -> Any:
        global LAST
        type(self).calls += 1
        h = self.cell(x, h)
        LAST = TABLE * GAIN
        if MODE["size"] != len(x):
            MODE["size"] = len(x)
        SEEN["calls"] += 1
        type(self).shift = torch.full((4,), 0.25)
        return h * LAST * MODE["scale"] + MODE["offsets"][1] + type(self).shift, h


def test_constants_counts_and_what_is_made_anew_outside_the_module_are_no_memory() -> None:
    assert as_step(Kept(), (3,)) is not None


LOG, LOCK, RECORDS = (
    logging.getLogger("a.script"),
    threading.Lock(),
    Path(os.devnull).open("w", encoding="utf-8"),  # noqa: SIM115
)


class OfAScript(Gru):
    """Code between the logger, the lock and the open file of a training script, which can't be copied."""

    def forward(self, x: Any, h: Any = None) -> Any:
        with LOCK:
            RECORDS.write("a frame")
            LOG.debug("%s", x.shape)
        return (h := self.cell(x, h)), h


def test_what_a_training_script_has_at_hand_is_left_alone() -> None:
    LOG.setLevel(30)
    before = dict(vars(LOG))
    assert as_step(OfAScript(), (3,)) is not None
    assert all(vars(LOG)[name] is value for name, value in before.items())


class LatchElsewhere(Gru):
    def forward(self, x: Any, h: Any = None) -> Any:
        h = self.cell(x, h)
        return h * torch_latch.alarm(x), h


class LatchOfAnObjectElsewhere(Gru):
    def forward(self, x: Any, h: Any = None) -> Any:
        h = self.cell(x, h)
        return h * torch_latch.ALARM.update(x), h


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (LatchElsewhere, r"'SEEN' \(a global of torch_latch\.py\)"),
        (LatchOfAnObjectElsewhere, r"'ALARM' \(a global of torch_latch\.py\)"),
    ],
)
def test_a_latch_in_another_file_is_named(make: Any, said: str) -> None:
    with pytest.raises(EdgeLstmError, match="keeps " + said):
        as_step(make(), (3,))
    assert torch_latch.SEEN == {"on": False}
    assert torch_latch.ALARM.on is False


def quiet(on: Any, x: Any) -> Any:
    """A latch that no frame of noise sets, without a branch."""
    return torch.where(on, x.mean() > -50, x.mean() > 50)


def with_attribute(x: Any) -> Any:
    with_attribute.on = quiet(with_attribute.on, x)
    return with_attribute.on


with_attribute.on = torch.zeros(1, 1, dtype=torch.bool)


class Called:
    def __init__(self) -> None:
        self.on = torch.zeros(1, 1, dtype=torch.bool)

    def __call__(self, x: Any) -> Any:
        self.on = quiet(self.on, x)
        return self.on


class Beside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("on", torch.zeros(1, 1, dtype=torch.bool))

    def forward(self, x: Any) -> Any:
        self.on = quiet(self.on, x)
        return self.on


CALLED, BESIDE = Called(), Beside()


class OfFunction(Gru):
    def forward(self, x: Any, h: Any = None) -> Any:
        return (h := self.cell(x, h)) * with_attribute(x), h


class OfCalled(Gru):
    def forward(self, x: Any, h: Any = None) -> Any:
        return (h := self.cell(x, h)) * CALLED(x), h


class OfBeside(Gru):
    def forward(self, x: Any, h: Any = None) -> Any:
        return (h := self.cell(x, h)) * BESIDE(x), h


FIRST = [torch.zeros(1, 1, dtype=torch.bool)]


class OfDefault(Gru):
    def forward(self, x: Any, h: Any = None, kept: Any = FIRST) -> Any:
        kept[0] = quiet(kept[0], x)
        return (h := self.cell(x, h)) * kept[0], h


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (OfFunction, r"'on' \(an attribute of the function with_attribute\)"),
        (OfCalled, r"'on' of 'CALLED' \(a global of test_torch_written\.py\)"),
        (OfBeside, r"'on' of 'BESIDE' \(a global of test_torch_written\.py\)"),
        (OfDefault, r"the default of argument 'kept' of forward"),
    ],
)
def test_a_latch_behind_a_function_or_an_object_is_named(make: Any, said: str) -> None:
    with pytest.raises(EdgeLstmError, match="keeps " + said):
        as_step(make(), (3,))
    assert not CALLED.on.any()
