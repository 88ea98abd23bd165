"""The launch of one small-cell kernel: the plan that small_cell_params.h makes, made here, and the kernel it takes.

The structs are those of plugins/include/edgelstm; a test compares every field of a plan with the C++ one.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_bool, c_int32, c_void_p
from typing import ClassVar

from edgelstm.kernels.gates.launch import FLOAT, Variant

LSTM, GRU, COUPLED = 0, 1, 2
THREADS, WARPS, MOST_TILE = 256, 8, 8
MOST_HIDDEN, MOST_STREAMS = 1024, 1024
SOURCE, NAME = "small_cell.cu", "edgelstm_small_cell"
#: A cell with no more bytes of weights and products than these is one block: what a multiprocessor reads and multiplies while blocks
#: would wait for each other. Reckoned, not measured.
ALONE_BYTES, ALONE_PRODUCTS = 96 * 1024, 200_000


class Params(Structure):
    """SmallCellParams."""

    _fields_: ClassVar = [
        ("variant", Variant),
        ("kind", c_int32),
        ("type", c_int32),
        ("inputs", c_int32),
        ("hidden", c_int32),
        ("streams", c_int32),
        ("steps", c_int32),
        ("pool_rows", c_int32),
        ("weights", c_void_p),
        ("bias", c_void_p),
        ("peepholes", c_void_p),
        ("x", c_void_p),
        ("projected", c_void_p),
        ("rows", c_void_p),
        ("h", c_void_p),
        ("c", c_void_p),
        ("y", c_void_p),
        ("workspace", c_void_p),
    ]


class Plan(Structure):
    """SmallCellPlan."""

    _fields_: ClassVar = [
        ("params", Params),
        ("gates", c_int32),
        ("inputs_padded", c_int32),
        ("hidden_padded", c_int32),
        ("units", c_int32),
        ("slices", c_int32),
        ("tile", c_int32),
        ("blocks", c_int32),
        ("held", c_bool),
        ("x_wide", c_bool),
        ("h_wide", c_bool),
        ("frames", c_int32),
        ("partial", c_int32),
        ("fresh", c_int32),
        ("cells", c_int32),
        ("shared_bytes", c_int32),
    ]


def to_eight(k: int) -> int:
    """k, or the next multiple of 8."""
    return -(-k // 8) * 8


def workspace_bytes(streams: int, hidden: int, width: int) -> int:
    """A barrier, and two sides of h."""
    return 16 + 2 * streams * to_eight(hidden) * width


def plan_of(p: Params, processors: int, shared_most: int, units: int = 0) -> Plan:
    """planOf(): how the cell is cut for a GPU. ``shared_bytes`` above ``shared_most`` says that there is no way."""
    width = 4 if p.type == FLOAT else 2
    gates = 4 if p.kind == LSTM else 3
    plan = Plan(params=p, gates=gates, inputs_padded=to_eight(p.inputs), hidden_padded=to_eight(p.hidden))
    row = (plan.inputs_padded + plan.hidden_padded) * width
    tile = 1
    while tile < p.streams and tile < MOST_TILE:
        tile *= 2
    passes = -(-p.streams // tile)
    held = p.hidden * gates * row
    alone = held <= ALONE_BYTES and held // width * tile * passes <= ALONE_PRODUCTS
    most = processors if units or not alone else 1
    count = units or 1
    while -(-p.hidden // count) > most:
        count *= 2
    plan.tile, plan.units = tile, count
    plan.slices = WARPS // count if count < WARPS else 1
    plan.blocks = -(-p.hidden // count)
    weights, frames, state = count * gates * row, tile * row, count * p.streams * 4
    partial = count * plan.slices * 4 * tile * 4
    plan.held = p.steps * passes > 1 and weights + frames + partial + 2 * state <= shared_most
    plan.frames = weights if plan.held else 0
    plan.partial = plan.frames + frames
    plan.fresh = plan.partial + partial
    plan.cells = plan.fresh + state
    plan.shared_bytes = plan.cells + state
    plan.x_wide = (p.x or 0) % 16 == 0 and p.inputs * width % 16 == 0
    plan.h_wide = (p.h or 0) % 16 == 0 and p.hidden * width % 16 == 0
    return plan


def defines(plan: Plan) -> dict[str, int]:
    """The macros of small_cell.cu for the kernel that a plan takes."""
    return {
        "EDGELSTM_CELL_TYPE": plan.params.type,
        "EDGELSTM_CELL_KIND": plan.params.kind,
        "EDGELSTM_CELL_TILE": plan.tile,
        "EDGELSTM_CELL_HELD": int(plan.held),
        "EDGELSTM_PLAN_BYTES": ctypes.sizeof(Plan),
    }
