"""How the files beside this were made: by Keras 2.15 of TensorFlow 2.15.1, which the tests don't need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tensorflow import keras
from tensorflow.keras import layers

HERE = Path(__file__).parent


def fill(model: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    values = []
    for value, variable in zip(model.get_weights(), model.weights, strict=True):
        positive = "variance" in variable.name or "gamma" in variable.name
        values.append(rng.uniform(0.5, 1.5, value.shape) if positive else rng.normal(0, 0.4, value.shape))
    model.set_weights(values)
    return model


def features() -> Any:
    x = keras.Input((None, 3), name="x")
    y = layers.LSTM(4, recurrent_activation="hard_sigmoid", return_sequences=True)(x)
    z = layers.GRU(4, reset_after=False, return_sequences=True)(x)
    both = layers.Concatenate()([layers.Add()([y, z]), layers.GRU(4, return_sequences=True)(x)])
    stack = [keras.Input((8,)), layers.Dense(5, activation="swish"), layers.BatchNormalization()]
    inner = keras.Sequential([*stack, layers.LeakyReLU(alpha=0.1)], name="inner")
    late = layers.Conv1D(3, 2, padding="causal")(layers.TimeDistributed(inner)(both))
    return keras.Model(x, layers.SimpleRNN(3, return_sequences=True)(layers.Dropout(0.2)(late)))


def maps() -> Any:
    first = layers.ConvLSTM2D(
        2,
        3,
        padding="same",
        return_sequences=True,
        recurrent_activation="hard_sigmoid",
        input_shape=(None, 5, 4, 1),
    )
    last = layers.Conv3D(1, 3, padding="same", activation="sigmoid")
    return keras.Sequential([first, layers.BatchNormalization(), last])


def window() -> Any:
    first = layers.Bidirectional(layers.LSTM(2, return_sequences=True), input_shape=(6, 3))
    return keras.Sequential(
        [first, layers.LayerNormalization(), layers.GlobalAveragePooling1D(), layers.Dense(2)]
    )


if __name__ == "__main__":
    rng = np.random.default_rng(5)
    told = {}
    cases = ((features, (7, 3)), (maps, (7, 5, 4, 1)), (window, (6, 3)))
    for seed, (make, shape) in enumerate(cases):
        model = fill(make(), seed)
        frames = rng.normal(size=(1, *shape)).astype(np.float32)
        told |= {f"{make.__name__}_x": frames, f"{make.__name__}_y": model(frames).numpy()}
        model.save(HERE / f"{make.__name__}.h5", include_optimizer=False)
        model.save(HERE / f"{make.__name__}.keras")
    np.savez(HERE / "keras2.npz", **told)
