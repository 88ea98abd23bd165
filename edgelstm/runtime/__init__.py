"""Running step graphs: one Program per backend, the Runner on top. Needs NumPy and the backend's own package.

May import: graph.signature, errors, files, dtypes, machine; never torch or onnx.
"""

from edgelstm.runtime.open import open_program
from edgelstm.runtime.protocol import Program
from edgelstm.runtime.runner import Runner, Stream

__all__ = ["Program", "Runner", "Stream", "open_program"]
