"""Libraries of edgelstm, built. Standard library only; edgelstm finds the files without importing this."""

from pathlib import Path

#: The folder with include/ and lib/.
PREFIX = Path(__file__).resolve().parent


def operators() -> Path:
    """The operators for ONNX Runtime: `SessionOptions.register_custom_ops_library`."""
    return PREFIX / "lib" / "libedgelstm_onnxruntime.so"


def library() -> Path:
    """The C library."""
    return PREFIX / "lib" / "libedgelstm.so"
