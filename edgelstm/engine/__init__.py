"""StepModel -> Engine: a TensorRT plan and its sidecar."""
