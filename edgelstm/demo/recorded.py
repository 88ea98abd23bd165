"""What PyTorch gave when the weights were trained, and how far a run is from it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.protocol import Array
from edgelstm.verify.compare import TensorError

#: Largest relative error that passes, of any recorded output or state.
TOLERANCE = 1e-5


class Recorded:
    """``expected.npz``: ``output`` after ``steps`` (its ``leads`` only, if named), ``state_NAME`` after the last step."""

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            self._at = dict(zip(arrays["steps"].tolist(), arrays["output"], strict=True))
        except FileNotFoundError as error:
            raise EdgeLstmError(
                f"{path} does not exist", expected="the outputs recorded from PyTorch"
            ) from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise EdgeLstmError(
                f"{path} can't be read",
                found=str(error),
                expected="the arrays that record_expected.py writes",
            ) from error
        self._path = path
        self._last = max(self._at)
        self._leads = arrays["leads"] - 1 if "leads" in arrays else None
        self._states = {n.removeprefix("state_"): a for n, a in arrays.items() if n.startswith("state_")}
        self._errors: dict[str, TensorError] = {}

    def compare(self, step: int, output: Array, snapshot: Callable[[], dict[str, Array]]) -> None:
        """Compare the output of frame ``step`` if it was recorded, and the states at the last one."""
        if step in self._at:
            self._add("output", step, self._at[step], output if self._leads is None else output[self._leads])
        if step == self._last:
            for name, value in snapshot().items():
                self._add(f"state {name}", step, self._states.get(name, np.empty(0)), value)

    def worst(self) -> tuple[float, int]:
        """Largest relative error and the number of outputs compared. Raises EdgeLstmError above ``TOLERANCE``."""
        worst = max(self._errors.values(), key=lambda e: e.worst)
        if not worst.worst <= TOLERANCE:
            raise EdgeLstmError(
                f"{self._path.parent.name} does not compute what PyTorch gave",
                found=f"relative error {worst.worst:.3g} of {worst.name} at frame {worst.worst_frame}",
                expected=f"at most {TOLERANCE:g}",
                hint=f"The weights and {self._path} do not belong together, or this machine computes wrongly",
            )
        return worst.worst, len(self._errors["output"].errors)

    def _add(self, name: str, step: int, wanted: Array, found: Array) -> None:
        try:
            self._errors.setdefault(name, TensorError(name, "recorded")).add(step, wanted, found)
        except EdgeLstmError as error:
            raise EdgeLstmError(f"{self._path}: {error}") from error
