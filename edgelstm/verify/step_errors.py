"""What was there minus what a model gave, step by step: of its input given back, or of the next frame foretold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from edgelstm.dtypes import to_float32
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Array
from edgelstm.verify.anomaly import Target


class Framed(Protocol):
    """What is asked of a frame: what is missing before it, and whether nothing more comes of its stream."""

    @property
    def gap(self) -> str | None: ...
    @property
    def last(self) -> bool: ...


class Stepped(Protocol):
    """One step of one stream, without the stream axis. fresh: where a hop cuts windows, how many frames of one the window before had not.
    anew: the state began anew since the stream's last step."""

    @property
    def stream(self) -> str: ...
    @property
    def signature(self) -> Signature: ...
    @property
    def frame(self) -> Framed: ...
    @property
    def inputs(self) -> Mapping[str, Any]: ...
    @property
    def outputs(self) -> Mapping[str, Any]: ...
    @property
    def fresh(self) -> int | None: ...
    @property
    def anew(self) -> bool: ...


S = TypeVar("S", bound=Stepped)


class Errors(Generic[S]):
    """Watches a run: what was there minus what the model gave, handed to ``take`` with the step it belongs to.

    settle: steps of a stream that are not, after its state began. Nor is what was foretold, or given back, by a state that missed a frame:
    of the first step behind one, or of the first ``settle``.
    """

    def __init__(
        self,
        target: Target | None,
        take: Callable[[S, Array], None],
        settle: int = 0,
    ) -> None:
        self.target = target
        self._given, self._settle = take, settle
        self._ages: dict[str, int] = {}
        #: Steps to go whose state missed a frame.
        self._missed: dict[str, int] = {}
        self._output = ""
        self._foretold: dict[str, Array] = {}
        self._leads = False

    def age(self, step: S) -> int:
        """Steps that the state of its stream has seen before this one."""
        return self._ages.get(step.stream, 0)

    def _take(self, step: S, error: Array) -> None:
        if self.age(step) >= self._settle:
            self._given(step, error)

    def interrupted(self, stream: str, anew: bool) -> None:
        """What was foretold is held against nothing; ``anew``: the state of the stream begins anew, too."""
        self._foretold.pop(stream, None)
        if anew:
            self._forget(stream)
        elif self._ages.get(stream):
            self._missed[stream] = max(1, self._settle)

    def __call__(self, step: S) -> None:
        if step.anew:
            self._forget(step.stream)
        if step.frame.gap is not None:
            self.interrupted(step.stream, anew=False)
        missed = self._missed.pop(step.stream, 0) if step.signature.states else 0
        self._compare(step, missed > 0)
        if missed > 1:
            self._missed[step.stream] = missed - 1
        self._ages[step.stream] = self.age(step) + 1
        if step.frame.last:
            self._forget(step.stream)

    def _forget(self, stream: str) -> None:
        """A state that begins has missed nothing."""
        self._ages.pop(stream, None)
        self._missed.pop(stream, None)

    def _compare(self, step: S, missed: bool) -> None:
        if not self._output:
            self._output, self.target, self._leads = compared(step.signature, self.target, step.fresh)
        [(name, seen)] = step.inputs.items()
        dtypes = {t.name: t.dtype for t in (*step.signature.inputs, *step.signature.outputs)}
        there = to_float32(seen, dtypes[name]).astype(np.float64)
        made = to_float32(step.outputs[self._output], dtypes[self._output]).astype(np.float64)
        if self.target == "input":
            return None if missed else self._take(step, there - made)
        if step.fresh is not None:  # what was foretold is the first that the window before had not
            there = there[len(there) - step.fresh]
        before = self._foretold.pop(step.stream, None)
        if not missed:
            self._foretold[step.stream] = made[0] if self._leads else made
        if before is not None:
            self._take(step, there - before)
        if step.frame.last:
            self._foretold.pop(step.stream, None)


def compared(
    signature: Signature, target: Target | None, fresh: int | None = None
) -> tuple[str, Target, bool]:
    """The output to compare with frames, what it stands for, and whether it holds several lead times.

    fresh: a hop cuts windows, in which so many frames are new.
    """
    if signature.window is not None and target == "next":
        raise EdgeLstmError(
            "target next", found="a window", expected="a step graph, which foretells frame by frame"
        )
    if len(signature.inputs) == 1:
        frame = signature.inputs[0].frame_shape
        if fresh is not None and target != "input":
            for spec in signature.outputs:
                one, several = spec.frame_shape == frame[1:], spec.frame_shape[1:] == frame[1:]
                if not one and not (several and (target == "next" or spec.frame_shape != frame)):
                    continue
                if fresh > frame[0]:
                    raise EdgeLstmError(
                        f"a hop of {fresh}",
                        found=f"windows of {count_of(frame[0], 'frame')}, behind which the frame that is foretold is never seen",
                        expected=f"at most {frame[0]}",
                    )
                return spec.name, "next", several
        for spec in signature.outputs:
            if spec.frame_shape == frame and target is not None:
                return spec.name, target, False
            if signature.window is None and spec.frame_shape[1:] == frame and target in (None, "next"):
                return spec.name, "next", True
            if spec.frame_shape == frame:
                raise EdgeLstmError(
                    f"output {spec.name!r} has the shape of the input",
                    expected="to be told whether it is the input given back, or the next one foretold",
                    hint="--target input (an autoencoder) or --target next (a forecaster)",
                )
    raise EdgeLstmError(
        "no output to compare with the input",
        found=", ".join(f"{t.name} {list(t.frame_shape)}" for t in (*signature.inputs, *signature.outputs)),
        expected="one input, and an output of its shape, or of several of it",
    )
