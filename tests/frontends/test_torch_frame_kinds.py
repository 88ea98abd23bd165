"""Modules that take ids or masks, whose results swap h and c, or whose weights are made of others: exported right, or asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelstm
from edgelstm.errors import EdgeLstmError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

nn: Any = torch.nn
STEPS, STATE = 20, {"h": (8,)}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out, self.table = nn.GRUCell(6, 8), nn.Linear(8, 3), nn.Embedding(11, 6)

    def read(self, x: Any) -> Any:
        return x

    def forward(self, x: Any, h: Any) -> Any:
        h = self.cell(self.read(x), h)
        return self.out(h), h


class Ids(Recurrent):
    def read(self, x: Any) -> Any:
        return self.table(x)


class OneHot(Recurrent):
    def read(self, x: Any) -> Any:
        return nn.functional.one_hot(x, 6).float()


class FloatIds(Recurrent):
    def read(self, x: Any) -> Any:
        return self.table(x.long())[:, 0]


class OldWeightNorm(Recurrent):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.utils.weight_norm(self.out)


class KeepsASize(Recurrent):
    def __init__(self) -> None:
        super().__init__()
        self.shape = torch.Size([6])

    def read(self, x: Any) -> Any:
        return x.reshape(-1, *self.shape)


class Masked(Recurrent):
    def forward(self, x: Any, mask: Any, h: Any) -> Any:
        return super().forward(x, torch.where(mask[:, None], h, torch.zeros_like(h)))


def equal_to_the_module(module: Any, path: Path, frames: list[dict[str, Any]]) -> None:
    h = torch.zeros(1, 8)
    with edgelstm.Runner.open(path) as runner:
        stream = runner.stream("a")
        for frame in frames:
            with torch.no_grad():
                y, h = module(*(torch.from_numpy(np.array(v))[None] for v in frame.values()), h)
            got = stream.step(frame if len(frame) > 1 else frame["x"])["y"]
            np.testing.assert_allclose(got, y[0].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "shape", "frame", "most"),
    [(Ids, (), None, 11), (OneHot, (), None, 6), (Ids, (), np.array(0), 11), (FloatIds, (1,), None, 11)],
)
def test_ids(tmp_path: Path, kind: Any, shape: Any, frame: Any, most: int) -> None:
    torch.manual_seed(0)
    module, rng = kind().eval(), np.random.default_rng(0)
    dtype = np.float32 if kind is FloatIds else np.int64
    ids = [rng.integers(0, most, size=shape).astype(dtype) for _ in range(STEPS)]
    given = ids if kind is FloatIds else None
    path = tmp_path / "m.onnx"
    edgelstm.export(
        module, path, frame=shape if frame is None else frame, states=STATE, frames=given, steps=20
    )
    equal_to_the_module(module, path, [{"x": x} for x in ids])


def test_a_mask(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, rng = Masked().eval(), np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    edgelstm.export(module, path, frame={"x": (6,), "mask": ()}, states=STATE, steps=20)
    frames = [
        {"x": rng.normal(size=6).astype("f4"), "mask": np.array(rng.random() > 0.5)} for _ in range(STEPS)
    ]
    equal_to_the_module(module, path, frames)


@pytest.mark.parametrize("kind", [OldWeightNorm, KeepsASize])
def test_what_a_copy_has_to_take_along(tmp_path: Path, kind: Any) -> None:
    torch.manual_seed(0)
    module, path = kind().eval(), tmp_path / "m.onnx"
    edgelstm.export(module, path, frame=(6,), states=STATE, steps=20)
    rng = np.random.default_rng(0)
    equal_to_the_module(module, path, [{"x": rng.normal(size=6).astype("f4")} for _ in range(STEPS)])


class Swapped(nn.Module):
    """Takes c before h, gives h before c, as code does whose author named what he unpacked."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(6, 8), nn.Linear(8, 8)

    def forward(self, x: Any, c: Any, h: Any) -> Any:
        h, c = self.cell(x, (h, c))
        return self.out(h), h, c


def test_h_that_would_go_in_as_the_cell_state_is_asked_about(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, path, states = Swapped().eval(), tmp_path / "m.onnx", {"c": (8,), "h": (8,)}
    with pytest.raises(EdgeLstmError, match="--results y,h,c"):
        edgelstm.export(module, path, frame=(6,), states=states, steps=20)
    assert not path.exists()
    edgelstm.export(module, path, frame=(6,), states=states, steps=20, results=["y", "h", "c"])
    h = c = torch.zeros(1, 8)
    with edgelstm.Runner.open(path) as runner:
        stream = runner.stream("a")
        for x in np.random.default_rng(0).normal(size=(STEPS, 6)).astype("f4"):
            with torch.no_grad():
                y, h, c = module(torch.from_numpy(x)[None], c, h)
            np.testing.assert_allclose(stream.step(x)["y"], y[0].numpy(), rtol=1e-4, atol=1e-5)
