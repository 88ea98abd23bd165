"""A model's configuration as calls of layers in order: Sequential and functional models, alone or inside others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras.builder import Builder, Value
from edgelstm.frontends.keras.layers.layer import Layer, Memory, Tensor
from edgelstm.frontends.keras.options import Options, is_whole

MODELS = ("Sequential", "Functional", "Model")
MAX_LAYERS = 10_000
#: Layer, number of its call, number of the output.
Ref = tuple[str, int, int]
MakeLayer = Callable[[Options, str, Mapping[str, Any]], Layer]
#: What a call may give a layer besides tensors, and what of it matters not at inference.
_HARMLESS = {"training", "mask"}


@dataclass(frozen=True)
class Input:
    """An input: Keras's shape without the batch, None where a size is open."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Call:
    """One call of a layer. ``place`` is unique in the model."""

    layer: Layer
    place: str
    inputs: tuple[Ref, ...]
    outputs: tuple[str, int]


class Network(Layer):
    """A model as a layer: its inputs, its calls in an order that runs, its outputs."""

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

    def children(self) -> list[tuple[str, Layer]]:
        """By the paths at which a .keras file has their weights: the class's name, numbered."""
        counts: dict[str, int] = {}
        found = []
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
            made = call.layer.emit(g, taken, _under(place, call.place))
            known |= {(*call.outputs, k): value for k, value in enumerate(made)}
        return [self._found(known, ref) for _, ref in self.outputs]

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        known: dict[Ref, Tensor] = dict(zip(self._input_refs(), inputs, strict=True))
        for call in self.calls:
            made = call.layer.compute([known[ref] for ref in call.inputs], _under(place, call.place), memory)
            known |= {(*call.outputs, k): value for k, value in enumerate(made)}
        return [self._found(known, ref) for _, ref in self.outputs]

    def reaches_time(self, start: int) -> bool:
        """Whether input ``start`` comes, its time axis untouched, to a layer for which axis 1 is time."""
        reached = {self._input_refs()[start]}
        for call in self.calls:
            for k, ref in enumerate(call.inputs):
                if ref not in reached:
                    continue
                inner = call.layer
                if inner.is_temporal or getattr(inner, "padding", "") == "causal":
                    return True
                if isinstance(inner, Network) and k < len(inner.inputs) and inner.reaches_time(k):
                    return True
                if inner.keeps_time:
                    reached |= {(*call.outputs, n) for n in range(8)}
        return False

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
            layer = make(options, clean(name), given)
            self.layers.append((given["class_name"], layer))
            for number, node in enumerate(given["inbound_nodes"]):
                place = clean(name) if not number else f"{clean(name)}.call{number}"
                refs = tuple(_references(layer, node))
                if not refs:
                    raise EdgeLstmError(f"{layer.what} is called with nothing", expected="a tensor")
                waiting.append(Call(layer, place, refs, (name, number)))
        for name, _, _ in _output_refs(options.get("input_layers")):
            self.inputs.append(inputs[name])
        known = set(self._input_refs()) | {(i.name, 0, 0) for i in inputs.values()}
        while waiting:
            ready = [c for c in waiting if all(_made(ref, known) for ref in c.inputs)]
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


def snake_case(name: str) -> str:
    """``conv_lstm2d`` of ConvLSTM2D, ``p_re_lu`` of PReLU: how Keras names what lies in a container."""
    plain = re.sub(r"\W+", "", name)
    apart = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", plain)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", apart).lower()


def clean(name: str) -> str:
    """A layer's name as part of the names of values and states."""
    return re.sub(r"[^\w.\-]+", "_", name)[:80] or "layer"


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


def _references(layer: Layer, node: Any) -> list[Ref]:
    """Which tensors a call takes, as Keras 3 or Keras 2 writes it."""
    if isinstance(node, list):  # Keras 2: [[name, node, tensor, kwargs], ...]
        items = [node] if node and isinstance(node[0], str) else node
        found = []
        for item in items:
            found.append((str(item[0]), int(item[1]), int(item[2])))
            if len(item) > 3:
                found += _from_keywords(layer, item[3])
        return found
    found = []
    for argument in node["args"]:
        found += _tensors(layer, argument)
    return found + _from_keywords(layer, node.get("kwargs") or {})


def _tensors(layer: Layer, argument: Any) -> list[Ref]:
    if isinstance(argument, dict) and argument.get("class_name") == "__keras_tensor__":
        name, node, tensor = argument["config"]["keras_history"]
        return [(str(name), int(node), int(tensor))]
    if isinstance(argument, list) and len(argument) == 3 and isinstance(argument[0], str):
        return [(argument[0], int(argument[1]), int(argument[2]))]  # Keras 2, in keyword arguments
    if isinstance(argument, list | tuple):
        return [ref for item in argument for ref in _tensors(layer, item)]
    if argument is None:
        return []
    raise EdgeLstmError(f"{layer.what} is called with something that is no tensor", found=str(argument)[:80])


def _from_keywords(layer: Layer, keywords: Mapping[str, Any]) -> list[Ref]:
    found: list[Ref] = []
    for key, value in keywords.items():
        if key in _HARMLESS:
            continue
        if key == "initial_state":
            found += _tensors(layer, value)
        elif value is not None and value is not False:
            raise EdgeLstmError(
                f"{layer.what} is called with {key!r}",
                found=str(value)[:80],
                expected="a call with tensors alone",
            )
    return found
