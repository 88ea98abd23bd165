"""Microphones: ALSA's own library, with a device of its configuration that plays a file; and sound files that are no WAV."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source
from edgelstm.pipeline.sources.microphone import _why

av = pytest.importorskip("av")
if "alsa" not in av.formats_available:
    pytest.skip("PyAV without ALSA", allow_module_level=True)

DEVICE = """
pcm.null {{ type null }}
pcm.recorded {{ type file  slave.pcm null  file "/dev/null"  infile "{}"  format raw }}
"""


def record(folder: Path, samples: np.ndarray, code: str, more: dict[str, str] | None = None) -> str:
    """Run ``code`` where ALSA has a device ``recorded`` that gives ``samples`` [n, channels]: ALSA reads its configuration once a process."""
    (folder / "in.raw").write_bytes(samples.astype("<i2").tobytes())
    (folder / "asound.conf").write_text(DEVICE.format(folder / "in.raw"))
    environment = {**os.environ, "ALSA_CONFIG_PATH": str(folder / "asound.conf"), **(more or {})}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_recording_in_blocks(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-20000, 20000, (24000, 2))
    code = """
import json, time
import numpy as np
from edgelstm.pipeline import open_source
made = []
for spec in ("mic:recorded#rate=16000&channels=2", "mic:recorded#rate=16000&channels=2&channel=1"):
    with open_source(spec, limit=20).reframed(512, 128) as source:
        frames = list(source)
    made.append([f.data.tolist() for f in frames])
    times = [source.place.start.timestamp() + f.time for f in frames]
    assert abs(times[0] - time.time()) < 60 and sorted(times) == times, times
    assert source.live and source.fps == 125 and [f.index for f in frames] == list(range(20))
print(json.dumps(made))
"""
    mean, second = json.loads(record(tmp_path, samples, code))
    for made, wanted in ((mean, samples.mean(1)), (second, samples[:, 1])):
        padded = np.concatenate([np.zeros(512 - 128), wanted / 32768])
        blocks = [padded[k * 128 : k * 128 + 512] for k in range(20)]
        np.testing.assert_allclose(made, blocks, atol=1e-6)


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    code = """
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source
for spec in ("mic:other", "mic:", "mic:recorded#rate=0", "mic:recorded#channels=2&channel=2", "mic:recorded#speed=1"):
    try:
        open_source(spec)
    except EdgeLstmError as error:
        print(error)
"""
    said = record(tmp_path, np.zeros((10, 1)), code).splitlines()
    assert [line.split(":")[0] for line in said] == [
        "microphone other can't be opened",
        "microphone ",
        "microphone recorded",
        "microphone recorded",
        "source mic",
    ]


RATE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <string.h>
static int find(struct dl_phdr_info *info, size_t size, void *made) {
    if (!strstr(info->dlpi_name, "libasound")) return 0;
    *(void **)made = dlopen(info->dlpi_name, RTLD_NOW | RTLD_NOLOAD);
    return 1;
}
int snd_pcm_hw_params_set_rate_near(void *pcm, void *parameters, unsigned *rate, int *direction) {
    void *library = 0;
    dl_iterate_phdr(find, &library);
    int (*set)(void *, void *, unsigned, int) = (int (*)(void *, void *, unsigned, int))dlsym(library, "snd_pcm_hw_params_set_rate");
    return set(pcm, parameters, *rate = 48000, 0);
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_card_of_another_rate_than_was_asked_for(tmp_path: Path) -> None:
    """ALSA takes the nearest rate that a card has, and FFmpeg goes on with it: taken for 16 kHz, 48 kHz is three times too low."""
    (tmp_path / "rate.c").write_text(RATE)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "rate.so"), str(tmp_path / "rate.c"), "-ldl"],
        check=True,
    )
    samples = np.random.default_rng(2).integers(-20000, 20000, (48000, 1))
    code = """
import json
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source
try: open_source("mic:recorded#rate=16000")
except EdgeLstmError as error: print(error)
with open_source("mic:recorded", limit=10).reframed(512, 512) as source:
    print(source.said, source.fps)
    print(json.dumps([f.data.tolist() for f in source]))
"""
    refused, said, made = record(
        tmp_path, samples, code, {"LD_PRELOAD": str(tmp_path / "rate.so")}
    ).splitlines()
    assert refused == "microphone recorded: rate: found 48000 Hz; expected 16000 Hz. #rate=48000"
    assert said == "('48000 Hz, 1 channel',) 93.75"
    np.testing.assert_allclose(np.ravel(json.loads(made)), samples[:5120, 0] / 32768, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hw:7,0", "no card 7; there is Loopback"),
        ("plughw:CARD=Loopback,DEV=5", "card Loopback has no device 5 that records"),
        ("hw:Loopback,1", "in use by process 123"),
        ("hw:0,0", None),
        ("default", None),
    ],
)
def test_what_the_kernel_says_of_a_card(tmp_path: Path, name: str, words: str | None) -> None:
    """The files are those of snd-aloop: ALSA gives the same error for all."""
    for card in ("card0", "Loopback"):
        for device, status in (("pcm0c", "closed\n"), ("pcm1c", "state: RUNNING\nowner_pid   : 123\n")):
            (tmp_path / card / device / "sub0").mkdir(parents=True)
            (tmp_path / card / device / "sub0" / "status").write_text(status)
        (tmp_path / card / "id").write_text("Loopback\n")
    assert _why(name, tmp_path) == words


def test_a_card_that_may_not_be_opened() -> None:
    with tempfile.TemporaryDirectory() as folder:  # below which another user may look, as tmp_path is not
        cards = Path(folder)
        cards.chmod(0o755)
        (cards / "card0" / "pcm0c" / "sub0").mkdir(parents=True)
        (cards / "card0" / "pcm0c" / "sub0" / "status").write_text("closed\n")
        (cards / "Card").symlink_to("card0")
        (cards / "controlC0").touch(mode=0)
        code = f"""
import os
from pathlib import Path
from edgelstm.pipeline.sources.microphone import _why
if os.geteuid() == 0: os.seteuid(65534)  # root may open everything
here = Path({folder!r})
print(_why("hw:Card,0", here, here))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("Permission denied (of the group audio"), done.stdout + done.stderr


def test_flac_is_the_wav_that_went_in(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).integers(-30000, 30000, (2, 5000)).astype(np.int16)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.T.tobytes())
    with av.open(str(tmp_path / "a.flac"), "w") as container:
        stream = container.add_stream("flac", rate=16000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1), "s16", "stereo")
        frame.sample_rate, frame.time_base, frame.pts = 16000, Fraction(1, 16000), 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    for behind in ("", ":channel=1"):
        with (
            open_source(f"{tmp_path}/a.flac{behind}") as flac,
            open_source(f"{tmp_path}/a.wav{behind}") as wav,
        ):
            made, wanted = list(flac.reframed(256, 100)), list(wav.reframed(256, 100))
        assert len(made) == len(wanted) == 50
        for one, other in zip(made, wanted, strict=True):
            np.testing.assert_allclose(one.data, other.data, atol=1e-7)
            assert one.time == other.time
    (tmp_path / "b.flac").write_bytes(b"no sound")
    with pytest.raises(EdgeLstmError, match="not a sound file"):
        open_source(str(tmp_path / "b.flac"))


@pytest.mark.skipif(
    not Path("/usr/share/alsa/alsa.conf").is_file(), reason="needs ALSA's configuration: libasound2-data"
)
def test_the_systems_devices_are_known() -> None:
    code = "from edgelstm.pipeline import open_source; print(open_source('mic:null').live)"
    bare = {k: v for k, v in os.environ.items() if not k.startswith("ALSA_")}
    done = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr
