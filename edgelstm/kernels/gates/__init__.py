"""FusedGates on tensors of torch, CuPy and others."""
