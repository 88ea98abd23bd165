"""Keras models, Sequential and functional, from .keras and legacy .h5 files: read, never run, without Keras or TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.frontends.keras.build import Built, Shapes, build
from edgelstm.frontends.keras.reference import KerasProgram
from edgelstm.graph.step import StepModel


@dataclass(frozen=True)
class LoadedKeras:
    """A model's graph; what it is compared with; frames of one call (None: a step); what a user should know."""

    step: StepModel
    reference: KerasProgram
    window: int | None
    notes: tuple[str, ...]


def load_keras(
    path: PathLike,
    *,
    frame: Shapes = None,
    window: int | None = None,
    carry_state: bool = False,
) -> LoadedKeras:
    """The step graph of a Keras model, or the graph of one window where it can't be streamed.

    frame: shape of one frame (without streams and time), where the file leaves sizes open; by input name if several.
    window: length of the sequences for a model that needs whole ones and does not say how long they are.
    carry_state: stream a model that gives its last output only and starts each window from zero.

    Raises EdgeLstmError for a file that can't be read or is damaged, for layers and options that are unknown or code, and
    for weights that are missing or of another shape.
    """
    from edgelstm.frontends.keras.file import open_keras
    from edgelstm.frontends.keras.network import MODELS, Network
    from edgelstm.frontends.keras.options import Options
    from edgelstm.frontends.keras.table import make_layer
    from edgelstm.frontends.keras.weights import load_weights

    file = open_keras(path)
    try:
        kind = file.config.get("class_name")
        if kind not in MODELS:
            raise EdgeLstmError(
                f"{path}: the model is a class of its own",
                found=str(kind)[:80],
                expected="Sequential or Functional",
                hint="Its code is not in the file: build it with the functional API in Keras, set its weights, save that",
            )
        config = file.config.get("config")
        config = (
            {"layers": config} if isinstance(config, list) else config
        )  # Sequential, as Keras 2.1 wrote it
        if not isinstance(config, dict):
            raise EdgeLstmError(f"{path}: the model's configuration", found=config, expected="a JSON object")
        network = Network(Options(file.source, "", str(kind), config), make_layer)
        load_weights(network, file.weights)
        built: Built = build(network, frame=frame, window=window, carry_state=carry_state)
    except RecursionError as error:
        raise EdgeLstmError(f"{path}: models inside models too deep", expected="fewer") from error
    return LoadedKeras(built.step, KerasProgram(network, built), built.window, built.notes)
