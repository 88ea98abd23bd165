"""Make alarm.wav and train alarm.safetensors: a smoke alarm's pattern (three beeps of 3.1 kHz and a pause, ISO 8201) in a noisy room.

    python examples/serve/make_alarm.py

One beep is no alarm, nor are beeps of another pitch or in another rhythm: the network has to remember. About two minutes.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import torch

from edgelstm import nn

HERE = Path(__file__).parent
RATE, BLOCK = 8000, 1024
SECONDS = 12  # of a scene
BLOCKS = SECONDS * RATE // BLOCK


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(sound [samples], 1 in the blocks from the end of an alarm's second beep to the end of its last)."""
    time = np.arange(BLOCKS * BLOCK) / RATE
    sound = rng.normal(0, rng.uniform(0.003, 0.05), time.size)
    alarm = np.zeros(time.size, bool)
    for _ in range(rng.integers(0, 4)):  # somebody whistles, a kettle, a phone
        start, length = rng.uniform(0, SECONDS), rng.uniform(0.1, 1.5)
        pitch = rng.choice([rng.uniform(300, 2500), rng.uniform(3050, 3150)], p=[0.6, 0.4])
        sound += beep(time, start, length, pitch, rng.uniform(0.05, 0.4))
    if rng.random() < 0.6:
        begin, loud = rng.uniform(0.5, 5), rng.uniform(0.05, 0.4)
        beeps = [begin + 4 * cycle + k for cycle in range(rng.integers(1, 3)) for k in range(3)]
        pitch = rng.uniform(3050, 3150)
        for start in beeps:
            sound += beep(time, start, 0.5, pitch, loud)
        alarm = (time >= beeps[1] + 0.5) & (time < beeps[-1] + 0.5)
    return np.clip(sound, -1, 1).astype(np.float32), alarm[BLOCK - 1 :: BLOCK]


def beep(time: np.ndarray, start: float, length: float, pitch: float, loud: float) -> np.ndarray:
    """A tone, zeros around it."""
    return np.where((time >= start) & (time < start + length), loud * np.sin(2 * np.pi * pitch * time), 0)


def spectra(sound: np.ndarray) -> torch.Tensor:
    """[..., samples] as magnitudes of its blocks [..., blocks, 513], as the operation ``magnitude`` does."""
    blocks = sound.reshape(*sound.shape[:-1], BLOCKS, BLOCK)
    return torch.from_numpy(np.abs(np.fft.rfft(blocks)).astype(np.float32))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    model = nn.LSTM(BLOCK // 2 + 1, [16], outputs=1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for update in range(400):
        scenes = [scene(rng) for _ in range(24)]
        x = spectra(np.stack([s for s, _ in scenes])) * 0.05
        wanted = torch.from_numpy(np.stack([a for _, a in scenes])).float()
        states, made = model.initial_states(24), []
        for step in range(BLOCKS):
            y, states = model(x[:, step], *states)
            made.append(y[:, 0])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(torch.stack(made, 1), wanted)
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (400 - update) / 200)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if update % 50 == 49:
            right = ((torch.stack(made, 1) > 0) == (wanted > 0)).float().mean()
            print(
                f"update {update + 1}: loss {loss.item():.3f}, right in {right:.1%} of the blocks", flush=True
            )
    ops = [
        {"op": "samples", "length": BLOCK, "hop": BLOCK, "rate": RATE},
        {"op": "magnitude"},
        {"op": "scale", "factor": 0.05, "offset": 0.0},
    ]
    nn.save(model, HERE / "alarm.safetensors", preprocessing={"x": ops})

    rng = np.random.default_rng(7)
    time = np.arange(BLOCKS * BLOCK) / RATE
    sound = rng.normal(0, 0.02, time.size) + beep(time, 1, 0.7, 1200, 0.3) + beep(time, 2.5, 0.5, 3100, 0.2)
    for start in (5, 6, 7, 9, 10, 11):
        sound += beep(time, start, 0.5, 3100, 0.2)
    with wave.open(str(HERE / "alarm.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())


if __name__ == "__main__":
    main()
