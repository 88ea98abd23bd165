"""Anomaly scores: how far what a model foretold, or gave back, is from what was there, and a threshold.

Sources: mean absolute error of an autoencoder and squared error of a forecaster are the usual ones; the Mahalanobis distance of the
error is that of LSTM-AD (Malhotra et al. 2015).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike, read_bytes, write_text

Array = npt.NDArray[Any]
Method = Literal["mae", "mse", "mahalanobis"]
Target = Literal["input", "next"]

SCHEMA = 1
#: Added to the covariance's diagonal, as a share of its mean, so that it can be inverted.
SHRINK = 1e-4


def check_out(path: PathLike) -> None:
    """EdgeLstmError unless ``path`` is where a detector may be written."""
    if Path(path).suffix.lower() != ".json":
        raise EdgeLstmError(f"output {path}", expected="a .json file")


@dataclass(frozen=True, repr=False)
class Detector:
    """A score of the errors of one step, and the threshold above which it is an anomaly.

    method: ``mae``, the mean of absolute errors; ``mse``, of squared ones; ``mahalanobis``, the squared Mahalanobis distance
    of the error vector [C] from those of normal data. Errors [..., C] are what was there minus what the model gave; of
    errors with further axes (a window [T, C]) the vector is their mean absolute value over these.
    target: ``input`` for a model that gives its input back (autoencoder), ``next`` for one that foretells it.
    threshold: ``quantile`` of the scores of ``samples`` normal steps.
    settle: steps of a stream that are not scored after its state began: it knows nothing yet.
    """

    method: Method
    target: Target
    threshold: float
    quantile: float
    samples: int
    mean: tuple[float, ...] = ()
    whiten: tuple[tuple[float, ...], ...] = ()
    #: SHA-256 of the model's file; empty where errors came from elsewhere.
    model: str = ""
    #: Smallest and largest value of each input in the normal data, by name; empty where nobody looked.
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    settle: int = 0

    def __repr__(self) -> str:
        return (
            f"Detector({self.method} of {self.target}, threshold {self.threshold:.4g}, "
            f"{count_of(self.samples, 'normal step')})"
        )

    def score(self, errors: Array) -> float:
        """The score of one step's errors."""
        e = np.asarray(errors, np.float64)
        if self.method == "mae":
            return float(np.abs(e).mean())
        if self.method == "mse":
            return float(np.square(e).mean())
        vector = error_vector(e)
        if len(vector) != len(self.mean):
            raise EdgeLstmError(
                "errors", found=f"{count_of(len(vector), 'value')}", expected=f"{len(self.mean)}"
            )
        return float(np.square((vector - np.array(self.mean)) @ np.array(self.whiten)).sum())

    def is_anomaly(self, score: float) -> bool:
        """Whether a score is above the threshold; NaN is: nobody knows what it was."""
        return not score <= self.threshold

    @classmethod
    def fit(
        cls,
        errors: Iterable[Array],
        *,
        method: Method = "mae",
        quantile: float = 0.999,
        target: Target = "next",
    ) -> Detector:
        """The detector whose threshold ``quantile`` of the normal steps' scores do not exceed.

        errors: of each normal step. Raises EdgeLstmError for too few (Mahalanobis: more than the vector is long) or
        errors that are not finite.
        """
        if method not in get_args(Method):
            raise EdgeLstmError("method", found=method, expected=" or ".join(get_args(Method)))
        if target not in get_args(Target):
            raise EdgeLstmError("target", found=target, expected=" or ".join(get_args(Target)))
        if not 0 < quantile <= 1:
            raise EdgeLstmError("quantile", found=quantile, expected="above 0, at most 1")
        blank = cls(method, target, 0.0, quantile, 0)
        if method == "mahalanobis":
            vectors = np.array([error_vector(np.asarray(e, np.float64)) for e in errors])
            if vectors.ndim != 2 or len(vectors) <= vectors.shape[1]:
                raise EdgeLstmError(
                    "normal steps to fit on",
                    found=len(vectors),
                    expected="more than there are values in an error",
                )
            _check_finite(vectors)
            covariance = np.cov(vectors.T).reshape(vectors.shape[1], -1)
            covariance += np.eye(len(covariance)) * max(
                SHRINK * np.trace(covariance) / len(covariance), 1e-12
            )
            whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T
            mean = vectors.mean(0)
            scores = np.square((vectors - mean) @ whiten).sum(1)
            parts: dict[str, Any] = {
                "mean": tuple(mean.tolist()),
                "whiten": tuple(tuple(row) for row in whiten.tolist()),
            }
        else:
            scores = np.array([blank.score(e) for e in errors])
            if not len(scores):
                raise EdgeLstmError("normal steps to fit on", found=0, expected="at least one")
            _check_finite(scores)
            parts = {}
        threshold = float(np.quantile(scores, quantile, method="higher"))
        return cls(method, target, threshold, quantile, len(scores), **parts)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; :meth:`from_json` is its inverse."""
        return {
            "schema": SCHEMA,
            "method": self.method,
            "target": self.target,
            "threshold": self.threshold,
            "quantile": self.quantile,
            "samples": self.samples,
            "mean": list(self.mean),
            "whiten": [list(row) for row in self.whiten],
            "model": self.model,
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "settle": self.settle,
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "detector") -> Detector:
        """Read what :meth:`to_json` wrote; EdgeLstmError on anything else."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise EdgeLstmError(
                f"{where}: not a detector", found=found, expected=f"a JSON object of schema {SCHEMA}"
            )
        try:
            made = cls(
                data["method"],
                data["target"],
                float(data["threshold"]),
                float(data["quantile"]),
                int(data["samples"]),
                tuple(map(float, data["mean"])),
                tuple(tuple(map(float, row)) for row in data["whiten"]),
                str(data.get("model", "")),
                {str(n): (float(low), float(high)) for n, (low, high) in data.get("ranges", {}).items()},
                int(data.get("settle", 0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EdgeLstmError(
                f"{where}: malformed detector", found=f"{type(error).__name__} {error}"
            ) from error
        square = [len(row) for row in made.whiten] == [len(made.mean)] * len(made.mean)
        known = made.method in get_args(Method) and made.target in get_args(Target)
        if made.settle < 0 or not known or not square or (made.method == "mahalanobis") != bool(made.mean):
            raise EdgeLstmError(f"{where}: malformed detector", expected="what Detector.save wrote")
        return made

    def save(self, path: PathLike) -> None:
        """Write JSON, whole or not at all. Raises EdgeLstmError for another suffix than .json."""
        check_out(path)
        write_text(path, json.dumps(self.to_json(), indent=1, allow_nan=False))

    @classmethod
    def load(cls, path: PathLike) -> Detector:
        """Read a file of :meth:`save`."""
        try:
            data = json.loads(read_bytes(path, 64 * 1024**2))
        except (ValueError, RecursionError) as error:
            raise EdgeLstmError(f"{path}: not a detector", found=str(error), expected="JSON") from error
        return cls.from_json(data, str(path))


def error_vector(errors: Array) -> Array:
    """[C] of errors [..., C]."""
    if errors.ndim <= 1:
        return errors.reshape(-1)
    vector: Array = np.abs(errors).reshape(-1, errors.shape[-1]).mean(0)
    return vector


def _check_finite(values: Array) -> None:
    bad = int(np.size(values) - np.isfinite(values).sum())
    if bad:
        raise EdgeLstmError(
            "errors of normal steps", found=f"{bad} NaN or infinite", expected="finite values"
        )
