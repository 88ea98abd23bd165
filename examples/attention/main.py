"""Sequence to sequence with attention, and pictures described in words: an encoder runs once, its decoder streams word by word.

    python examples/attention/main.py            # about a minute; prints the table of the README
    python examples/attention/main.py --quick    # seconds

One sorts digits (Bahdanau et al. 2015), the other describes pictures of 16 x 16 pixels (Vinyals et al. 2015). The graphs go to
``build/attention``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from model import END, Captioner, Eye, Reader, Writer
from search import beam, greedy
from tasks import CAPTION_WORDS, COLOURS, DIGIT_WORDS, DIGITS, LENGTH, SIZE, numbers, pictures

import edgelstm

Array = npt.NDArray[Any]
WIDTH = 4
#: A few words more than the longest sentence needs.
LONGEST = LENGTH + 2
#: Sequences or pictures and their sentences, of so many and a seed.
Task = Callable[[int, int], tuple[Array, list[list[int]]]]


def zeros(decoder: Writer | Captioner, streams: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token, h and c before the first word."""
    h = torch.zeros(streams, decoder.units)
    return torch.full((streams, 1), END), h, h


def train(encoder: Reader | Eye, decoder: Writer | Captioner, task: Task, updates: int) -> None:
    """The decoder is told the right word before each (teacher forcing); behind a sentence's end nothing counts."""
    x, sentences = task(4096, 1)
    longest = max(map(len, sentences)) + 1
    words = torch.full((len(x), longest), -100)  # what cross-entropy leaves out
    for row, sentence in zip(words, sentences, strict=True):
        row[: len(sentence) + 1] = torch.tensor([*sentence, END])
    random = np.random.default_rng(0)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.Adam(parameters, 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        rows = torch.from_numpy(random.integers(len(x), size=64))
        right = words[rows]
        told = encoder(torch.from_numpy(x)[rows])
        token, h, c = zeros(decoder, 64)
        loss = torch.tensor(0.0)
        for t in range(longest):
            said, (_, h, c) = decoder(*told.values(), token, h, c)
            loss = loss + nn.functional.nll_loss(said["log_probs"], right[:, t], reduction="sum")
            token = right[:, t : t + 1].clamp(min=END)
        optimiser.zero_grad()
        (loss / (right != -100).sum()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()


@dataclass(frozen=True)
class Outcome:
    """Share of sentences that are right word for word, by greedy decoding and by beam search; and one of them, as said."""

    greedy: float
    beam: float
    example: str


def stream(
    encoder_path: Path, decoder_path: Path, task: Task, count: int, vocabulary: tuple[str, ...]
) -> Outcome:
    """Encode each of ``count`` new inputs once, and decode both ways."""
    x, sentences = task(count, 2)
    right = np.zeros(2)
    with (
        edgelstm.Runner.open(encoder_path, threads=1) as encoder,
        edgelstm.Runner.open(decoder_path, streams=WIDTH, threads=1) as decoder,
    ):
        listener = encoder.stream("input")
        for one, sentence in zip(x, sentences, strict=True):
            told = dict(listener.step(one))
            plain = greedy(decoder, told, LONGEST)
            searched, _ = beam(decoder, told, LONGEST, WIDTH)
            right += plain == sentence, searched == sentence
    said = " ".join(vocabulary[word] for word in searched)
    return Outcome(*(float(v) for v in right / count), example=said)


def run(folder: Path, *, quick: bool = False) -> dict[str, Outcome]:
    """Train both systems, export each as two graphs, and decode what no training saw."""
    torch.set_num_threads(1)  # small networks: threads cost more than they bring
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    count = 60 if quick else 500
    units = 32 if quick else 64

    def states(decoder: Writer | Captioner) -> dict[str, Array]:
        token, h, c = (t[0].numpy() for t in zeros(decoder, 1))
        return {"token": token, "h": h, "c": c}

    # Sequence to sequence: the decoder looks back at all that was read, at every word.
    reader, writer = Reader(DIGITS, units, 32), Writer(len(DIGIT_WORDS), units, 2 * units, 32)
    train(reader, writer, numbers, 200 if quick else 1500)
    edgelstm.export(reader.eval(), folder / "reader.onnx", frame=(DIGITS,), window=LENGTH)
    memory = {"memory": (LENGTH, 2 * units), "keys": (LENGTH, 32)}
    edgelstm.export(writer.eval(), folder / "writer.onnx", frame=memory, states=states(writer))

    # A caption: the decoder sees what the encoder saw once, before the first word.
    eye, captioner = Eye(len(COLOURS), 48), Captioner(len(CAPTION_WORDS), units, 48)
    train(eye, captioner, pictures, 400 if quick else 1200)
    edgelstm.export(eye.eval(), folder / "eye.onnx", frame=(len(COLOURS), SIZE, SIZE), window=1)
    edgelstm.export(
        captioner.eval(), folder / "captioner.onnx", frame={"seen": (48,)}, states=states(captioner)
    )
    return {
        "digits in order, attention": stream(
            folder / "reader.onnx", folder / "writer.onnx", numbers, count, DIGIT_WORDS
        ),
        "pictures in words": stream(
            folder / "eye.onnx", folder / "captioner.onnx", pictures, count, CAPTION_WORDS
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller networks, trained less")
    parser.add_argument("--folder", type=Path, default=Path("build/attention"))
    options = parser.parse_args()
    print(f"| task | right, greedy | beam ({WIDTH}) | one of them |")
    print("| --- | ---: | ---: | --- |")
    for name, o in run(options.folder, quick=options.quick).items():
        print(f"| {name} | {o.greedy:.1%} | {o.beam:.1%} | {o.example} |")


if __name__ == "__main__":
    main()
