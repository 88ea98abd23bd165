"""From the caller's arrays to the launch, through the real cuda-bindings, on a stand-in for the driver. Where a GPU would run the kernel,
its own C++ code runs on the host, when the stream comes to it. Machine code is the one thing that is not there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.kernels import SmallCell, fused_gates
from edgelstm.kernels import launch as launching
from edgelstm.kernels.gates import launch as gates
from edgelstm.kernels.small_cell import launch as cells
from edgelstm.runtime.cuda import Cuda
from edgelstm.runtime.device_array import DeviceArray
from kernels import host_gates
from kernels.test_small_cell import compile_cells
from standins import cuda_driver


class Machine:
    """A GPU of the stand-in: arrays on it, and what was launched."""

    def __init__(self, driver: Any, cuda: Cuda, host: tuple[Any, Any]) -> None:
        self.driver, self.cuda = driver, cuda
        self.gates, self.cells = host
        self.launches: list[tuple[str, int, int, int, int]] = []
        driver.play(self._launch)

    def array(self, values: Any) -> DeviceArray:
        values = np.ascontiguousarray(values)
        with self.cuda as cuda:
            pointer = cuda.allocate(values.nbytes)
            cuda.copy(pointer, values.ctypes.data, values.nbytes)
            cuda.wait()
        return DeviceArray(self.cuda, pointer, values.shape, values.dtype)

    def _launch(
        self, name: bytes, blocks: int, threads: int, shared: int, together: int, parameter: int, stream: int
    ) -> int:
        self.launches.append((name.decode(), blocks, threads, shared, together))
        if name == b"edgelstm_fused_gates":
            gate_plan = gates.Plan.from_buffer_copy(ctypes.string_at(parameter, ctypes.sizeof(gates.Plan)))
            self.driver.put(stream, lambda: self.gates.fused_gates(ctypes.byref(gate_plan.params)))
            return 0
        plan = cells.Plan.from_buffer_copy(ctypes.string_at(parameter, ctypes.sizeof(cells.Plan)))
        everything = (ctypes.c_uint64 * 3)(0, 2**63, 1)
        self.driver.put(
            stream, lambda: self.cells.run_plan(ctypes.byref(plan), 1, everything, 1) == 0 or 1 / 0
        )
        return 0


@pytest.fixture(scope="module")
def host() -> tuple[Any, Any]:
    return host_gates.compile_host_loop(), compile_cells()


@pytest.fixture
def machine(host: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    if why := cuda_driver.missing():
        pytest.skip(why)
    pytest.importorskip("cuda.core")
    monkeypatch.setattr(launching, "cubin", lambda code: b"\x7fELF")
    monkeypatch.setattr(launching, "_kernels", {})
    with cuda_driver.stand_in_driver() as driver:
        launching.device.cache_clear()
        cuda = Cuda()
        try:
            yield Machine(driver, cuda, host)
        finally:
            cuda.close()
            if launching.device.cache_info().currsize:
                launching.load_driver().cuDevicePrimaryCtxRelease(0)
            launching.device.cache_clear()


@pytest.mark.parametrize("variant", [GateVariant(), GateVariant(peephole=True, coupled=True)])
def test_gates(machine: Machine, variant: GateVariant) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, len(variant.gates) * 5, 4)).astype(np.float16)
    c = rng.normal(size=(3, 5, 4)).astype(np.float32)
    weights = [rng.normal(size=5).astype(np.float32) for _ in variant.inputs[2:]]
    device = [machine.array(a) for a in (z, c, *weights)]
    h, c_out = machine.array(np.zeros((3, 5, 4), np.float16)), machine.array(np.zeros_like(c))
    result = fused_gates(*device, variant=variant, out=(h, c_out), stream=machine.cuda.stream)
    assert result == (h, c_out)
    wanted = fused_gates(z, c, *weights, variant=variant)
    np.testing.assert_allclose(h.copy(), wanted[0], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(c_out.copy(), wanted[1], rtol=1e-5, atol=1e-5)
    ((name, blocks, threads, shared, together),) = machine.launches
    assert (name, blocks, threads, shared, together) == ("edgelstm_fused_gates", 1, 256, 0, 0)


def test_it_is_queued_on_the_callers_stream(machine: Machine) -> None:
    z, c = machine.array(np.ones((1, 4, 1), np.float32)), machine.array(np.ones((1, 1, 1), np.float32))
    h = machine.array(np.full((1, 1, 1), 7, np.float32))
    fused_gates(z, c, out=(h, c), stream=machine.cuda.stream)
    raw = np.ctypeslib.as_array((ctypes.c_float * 1).from_address(h.pointer))
    assert raw[0] == 7, "it ran before anybody waited"
    with machine.cuda as cuda:
        cuda.wait()
    assert raw[0] != 7
    for again in range(3):
        fused_gates(z, c, out=(h, c), stream=machine.cuda.stream)
        assert len(machine.launches) == again + 2
    assert len(launching._kernels) == 1, "compiled and loaded once"


@pytest.mark.parametrize(("hidden", "blocks"), [(13, 1), (131, 5)])
@pytest.mark.parametrize("gru", [False, True])
def test_a_small_cell(machine: Machine, hidden: int, blocks: int, gru: bool) -> None:
    rng = np.random.default_rng(1)
    count = 3 if gru else 4
    weight = rng.normal(size=(count * hidden, 5 + hidden)) * 0.2
    bias = rng.normal(size=count * hidden)
    x = rng.normal(size=(4, 3, 5)).astype(np.float32)
    x[:, 1] = np.nan
    h, c = rng.normal(size=(2, 6, hidden)).astype(np.float32)
    rows, y = np.array([4, -1, 0], np.int32), np.full((4, 3, hidden), 9, np.float32)
    cell = SmallCell.gru(weight, bias, rng.normal(size=hidden)) if gru else SmallCell.lstm(weight, bias)
    wanted = [a.copy() for a in (h, c, y)]
    cell(x, wanted[0], None if gru else wanted[1], rows=rows, y=wanted[2])
    with cell:
        d = {k: machine.array(v) for k, v in {"x": x, "h": h, "c": c, "rows": rows, "y": y}.items()}
        stream = machine.cuda.stream
        y1 = cell(d["x"], d["h"], None if gru else d["c"], rows=d["rows"], y=d["y"], stream=stream)
        for found, exact in zip((d["h"], d["c"], y1), wanted, strict=True):
            np.testing.assert_allclose(found.copy(), exact, rtol=1e-4, atol=1e-4)
    ((name, found_blocks, threads, shared, together),) = machine.launches
    assert (name, threads, together) == ("edgelstm_small_cell", 256, int(blocks > 1))
    assert found_blocks == blocks
    assert 0 < shared <= 100 * 1024


def test_a_cell_too_wide_for_the_gpu_is_refused(machine: Machine) -> None:
    with SmallCell.gru(np.zeros((3072, 1024)), np.zeros(3072), np.zeros(1024), streams=1024) as cell:
        h = machine.array(np.zeros((1024, 1024), np.float32))
        projected = machine.array(np.zeros((1024, 3072), np.float32))
        with pytest.raises(EdgeLstmError, match=r"bytes of shared memory.*at most 102400"):
            cell(None, h, projected=projected, y=h, stream=machine.cuda.stream)


def test_what_the_gpu_refuses_is_told(machine: Machine) -> None:
    machine.driver.play(lambda *_: 719)
    z, c = machine.array(np.ones((1, 4), np.float32)), machine.array(np.ones((1, 1), np.float32))
    with pytest.raises(EdgeLstmError, match="the GPU failed"):
        fused_gates(z, c, out=(machine.array(np.ones((1, 1), np.float32)), c), stream=machine.cuda.stream)
