"""What a step graph is: its Signature, the StepModel around the ONNX file, and the FusedGates operator.

``signature`` needs NumPy alone, so that a device can read it; ``step`` and ``gates`` need onnx.
May import: errors, files, dtypes.
"""
