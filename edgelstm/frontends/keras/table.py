"""Which layers are known, and how each is made from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras.layers.attention import Attention, MultiHeadAttention
from edgelstm.frontends.keras.layers.categories import (
    CategoryEncoding,
    Discretization,
    Embedding,
    IntegerLookup,
)
from edgelstm.frontends.keras.layers.cells import CELLS
from edgelstm.frontends.keras.layers.convolution import Convolution, Depthwise, Separable, Transposed
from edgelstm.frontends.keras.layers.dense import BatchNormalization, Dense, LayerNormalization
from edgelstm.frontends.keras.layers.elementwise import ActivationLayer, Merge, PReLU, Rescaling
from edgelstm.frontends.keras.layers.layer import Identity, Layer
from edgelstm.frontends.keras.layers.normalization import (
    GroupNormalization,
    Normalization,
    RMSNormalization,
    SpectralNormalization,
    UnitNormalization,
)
from edgelstm.frontends.keras.layers.pooling import GlobalPooling, Pooling
from edgelstm.frontends.keras.layers.recurrent import Recurrent
from edgelstm.frontends.keras.layers.shaping import (
    Flatten,
    Permute,
    RepeatVector,
    Reshape,
    UpSampling,
    ZeroPadding,
)
from edgelstm.frontends.keras.layers.wrappers import Bidirectional, Masking, TimeDistributed
from edgelstm.frontends.keras.network import MODELS, Network
from edgelstm.frontends.keras.options import Options

_RANKS = ("1D", "2D", "3D")


def _ranked(name: str, make: Callable[[Options], Layer]) -> dict[str, Callable[[Options], Layer]]:
    return {name.format(rank): make for rank in _RANKS}


#: By class name.
LAYERS: dict[str, Callable[[Options], Layer]] = {
    **dict.fromkeys((*CELLS, "RNN"), Recurrent),
    "Bidirectional": Bidirectional,
    "Masking": Masking,
    "Dense": Dense,
    "BatchNormalization": BatchNormalization,
    "LayerNormalization": LayerNormalization,
    "Normalization": Normalization,
    "GroupNormalization": GroupNormalization,
    "UnitNormalization": UnitNormalization,
    "RMSNormalization": RMSNormalization,
    "Embedding": Embedding,
    "CategoryEncoding": CategoryEncoding,
    "Discretization": Discretization,
    "IntegerLookup": IntegerLookup,
    "Attention": Attention,
    "AdditiveAttention": Attention,
    "MultiHeadAttention": MultiHeadAttention,
    **_ranked("Conv{}", Convolution),
    **_ranked("Conv{}Transpose", Transposed),
    "DepthwiseConv1D": Depthwise,
    "DepthwiseConv2D": Depthwise,
    "SeparableConv1D": Separable,
    "SeparableConv2D": Separable,
    **_ranked("MaxPooling{}", Pooling),
    **_ranked("AveragePooling{}", Pooling),
    **_ranked("GlobalMaxPooling{}", GlobalPooling),
    **_ranked("GlobalAveragePooling{}", GlobalPooling),
    **_ranked("ZeroPadding{}", ZeroPadding),
    **_ranked("Cropping{}", ZeroPadding),
    **_ranked("UpSampling{}", UpSampling),
    "Flatten": Flatten,
    "Reshape": Reshape,
    "Permute": Permute,
    "RepeatVector": RepeatVector,
    **dict.fromkeys(("Activation", "ReLU", "LeakyReLU", "ELU", "Softmax"), ActivationLayer),
    "PReLU": PReLU,
    "Rescaling": Rescaling,
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Average", "Concatenate"), Merge),
    **dict.fromkeys(
        (
            "Dropout",
            "AlphaDropout",
            "GaussianDropout",
            "GaussianNoise",
            "SpatialDropout1D",
            "SpatialDropout2D",
            "SpatialDropout3D",
            "ActivityRegularization",
            "Identity",
            "AddLoss",
            "AddMetric",
        ),
        Identity,
    ),
}
#: Names of Keras 2 for the same layers, where weights and options are the same too.
_OLD_NAMES = {
    f"{old}{rank}": f"{new}{rank}"
    for old, new in (
        ("Convolution", "Conv"),
        ("MaxPool", "MaxPooling"),
        ("AvgPool", "AveragePooling"),
        ("GlobalMaxPool", "GlobalMaxPooling"),
        ("GlobalAvgPool", "GlobalAveragePooling"),
    )
    for rank in _RANKS
} | {"BatchNormalizationV1": "BatchNormalization", "BatchNormalizationV2": "BatchNormalization"}
#: Code that a file brings along.
_CODE = ("Lambda", "TorchModuleWrapper", "JaxLayer", "TFSMLayer")
#: Layers around a layer.
_WRAPPERS = {"TimeDistributed": TimeDistributed, "SpectralNormalization": SpectralNormalization}


def make_layer(parent: Options, name: str, given: Mapping[str, Any]) -> Layer:
    """The layer that configuration ``given`` states, ``name`` inside ``parent``.

    Raises EdgeLstmError for layers that are unknown, that bring code along, or that somebody registered.
    """
    kind, config = given.get("class_name"), given.get("config")
    path = f"{parent.path}/{name}" if parent.path else name
    where = f"{parent.source.where}: layer {path!r}"
    if not isinstance(kind, str) or not isinstance(config, Mapping | list):
        raise EdgeLstmError(where, found="no class_name or no config", expected="a layer as Keras writes it")
    kind = kind.rsplit(">", 1)[-1] if kind.startswith("keras>") else kind
    kind = _OLD_NAMES.get(kind, kind)
    if kind in _CODE:
        raise EdgeLstmError(
            f"{where} is a {kind}: code inside the file, which is never run",
            expected="layers that say what they compute",
            hint="Build the model with a layer of Keras in its place (Rescaling, Reshape, Activation, ...), or do it to the frames",
        )
    if kind in MODELS:
        if isinstance(config, list):
            config = {"name": name, "layers": config}
        options = Options(parent.source, path, kind, config)
        return Network(options, make_layer)
    module, registered = given.get("module"), given.get("registered_name")
    custom = (isinstance(module, str) and not module.startswith(("keras", "tf_keras", "tensorflow"))) or (
        isinstance(registered, str) and registered not in (kind, f"keras>{kind}", f"Keras>{kind}")
    )
    if isinstance(config, list):
        raise EdgeLstmError(where, found="a list", expected="the configuration of a layer")
    options = Options(parent.source, path, kind, config)
    if kind in _WRAPPERS and not custom:
        return _WRAPPERS[kind](options, make_layer)
    if kind not in LAYERS or custom:
        raise EdgeLstmError(
            f"{where} is unknown",
            found=f"{kind} of {module}" if custom else kind,
            expected=f"one of {', '.join(sorted({*LAYERS, *_WRAPPERS, *MODELS}))}",
            hint="What a layer computes from frames alone can be done to them before they come: see --preprocess",
        )
    return LAYERS[kind](options)
