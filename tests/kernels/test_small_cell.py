"""The small-cell kernel without a GPU: its code on the host, every thread of every block in a random order, against NumPy in float64.

Idle rows hold NaN and keep their bits, whatever lies around a tensor is neither read nor written, shared memory begins as NaN.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import building
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.kernels.compile import Nvcc, code_of, find_compiler, sources
from edgelstm.kernels.gates.launch import FLOAT, HALF, variant_of
from edgelstm.kernels.small_cell import launch, naive
from edgelstm.kernels.small_cell.cell import pack
from kernels.host_gates import fields

ARCHS = os.environ.get("EDGELSTM_CUDA_ARCHS", "87").split(",")
HERE = Path(__file__).parent


def compile_cells() -> ctypes.CDLL:
    """The kernel's code on the host; the test is skipped where there is no C++ compiler."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler: g++ is not on the PATH and CXX is not set")
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    command = [compiler, *flags, f"-I{sources() / 'include'}", f"-I{HERE}", str(HERE / "small_cell_host.cpp")]
    files = [*(sources() / "include").rglob("*.h"), *HERE.glob("*.cpp"), *HERE.glob("*.h")]
    loaded = ctypes.CDLL(str(building.library("libsmall_cell.so", command, files)))
    loaded.why_refused.restype = ctypes.c_char_p
    loaded.workspace_bytes.restype = loaded.run_plan.restype = ctypes.c_int64
    assert loaded.size_of_plan() == ctypes.sizeof(launch.Plan)
    return loaded


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    return compile_cells()


@dataclass(frozen=True)
class Case:
    """A cell and what runs through it. variant None: a GRU. spare: rows of the pool that no stream has."""

    variant: GateVariant | None
    inputs: int
    hidden: int
    streams: int
    steps: int
    half: bool = False
    spare: int = 0
    idle: bool = False
    projected: bool = False
    processors: int = 4
    shared: int = 200_000
    units: int = 0
    seed: int = 1


def run(host: ctypes.CDLL, case: Case) -> launch.Plan:
    """Run a case on the host and compare it with the reference."""
    rng = np.random.default_rng(case.seed)
    v, kind, hidden = case.variant, np.float16 if case.half else np.float32, case.hidden
    gates = 3 if v is None or v.coupled else 4
    pool = case.streams + case.spare
    width = case.inputs + hidden
    weight = (rng.uniform(-1, 1, (gates * hidden, width)) * width**-0.5 * 2).astype(kind)
    bias = rng.normal(size=gates * hidden).astype(np.float32)
    recurrent = rng.normal(size=hidden).astype(np.float32)
    peepholes = rng.normal(size=(3, hidden)).astype(np.float32)
    x = rng.normal(size=(case.steps, case.streams, case.inputs)).astype(kind)
    projected = rng.normal(size=(case.steps, case.streams, gates * hidden)).astype(kind)
    h = np.full((pool, hidden), np.nan, kind)
    c = np.full((pool, hidden), np.nan, np.float32)
    rows = rng.permutation(pool)[: case.streams].astype(np.int32)
    if case.idle:
        rows[rng.integers(0, 2, case.streams) == 1] = -1
        if case.streams > 1:
            rows[-1] = pool + 3  # past the pool: idle too
    lives = (rows >= 0) & (rows < pool)
    h[rows[lives]] = rng.normal(size=(lives.sum(), hidden))
    c[rows[lives]] = rng.normal(size=(lives.sum(), hidden))
    x[:, ~lives] = np.nan
    y = np.full((case.steps, case.streams, hidden), 7, kind)

    wanted_h, wanted_c = h.copy(), None if v is None else c.copy()
    used = (
        ([peepholes[0], peepholes[2]] if v.coupled else list(peepholes))
        if v is not None and v.peephole
        else []
    )
    frames, matrix = x, weight
    if case.projected:  # what is added to the gates is as an input with weights of one
        frames = np.concatenate([x, projected], 2)
        ones = np.eye(gates * hidden, dtype=kind)
        matrix = np.concatenate([weight[:, : case.inputs], ones, weight[:, case.inputs :]], 1)
    wanted_y = naive.run(
        v,
        matrix,
        bias,
        recurrent,
        tuple(p.astype(float) for p in used),
        frames,
        wanted_h,
        wanted_c,
        rows,
        kind,
    )

    packed = pack(weight, case.inputs, hidden, gates)
    full_bias = np.zeros((4, hidden), np.float32)
    full_bias[:gates] = bias.reshape(gates, hidden)
    if v is None:
        full_bias[3] = recurrent
    p = launch.Params(
        kind=launch.GRU if v is None else launch.COUPLED if v.coupled else launch.LSTM,
        type=HALF if case.half else FLOAT, inputs=case.inputs, hidden=hidden, streams=case.streams, steps=case.steps, pool_rows=pool,
    )  # fmt: skip
    if v is not None:
        p.variant = variant_of(v)
    size = launch.workspace_bytes(case.streams, hidden, kind().itemsize)
    workspace = np.full(size, 0xFF, np.uint8)
    workspace[:16] = 0
    spans: list[tuple[int, int, int]] = []

    def place(array: Any, written: bool = False) -> int:
        spans.append((array.ctypes.data, array.ctypes.data + array.nbytes, int(written)))
        return int(array.ctypes.data)

    aligned = aligned_copy(packed)
    p.weights, p.bias = place(aligned), place(full_bias)
    p.peepholes = place(peepholes) if used else None
    p.x = place(x) if case.inputs else None
    p.projected = place(projected) if case.projected else None
    p.rows = place(rows) if case.idle or case.spare else None
    if p.rows is None:
        h[:], c[:] = h[rows], c[rows]
        wanted_h = wanted_h[rows]
        wanted_c = None if wanted_c is None else wanted_c[rows]
    p.h, p.y = place(h, True), place(y, True)
    p.c = None if v is None else place(c, True)
    space = aligned_copy(workspace)
    p.workspace = place(space, True)
    assert host.why_refused(ctypes.byref(p)) is None
    assert host.workspace_bytes(ctypes.byref(p)) == size
    plan = launch.plan_of(p, case.processors, case.shared, case.units)
    theirs = launch.Plan()
    host.plan_of(ctypes.byref(p), case.processors, case.shared, case.units, ctypes.byref(theirs))
    assert fields(plan) == fields(theirs)
    assert plan.blocks <= case.processors

    before = h.copy(), c.copy()
    flat = (ctypes.c_uint64 * (3 * len(spans)))(*(n for span in spans for n in span))
    outside = host.run_plan(ctypes.byref(plan), case.seed, flat, len(spans))
    assert outside == 0, "threads wait for ever" if outside < 0 else f"{outside} accesses outside the tensors"

    eps = np.finfo(kind).eps
    tolerance = (4 * eps + width * np.finfo(np.float32).eps) * case.steps
    np.testing.assert_allclose(
        y[:, lives].astype(float), wanted_y[:, lives].astype(float), rtol=tolerance, atol=tolerance
    )
    np.testing.assert_allclose(h.astype(float), wanted_h.astype(float), rtol=tolerance, atol=tolerance)
    if wanted_c is not None:
        np.testing.assert_allclose(c, wanted_c, rtol=tolerance, atol=2 * tolerance)
    assert (y[:, ~lives] == 7).all()
    if p.rows is not None:
        rest = np.setdiff1d(np.arange(pool), rows[lives])
        np.testing.assert_array_equal(h[rest].view(np.uint8), before[0][rest].view(np.uint8))
        np.testing.assert_array_equal(c[rest].view(np.uint8), before[1][rest].view(np.uint8))
    counter = int(space[:4].view(np.uint32)[0])
    assert counter & 0x7FFFFFFF == 0, "the barrier is not ready for the next launch"
    return plan


def aligned_copy(array: Any) -> Any:
    raw = np.zeros(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    view = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


LSTM = GateVariant()


@pytest.mark.parametrize(
    "case",
    [
        Case(LSTM, 3, 7, 1, 1),
        Case(LSTM, 3, 7, 2, 5),
        Case(None, 3, 7, 3, 4),
        Case(LSTM, 5, 37, 11, 3, processors=7, units=8),
        Case(None, 5, 37, 11, 3, processors=7, units=8, half=True),
        Case(LSTM, 16, 32, 8, 1, processors=8, units=4, spare=3, idle=True),
        Case(LSTM, 16, 32, 13, 1, processors=8, units=4, spare=3, idle=True),
        Case(LSTM, 8, 24, 4, 6, processors=3, units=8, shared=10_000),
        Case(GateVariant(coupled=True, peephole=True), 9, 13, 3, 3, processors=13, units=1),
        Case(GateVariant(peephole=True, gate="hard_sigmoid", cell_clip=0.5), 0, 17, 2, 3, projected=True),
        Case(None, 4, 19, 2, 3, projected=True, processors=5, units=4),
        Case(LSTM, 40, 61, 1, 2, half=True, processors=61, units=1),
        pytest.param(Case(LSTM, 40, 64, 9, 2, half=True, processors=2, units=32), marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_cases(host: ctypes.CDLL, case: Case) -> None:
    run(host, case)


def test_weights_are_held_only_where_they_serve_twice(host: ctypes.CDLL) -> None:
    assert not run(host, Case(LSTM, 3, 11, 8, 1)).held
    assert run(host, Case(LSTM, 3, 11, 9, 1)).held
    assert run(host, Case(LSTM, 3, 11, 1, 2)).held
    assert not run(host, Case(LSTM, 3, 11, 1, 2, shared=3000)).held


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    variant=st.sampled_from([LSTM, None, GateVariant(peephole=True), GateVariant(coupled=True), GateVariant(candidate="relu", cell_clip=1.0)]),
    inputs=st.sampled_from([0, 1, 5, 8, 16, 23]), hidden=st.sampled_from([1, 2, 5, 8, 16, 29]), streams=st.integers(1, 10),
    steps=st.integers(1, 4), half=st.booleans(), spare=st.integers(0, 3), idle=st.booleans(), units=st.sampled_from([0, 1, 2, 8, 16]),
    shared=st.sampled_from([8_000, 200_000]), seed=st.integers(1, 10_000),
)  # fmt: skip
def test_any_sizes_in_any_order(host: ctypes.CDLL, **drawn: Any) -> None:
    run(host, Case(**drawn, processors=29))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_plan_made_here_is_the_plan_made_there(host: ctypes.CDLL, data: st.DataObject) -> None:
    draw = data.draw
    p = launch.Params(
        kind=draw(st.integers(0, 2)), type=draw(st.sampled_from([FLOAT, HALF])), inputs=draw(st.integers(0, 1500)),
        hidden=draw(st.integers(1, 1024)), streams=draw(st.integers(1, 200)), steps=draw(st.integers(1, 50)), pool_rows=200,
        x=draw(st.sampled_from([4096, 4100])), h=draw(st.sampled_from([4096, 4098])),
    )  # fmt: skip
    processors, shared = draw(st.sampled_from([(132, 232448), (16, 166912), (1, 101376)]))
    units = draw(st.sampled_from([0, 0, 4, 64]))
    theirs = launch.Plan()
    host.plan_of(ctypes.byref(p), processors, shared, units, ctypes.byref(theirs))
    assert fields(launch.plan_of(p, processors, shared, units)) == fields(theirs)
    assert theirs.blocks <= processors


@pytest.mark.parametrize("arch", ARCHS)
def test_nothing_spills(arch: str, tmp_path: Path) -> None:
    try:
        nvcc = Nvcc()
    except EdgeLstmError as error:
        pytest.skip(str(error))
    source = sources() / "src" / launch.SOURCE
    # The launcher brings along all 48 kernels, which takes half a minute: `make plugin-check`. Else the widest alone.
    every = "EDGELSTM_CUDA_ARCHS" in os.environ
    widest = {"TYPE": HALF, "KIND": launch.LSTM, "TILE": 8, "HELD": 1}
    macros = [] if every else [f"-DEDGELSTM_CELL_{k}={v}" for k, v in widest.items()]
    flags = ["-std=c++17", "-O3", f"-arch=sm_{arch}", f"-I{sources() / 'include'}", *macros]
    flags += [
        f"-DEDGELSTM_PLAN_BYTES={ctypes.sizeof(launch.Plan)}",
        "-Xptxas",
        "-v,-warn-spills",
        "-Werror",
        "all-warnings",
    ]
    command = [str(nvcc.path), "-cubin", *flags, "-o", str(tmp_path / "x"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", done.stderr)
    assert used == [("0", "0")] * (48 if every else 1)
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)) <= 255


@pytest.mark.parametrize(
    "kind",
    [launch.LSTM, *(pytest.param(k, marks=pytest.mark.thorough) for k in (launch.GRU, launch.COUPLED))],
)
def test_one_kernel_by_itself_compiles(kind: int) -> None:
    defines = {
        "EDGELSTM_CELL_TYPE": HALF,
        "EDGELSTM_CELL_KIND": kind,
        "EDGELSTM_CELL_TILE": 8,
        "EDGELSTM_CELL_HELD": 1,
    }
    defines["EDGELSTM_PLAN_BYTES"] = ctypes.sizeof(launch.Plan)
    try:
        compiler = find_compiler()
    except EdgeLstmError as error:
        pytest.skip(str(error))
    assert b"edgelstm_small_cell" in compiler.compile(code_of(launch.SOURCE, defines, (9, 0)))
