"""Modules that take ids or masks, whose results swap h and c, or whose weights are made of others: exported right, or asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelstm
from command_line import Run
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


class KeepsMore(Recurrent):
    """A weight of the older weight norm, made of two others before every call, and a size."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.utils.weight_norm(self.out)
        self.shape = torch.Size([6])

    def read(self, x: Any) -> Any:
        return x.reshape(-1, *self.shape)


class Masked(Recurrent):
    def forward(self, x: Any, mask: Any, h: Any) -> Any:
        return super().forward(x, torch.where(mask[:, None], h, torch.zeros_like(h)))


class Resets(Recurrent):
    """Takes a mask as an index."""

    def forward(self, x: Any, done: Any, h: Any) -> Any:
        h = h.clone()
        h[done] = 0
        return super().forward(x, h)


class Bytes(Recurrent):
    def read(self, x: Any) -> Any:
        return x / 255


class Bits(Recurrent):
    def read(self, x: Any) -> Any:
        return ((x >> 1) & 7).float()


class Not(Recurrent):
    def forward(self, x: Any, mask: Any, h: Any) -> Any:
        return super().forward(x * ~mask, h)


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
    [
        (Ids, (), None, 11),
        (FloatIds, (1,), None, 11),
        pytest.param(OneHot, (), None, 6, marks=pytest.mark.thorough),
        pytest.param(Ids, (), np.array(0), 11, marks=pytest.mark.thorough),
    ],
)
def test_ids(tmp_path: Path, kind: Any, shape: Any, frame: Any, most: int) -> None:
    torch.manual_seed(0)
    module, rng = kind().eval(), np.random.default_rng(0)
    dtype = np.float32 if kind is FloatIds else np.int64
    ids = [rng.integers(0, most, size=shape).astype(dtype) for _ in range(STEPS)]
    given = ids if kind is FloatIds else None
    path = tmp_path / "m.onnx"
    edgelstm.export(
        module, path, frame=shape if frame is None else frame, states=STATE, source=given, limit=20
    )
    equal_to_the_module(module, path, [{"x": x} for x in ids])


def test_a_mask(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, rng = Masked().eval(), np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    edgelstm.export(module, path, frame={"x": (6,), "mask": ()}, states=STATE, limit=20)
    frames = [
        {"x": rng.normal(size=6).astype("f4"), "mask": np.array(rng.random() > 0.5)} for _ in range(STEPS)
    ]
    equal_to_the_module(module, path, frames)


def test_what_a_copy_has_to_take_along(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, path = KeepsMore().eval(), tmp_path / "m.onnx"
    edgelstm.export(module, path, frame=(6,), states=STATE, limit=20)
    rng = np.random.default_rng(0)
    equal_to_the_module(module, path, [{"x": rng.normal(size=6).astype("f4")} for _ in range(STEPS)])


ROWS = np.random.default_rng(1)
TYPED: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "a mask as an index": (
        Resets,
        ["x:6", "done::bool"],
        {"x": lambda: ROWS.normal(size=6).astype("f4"), "done": lambda: np.array(ROWS.random() > 0.5)},
    ),
    "a mask turned round": (
        Not,
        ["x:6", "mask:6:bool"],
        {"x": lambda: ROWS.normal(size=6).astype("f4"), "mask": lambda: ROWS.random(6) > 0.5},
    ),
    "one number beside the frame": (
        Masked,
        ["x:6", "mask:"],
        {"x": lambda: ROWS.normal(size=6).astype("f4"), "mask": lambda: np.array(ROWS.random() > 0.5)},
    ),
    "bytes": (Bytes, ["6:uint8"], {"x": lambda: ROWS.integers(0, 256, 6).astype("u1")}),
    "whole numbers": (Bits, ["6:int32"], {"x": lambda: ROWS.integers(0, 256, 6).astype("i4")}),
    "ids": (Ids, [":int64"], {"x": lambda: ROWS.integers(0, 11, ())}),
}


def factory(tmp_path: Path, kind: Any) -> str:
    """A file that makes the module of this one."""
    (tmp_path / "nets.py").write_text(
        f"import torch\nfrom {__name__} import {kind.__name__}\n\n"
        f"def make():\n    torch.manual_seed(0)\n    return {kind.__name__}()\n"
    )
    return f"{tmp_path / 'nets.py'}:make"


SHORT = ("one number beside the frame",)


@pytest.mark.parametrize(
    "case", [c if c in SHORT else pytest.param(c, marks=pytest.mark.thorough) for c in TYPED]
)
def test_the_command_line_takes_frames_of_any_type(tmp_path: Path, run: Run, case: str) -> None:
    kind, options, rows = TYPED[case]
    given = [part for option in options for part in ("--frame", option)]
    path = tmp_path / "m.onnx"
    done = run("export", factory(tmp_path, kind), *given, "--state", "h=8", "-o", path, "--limit", "10")
    assert done[0] == 0, done[2]
    torch.manual_seed(0)
    equal_to_the_module(kind().eval(), path, [{n: make() for n, make in rows.items()} for _ in range(STEPS)])


@pytest.mark.parametrize(
    ("kind", "options", "works"),
    [
        (Resets, ["x:6", "done:"], "--frame x:6 --frame done::bool"),
        pytest.param(Bits, ["6"], "--frame x:6:int64", marks=pytest.mark.thorough),
    ],
)
def test_a_type_that_has_to_be_said_is_asked_for_with_what_was_tried(
    tmp_path: Path, run: Run, kind: Any, options: list[str], works: str
) -> None:
    source = factory(tmp_path, kind)
    rest = ("--state", "h=8", "-o", tmp_path / "m.onnx", "--limit", "5")
    refused = run("export", source, *(p for o in options for p in ("--frame", o)), *rest)
    assert refused[0] == 2
    assert works in refused[2]
    assert run("export", source, *works.split(), *rest)[0] == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [("x:4:int33", "a TYPE is float32, float16"), ("x:one", "a TYPE is"), ("4,x", "whole numbers")],
)
def test_a_frame_that_is_none(run: Run, option: str, said: str) -> None:
    code, _, text = run("export", "nets.py:make", "--frame", option, "-o", "m.onnx")
    assert code == 2
    assert said in text


@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(d, marks=pytest.mark.thorough) for d in ("float16", "float64"))]
)
def test_weights_of_other_floats_are_computed_in_float32_and_that_is_said(tmp_path: Path, dtype: str) -> None:
    torch.manual_seed(0)
    module, path = Recurrent().eval().to(getattr(torch, dtype)), tmp_path / "m.onnx"
    done = edgelstm.export(module, path, frame=(6,), states=STATE, limit=20)
    (note,) = [n for n in done.notes if dtype in n]
    assert "float32" in note
    assert next(module.parameters()).dtype == getattr(torch, dtype)
    exact, h = module.double(), torch.zeros(1, 8, dtype=torch.float64)
    with edgelstm.Runner.open(path) as runner:
        stream = runner.stream("a")
        for x in np.random.default_rng(0).normal(size=(STEPS, 6)).astype("f4"):
            with torch.no_grad():
                y, h = exact(torch.from_numpy(x)[None].double(), h)
            np.testing.assert_allclose(stream.step(x)["y"], y[0].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", pytest.param("float64", marks=pytest.mark.thorough)])
def test_frames_of_other_floats_are_taken_as_they_are(tmp_path: Path, dtype: str) -> None:
    torch.manual_seed(0)
    module, path = Recurrent().eval(), tmp_path / "m.onnx"
    states = {"h": np.zeros(8, dtype)}
    done = edgelstm.export(module, path, frame=np.zeros(6, dtype), states=states, limit=20)
    assert [t.dtype for t in done.step.signature.inputs] == [dtype]
    assert done.proof is not None
    assert done.proof.graph < 1e-5, "judged as float32 is: nothing is computed in the frames' type"
    h = torch.zeros(1, 8)
    with edgelstm.Runner.open(path) as runner:
        stream = runner.stream("a")
        for x in np.random.default_rng(0).normal(size=(STEPS, 6)).astype(dtype):
            with torch.no_grad():
                y, h = module(torch.from_numpy(x)[None].float(), h)
            np.testing.assert_allclose(stream.step(x)["y"], y[0].numpy(), rtol=1e-4, atol=1e-5)


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
        edgelstm.export(module, path, frame=(6,), states=states, limit=20)
    assert not path.exists()
    edgelstm.export(module, path, frame=(6,), states=states, limit=20, results=["y", "h", "c"])
    h = c = torch.zeros(1, 8)
    with edgelstm.Runner.open(path) as runner:
        stream = runner.stream("a")
        for x in np.random.default_rng(0).normal(size=(STEPS, 6)).astype("f4"):
            with torch.no_grad():
                y, h, c = module(torch.from_numpy(x)[None], c, h)
            np.testing.assert_allclose(stream.step(x)["y"], y[0].numpy(), rtol=1e-4, atol=1e-5)
