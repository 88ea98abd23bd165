"""Descriptors of who walks through a video: of a track, by a ConvLSTM on features of its crops, and of single crops.

Both are steps that give a descriptor of this moment and one pooled over the track so far, each of length 1, so that the scalar
product of two descriptors says how alike they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES, HIDDEN, SIZE = 12, 16, 32


class Features(nn.Module):
    """A crop [B, 1, 24, 16] -> maps [B, FEATURES, 6, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, FEATURES, 3, stride=2, padding=1)
        self.second = nn.Conv2d(FEATURES, FEATURES, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))


class SingleFrame(nn.Module):
    """forward(x, total [B, SIZE]) -> ({"moment", "track"} [B, SIZE], total). The track's is the mean of those of its crops."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features()
        self.head = nn.Linear(FEATURES * 6 * 4, SIZE)
        self.states: dict[str, tuple[int, ...]] = {"total": (SIZE,)}

    def forward(self, x: Tensor, total: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor]]:
        moment = F.normalize(self.head(self.features(x).flatten(1)))
        total = total + moment
        return {"moment": moment, "track": F.normalize(total)}, (total,)


class Track(nn.Module):
    """forward(x, h, c, total) -> ({"moment", "track"} [B, SIZE], (h, c, total)).

    h, c [B, HIDDEN, 6, 4]: the ConvLSTM's (Shi et al. 2015). total [B, SIZE]: the sum over the track of what the
    head makes of h; its direction is that of the mean, so no count of frames is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = Features()
        self.gates = nn.Conv2d(FEATURES + HIDDEN, 4 * HIDDEN, 3, padding=1)
        self.head = nn.Linear(HIDDEN * 6 * 4, SIZE)
        self.states = {"h": (HIDDEN, 6, 4), "c": (HIDDEN, 6, 4), "total": (SIZE,)}

    def forward(
        self, x: Tensor, h: Tensor, c: Tensor, total: Tensor
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
        i, f, g, o = self.gates(torch.cat([self.features(x), h], 1)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        seen = self.head(h.flatten(1))
        total = total + seen
        return {"moment": F.normalize(seen), "track": F.normalize(total)}, (h, c, total)


def triplet_loss(descriptors: Tensor, who: Tensor, scale: float = 8.0) -> Tensor:
    """Over all triplets of a batch [B, SIZE] of people ``who`` [B], with the soft margin of Hermans et al. (2017), section 2.

    Distances are 1 minus the scalar product; ``scale`` makes up for their small range.
    """
    distance = 1 - descriptors @ descriptors.T
    same = who[:, None] == who
    positive = same & ~torch.eye(len(who), dtype=torch.bool)
    loss = F.softplus(scale * (distance[:, :, None] - distance[:, None, :]))
    used = (positive[:, :, None] & ~same[:, None, :]).to(loss.dtype)
    return (loss * used).sum() / used.sum()
