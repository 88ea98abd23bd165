"""Stand-ins for what a machine without a GPU lacks. They prove our own logic, and nothing about GPUs or TensorRT."""
