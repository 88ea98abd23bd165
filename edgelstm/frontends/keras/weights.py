"""From a file's arrays to each layer's weights, for both ways of Keras to keep them."""

from __future__ import annotations

from collections.abc import Iterator

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras.file import WeightStore
from edgelstm.frontends.keras.hdf5 import Float32
from edgelstm.frontends.keras.layers.weighted import Weighted
from edgelstm.frontends.keras.network import Network

#: A layer and one of its own weights.
Slot = tuple[Weighted, str]
#: What containers of layers were called before Keras 2.15.
_OLD_CONTAINER = "_layer_checkpoint_dependencies"


def load_weights(network: Network, store: WeightStore) -> None:
    """Give every layer of ``network`` its weights. Shapes are checked later, when what comes in is known."""
    if store.by_path:
        _by_path(network, store, "", {})
    else:
        _by_layer(network, store)


def _by_path(layer: Weighted, store: WeightStore, path: str, seen: dict[int, str]) -> None:
    names = [name for part in layer.variables() for name in part]
    if names:
        layer.receive(store.arrays(path))
    for attribute, child in layer.children():
        below = f"{path}/{attribute}" if path else attribute
        if attribute.startswith("layers/") and not store.has(below):
            old = below.replace("layers/", f"{_OLD_CONTAINER}/", 1) if not path else below
            old = f"{path}/{attribute.replace('layers', _OLD_CONTAINER, 1)}" if path else old
            below = old if store.has(old) else below
        hidden = f"{path}/_{attribute}" if path else below
        if not store.has(below) and store.has(hidden):
            below = hidden  # an attribute with an underscore, as Keras 2 had them
        _by_path(child, store, below, seen)


def _by_layer(network: Network, store: WeightStore) -> None:
    for _, layer in network.layers:
        slots = [*trainable(layer), *frozen(layer)]
        if not slots:
            continue
        name = str(layer.options.get("name") or layer.name)
        arrays: list[Float32] = store.arrays(name)
        if len(arrays) != len(slots):
            raise EdgeLstmError(
                f"{layer.what}: weights are missing or too many",
                found=f"{count_of(len(arrays), 'array')} of shapes {[list(a.shape) for a in arrays][:8]}",
                expected=f"{len(slots)}: {', '.join(n for _, n in slots[:8])}",
            )
        given: dict[int, dict[str, Float32]] = {}
        for (owner, variable), array in zip(slots, arrays, strict=True):
            given.setdefault(id(owner), {})[variable] = array
        for owner in _all(layer):
            own = [n for part in owner.variables() for n in part]
            if own:
                owner.receive([given[id(owner)][n] for n in own])


def _all(layer: Weighted) -> Iterator[Weighted]:
    yield layer
    for _, child in layer.children():
        yield from _all(child)


def everything(layer: Weighted) -> list[Slot]:
    """A layer's weights, its own first, then layer by layer."""
    own = [(layer, name) for part in layer.variables() for name in part]
    return own + [slot for _, child in layer.children() for slot in everything(child)]


def trainable(layer: Weighted) -> list[Slot]:
    """Those that training changes; a layer set to ``trainable=False`` has none."""
    if not layer.trainable:
        return []
    own = [(layer, name) for name in layer.variables()[0]]
    return own + [slot for _, child in layer.children() for slot in trainable(child)]


def frozen(layer: Weighted) -> list[Slot]:
    """The others."""
    if not layer.trainable:
        return everything(layer)
    own = [(layer, name) for name in layer.variables()[1]]
    return own + [slot for _, child in layer.children() for slot in frozen(child)]
