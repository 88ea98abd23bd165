"""edgelstm.kernels.fused_gates without a GPU: its plans are the C++ ones, its parameters give the kernel's own loop the right
tensors, its operators of torch agree with the reference, and what it can't do it says."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.kernels import fused_gates
from edgelstm.kernels.gates import launch
from edgelstm.kernels.gates.queue import parameters
from edgelstm.kernels.launch import no_gpu
from kernels import host_gates
from kernels.host_gates import channels_last, fields, seen

VARIANTS = [
    GateVariant(peephole=p, gate=g, candidate=a, output=o, cell_clip=clip, coupled=coupled)
    for p, g, a, o, clip, coupled in itertools.product(
        (False, True),
        ("sigmoid", "hard_sigmoid"),
        ("tanh", "relu"),
        ("tanh", "relu"),
        (None, 0.75),
        (False, True),
    )
]
TYPES = st.sampled_from(["float32", "float16"])


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    return host_gates.compile_host_loop()


def tensors(
    variant: GateVariant, n: int, c: int, places: tuple[int, ...], kinds: tuple[str, str], seed: int
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (n, len(variant.gates) * c, *places)).astype(kinds[0])
    t = {"z": z, "c": rng.normal(0, 2, (n, c, *places)).astype(kinds[1])}
    for k, name in enumerate(name for name in variant.inputs if name.startswith("p_")):
        t[name] = rng.normal(size=(c, *places) if k % 2 else (c,)).astype(kinds[1])
    return t


def truth(variant: GateVariant, t: dict[str, Any]) -> tuple[Any, Any]:
    spread = [1] * (t["c"].ndim - 2)
    weights = [t[k].astype(float) for k in t if k.startswith("p_")]
    weights = [w.reshape(-1, *spread) if w.ndim == 1 else w for w in weights]
    with np.errstate(over="ignore"):
        return variant.reference(t["z"].astype(float), t["c"].astype(float), *weights)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_plan_made_here_is_the_plan_made_there(host: ctypes.CDLL, data: st.DataObject) -> None:
    draw = data.draw
    p = launch.Params(channels=draw(st.integers(1, 300)), spatial=draw(st.integers(1, 5000)))
    p.streams = draw(st.integers(1, 70))
    p.variant = launch.variant_of(draw(st.sampled_from(VARIANTS)))
    z_layout, h_layout = draw(st.sampled_from([(0, 0), (0, 2), (2, 0), (2, 2)]))
    halves = [launch.HALF, launch.BF16]
    z_type = draw(st.sampled_from(halves if z_layout else [launch.FLOAT, *halves]))
    h_type = draw(st.sampled_from(halves if h_layout else [launch.FLOAT, *halves]))
    c_type = draw(st.sampled_from([launch.FLOAT, launch.HALF]))
    p.forms = launch.Forms(
        launch.Form(z_type, z_layout), launch.Form(c_type, 0), launch.Form(h_type, h_layout)
    )
    for name in ("z", "c", "h", "c_out"):
        setattr(p, name, 4096 + draw(st.sampled_from([0, 0, 0, 8])))
    for name in ("p_i", "p_f", "p_o"):
        setattr(p, name, launch.Peephole(8192 + draw(st.sampled_from([0, 0, 2])), draw(st.booleans())))
    assert host.size_of_plan() == ctypes.sizeof(launch.Plan)
    theirs = launch.Plan()
    host.plan_of(ctypes.byref(p), ctypes.byref(theirs))
    assert fields(launch.plan_of(p)) == fields(theirs)


@settings(max_examples=60, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS), n=st.integers(1, 5), c=st.sampled_from([1, 3, 7, 8, 13, 16, 24]),
    places=st.sampled_from([(), (1,), (7,), (5, 3), (4, 4), (2, 3, 5)]), kinds=st.tuples(TYPES, TYPES), last=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_kernels_own_loop_on_these_parameters(
    host: ctypes.CDLL,
    variant: GateVariant,
    n: int,
    c: int,
    places: tuple[int, ...],
    kinds: tuple[str, str],
    last: bool,
    seed: int,
) -> None:
    t = tensors(variant, n, c, places, kinds, seed)
    wanted = truth(variant, t)
    h = np.full(t["c"].shape, 7, kinds[0])
    active = (np.arange(n) % 3 != 1).astype(np.int32)
    idle_h, idle_c = h[active == 0].copy(), t["c"][active == 0].copy()
    if last and c % 8 == 0 and kinds[0] == "float16":
        t["z"], h = channels_last(t["z"]), channels_last(h)
    # In place, with idle streams: h is its own old value, and c too.
    arrays = {**t, "h": h, "c_out": t["c"], "active": active, "h_old": h}
    params = parameters(variant, {name: seen(a) for name, a in arrays.items()})
    assert host.fused_gates(ctypes.byref(params)) is None
    lives = active == 1
    for found, exact, kind in ((h, wanted[0], kinds[0]), (t["c"], wanted[1], kinds[1])):
        eps = np.finfo(kind).eps + 16 * np.finfo(np.float32).eps
        np.testing.assert_allclose(found[lives].astype(float), exact[lives], rtol=2 * eps, atol=4 * eps)
    np.testing.assert_array_equal(h[~lives], idle_h)
    np.testing.assert_array_equal(t["c"][~lives], idle_c)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.op_type.removeprefix("FusedGates_"))
def test_numpy_and_torch_on_the_cpu(variant: GateVariant) -> None:
    torch = pytest.importorskip("torch")
    t = tensors(variant, 3, 5, (2, 7), ("float32", "float32"), 1)
    wanted = truth(variant, t)
    t["z"][0, 0, 0, 0] = np.nan
    weights = [v for k, v in t.items() if k.startswith("p_")]
    for convert in (np.asarray, torch.from_numpy):
        arrays = [convert(v) for v in (t["z"], t["c"], *weights)]
        found = [np.asarray(v) for v in fused_gates(*arrays, variant=variant)]
        assert np.isnan(found[0][0, 0, 0, 0])
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a[1:], b[1:], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(a[0, 1:], b[0, 1:], rtol=1e-5, atol=1e-5)


def test_operators_of_torch() -> None:
    torch = pytest.importorskip("torch")
    from edgelstm.kernels import register_torch

    ops = register_torch()
    z, c, h = torch.randn(3, 20, 4), torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    active = torch.tensor([1, 0, 1], dtype=torch.int32)
    weights = [torch.randn(5, 4) for _ in range(3)]
    torch.library.opcheck(ops.fused_gates, (z, c))
    torch.library.opcheck(ops.fused_gates, (z, c, *weights, "FusedGates_peephole", active, h))
    torch.library.opcheck(ops.fused_gates_, (z, c, h, None, None, None, "FusedGates_lstm", active))
    wide = [t.double().requires_grad_() for t in (z, c, *weights)]
    peepholes = GateVariant(peephole=True).op_type
    assert torch.autograd.gradcheck(lambda z, c, *p: ops.fused_gates(z, c, *p, peepholes), wide)
    compiled = torch.compile(lambda z, c: ops.fused_gates(z, c)[0] * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z, c), fused_gates(z, c)[0] * 2)
    wanted, old = fused_gates(z, c, active=active, h_old=h), (h.clone(), c.clone())
    ops.fused_gates_(z, c, h, None, None, None, "FusedGates_lstm", active)
    torch.testing.assert_close((h, c), wanted, rtol=0, atol=0)
    assert torch.equal(h[1], old[0][1])
    assert torch.equal(c[1], old[1][1])


def test_a_step_with_the_operator_exports() -> None:
    torch = pytest.importorskip("torch")
    from edgelstm.kernels import register_torch

    ops = register_torch()

    class Cell(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 20)

        def forward(self, x: Any, h: Any, c: Any) -> Any:
            return ops.fused_gates(self.linear(torch.cat([x, h], 1)), c)

    x, h, c = torch.randn(2, 3), torch.randn(2, 5), torch.randn(2, 5)
    cell = Cell()
    exported = torch.export.export(cell, (x, h, c))
    assert "edgelstm.fused_gates" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x, h, c), cell(x, h, c), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"z": np.zeros((2, 21, 3), np.float32)}, "shapes of z and c"),
        ({"c": np.zeros((2, 5, 3), np.float64)}, "dtype of c"),
        ({"h": np.zeros((2, 5, 4), np.float32)}, "shape of h"),
        ({"z": np.zeros((2, 3, 20), np.float32).transpose(0, 2, 1)}, "z lies in another way"),
        ({"c_out": np.zeros((2, 5, 3), np.float16)}, "c_out differs"),
        ({"p_i": np.zeros(4, np.float32)}, "p_i"),
        ({"active": np.zeros(2, np.int64)}, "int32\\[2\\]"),
        ({"h": "z"}, "h overlaps z"),
    ],
)
def test_what_does_not_fit_is_said(change: dict[str, Any], words: str) -> None:
    arrays = {
        "z": np.zeros((2, 20, 3), np.float32), "c": np.zeros((2, 5, 3), np.float32), "h": np.zeros((2, 5, 3), np.float32),
        "c_out": np.zeros((2, 5, 3), np.float32), "p_i": np.zeros(5, np.float32), "p_f": np.zeros(5, np.float32),
        "p_o": np.zeros(5, np.float32), "active": np.ones(2, np.int32), "h_old": np.zeros((2, 5, 3), np.float32),
    }  # fmt: skip
    for name, value in change.items():
        arrays[name] = arrays["z"][:, :5] if isinstance(value, str) else value
    if "h" in change and isinstance(change["h"], str):
        arrays["h"] = arrays["z"].reshape(-1)[:30].reshape(2, 5, 3)
    with pytest.raises(EdgeLstmError, match=words):
        parameters(GateVariant(peephole=True), {name: seen(a) for name, a in arrays.items()})


def test_codes_are_refused() -> None:
    with pytest.raises(EdgeLstmError, match="8-bit codes"):
        launch.variant_of(GateVariant(coded=True))


@pytest.mark.skipif(no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    class Buffer:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    with pytest.raises(EdgeLstmError, match="no stream is given"):
        fused_gates(Buffer(), Buffer(), out=(Buffer(), Buffer()))
    said = no_gpu()
    assert said is not None
    assert "NVIDIA" in said or "cuda-bindings" in said


def test_importing_it_imports_no_torch() -> None:
    code = (
        "import sys, numpy as np; from edgelstm.kernels import ConvLstmKernel, ConvLstmStep, SmallCell, fused_gates, register_torch;"
        "fused_gates(np.zeros((1, 4)), np.zeros((1, 1))); print({'torch', 'onnx', 'triton', 'cupy'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "set()", done.stderr
