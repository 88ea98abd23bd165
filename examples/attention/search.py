"""What a decoder says: its likeliest word each time, or the likeliest sentence among several (beam search). NumPy only.

Word 0 ends a sentence. ``told`` is what the encoder gave: the decoder's inputs, the same at every word.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm import Runner

END = 0
Told = dict[str, npt.NDArray[Any]]


def greedy(runner: Runner, told: Told, longest: int) -> list[int]:
    """The likeliest word after those before it. The graph feeds its own word back, so nothing is set from outside."""
    stream = runner.stream("hypothesis 0")
    stream.reset()
    words: list[int] = []
    while len(words) < longest:
        word = int(stream.step(told)["word"][0])
        if word == END:
            break
        words.append(word)
    return words


def beam(runner: Runner, told: Told, longest: int, width: int) -> tuple[list[int], float]:
    """The likeliest sentence that ``width`` hypotheses find, and its log-probability. ``runner`` has ``width`` streams.

    Each hypothesis is a stream; all advance in one call. One that goes on in two ways is copied to a stream that is given up:
    the snapshot of the one, with another ``token``, is restored into the other. A sentence cut off at ``longest`` words
    counts with the words it has.
    """
    streams = [runner.stream(f"hypothesis {k}") for k in range(width)]
    streams[0].reset()
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    best, best_score = [], -math.inf
    for _ in range(longest):
        outputs = runner.step({s.name: told for s in streams[: len(alive)]})
        scores = np.stack(
            [before + outputs[s.name]["log_probs"] for (before, _), s in zip(alive, streams, strict=False)]
        )
        chosen = np.argsort(-scores, axis=None, kind="stable")[:width]
        was = [s.snapshot() for s in streams[: len(alive)]]
        after: list[tuple[float, list[int]]] = []
        for parent, word in zip(*np.unravel_index(chosen, scores.shape), strict=True):
            score, words = float(scores[parent, word]), alive[parent][1]
            if word == END:
                if score > best_score:
                    best, best_score = words, score
            else:
                streams[len(after)].restore({**was[parent], "token": np.array([word])})
                after.append((score, [*words, int(word)]))
        alive = after
        # A longer sentence is never likelier than the words it begins with.
        if not alive or alive[0][0] <= best_score:
            return best, best_score
    score, words = alive[0]
    return (words, score) if score > best_score else (best, best_score)
