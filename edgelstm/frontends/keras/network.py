"""A model's configuration as calls of layers in order: Sequential and functional models, alone or inside others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras.builder import Builder, Value
from edgelstm.frontends.keras.calls import Arguments, Ref, Slot, read_call
from edgelstm.frontends.keras.layers.attention import Bindable
from edgelstm.frontends.keras.layers.layer import Layer, Memory, Tensor
from edgelstm.frontends.keras.layers.recurrent import Recurrent
from edgelstm.frontends.keras.layers.weighted import Weighted
from edgelstm.frontends.keras.names import clean, snake_case
from edgelstm.frontends.keras.operators.table import is_operator, make_operator
from edgelstm.frontends.keras.options import Options, is_off, is_whole

MODELS = ("Sequential", "Functional", "Model")
MAX_LAYERS = 10_000
MakeLayer = Callable[[Options, str, Mapping[str, Any]], Layer]


@dataclass(frozen=True)
class Input:
    """An input: Keras's shape without the batch, None where a size is open."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Call:
    """One call of a layer. ``place`` is unique in the model; ``masks`` are of the inputs, where the call gives them."""

    layer: Layer
    place: str
    inputs: tuple[Ref, ...]
    outputs: tuple[str, int]
    masks: tuple[Ref | None, ...] = ()


class Network(Layer):
    """A model as a layer: its inputs, its calls in an order that runs, its outputs."""

    any_dtype = True

    def __init__(self, options: Options, make: MakeLayer) -> None:
        super().__init__(options)
        self.inputs: list[Input] = []
        self.layers: list[tuple[str, Layer]] = []
        self.calls: list[Call] = []
        self.outputs: list[tuple[str, Ref]] = []
        layers = options.get("layers")
        if not isinstance(layers, list) or not layers or len(layers) > MAX_LAYERS:
            raise options.error("layers", f"a list of 1 to {MAX_LAYERS} layers")
        try:
            if options.kind == "Sequential":
                self._sequential(options, layers, make)
            else:
                self._functional(options, layers, make)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise EdgeLstmError(
                f"{options.what}: the configuration is not as Keras writes it",
                found=f"{type(error).__name__} {str(error)[:100]}",
            ) from error

    def children(self) -> list[tuple[str, Weighted]]:
        """By the paths at which a .keras file has their weights: the class's name, numbered."""
        counts: dict[str, int] = {}
        found: list[tuple[str, Weighted]] = []
        for kind, layer in self.layers:
            name = snake_case(kind)
            number = counts.get(name, 0)
            counts[name] = number + 1
            found.append((f"layers/{name}_{number}" if number else f"layers/{name}", layer))
        return found

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        if len(inputs) != len(self.inputs):
            raise EdgeLstmError(f"{self.what}: inputs", found=len(inputs), expected=len(self.inputs))
        known: dict[Ref, Value] = dict(zip(self._input_refs(), inputs, strict=True))
        for call in self.calls:
            taken = [self._found(known, ref) for ref in call.inputs]
            masks = [self._found(known, ref) if ref else None for ref in call.masks]
            taken = [masked(g, call.layer, v, m) for v, m in zip_longest(taken, masks)]
            if not call.layer.any_dtype:
                taken = [g.cast(value, "float32") for value in taken]
            made = call.layer.emit(g, taken, _under(place, call.place))
            known |= {(*call.outputs, k): value for k, value in enumerate(made)}
        return [self._found(known, ref) for _, ref in self.outputs]

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        known: dict[Ref, Tensor] = dict(zip(self._input_refs(), inputs, strict=True))
        for call in self.calls:
            taken = [known[ref] for ref in call.inputs]
            masks = [known[ref].data.astype(bool) if ref else None for ref in call.masks]
            taken = [x if m is None else replace(x, mask=m) for x, m in zip_longest(taken, masks)]
            if not call.layer.any_dtype:
                taken = [
                    x if x.data.dtype.kind == "f" else replace(x, data=x.data.astype(np.float64))
                    for x in taken
                ]
            made = call.layer.compute(taken, _under(place, call.place), memory)
            known |= {(*call.outputs, k): self._working(value) for k, value in enumerate(made)}
        return [self._found(known, ref) for _, ref in self.outputs]

    def _working(self, value: Tensor) -> Tensor:
        """In the type that is computed in, where a layer's equation went through another."""
        if value.data.dtype.kind != "f" or value.data.dtype == self.working:
            return value
        return replace(value, data=value.data.astype(self.working))

    def reaches_time(self, start: int, wide: bool | None = None) -> bool:
        """Whether input ``start`` comes, its time axis untouched, to a layer for which axis 1 is time.

        wide: whether it has features behind the time axis; else a layer before has to give it some.
        """
        source = self._input_refs()[start]
        reached = {source: len(self.inputs[start].shape) >= 2 if wide is None else wide}
        for call in self.calls:
            for k, ref in enumerate(call.inputs):
                if ref not in reached:
                    continue
                inner, has = call.layer, reached[ref] or call.layer.adds_axis
                if has and (inner.is_temporal or getattr(inner, "padding", "") == "causal"):
                    return True
                if isinstance(inner, Network) and k < len(inner.inputs) and inner.reaches_time(k, has):
                    return True
                if inner.keeps_time:
                    reached |= {(*call.outputs, n): has for n in range(8)}
        return False

    def takes_numbers(self, start: int) -> bool:
        """Whether input ``start`` goes to layers of whole numbers alone."""
        ref = self._input_refs()[start]
        found = [
            layer.takes_numbers(call.inputs.index(ref)) if isinstance(layer, Network) else layer.takes_ids
            for call in self.calls
            if ref in call.inputs and call.layer.options.kind != "NotEqual"
            for layer in [call.layer]
        ]
        return bool(found) and all(found)

    def _found(self, known: Mapping[Ref, Any], ref: Ref) -> Any:
        if ref not in known:
            raise EdgeLstmError(f"{self.what}: a value that no layer makes", found=str(ref)[:80])
        return known[ref]

    def _input_refs(self) -> list[Ref]:
        return [(i.name, 0, 0) for i in self.inputs]

    # -- reading --------------------------------------------------------------------------------------------------

    def _sequential(self, options: Options, layers: Sequence[Any], make: MakeLayer) -> None:
        shape = options.get("build_input_shape")
        first: Any = layers[0]
        last: Ref | None = None
        names: set[str] = set()
        for given in layers:
            kind, config = given["class_name"], given["config"]
            name = clean(str(config.get("name", kind)) if isinstance(config, dict) else kind)
            if kind == "InputLayer":
                self.inputs.append(self._input(options, name, config))
                last = (name, 0, 0)
                continue
            if last is None:
                # Without an input layer, the first layer or the model says what comes in.
                own = first["config"] if isinstance(first["config"], dict) else {}
                shape = own.get("batch_input_shape") or own.get("batch_shape") or shape
                self.inputs.append(self._input(options, "x", {"batch_shape": shape}))
                last = ("x", 0, 0)
            while name in names:
                name += "_"
            names.add(name)
            layer = make(options, name, given)
            self.layers.append((kind, layer))
            self.calls.append(Call(layer, name, (last,), (f"layer {name}", 0)))
            last = (f"layer {name}", 0, 0)
        if last is None:
            raise options.error("layers", "at least one layer")
        self.outputs = [("y", last)]

    def _functional(self, options: Options, layers: Sequence[Any], make: MakeLayer) -> None:
        waiting: list[Call] = []
        inputs: dict[str, Input] = {}
        for given in layers:
            config = given["config"]
            name = str(given.get("name") or config["name"])
            if given["class_name"] == "InputLayer":
                inputs[name] = self._input(options, name, config)
                continue
            operator = is_operator(given)
            if not operator:
                layer = make(options, clean(name), given)
                self.layers.append((given["class_name"], layer))
            for number, node in enumerate(given["inbound_nodes"]):
                place = clean(name) if not number else f"{clean(name)}.call{number}"
                if operator:
                    layer, call = make_operator(options, clean(name), given, partial(_read_call, node))
                    waiting.append(Call(layer, place, call.refs, (name, number)))
                    continue
                waiting.append(_call(layer, place, read_call(layer.what, node), (name, number)))
        for name, _, _ in _output_refs(options.get("input_layers")):
            self.inputs.append(inputs[name])
        known = set(self._input_refs()) | {(i.name, 0, 0) for i in inputs.values()}
        while waiting:
            ready = [
                c
                for c in waiting
                if all(_made(ref, known) for ref in (*c.inputs, *c.masks) if ref is not None)
            ]
            if not ready:
                raise EdgeLstmError(
                    f"{options.what}: layers that wait for each other, or for what no layer makes",
                    found=", ".join(c.place for c in waiting[:8]),
                )
            self.calls += ready
            known |= {(*c.outputs, 0) for c in ready}
            waiting = [c for c in waiting if c not in ready]
        held = options.get("output_layers")
        named = isinstance(held, dict)
        made = _output_refs(held)
        keys = held if named else [ref[0] for ref in made]
        self.outputs = [(str(key), ref) for key, ref in zip(keys, made, strict=True)]
        if not self.inputs or not self.outputs:
            raise EdgeLstmError(f"{options.what}: no inputs or no outputs", expected="at least one of each")

    def _input(self, options: Options, name: str, config: Mapping[str, Any]) -> Input:
        shape: Any = config.get("batch_shape") or config.get("batch_input_shape")
        good = isinstance(shape, list | tuple) and 1 <= len(shape) <= 7
        if not good or not all(n is None or is_whole(n) for n in shape[1:]):
            raise EdgeLstmError(
                f"{options.what}: shape of input {name!r}",
                found=shape,
                expected="[batch, ...] with whole numbers or null",
                hint="Build the model before saving it: call it once, or give it an Input",
            )
        for key in ("sparse", "ragged"):
            if config.get(key):
                raise EdgeLstmError(
                    f"{options.what}: input {name!r} is {key}", expected="a tensor of numbers"
                )
        dtype = config.get("dtype") or "float32"
        return Input(name, tuple(shape[1:]), dtype if isinstance(dtype, str) else "float32")


def _under(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _made(ref: Ref, known: set[Ref]) -> bool:
    return (ref[0], ref[1], 0) in known


def _output_refs(held: Any) -> list[Ref]:
    """[name, 0, 0], a list of such, or a dictionary of them."""
    if isinstance(held, dict):
        held = list(held.values())
    if isinstance(held, list) and len(held) == 3 and isinstance(held[0], str):
        held = [held]
    return [(str(name), int(node), int(tensor)) for name, node, tensor in held]


def _read_call(node: Any, what: str) -> Arguments:
    return read_call(what, node)


def _call(layer: Layer, place: str, given: Arguments, outputs: tuple[str, int]) -> Call:
    """A call of a layer: the tensors it takes and their masks. Raises EdgeLstmError for arguments that may matter."""
    keywords = dict(given.keywords)
    training = keywords.pop("training", None)
    if training and not _same_in_training(layer):
        raise EdgeLstmError(
            f"{layer.what} is called as in training, for good",
            found="training=True",
            expected="training=False",
            hint="It takes statistics from all rows of the batch, or draws random numbers: rows here are streams, each alone",
        )
    if isinstance(layer, Bindable):
        layer, slots = layer.bind(given.args, {k: v for k, v in keywords.items() if k != "mask"})
    else:
        slots = [*_slots(layer, given.args), *_slots(layer, keywords.pop("initial_state", None))]
        for key, value in keywords.items():
            if key != "mask" and not is_off(value):
                raise EdgeLstmError(
                    f"{layer.what} is called with {key!r}",
                    found=str(value)[:80],
                    expected="a call with tensors alone",
                )
    if not slots:
        raise EdgeLstmError(f"{layer.what} is called with nothing", expected="a tensor")
    refs = tuple(given.refs[slot.number] for slot in slots)
    mask = keywords.get("mask")
    masks = mask if isinstance(mask, list) else [mask]
    if not all(m is None or isinstance(m, Slot) for m in masks) or len(masks) > len(refs):
        raise EdgeLstmError(f"{layer.what}: its mask", found=str(mask)[:80], expected="a tensor")
    found = tuple(given.refs[m.number] if isinstance(m, Slot) else None for m in masks)
    return Call(layer, place, refs, outputs, found if any(found) else ())


def _same_in_training(layer: Layer) -> bool:
    """Whether it is a recurrent layer without dropout."""
    inner = [layer, *(x for _, child in layer.children() for x in (child, *(c for _, c in child.children())))]
    return isinstance(layer, Recurrent) and not any(
        x.options.get(key) for x in inner for key in ("dropout", "recurrent_dropout")
    )


def _slots(layer: Layer, argument: Any) -> list[Slot]:
    if isinstance(argument, Slot):
        return [argument]
    if isinstance(argument, list | tuple):
        return [slot for item in argument for slot in _slots(layer, item)]
    if argument is None:
        return []
    raise EdgeLstmError(f"{layer.what} is called with something that is no tensor", found=str(argument)[:80])


def masked(g: Builder, layer: Layer, value: Value, mask: Value | None) -> Value:
    """``value`` under a mask that its call gives: bool [N, T]."""
    if mask is None:
        return value
    frame = value.shape[:1] if value.time is None else ()
    if mask.shape != frame or mask.dtype != "bool" or mask.time != value.time:
        raise EdgeLstmError(
            f"{layer.what}: its mask",
            found=f"{mask.dtype} of shape {list(mask.shape)}{'' if mask.time == value.time else ', at other frames'}",
            expected=f"bool of shape {list(frame)}: one for every element",
        )
    if value.time is None:
        return replace(value, mask=mask.name)
    return replace(value, mask=g.op("Unsqueeze", [mask.name, g.integers([1])], f"{mask.name}/mask"))
