"""Pictures with captions: what stands in them is true. Words are looked for as their pixels, truths as their colours."""

from __future__ import annotations

from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import edgelstm
import zoo
from command_line import Run
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import Context, Frame, View, open_sink
from edgelstm.pipeline.sinks import captions
from edgelstm.pipeline.sinks.colours import DRY, RAIN, UNKNOWN, Scale
from edgelstm.pipeline.sinks.panels import INPUT
from exported import exported

pytest.importorskip("PIL")
ROOT = Path(__file__).resolve().parents[2]
RADAR = ROOT.parent / "shared" / "data" / "knmi-2010-08-26"
START = datetime(2010, 8, 26, 23, 50, tzinfo=timezone.utc)
SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("N", 1, 40, 40)),),
    (TensorSpec("ahead", "float32", ("N", 2, 1, 40, 40)),),
    (),
)
FORECAST = Context(START, 300.0, units={"ahead": "mm/h"}, leads={"ahead": 2}, model="net.onnx")


def pictures(folder: Path) -> list[np.ndarray]:
    from PIL import Image

    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def says(picture: np.ndarray, text: str, size: int, colour: tuple[int, int, int]) -> bool:
    """Whether ``text`` stands somewhere in the picture, pixel by pixel."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size)
    page = Image.new("RGB", (round(font.getlength(text)) + 2, size + 6), captions.BACK)
    ImageDraw.Draw(page).text((0, 0), text, colour, font)
    wanted = np.asarray(page)
    used = np.nonzero((wanted != np.array(captions.BACK)).any(2))
    wanted = wanted[used[0].min() : used[0].max() + 1, used[1].min() : used[1].max() + 1]
    height, width = wanted.shape[:2]
    line = max(range(height), key=lambda y: int((wanted[y] != np.array(captions.BACK)).sum()))
    for y in range(line, picture.shape[0] - height + line + 1):
        row, start = picture[y].tobytes(), -1
        while (start := row.find(wanted[line].tobytes(), start + 1)) >= 0:
            x = start // 3
            if start % 3 == 0 and (picture[y - line : y - line + height, x : x + width] == wanted).all():
                return True
    return False


def cells(picture: np.ndarray, colour: tuple[int, ...], least: int = 40 * 40) -> bool:
    """Whether a cell is filled with a colour."""
    return int((picture == np.array(colour)).all(2).sum()) >= least


def write(folder: Path, view: View, gap: int | None = None, context: Context = FORECAST) -> list[np.ndarray]:
    """Five frames; frame t rains 1.1, 2.2, 5.5, 10.5, 20.5 mm/h all over, and every forecast says 60 and 120."""
    ahead = np.stack([np.full((1, 40, 40), v, np.float32) for v in (60, 120)])
    with open_sink(f"{folder}/", SIGNATURE, view=view, context=context) as sink:
        for t, rain in enumerate((1.1, 2.2, 5.5, 10.5, 20.5)):
            frame = Frame(
                t,
                300.0 * t,
                f"{t}",
                np.zeros((40, 40), np.uint16),
                gap="a file" if t == gap else None,
            )
            x = np.full((1, 40, 40), rain, np.float32)
            sink.write(frame, {"ahead": ahead, INPUT: x}, 0.0)
            x[:] = -1  # what the sink was given is not its own
    return pictures(folder)


COLOUR = dict(RAIN)


def test_what_came_stands_below_the_forecast_it_belongs_to(tmp_path: Path) -> None:
    found = write(tmp_path / "out", View(colours="rain", beside=True, truth=True))
    assert len(found) == 5
    rain = [COLOUR[v] for v in (1.0, 2.0, 5.0, 10.0, 20.0)]
    for t, picture in enumerate(found):
        shown = {k for k in range(5) if cells(picture, rain[k])}
        assert shown == {t, t + 1, t + 2} & set(range(5))  # the input, and what came 5 and 10 minutes later
        assert cells(picture, COLOUR[50.0])
        assert cells(picture, COLOUR[100.0])
        assert cells(picture, captions.EMPTY) == (t >= 3)
        assert says(picture, "not known", captions.SMALL, captions.BRIGHT) == (t >= 3)
        assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0


def test_nothing_from_behind_a_gap_is_called_what_came(tmp_path: Path) -> None:
    found = write(tmp_path / "out", View(colours="rain", truth=True, lead=1), gap=2)
    assert [cells(picture, captions.EMPTY) for picture in found] == [False, True, False, False, True]
    assert not cells(found[1], COLOUR[5.0])
    assert cells(found[2], COLOUR[10.0])


def test_words_times_lead_times_and_units(tmp_path: Path) -> None:
    picture = write(tmp_path / "out", View(colours="rain", beside=True, truth=True))[1]
    for text in ("input", "23:55 UTC", "forecast", "what came", "+5 min  00:00 UTC", "+10 min  00:05 UTC"):
        colour = captions.BRIGHT if text[-1].islower() else captions.PALE
        assert says(picture, text, captions.SMALL, colour), text
    assert says(picture, "net.onnx  ·  ahead", captions.TEXT, captions.PALE)
    assert says(picture, "2010-08-26 23:55 UTC", captions.TEXT, captions.BRIGHT)
    assert says(picture, "mm/h", captions.SMALL, captions.BRIGHT)
    assert not says(picture, "+15 min  00:10 UTC", captions.SMALL, captions.PALE)


def test_without_times_lead_times_are_counted_in_frames(tmp_path: Path) -> None:
    picture = write(tmp_path / "out", View(caption=True), context=Context(leads={"ahead": 2}))[0]
    assert says(picture, "+1 frame", captions.SMALL, captions.PALE)
    assert says(picture, "+2 frames", captions.SMALL, captions.PALE)
    assert not says(picture, "mm/h", captions.SMALL, captions.BRIGHT)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.04 s"), (90, "90 s"), (300, "5 min"), (3600, "1 h"), (5400, "90 min"), (9000, "2 h 30 min")],
)
def test_durations_are_written_as_people_do(seconds: float, words: str) -> None:
    assert captions._duration(seconds) == words


def test_rain_has_the_colour_of_its_class() -> None:
    values = np.array([[0.0, 0.09, 0.1, 0.49, 0.5, 99.9, 100.0, 400.0, np.nan]])
    found = Scale("rain")(values)[0].tolist()
    wanted = [DRY, DRY, *(COLOUR[v] for v in (0.1, 0.1, 0.5, 50.0, 100.0, 100.0)), UNKNOWN]
    assert found == [list(c) for c in wanted]


@pytest.mark.parametrize(
    ("view", "context", "message"),
    [
        (View(colours="rain"), Context(leads={"ahead": 2}), "found values of no known unit; expected mm/h"),
        (View(colours="rain"), Context(units={"ahead": "mm"}), "found values in mm; expected mm/h"),
        (View(truth=True), Context(), "no forecast of the input"),
    ],
)
def test_what_can_t_be_true_is_refused(tmp_path: Path, view: View, context: Context, message: str) -> None:
    with pytest.raises(EdgeLstmError, match=message):
        open_sink(f"{tmp_path}/out/", SIGNATURE, view=view, context=context)
    assert not list(tmp_path.iterdir())
    with pytest.raises(EdgeLstmError, match="a range for the colours of rain"):
        View(colours="rain", range=(0, 1))


def test_the_input_beside_is_of_the_channel_that_is_shown(tmp_path: Path) -> None:
    spec = ("N", 2, 40, 40)
    signature = Signature((TensorSpec("x", "float32", spec),), (TensorSpec("y", "float32", spec),), ())
    x = np.stack([np.zeros((40, 40), np.float32), np.ones((40, 40), np.float32)])
    view = View(channel=1, beside=True, range=(0, 1))
    with open_sink(f"{tmp_path}/out/", signature, view=view) as sink:
        sink.write(Frame(0, None, "0", np.zeros(3)), {"y": x / 2, INPUT: x}, 0.0)
    (picture,) = pictures(tmp_path / "out")
    assert picture[20, :100].min() == 255
    assert picture[20, -100:].max() == 128


def test_the_command_line_shows_the_stream_that_is_shipped(tmp_path: Path, run: Run) -> None:
    """As a video; of a model that repeats its frame."""
    av = pytest.importorskip("av")
    model, video = tmp_path / "m.onnx", tmp_path / "v.mp4"
    zoo.persistence(3, (1, 64, 64)).save(model)
    source = ROOT / "examples" / "moving_digits" / "test_stream.npz"
    options = ("--limit", "6", "--beside", "--truth", "--colours", "heat")
    assert run("run", model, "--source", source, "-o", video, *options)[0] == 0
    with av.open(str(video)) as file:
        assert len(list(file.decode(video=0))) == 6
    code, _, said = run("run", model, "--source", source, "-o", video, "--colours", "rain")
    assert code == 2
    assert "the colours of rain for output 'forecast': found values of no known unit" in said


@pytest.mark.skipif(not RADAR.is_dir(), reason="needs real radar frames, in shared/data beside the checkout")
def test_real_radar_frames(tmp_path: Path) -> None:
    view = View(colours="rain", beside=True, truth=True, lead=1)
    edgelstm.run(exported("nowcast_radar"), str(RADAR), f"{tmp_path}/maps/", view=view, limit=6, threads=1)
    found = pictures(tmp_path / "maps")
    assert len(found) == 6
    assert says(found[0], "+5 min  00:05 UTC", captions.SMALL, captions.PALE)
    assert says(found[0], "2010-08-26 00:00 UTC", captions.TEXT, captions.BRIGHT)
    assert says(found[0], "mm/h", captions.SMALL, captions.BRIGHT)
    side = (found[0].shape[1] - 4 * captions.GAP) // 3
    top = found[0].shape[0] - side
    for now, then in pairwise(found):
        body = slice(80, min(80 + side, top + side) - 90)
        came = now[body, -captions.GAP - side : -captions.GAP]
        inputs = then[body, captions.GAP : captions.GAP + side]
        np.testing.assert_array_equal(came, inputs)
        assert len(np.unique(came.reshape(-1, 3), axis=0)) >= 3  # it rained
