"""The way from TensorRT's descriptions to the kernel: on a GPU to the numbers, without one to the launch that CUDA refuses."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
from adapter_library import INT32, LINEAR, VERSIONS, Adapter, Adapters, Plugin, Tensor
from host_library import Params, Variant, compile_host_loop, pointers, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kernel_math import cases, check

from edgelstm import machine
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.cuda import Cuda

CUDA_ERROR_INVALID_VALUE = 1
#: The oldest of TensorRT 10 and the newest of all; 8.5 as well, since its adapter is another one.
TRIED = (VERSIONS[0], VERSIONS[1], VERSIONS[-1])
every_case = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=[*(pytest.param(v, marks=pytest.mark.thorough) for v in TRIED[:-1]), TRIED[-1]])
def adapter(request: pytest.FixtureRequest, adapters: Adapters) -> Adapter:
    return adapters[request.param]


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    return compile_host_loop()


def node(adapter: Adapter, p: Params, *, in_place: bool) -> tuple[Plugin, list[Tensor], int]:
    """The plugin for the parameters of a call, its tensors as TensorRT describes them, and how many are outputs."""
    h_type = p.forms.h.type
    plugin = adapter.create(
        {
            **{name: float(v) if isinstance(v := getattr(p.variant, name), float) else int(v) for name, _ in Variant._fields_},
            "h_type": h_type,
            "h_scale": float(p.h_scale),
            "in_place": int(in_place),
            "masked": int(p.active is not None),
            "count_non_finite": int(p.non_finite is not None),
        }
    )  # fmt: skip
    assert plugin is not None, adapter.messages()
    shape = [p.streams, p.channels, 1, p.spatial]  # an image, since fewer axes have no other layouts
    c = (p.forms.c.type, LINEAR)
    h = (h_type, p.forms.h.layout)
    z_shape = [p.streams, (3 if p.variant.coupled else 4) * p.channels, 1, p.spatial]
    tensors = [Tensor.of(z_shape, p.forms.z.type, p.forms.z.layout, p.z), Tensor.of(shape, *c, p.c)]
    names = ("p_i", "p_o") if p.variant.coupled else ("p_i", "p_f", "p_o")
    for peephole in (getattr(p, name) for name in names) if p.variant.peephole else ():
        size = [p.channels, 1, p.spatial] if peephole.map else [p.channels, 1, 1]
        tensors.append(Tensor.of(size, *c, peephole.data))
    if p.active is not None:
        tensors += [Tensor.of(shape, *h, p.h_old), Tensor.of([p.streams], INT32, LINEAR, p.active)]
    tensors += [Tensor.of(shape, *h, p.h), Tensor.of(shape, *c, p.c_out)]
    if p.non_finite is not None:
        tensors.append(Tensor.of([p.streams], INT32, LINEAR, p.non_finite))
    return plugin, tensors, 2 + (p.non_finite is not None)


class Enqueued:
    """Stands in for the host loop that ``Case.run`` calls: the call goes through a plugin's enqueue.

    With a GPU the memory goes there and comes back. Without one what lies behind the pointers is never looked at.
    """

    def __init__(self, adapter: Adapter, cuda: Cuda | None) -> None:
        self.adapter, self.cuda = adapter, cuda
        self.codes: list[int] = []

    def fused_gates(self, reference: Any) -> None:
        params: Params = reference._obj
        there = Params.from_buffer_copy(params)
        moved = dict(self._move(there)) if self.cuda is not None else {}
        # TensorRT lets an output lie over its input where it was told of that; 8.5 can't be told.
        in_place = there.c == there.c_out and self.adapter.version >= (10, 3)
        plugin, tensors, outputs = node(self.adapter, there, in_place=in_place)
        assert plugin.accepts(tensors, outputs), "the tests' table and the adapter disagree"
        self.codes.append(plugin.enqueue(tensors, outputs))
        plugin.destroy()
        if self.cuda is None:
            return
        assert self.codes[-1] == 0, self.adapter.messages()
        self.cuda.wait()
        for address, (device, size) in moved.items():
            self.cuda.copy(address, device, size)
        self.cuda.wait()

    def _move(self, params: Params) -> Iterator[tuple[int, tuple[int, int]]]:
        """Copies every buffer to the GPU, as far from a multiple of 64 as it is here."""
        assert self.cuda is not None
        known: dict[int, int] = {}
        for holder, name, size in pointers(params):
            address = getattr(holder, name)
            if address and address not in known:
                known[address] = self.cuda.allocate(size + 64) + address % 64
                self.cuda.copy(known[address], address, size)
                yield address, (known[address], size)
            if address:
                setattr(holder, name, known[address])


@every_case
@given(data=st.data())
def test_on_a_gpu_plugins_compute_the_reference(
    adapter: Adapter, host: ctypes.CDLL, data: st.DataObject
) -> None:
    """Every value of h and c_out, every stream's number of non-finite values, padding and idle streams."""
    try:
        cuda = Cuda()
    except EdgeLstmError as error:
        pytest.skip(f"no GPU: {error}")
    try:
        with cuda:
            check(data.draw(cases(table(host))), Enqueued(adapter, cuda))  # type: ignore[arg-type]
    finally:
        cuda.close()


@every_case
@given(data=st.data())
def test_without_a_gpu_every_call_reaches_cuda(
    adapter: Adapter, host: ctypes.CDLL, data: st.DataObject
) -> None:
    """All that has a kernel passes the adapter's own checks and the launcher's: what fails then is the launch."""
    cuda = machine.cuda()
    if cuda is not None and cuda.gpus:
        pytest.skip("there is a GPU")
    enqueued = Enqueued(adapter, None)
    data.draw(cases(table(host))).run(enqueued)  # type: ignore[arg-type]
    assert enqueued.codes[0] > CUDA_ERROR_INVALID_VALUE, adapter.messages()
