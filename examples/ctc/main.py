"""CTC (Graves et al. 2006): a bidirectional LSTM that sees whole windows, and a unidirectional one that listens live.

    python examples/ctc/main.py            # about two minutes; prints the table of the README
    python examples/ctc/main.py --quick    # seconds

Utterances are made up: each of five syllables is a glide through the bands of a spectrum, spoken faster or slower, in noise.
The graphs go to ``build/ctc``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from decode import BLANK, Beam, Greedy, decode, edits

import edgelstm

Array = npt.NDArray[Any]
BANDS, SYLLABLES, FRAMES = 8, 5, 48
#: Bands where each syllable begins and ends.
_GLIDES = ((0.5, 6.5), (6.5, 0.5), (1.0, 3.0), (6.0, 4.0), (3.5, 3.5))


def utterances(count: int, seed: int) -> tuple[Array, list[list[int]]]:
    """Spectra [count, FRAMES, BANDS] and the syllables (1 to 5) in each."""
    random = np.random.default_rng(seed)
    bands = np.arange(BANDS)
    spectra = np.zeros((count, FRAMES, BANDS))
    labels = []
    for n in range(count):
        at, spoken = int(random.integers(2, 8)), []
        while True:
            length = int(random.integers(5, 10))
            if at + length > FRAMES - 2:
                break
            kind = int(random.integers(SYLLABLES))
            start, end = _GLIDES[kind]
            centre = np.linspace(start, end, length)[:, None]
            loud = np.hanning(length + 2)[1:-1, None]
            spectra[n, at : at + length] += loud * np.exp(-0.5 * ((bands - centre) / 1.0) ** 2)
            spoken.append(kind + 1)
            at += length + int(random.integers(0, 6))
        labels.append(spoken)
    spectra += 0.25 * random.normal(size=spectra.shape)
    return spectra.astype(np.float32), labels


class Network(nn.Module):
    """Log-probabilities of blank and syllables: x [B, T, BANDS] -> [B, T, 1 + SYLLABLES]."""

    def __init__(self, units: int, bidirectional: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, units, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(units * (1 + bidirectional), 1 + SYLLABLES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0]).log_softmax(-1)


class Listener(nn.Module):
    """The unidirectional network with its state outside: x [B, T, BANDS], state -> log-probabilities, state."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net, self.hidden_size = net, net.lstm.hidden_size

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.net.lstm(x, state)
        return self.net.head(y).log_softmax(-1), state


def train(net: Network, updates: int) -> None:
    x, labels = utterances(1024, seed=1)
    random = np.random.default_rng(0)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    loss_of = nn.CTCLoss(blank=BLANK, zero_infinity=True)
    for _ in range(updates):
        rows = random.integers(len(x), size=32)
        spoken = [labels[r] for r in rows]
        log_probs = net(torch.from_numpy(x[rows])).transpose(0, 1)
        targets = torch.tensor([s for one in spoken for s in one])
        loss = loss_of(log_probs, targets, [FRAMES] * 32, [len(s) for s in spoken])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()


@dataclass(frozen=True)
class Outcome:
    """Edits per syllable spoken, by greedy and by beam decoding."""

    greedy: float
    beam: float


def rate(log_probs: list[Array], labels: list[list[int]]) -> Outcome:
    """Label error rates of [FRAMES, classes] each."""
    spoken = sum(map(len, labels))
    wrong = [
        sum(edits(decode(make(), one), want) for one, want in zip(log_probs, labels, strict=True))
        for make in (Greedy, Beam)
    ]
    return Outcome(wrong[0] / spoken, wrong[1] / spoken)


def run(folder: Path, *, quick: bool = False) -> dict[str, Outcome]:
    """Train both, export the one as a window and the other as a step, and decode what both make of new utterances."""
    torch.set_num_threads(1)  # small networks: threads cost more than they bring
    torch.manual_seed(0)
    both, one = (Network(24 if quick else 48, way) for way in (True, False))
    for net in (both, one):
        train(net, 400 if quick else 1500)
    folder.mkdir(parents=True, exist_ok=True)
    window, step = folder / "window.onnx", folder / "step.onnx"
    edgelstm.export(both.eval(), window, frame=(BANDS,), window=FRAMES)
    edgelstm.export(Listener(one).eval(), step, frame=(BANDS,))
    x, labels = utterances(20 if quick else 100, seed=2)
    done = {}
    with edgelstm.Runner.open(window) as runner:
        stream = runner.stream("microphone")
        done["bidirectional, whole windows"] = rate([stream.step(u)["y"].copy() for u in x], labels)
    with edgelstm.Runner.open(step) as runner:
        stream, heard = runner.stream("microphone"), []
        for u in x:
            stream.reset()  # a pause ends an utterance
            heard.append(np.stack([stream.step(frame)["y"].copy() for frame in u]))
        done["unidirectional, frame by frame"] = rate(heard, labels)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller networks, trained less")
    parser.add_argument("--folder", type=Path, default=Path("build/ctc"))
    options = parser.parse_args()
    print("| network | label error rate, greedy | prefix beam |")
    print("| --- | ---: | ---: |")
    for name, o in run(options.folder, quick=options.quick).items():
        print(f"| {name} | {o.greedy:.1%} | {o.beam:.1%} |")


if __name__ == "__main__":
    main()
