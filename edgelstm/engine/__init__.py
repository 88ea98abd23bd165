"""StepModel -> Engine: a TensorRT plan and its sidecar, built in a process of its own; and the plugin library.

May import: runtime, passes, graph and below.
"""
