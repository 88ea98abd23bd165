"""Layers of whole numbers: Embedding, CategoryEncoding, Discretization, IntegerLookup."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras.builder import Array, Builder, NeedsWindow, Value
from edgelstm.frontends.keras.layers.layer import FrameLayer, Memory, Tensor
from edgelstm.frontends.keras.options import Options


class Embedding(FrameLayer):
    """A row of the table for each whole number; ``mask_zero`` masks the elements that are 0."""

    any_dtype = True
    adds_axis = True
    takes_ids = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.rows, self.size = options.whole("input_dim"), options.whole("output_dim")
        self.masks = options.flag("mask_zero")
        options.off("lora_rank", "no LoRA adapters: merge them in Keras before saving")
        options.off("quantization_config", "float weights: edgelstm quantises after export")
        options.finish("input_length", "lora_alpha", "sparse")

    def variables(self) -> tuple[list[str], list[str]]:
        return ["embeddings"], []

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        value: Value = self.single(inputs)
        ids = g.cast(value, value.dtype if value.dtype in ("int32", "int64") else "int32")
        table = g.constant(self.weight("embeddings", (self.rows, self.size)), f"{place}/table")
        name = g.op("Gather", [table, g.plain(ids)], place, axis=0)
        shape = (*value.shape, self.size)
        made = replace(value, name=name, shape=shape, perm=tuple(range(len(shape) + 1)), dtype="float32")
        return [replace(made, mask=self._mask(g, value, place))]

    def _mask(self, g: Builder, value: Value, place: str) -> str | None:
        if not self.masks:
            return None
        if len(value.shape) != (0 if value.time is not None else 1):
            raise self.options.error("mask_zero", "False where there are more axes than streams and time")
        zero = g.constant(np.array(0, value.dtype), f"zero_{value.dtype}")
        same = g.op("Equal", [value.name, zero], f"{place}/zero")
        mask = g.op("Not", [same], f"{place}/mask")
        return mask if value.time is None else g.op("Unsqueeze", [mask, g.integers([1])], f"{place}/masks")

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        x: Tensor = self.single(inputs)
        ids = x.data.astype(np.int64)
        if ids.size and not (-self.rows <= ids.min() and ids.max() < self.rows):
            raise EdgeLstmError(
                f"{self.what}: what comes in",
                found=f"{ids.min()} to {ids.max()}",
                expected=f"whole numbers from 0 to {self.rows - 1}",
            )
        mask = x.data != 0 if self.masks else None
        return [replace(x, data=self.weights["embeddings"][ids], mask=mask)]


class _Encoding(FrameLayer):
    """Whole numbers below ``depth``, as they are or as ones in places."""

    any_dtype = True
    mask_rule = "drops"

    def read_mode(self, options: Options, default: str) -> None:
        """``output_mode``."""
        modes = ("int", "one_hot", "multi_hot", "count")
        self.mode = options.choice("output_mode", modes, default)
        options.off("sparse", "dense numbers")
        self.adds_axis = self.mode == "one_hot"

    def encoded(self, g: Builder, ids: Value, depth: int, place: str) -> Value:
        """Emit the encoding of int32 numbers."""
        if self.mode == "int":
            return ids
        one_hot = self.mode == "one_hot"
        if not one_hot and not ids.shape:
            if ids.time is not None:
                raise NeedsWindow(f"{self.what} joins all frames")
            raise EdgeLstmError(f"{self.what}: what comes in", found="one number a row", expected="several")
        ids = replace(ids, name=g.plain(ids), perm=tuple(range(len(ids.shape) + 1)))
        if one_hot and ids.shape and ids.shape[-1] == 1:
            last = g.integers([len(ids.shape)])
            ids = Value(g.op("Squeeze", [ids.name, last], f"{place}/ids"), ids.shape[:-1], ids.time)
        wide = g.op("Unsqueeze", [ids.name, g.integers([len(ids.shape) + 1])], f"{place}/wide")
        known = g.constant(np.arange(depth, dtype=np.int32), f"{place}/known")
        same = g.op("Equal", [wide, known], f"{place}/same")
        name = g.op("Cast", [same], f"{place}/ones", to=1)
        shape = (*ids.shape, depth)
        if not one_hot:
            if self.mode == "count" and len(ids.shape) > 1:
                raise EdgeLstmError(
                    f"{self.what}: counts", found=list(ids.shape), expected="numbers of one axis"
                )
            op = "ReduceSum" if self.mode == "count" else "ReduceMax"
            name = g.op(op, [name, g.integers([len(ids.shape)])], place, keepdims=0)
            shape = (*ids.shape[:-1], depth)
        return replace(ids, name=name, shape=shape, perm=tuple(range(len(shape) + 1)), dtype="float32")

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        x: Tensor = self.single(inputs)
        ids, depth = self.numbers(x.data)
        sequence = x.sequence and self.keeps_time
        return [replace(x, data=self._encode(ids, depth, x.streamed), mask=None, sequence=sequence)]

    @abstractmethod
    def numbers(self, x: Array) -> tuple[Array, int]:
        """The whole numbers by NumPy, and how many there may be."""

    def _encode(self, ids: Array, depth: int, streamed: bool) -> Array:
        if self.mode == "int":
            return ids
        # A last axis of one place is that of the classes, but for the time of a stream.
        if self.mode == "one_hot" and ids.ndim > (2 if streamed else 1) and ids.shape[-1] == 1:
            ids = ids[..., 0]
        ones: Array = (ids[..., None] == np.arange(depth)).astype(np.float64)
        if self.mode == "one_hot":
            return ones
        counts: Array = ones.sum(-2) if self.mode == "count" else ones.max(-2, initial=0.0)
        return counts


class CategoryEncoding(_Encoding):
    """One hot, several hot, or how often."""

    takes_ids = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.depth = options.whole("num_tokens")
        self.read_mode(options, "multi_hot")
        self.keeps_time = self.mode == "one_hot"
        options.finish()

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        return self.encoded(g, g.cast(value, "int32"), self.depth, place)

    def numbers(self, x: Array) -> tuple[Array, int]:
        return x.astype(np.int64), self.depth


class Discretization(_Encoding):
    """The number of boundaries that are not above x."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        bounds = options.get("bin_boundaries")
        good = isinstance(bounds, list) and 0 < len(bounds) <= 2**16
        try:
            self.bounds = np.array(bounds, np.float64) if good else np.zeros(0)
        except (TypeError, ValueError):
            good = False
        if not good or self.bounds.ndim != 1 or not (np.diff(self.bounds) > 0).all():
            raise options.error("bin_boundaries", "rising numbers", hint="adapt() the layer before saving")
        self.read_mode(options, "int")
        self.keeps_time = self.mode in ("int", "one_hot")
        options.finish("num_bins", "epsilon")

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        value = g.cast(value, "float32")
        plain = replace(value, name=g.plain(value), perm=tuple(range(len(value.shape) + 1)))
        last = g.integers([len(value.shape) + 1])
        wide = g.op("Unsqueeze", [plain.name, last], f"{place}/wide")
        bounds = g.constant(self.bounds.astype(np.float32), f"{place}/bounds")
        over = g.op("GreaterOrEqual", [wide, bounds], f"{place}/over")
        number = g.op("Cast", [over], f"{place}/numbers", to=6)
        name = g.op("ReduceSum", [number, last], f"{place}/bin", keepdims=0)
        return self.encoded(g, replace(plain, name=name, dtype="int32"), len(self.bounds) + 1, place)

    def numbers(self, x: Array) -> tuple[Array, int]:
        # Compared in float32, as Keras compares: an x on a boundary is above it.
        bins = np.searchsorted(self.bounds.astype(np.float32), x.astype(np.float32), side="right")
        return np.asarray(bins, np.int64), len(self.bounds) + 1


class IntegerLookup(_Encoding):
    """The place of a whole number in the vocabulary; those not in it are 0 (1 where 0 is a mask)."""

    takes_ids = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        words = options.get("vocabulary")
        good = isinstance(words, list) and 0 < len(words) <= 2**16
        if not good or not all(isinstance(w, int) and abs(w) < 2**31 for w in words):
            raise options.error("vocabulary", "whole numbers, in the file's configuration")
        self.mask = options.get("mask_token")
        if options.get("num_oov_indices", 1) != 1:
            raise options.error("num_oov_indices", "1")
        if options.flag("invert"):
            raise options.error("invert", "False")
        self.read_mode(options, "int")
        self.keeps_time = self.mode in ("int", "one_hot")
        oov = options.get("oov_token", -1)
        masked = self.mask is not None
        special = ([self.mask] if masked and self.mode == "int" else []) + [oov]
        if words[: len(special)] == special:
            words = words[len(special) :]
        self.words = np.array(words, np.int64)
        self.first = 2 if masked and self.mode == "int" else 1
        options.finish(
            "max_tokens", "vocabulary_dtype", "idf_weights", "pad_to_max_tokens", "vocabulary_size"
        )

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        value = g.cast(value, "int64")
        plain = replace(value, name=g.plain(value), perm=tuple(range(len(value.shape) + 1)))
        last = g.integers([len(value.shape) + 1])
        wide = g.op("Unsqueeze", [plain.name, last], f"{place}/wide")
        known, number = [self.words], [np.arange(len(self.words)) + self.first]
        if self.first == 2:
            known, number = [*known, np.array([self.mask])], [*number, np.array([0])]
        # Every known number is a step away from what the unknown ones give.
        unknown = self.first - 1
        steps = (np.concatenate(number) - unknown).astype(np.int32)
        same = g.op(
            "Equal",
            [wide, g.constant(np.concatenate(known).astype(np.int64), f"{place}/known")],
            f"{place}/same",
        )
        ones = g.op("Cast", [same], f"{place}/ones", to=6)
        chosen = g.op("Mul", [ones, g.constant(steps, f"{place}/steps")], f"{place}/chosen")
        total = g.op("ReduceSum", [chosen, last], f"{place}/total", keepdims=0)
        name = g.op(
            "Add", [total, g.constant(np.array(unknown, np.int32), f"{place}/unknown")], f"{place}/index"
        )
        return self.encoded(g, replace(plain, name=name, dtype="int32"), len(self.words) + self.first, place)

    def numbers(self, x: Array) -> tuple[Array, int]:
        ids = np.full(x.shape, self.first - 1, np.int64)
        for k, word in enumerate(self.words):
            ids[x == word] = k + self.first
        if self.first == 2:
            ids[x == self.mask] = 0
        return ids, len(self.words) + self.first
