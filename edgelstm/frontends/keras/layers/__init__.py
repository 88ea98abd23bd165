"""Keras's layers, one file a family: each reads its options, emits itself into a graph, and computes itself by NumPy."""
