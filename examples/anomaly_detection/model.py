"""Two detectors around a forecaster; all they remember, their statistics too, are states of one step graph.

:class:`GaussianDetector` is LSTM-AD (Malhotra et al. 2015): predictions l steps ahead, so that each sample was predicted l times;
the l errors are scored by a Gaussian fitted on normal data. :class:`WindowDetector` is the fault detector of Filonov et al. (2016):
one step ahead, mean square error over a window of samples against a threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Samples until the forecaster's state means something; no alarm before.
WARM_UP = 50
#: The first sensor is the operator's set-point, which nobody foretells: errors count from the next one on.
FORETOLD = 1


class Forecaster(nn.Module):
    """Two stateful LSTM layers and a linear output: x [B, sensors] -> the next ``ahead`` samples [B, ahead, sensors]."""

    def __init__(self, sensors: int, units: int, ahead: int) -> None:
        super().__init__()
        self.sensors, self.units, self.ahead = sensors, units, ahead
        self.first = nn.LSTMCell(sensors, units)
        self.second = nn.LSTMCell(units, units)
        self.head = nn.Linear(units, ahead * sensors)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        h1, c1, h2, c2 = state
        h1, c1 = self.first(x, (h1, c1))
        h2, c2 = self.second(h1, (h2, c2))
        # The change from the present sample is what there is to learn.
        return x[:, None] + self.head(h2).unflatten(1, (self.ahead, self.sensors)), (h1, c1, h2, c2)

    def zeros(self, streams: int) -> tuple[Tensor, ...]:
        """The state before the first sample."""
        return tuple(torch.zeros(streams, self.units) for _ in range(4))


class Detector(nn.Module):
    """A score above the threshold is an alarm."""

    threshold: Tensor

    def __init__(self, forecaster: Forecaster) -> None:
        super().__init__()
        self.forecaster = forecaster
        self.register_buffer("threshold", torch.tensor(torch.inf))

    def alarm(self, score: Tensor) -> Tensor:
        """1 where ``score`` is above the threshold."""
        return (score > self.threshold).to(score.dtype)


class GaussianDetector(Detector):
    """forward(x, h1, c1, h2, c2, made, age) -> (score [B, 1], alarm [B, 1]), states.

    made: [B, l, l, sensors], the predictions of the last l steps. score: half the squared Mahalanobis distance of the l
    errors of this sample (the log-likelihood up to a constant). age: samples seen.
    """

    def __init__(self, forecaster: Forecaster) -> None:
        super().__init__(forecaster)
        size = forecaster.ahead * (forecaster.sensors - FORETOLD)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("whiten", torch.eye(size))

    def errors(self, x: Tensor, made: Tensor) -> Tensor:
        """[B, l * (sensors - 1)]: of the prediction made k steps ago for k steps ahead, for each k."""
        ahead = self.forecaster.ahead
        due = torch.stack([made[:, k, k] for k in range(ahead)], 1)
        return (x[:, None] - due)[..., FORETOLD:].flatten(1)

    def fit(self, errors: Tensor) -> None:
        """Mean and covariance of normal errors [samples, l * (sensors - 1)], shrunk a little so that it can be inverted."""
        self.mean = errors.mean(0)
        covariance = torch.cov(errors.T) + 1e-4 * torch.eye(errors.shape[1])
        self.whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T.contiguous()

    def forward(
        self, x: Tensor, h1: Tensor, c1: Tensor, h2: Tensor, c2: Tensor, made: Tensor, age: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
        score = 0.5 * ((self.errors(x, made) - self.mean) @ self.whiten).square().sum(1, keepdim=True)
        score = score * (age >= WARM_UP).to(score.dtype)
        new, state = self.forecaster(x, h1, c1, h2, c2)
        made = torch.cat([new[:, None], made[:, :-1]], 1)
        return (score, self.alarm(score)), (*state, made, age + 1)


class WindowDetector(Detector):
    """forward(x, h1, c1, h2, c2, made, recent, age) -> (score [B, 1], alarm [B, 1]), states.

    made: [B, sensors], what the last step foretold. recent: [B, window], mean square errors of the last samples. score: their mean.
    """

    def __init__(self, forecaster: Forecaster, window: int = 20) -> None:
        super().__init__(forecaster)
        self.window = window
        self.register_buffer("usual", torch.ones(forecaster.sensors - FORETOLD))

    def errors(self, x: Tensor, made: Tensor) -> Tensor:
        """[B, sensors - 1]: of the prediction made a step ago, in units of what is usual."""
        return (x - made)[:, FORETOLD:] / self.usual

    def forward(
        self,
        x: Tensor,
        h1: Tensor,
        c1: Tensor,
        h2: Tensor,
        c2: Tensor,
        made: Tensor,
        recent: Tensor,
        age: Tensor,
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
        error = self.errors(x, made).square().mean(1, keepdim=True) * (age >= WARM_UP).to(x.dtype)
        recent = torch.cat([recent[:, 1:], error], 1)
        score = recent.mean(1, keepdim=True)
        new, state = self.forecaster(x, h1, c1, h2, c2)
        return (score, self.alarm(score)), (*state, new[:, 0], recent, age + 1)
