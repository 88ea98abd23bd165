"""The proof that ends every export: graph and source over the same frames, both judged against float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Array, Frame, Program
from edgelstm.runtime.session import first_line
from edgelstm.verify.compare import Comparison, compare
from edgelstm.verify.proof import NotFinite, Proof, TensorProof, prove
from edgelstm.verify.series import TensorError
from edgelstm.workflows.frames import DRAWS, Draw, Progress, ready_frames

if TYPE_CHECKING:
    from edgelstm.frontends import Loaded
    from edgelstm.graph.step import StepModel

#: Largest relative error from the source where no float64 of it can be had; the second where anything is in float16.
TOLERANCE, HALF_TOLERANCE = 1e-5, 1e-2
#: A source farther than this from float64 has drifted: every step is judged from equal states instead. In float16 ...
SOUND, HALF_SOUND = 1e-4, 5e-2
#: ... and farther than this, where there are no states to set equal, nothing can be told. In float16 ...
TELLING, HALF_TELLING = 1e-2, 0.2
#: How many times its allowance a graph may be off whose float64 is right: then it is ONNX Runtime's rounding.
COARSE = 30.0
#: Source in float64 and as it is are one function: at the first frame they are no farther apart than this, and in no step from
#: equal states than the second. Farther, and float64 is no judge: whatever is wrong by less than that would pass.
SAME, SAME_STEP = 0.05, 0.5
#: Whole numbers an input may take; beyond the largest of these nothing looks them up in a table.
MOST_IDS = 2**17
Frames = str | Iterable[Array | Frame] | None


@dataclass(frozen=True)
class Proved:
    """What is known of an export: how far from float64 (or, without ``proof``, from its source), and what is to be said of it."""

    comparison: Comparison
    proof: Proof | None
    notes: tuple[str, ...]


def proved(
    loaded: Loaded,
    step: StepModel,
    frames: Frames,
    limit: int,
    *,
    hop: int | None = None,
    calls: int | None = None,
    tolerance: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Proved:
    """``step`` beside its source over the same frames. Raises EdgeLstmError where it is not the same function."""
    if frames is not None and not isinstance(frames, str):
        frames = list(frames)  # they may be needed twice
    # The source computes between two steps of the result: threads that spin meanwhile would slow it down.
    graph = OrtProgram(step.to_bytes(), streams=step.signature.rows, threads=threads, spin=False)
    source = loaded.reference.rounded()
    judge = _Judge(loaded, step, source, graph, frames, limit, hop, calls, tolerance, progress)
    try:
        draws = DRAWS if frames is None else DRAWS[:1]
        for draw in draws:
            try:
                return judge.judged(draw)
            except NotFinite:
                if draw is draws[-1]:
                    raise
        raise AssertionError
    finally:
        graph.close()
        source.close()
        loaded.reference.close()


@dataclass
class _Judge:
    loaded: Loaded
    step: StepModel
    source: Program
    graph: Program
    frames: Frames
    limit: int
    hop: int | None
    calls: int | None
    tolerance: float | None
    progress: Progress | None
    #: Whether all frames were read once, and what was left out was told.
    read: bool = False

    def judged(self, draw: Draw) -> Proved:
        """Over the user's frames or those that ``draw`` makes. Raises NotFinite where the source gives no numbers for them."""
        if self.frames is None:
            draw = self._with_ids(draw)
        self.draw = draw
        drawn = () if self.frames is not None or draw == DRAWS[0] else (f"compared on {draw.text}",)
        exact, why = self._exact()
        if exact is None:
            return self._without_exact(why, drawn)
        try:
            free = self._prove(exact, together=False)
            if self.tolerance is not None:
                return self._by_tolerance(exact, free, drawn)
            half = bool(_half(self.step))
            steady = free.source
            if free.holds and steady <= (HALF_SOUND if half else SOUND):
                return Proved(free.comparison, free, drawn)
            if self._shares_states(exact):
                single = self._prove(exact, together=True)
                if single.source > SAME_STEP:
                    why = f"computed so, one step is {single.source:.2g} from what the source gives"
                    return self._without_exact(why, drawn)
                if not single.holds:
                    coarse = self._coarse(exact, single)
                    return Proved(free.comparison, single, (*drawn, coarse))
                note = (
                    f"this model amplifies rounding: left alone, {free.text} after {count_of(free.comparison.frames, 'frame')}; "
                    f"from equal states every step is near: {single.text}"
                )
                return Proved(free.comparison, single, (*drawn, note))
            if not free.holds:
                return Proved(free.comparison, free, (*drawn, self._coarse(exact, free)))
            if steady > (HALF_TELLING if half else TELLING):
                raise EdgeLstmError(
                    f"nothing can be told of the export of {self.loaded.description}, so nothing was written",
                    found=f"the source itself is {steady:.2g} from float64 on these frames",
                    expected=f"at most {HALF_TELLING if half else TELLING:g}",
                    hint=self._other_frames(),
                )
            note = f"the source itself is {steady:.1g} from float64 on these frames: faults smaller than that don't show"
            return Proved(free.comparison, free, (*drawn, note))
        finally:
            exact.close()

    def _without_exact(self, why: str, drawn: tuple[str, ...]) -> Proved:
        comparison, notes = self._beside_source()
        missing = (
            f"no float64 of the source could be had ({why}): the graph was compared with the source itself"
        )
        return Proved(comparison, None, (*drawn, missing, *notes))

    def _coarse(self, exact: Program, found: Proof) -> str:
        """A note for a graph that is right and that its runtime rounds more than the source does. Raises for one that is wrong.

        Right is what in float64, where the runtime has no part in it, is as near as the rule wants it.
        """
        from edgelstm.frontends.onnx.double import StepEvaluator

        if found.worst.share <= COARSE:
            try:
                wide = self._prove(exact, found.together, StepEvaluator(self.step))
            except Exception:  # onnx's evaluator lacks an operator: nothing speaks for the graph
                raise self._refusal(found) from None
            if wide.holds:
                worst = found.worst
                return (
                    f"ONNX Runtime rounds {worst.kind} {worst.name!r} more than the source does ({found.text}); "
                    f"in float64 the graph is {wide.graph:.1e} from it"
                )
        raise self._refusal(found)

    def _frames(self) -> Iterable[Frame]:
        quiet, self.read = self.read, True
        return ready_frames(
            self.step.signature,
            self.frames,
            self.limit,
            draw=self.draw,
            hop=self.hop,
            calls=self.calls,
            quiet=quiet,
        )

    def _prove(self, exact: Program, together: bool, graph: Program | None = None) -> Proof:
        return prove(
            exact,
            self.source,
            graph or self.graph,
            self._frames(),
            names=(f"{self.loaded.description} in float64", "export"),
            half=_half(self.step),
            bounded=bounded(self.step),
            together=together,
            progress=None if together or graph is not None else self.progress,
        )

    def _exact(self) -> tuple[Program | None, str]:
        """The source in float64, tried on the first frame; or None and why."""
        from edgelstm.verify.compare import advance, converted

        try:
            exact = self.loaded.reference.exact()
            block = exact.signature.window or 1
            first = [f for f, _ in zip(self._frames(), range(block), strict=False)]
            self.read = False
            given = [converted(f, self.step.signature, exact.signature) for f in first]
            if len(given) < block:
                return exact, ""  # the comparison will say that there is nothing to compare
            results = [advance(p, p.new_state(), given)[-1] for p in (exact, self.source)]
        except EdgeLstmError as error:
            return None, error.found if isinstance(error.found, str) else str(error).splitlines()[0]
        except Exception as error:  # whatever a module or onnx's evaluator raises
            return None, f"{type(error).__name__}: {first_line(error)}"[:200]
        for name, value in results[0].items():
            check = TensorError(name, "output")
            check.add(0, value, results[1][name])
            both = np.isfinite(value).all() and np.isfinite(results[1][name]).all()
            if both and value.dtype.kind == "f" and check.worst > SAME:
                return None, f"computed so, output {name!r} differs by {check.worst:.2g}"
        return exact, ""

    def _shares_states(self, exact: Program) -> bool:
        return bool({s.name for s in exact.signature.states} & {s.name for s in self.step.signature.states})

    def _by_tolerance(self, exact: Program, free: Proof, drawn: tuple[str, ...]) -> Proved:
        tolerance = self.tolerance
        assert tolerance is not None
        if free.graph <= tolerance:
            return Proved(free.comparison, free, drawn)
        if self._shares_states(exact):
            single = self._prove(exact, together=True)
            if single.graph <= tolerance:
                note = f"left alone, {free.text}; from equal states every step is within {single.graph:.1g}"
                return Proved(free.comparison, single, (*drawn, note))
            free = single
        worst = max(free.tensors, key=lambda t: t.graph)
        raise EdgeLstmError(
            self._mismatch(),
            found=f"{worst.kind} {worst.name!r}: graph {worst.graph:.2e} from float64 (source {worst.source:.2e})",
            expected=f"at most {tolerance:g} over {count_of(free.comparison.frames, 'frame')}, as --tolerance says",
            hint="Without --tolerance the graph may be about as far from float64 as its source is"
            if free.holds
            else None,
        )

    def _mismatch(self) -> str:
        return f"the export of {self.loaded.description} does not match its source, so nothing was written"

    def _refusal(self, proof: Proof) -> EdgeLstmError:
        worst: TensorProof = proof.worst
        times = (
            "without bounds" if not np.isfinite(worst.share) else f"{figure(worst.share)} times what passes"
        )
        return EdgeLstmError(
            self._mismatch(),
            found=f"{worst.kind} {worst.name!r}: graph {worst.graph:.2e} from float64, source {worst.source:.2e}; "
            f"at frame {worst.frame}, element {list(worst.element)}, the graph's error is {times}",
            expected="a graph about as near to float64 as its source is",
            hint=self._other_frames()
            + (
                f"; --tolerance {_above(proof.graph)} takes it as it is"
                if proof.graph < TELLING and worst.share < 100
                else ""
            ),
        )

    def _other_frames(self) -> str:
        if self.frames is None:
            return f"Compared on {self.draw.text}; --source FILE compares on frames of your own"
        return "--source FILE compares on other frames"

    def _beside_source(self) -> tuple[Comparison, tuple[str, ...]]:
        """Graph and source within a tolerance of each other, over all frames or else step by step."""
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = HALF_TOLERANCE if _half(self.step) else TOLERANCE

        def run(together: bool) -> Comparison:
            return compare(
                self.source,
                self.graph,
                self._frames(),
                names=(self.loaded.description, "export"),
                together=together,
                progress=None if together else self.progress,
            )

        def figure_of(found: Comparison) -> TensorError:
            return max(found.tensors, key=lambda t: t.held)

        comparison = run(together=False)
        worst = figure_of(comparison)
        if worst.worst == np.inf:
            raise self._not_finite()
        if worst.held <= tolerance:
            return comparison, ()
        single = worst
        if {s.name for s in self.source.signature.states} == {s.name for s in self.graph.signature.states}:
            single = figure_of(run(together=True))
        if not single.held <= tolerance:
            raise EdgeLstmError(
                self._mismatch(),
                found=f"{single.kind} {single.name!r}: relative error {single.worst:.2e} at frame {single.worst_frame}",
                expected=f"at most {tolerance:g} over {count_of(comparison.frames, 'frame')}",
                hint=self._other_frames() + "; --tolerance sets another bound",
            )
        note = f"this model amplifies rounding: left alone, {worst.kind} {worst.name!r} is {worst.worst:.2g} from the source"
        return comparison, (f"{note}; from equal states every step is within {single.held:.1g}",)

    def _not_finite(self) -> EdgeLstmError:
        return NotFinite(
            "source or graph give NaN or infinity",
            expected="numbers: what is not a number equals nothing, and nothing can be proved with it",
            hint=self._other_frames(),
        )

    def _with_ids(self, draw: Draw) -> Draw:
        """``draw`` with the whole numbers that each integer input takes."""
        limits = {}
        for t in self.step.signature.inputs:
            kind = np_dtype(t.dtype)
            if kind.kind in "iu" and t.name not in draw.limits:
                limits[t.name] = self._largest_id(draw, t.name, min(MOST_IDS, int(np.iinfo(kind).max)))
        return draw.with_limits(limits)

    def _largest_id(self, draw: Draw, name: str, most: int) -> int:
        """The first whole number above what the source takes; 256 where it takes any."""
        first = next(iter(ready_frames(self.step.signature, None, 1, draw=draw)))
        if self.source.signature.window is not None:
            return 2

        def takes(value: int) -> bool:
            frame = {**first, name: np.full_like(first[name], value)}
            try:
                self.source.step([frame], self.source.new_state(), [0])
            except Exception:  # whatever its framework raises for an id that it does not have
                return False
            return True

        if takes(most):
            return min(256, most + 1)
        good, bad = 0, most
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if takes(middle) else (good, middle)
        return good + 1


def figure(value: float) -> str:
    """Two or three digits: 1.3, 26, 4,100."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _above(value: float) -> str:
    """The next figure of one digit above ``value``: what ``--tolerance`` would have to be."""
    exponent = int(np.floor(np.log10(value)))
    return f"{(np.ceil(value / 10.0**exponent) + 1) * 10.0**exponent:.0e}"


def _half(step: StepModel) -> str | None:
    """float16 or bfloat16 where a weight, an output or a state is in it, or a frame with which anything is computed in it."""
    import onnx

    s = step.signature
    computed = {name for n in step.model.graph.node if n.op_type != "Cast" for name in n.input}
    dtypes = {t.dtype for t in s.outputs} | {x.dtype for x in s.states}
    dtypes |= {t.dtype for t in s.inputs if t.name in computed}
    types = {t.data_type for t in step.model.graph.initializer}
    for name, number in (("bfloat16", onnx.TensorProto.BFLOAT16), ("float16", onnx.TensorProto.FLOAT16)):
        if name in dtypes or number in types:
            return name
    return None


#: Functions whose values are of the order of 1, whatever goes in.
_SATURATING = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Softmax", "Softsign", "Erf"})
#: What keeps values of the order of 1 so.
_KEEPING = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Identity",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Split",
        "Concat",
        "Gather",
        "Expand",
        "Where",
    ]
)


def bounded(step: StepModel) -> frozenset[str]:
    """The outputs and states made of saturating functions, and of sums and products of such."""
    import onnx.numpy_helper

    from edgelstm.graph.gates import PREFIX

    graph = step.model.graph
    made: dict[str, bool] = {s.input: True for s in step.signature.states}
    made |= {t.name: False for t in step.signature.inputs}
    for tensor in graph.initializer:
        if len(tensor.raw_data) <= 4096:
            value = onnx.numpy_helper.to_array(tensor)
            made[tensor.name] = value.dtype.kind != "f" or bool(np.all(np.abs(value) <= 1))
    for node in graph.node:
        inputs = [made.get(name, False) for name in node.input if name]
        small = (
            node.op_type in _SATURATING
            or node.op_type.startswith(PREFIX)
            or node.op_type == "Constant"
            or (node.op_type in _KEEPING and all(inputs))
        )
        made |= dict.fromkeys(node.output, small)
    s = step.signature
    names = [(t.name, t.name) for t in s.outputs] + [(x.name, x.output) for x in s.states]
    return frozenset(name for name, value in names if made.get(value, False))
