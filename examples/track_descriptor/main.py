"""Who is this? A ConvLSTM's descriptor of a whole track beside descriptors of single crops; trained, exported, streamed.

    python examples/track_descriptor/main.py            # about two minutes; prints the table of the README
    python examples/track_descriptor/main.py --quick    # seconds

Figures walk through two cameras. Every track is a stream that joins the runner when its figure appears and leaves when it is
gone; then its descriptor is compared with those of the first camera. The graphs go to ``build/track_descriptor``.
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

sys.path.insert(0, str(Path(__file__).parent))
from data import HIGH, WIDE, people, walk
from model import SingleFrame, Track, triplet_loss

import edgelstm

Array = npt.NDArray[Any]
SHORTEST, LONGEST = 10, 20  # frames of a track
PLACES = 8  # tracks at a time


def train(net: SingleFrame | Track, updates: int) -> None:
    """Batches of 12 people, each on four tracks; no one is met twice. The descriptor counts at the end of the track."""
    frames = 1 if isinstance(net, SingleFrame) else SHORTEST
    random = np.random.default_rng(1)
    optimiser = torch.optim.Adam(net.parameters(), 4e-3)
    who = torch.arange(12).repeat_interleave(4)
    for update in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * min(1.0, 2 * (1 - update / updates))
        x = torch.from_numpy(walk(people(12, random)[who.numpy()], frames, random))
        states: tuple[torch.Tensor, ...] = tuple(torch.zeros(len(x), *s) for s in net.states.values())
        for t in range(frames):
            out, states = net(x[:, t], *states)
        loss = triplet_loss(out["track"], who)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@dataclass(frozen=True)
class Seen:
    """One track of camera footage: who walks [the index], from which frame on, and the crops [T, 1, HIGH, WIDE]."""

    who: int
    start: int
    crops: Array


def camera(who: Array, seed: int) -> list[Seen]:
    """Each of ``who`` [N, 8] passes once, in an order of the camera's own, at most PLACES of them at a time."""
    random = np.random.default_rng(seed)
    free = np.zeros(PLACES, int)  # the frame from which each place is free
    tracks = []
    for person in random.permutation(len(who)):
        length = int(random.integers(SHORTEST, LONGEST + 1))
        place = int(free.argmin())
        start = int(free[place] + random.integers(0, 6))
        free[place] = start + length
        tracks.append(Seen(int(person), start, walk(who[person : person + 1], length, random)[0]))
    return tracks


def watch(runner: edgelstm.Runner, tracks: list[Seen]) -> dict[int, dict[str, Array]]:
    """Stream the footage frame by frame; the last outputs of each track, by who walked."""
    done = {}
    for now in range(max(t.start + len(t.crops) for t in tracks)):
        there = {f"track {t.who}": t for t in tracks if t.start <= now < t.start + len(t.crops)}
        for name in there:
            runner.stream(name)  # joins, if it is new
        outputs = runner.step({name: t.crops[now - t.start] for name, t in there.items()})
        for name, t in there.items():
            if now == t.start + len(t.crops) - 1:
                done[t.who] = {kind: v.copy() for kind, v in outputs[name].items()}
                runner.stream(name).close()
    return done


def rank1(gallery: Array, queries: Array) -> float:
    """Share of ``queries`` [N, SIZE] whose most alike of ``gallery`` [N, SIZE] is the same person."""
    return float(((queries @ gallery.T).argmax(1) == np.arange(len(queries))).mean())


def run(folder: Path, *, quick: bool = False) -> dict[str, float]:
    """Rank-1 accuracy of each descriptor between two cameras, on people that no training met."""
    torch.set_num_threads(1)  # small networks: threads cost more than they bring
    folder.mkdir(parents=True, exist_ok=True)
    who = people(40 if quick else 200, np.random.default_rng(2))
    footage = [camera(who, seed) for seed in (3, 4)]
    done = {}
    kind: type[SingleFrame | Track]
    for kind, updates, names in (
        (SingleFrame, 100 if quick else 2000, {"moment": "one crop", "track": "mean over the crops"}),
        (Track, 40 if quick else 700, {"track": "ConvLSTM over the track"}),
    ):
        torch.manual_seed(0)
        net = kind()
        train(net, updates)
        path = folder / f"{kind.__name__}.onnx"
        frames = list(footage[0][0].crops)
        edgelstm.export(net.eval(), path, frame=(1, HIGH, WIDE), states=net.states, source=frames)
        with edgelstm.Runner.open(path, streams=PLACES, threads=1) as runner:
            first, second = (watch(runner, tracks) for tracks in footage)
        for output, name in names.items():
            done[name] = rank1(
                *(np.stack([seen[n][output] for n in range(len(who))]) for seen in (first, second))
            )
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer people, trained less")
    parser.add_argument("--folder", type=Path, default=Path("build/track_descriptor"))
    options = parser.parse_args()
    print("| descriptor | rank-1 |")
    print("| --- | ---: |")
    for name, share in run(options.folder, quick=options.quick).items():
        print(f"| {name} | {share:.1%} |")


if __name__ == "__main__":
    main()
