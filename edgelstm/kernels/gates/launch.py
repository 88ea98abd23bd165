"""The launch of one FusedGates kernel: the plan that fused_gates_plan.h makes, made here, and the kernel it takes.

The structs are those of plugins/include/edgelstm; a test compares every byte of a plan with the C++ one.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_bool, c_float, c_int32, c_int64, c_uint32, c_void_p
from typing import ClassVar

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant

FLOAT, HALF, INT8, BF16 = 0, 1, 2, 7
LINEAR, HWC8 = 0, 2
FLAT, VECTORS, CHANNELS = 0, 1, 2
THREADS = 256
SOURCE, NAME = "fused_gates_alone.cu", "edgelstm_fused_gates"
_MOST = 2**31 - 1
_OVERFLOW = {FLOAT: float("inf"), HALF: 65520.0, BF16: float.fromhex("0x1.FFp127"), INT8: float("inf")}


class Form(Structure):
    """TensorForm: type and layout."""

    _fields_: ClassVar = [("type", c_int32), ("layout", c_int32)]


class Forms(Structure):
    """FusedGatesForms."""

    _fields_: ClassVar = [("z", Form), ("c", Form), ("h", Form)]


class Variant(Structure):
    """FusedGatesVariant."""

    _fields_: ClassVar = [
        ("peephole", c_bool),
        ("hard_sigmoid", c_bool),
        ("alpha", c_float),
        ("beta", c_float),
        ("candidate_relu", c_bool),
        ("output_relu", c_bool),
        ("cell_clip", c_float),
        ("coupled", c_bool),
    ]


class Peephole(Structure):
    """A weight for each channel, or for each channel and place."""

    _fields_: ClassVar = [("data", c_void_p), ("map", c_bool)]


class Params(Structure):
    """FusedGatesParams."""

    _fields_: ClassVar = [
        ("variant", Variant),
        ("forms", Forms),
        ("h_scale", c_float),
        ("streams", c_int32),
        ("channels", c_int32),
        ("spatial", c_int64),
        ("z", c_void_p),
        ("c", c_void_p),
        ("p_i", Peephole),
        ("p_f", Peephole),
        ("p_o", Peephole),
        ("h_old", c_void_p),
        ("active", c_void_p),
        ("h", c_void_p),
        ("c_out", c_void_p),
        ("non_finite", c_void_p),
    ]


class FastDivisor(Structure):
    """Division by multiplication: Granlund & Montgomery 1994, section 4."""

    _fields_: ClassVar = [("divisor", c_uint32), ("multiplier", c_uint32), ("shift", c_uint32)]

    @classmethod
    def of(cls, divisor: int) -> FastDivisor:
        """For numbers below 2^31."""
        shift = (divisor - 1).bit_length()
        return cls(divisor, (2**32 * (2**shift - divisor)) // divisor + 1, shift)


class Rows(Structure):
    """Where a channel lies."""

    _fields_: ClassVar = [
        ("block_log", c_int32),
        ("block_stride", c_int32),
        ("place_stride", c_int32),
        ("stream", c_int64),
    ]

    @classmethod
    def of(cls, layout: int, channels: int, spatial: int) -> Rows:
        """rowsOf()."""
        if layout == HWC8:
            padded = _rounded(channels, 8)
            return cls(31, 0, padded, padded * spatial)
        return cls(0, spatial, 1, channels * spatial)


class Plan(Structure):
    """Plan."""

    _fields_: ClassVar = [
        ("params", Params),
        ("walk", c_int32),
        ("run", c_int32),
        ("z", Rows),
        ("h", Rows),
        ("elements", c_int32),
        ("h_channels", c_int32),
        ("h_vectors", c_bool),
        ("h_inverse", c_float),
        ("h_overflow", c_float),
        ("c_overflow", c_float),
        ("spatial", FastDivisor),
        ("runs", FastDivisor),
        ("channel_tiles", FastDivisor),
        ("place_tiles", FastDivisor),
        ("tile_log", c_int32),
        ("lane_log", c_int32),
        ("blocks", c_uint32),
    ]


def variant_of(variant: GateVariant) -> Variant:
    """The kernel's form of a variant. Raises EdgeLstmError for one that it has not."""
    if variant.coded:
        raise EdgeLstmError(
            f"{variant.op_type} on the GPU", found="z as 8-bit codes", expected="z in fp32, fp16 or bf16"
        )
    fields = variant.plugin_fields()
    return Variant(**{name: fields[name] for name, *_ in Variant._fields_})


def plan_of(p: Params) -> Plan:
    """planOf() for parameters whose forms the kernel has. Raises EdgeLstmError where they are too large for it."""
    f, spatial, channels = p.forms, p.spatial, p.channels
    gates = 3 if p.variant.coupled else 4
    if _rounded(gates * channels, 32) * spatial > _MOST:
        raise EdgeLstmError("FusedGates: z of one stream", expected="fewer than 2^31 elements")
    if _rounded(channels, 32) * spatial > (_MOST - THREADS) // (p.streams + 1):
        raise EdgeLstmError("FusedGates: h of all streams", expected="fewer than 2^31 elements")
    plan = Plan(params=p, z=Rows.of(f.z.layout, gates * channels, spatial))
    plan.h = Rows.of(f.h.layout, channels, spatial)
    plan.elements = channels * spatial
    plan.h_vectors = f.h.layout != LINEAR
    plan.h_channels = _rounded(channels, 8 if plan.h_vectors else 1)
    plan.h_overflow, plan.c_overflow = _OVERFLOW[f.h.type], _OVERFLOW[f.c.type]
    plan.spatial = FastDivisor.of(spatial)
    plan.runs = plan.channel_tiles = plan.place_tiles = FastDivisor(1, 1, 0)
    plan.walk = VECTORS if f.z.layout != LINEAR else CHANNELS if plan.h_vectors else FLAT
    flat = plan.walk == FLAT

    floats = f.z.type == FLOAT or (flat and FLOAT in (f.c.type, f.h.type))
    run = 4 if floats else 8
    whole = (plan.elements if flat else channels) % run == 0
    pointers = [p.z, p.c, p.h, p.c_out, p.h_old]
    if p.variant.peephole:
        pointers += [p.p_i.data, p.p_f.data, p.p_o.data]
    wide = all((pointer or 0) % 16 == 0 for pointer in pointers)
    plan.run = run if whole and wide else 1

    if flat:
        runs = plan.elements // plan.run
        plan.runs = FastDivisor.of(runs)
        plan.blocks = -(-p.streams * runs // THREADS)
        return plan
    runs = _rounded(plan.h_channels, plan.run) // plan.run
    tile = 0
    while tile < 8 and 1 << tile < runs and (tile < 3 or THREADS >> tile >= 2 * spatial):
        tile += 1
    narrow = (
        f.c.type == HALF
        or (plan.walk == CHANNELS and f.z.type != FLOAT)
        or (not plan.h_vectors and f.h.type != FLOAT)
    )
    wanted = 3 if plan.run == 1 else 1 if narrow else 2
    plan.tile_log = tile
    plan.lane_log = min(tile, max(wanted, tile - 3))
    channel_tiles = (runs + (1 << tile) - 1) >> tile
    places = THREADS >> tile
    place_tiles = -(-spatial // places)
    plan.channel_tiles, plan.place_tiles = FastDivisor.of(channel_tiles), FastDivisor.of(place_tiles)
    plan.blocks = p.streams * channel_tiles * place_tiles
    return plan


def defines(plan: Plan) -> dict[str, int]:
    """The macros of fused_gates_alone.cu for the kernel that a plan takes."""
    v = plan.params.variant
    plain = not (v.hard_sigmoid or v.candidate_relu or v.output_relu or v.cell_clip or v.coupled)
    return {
        "EDGELSTM_Z": plan.params.forms.z.type,
        "EDGELSTM_RUN": plan.run,
        "EDGELSTM_WALK": plan.walk,
        "EDGELSTM_VARIANT": (2 if v.peephole else 1) if plain and plan.run > 1 else 0,
        "EDGELSTM_PLAN_BYTES": ctypes.sizeof(Plan),
    }


def _rounded(k: int, to: int) -> int:
    return -(-k // to) * to
