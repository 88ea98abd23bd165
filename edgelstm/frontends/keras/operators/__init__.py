"""Operators and slices of tensors in functional models: x * 0.5, x[..., :2], keras.ops, and TensorFlow's in files of Keras 2."""
