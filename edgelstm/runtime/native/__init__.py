"""Whole cells as operators of our own inside ONNX Runtime, on the CPU: found in a graph's bytes when it is opened.

``prepare`` rewrites the bytes of a step graph for the library of plugins/onnxruntime, where that was built; the file itself is never
touched. Needs NumPy alone.
"""
