"""A run's figures kept: curves as a picture, and event files that TensorBoard's own reader reads."""

import dataclasses
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studio.curves import _CALM, calmed, curves, history, round_ticks, thinned
from studio.events import Finished, Previewed, Stepped
from studio.folder import RunError
from studio.request import Request
from studio.run import resume_run, run_request
from studio.tracking import VARIABLE, Curves, tracked, trackers_of


def step(done: int, value: float, total: int = 9) -> Stepped:
    return Stepped(0, done, done, total, torch.tensor(0.0), {"value": torch.tensor(value)})


def record(folder: Path, *lines: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "events.jsonl").write_text("\n".join(lines))


def told(done: int, **values: float) -> str:
    return json.dumps({"event": "Stepped", "stage": 0, "step": done, "done": done, "diagnostics": values})


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.pictures: list[int] = []
        self.closed = 0

    def step(self, done, values) -> None:
        self.steps.append((done, dict(values)))

    def picture(self, done, path) -> None:
        self.pictures.append(done)

    def close(self) -> None:
        self.closed += 1


def test_a_tracker_hears_about_once_a_second_and_of_the_last_step():
    listener = Listener()
    events = [*(step(i, 0.5) for i in range(1, 10)), Previewed(9, Path("a.png"))]
    assert list(tracked(iter(events), [listener])) == events
    assert listener.steps == [(1, {"value": 0.5}), (9, {"value": 0.5})]
    assert listener.pictures == [9] and listener.closed == 1


def test_trackers_are_closed_whatever_ends_the_run():
    def broken():
        yield step(1, 0.5)
        raise RuntimeError("broken")

    one, other = Listener(), Listener()
    with pytest.raises(RuntimeError, match="broken"):
        list(tracked(broken(), [one]))
    stream = tracked(iter([step(1, 0.5), step(2, 0.5)]), [other])
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert (one.closed, other.closed) == (1, 1)


# Curves ---------------------------------------------------------------------------------------------------------------


def test_the_record_is_read_with_its_damage_and_its_repetitions(tmp_path: Path):
    record(
        tmp_path / "run", told(1, value=3), "{", "7", told(2, value=2), told(3, value=9), told(2, value=1, opacity=0.5)
    )
    assert history(tmp_path / "run") == {"value": [(1, 3.0), (2, 1.0), (3, 9.0)], "opacity": [(2, 0.5)]}
    assert history(tmp_path) == {}


def hue_of(pixels: np.ndarray, hue: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of the pixels of a colour."""
    return np.argwhere((np.abs(pixels.astype(int) - hue) < 40).all(2))


def test_a_curve_goes_where_its_values_go():
    series = {"value": [(i, 100.0 - i) for i in range(1, 100)], "opacity": [(i, i / 100) for i in range(1, 100)]}
    with Image.open(io.BytesIO(curves("a red cube", series, 100, [50]))) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    for hue, falls in (((31, 119, 180), True), ((214, 39, 40), False)):  # the first two of the plot's colours
        places = hue_of(pixels, hue)
        left, right = places[places[:, 1].argmin()], places[places[:, 1].argmax()]
        assert right[1] - left[1] > 700 and (right[0] - left[0] > 80) == falls and (left[0] - right[0] > 80) != falls


def test_curves_bear_with_anything_measured():
    odd = {
        "value": [(1, 2.0), (5, math.nan), (9, 2.0)],  # flat, and once no number
        "gradient_norm": [(1, 1e-30), (2, 1e30)],
        "opacity": [(3, 0.5)],  # a point is no curve
        "skipped": [(1, 0.0), (9, 0.0)],  # nothing to see
        "a new figure": [(1, -1.0), (2, -2.0)],
    }
    heights = []
    for series in (odd, {"value": odd["value"]}):
        with Image.open(io.BytesIO(curves("x" * 500, series, 9))) as image:
            heights.append(image.height)
    assert heights[0] - heights[1] == 2 * (128 + 44)
    with pytest.raises(ValueError, match="two steps"):
        curves("a mug", {"value": [(1, 1.0), (2, math.inf)]}, 9)


@pytest.mark.parametrize(
    ("low", "high", "about", "ticks"),
    [(0, 1480, 3, [0, 500, 1000, 1500]), (0.18, 0.29, 3, [0.15, 0.2, 0.25, 0.3]), (0, 768, 8, [*range(0, 801, 100)])],
)
def test_axes_have_round_numbers(low: float, high: float, about: int, ticks: list[float]):
    assert round_ticks(low, high, about) == pytest.approx(ticks)


def test_points_are_thinned_and_calmed_without_a_shift():
    points = [(i, float(i)) for i in range(5000)]
    assert len(thinned(points)) <= 400 and thinned(points)[0] == (6.0, 6.0)
    few = [(float(i), float(i % 2)) for i in range(400)]
    calm = calmed(few)
    assert [x for x, _ in calm] == [x for x, _ in few] and calm[0] == few[0]
    assert all(abs(y - 0.5) < 1 / _CALM for _, y in calm[20:-20])


def test_curves_go_on_from_the_record_and_are_drawn_sparingly(tiny: Request, tmp_path: Path, monkeypatch):
    record(tmp_path, told(1, value=5.0), told(2, value=4.0))
    drawn: list[dict[str, list[tuple[int, float]]]] = []
    monkeypatch.setattr(
        "studio.tracking.curves", lambda title, series, *_: drawn.append(series) or time.sleep(0.02) or b""
    )
    tracker = Curves(tiny, tmp_path)
    tracker.step(3, {"value": 3.0})
    for _ in range(3):
        tracker.picture(3, Path("a.png"))
    assert drawn == [{"value": [(1, 5.0), (2, 4.0), (3, 3.0)]}]
    tracker.close()
    assert len(drawn) == 2 and (tmp_path / "losses.png").exists()


# A run ----------------------------------------------------------------------------------------------------------------


def test_tensorboard_reads_what_a_run_wrote_and_the_request_says_nothing_of_it(
    tiny: Request, tmp_path: Path, monkeypatch
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    request = dataclasses.replace(tiny, stages=(tiny.stages[0],), preview_every=5)
    events = list(run_request(request, folder, "cpu", tensorboard=True))
    assert isinstance(events[-1], Finished) and "tensorboard" not in (folder / "request.json").read_text()
    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    measured = {e.done: e.diagnostics for e in events if isinstance(e, Stepped)}
    assert set(read.Tags()["scalars"]) == set(measured[5]) >= {"value", "gradient_norm", "opacity", "skipped"}
    for name in measured[5]:
        points = read.Scalars(name)
        assert points[0].step == 1 and points[-1].step == 5
        assert points[-1].value == pytest.approx(float(measured[5][name]), rel=1e-6)
    (image,) = read.Images("preview")
    assert (image.step, image.width, image.height) == (5, 4 * 96, 96)
    with Image.open(folder / "losses.png") as picture:
        assert picture.width == 960
    monkeypatch.setenv(VARIABLE, "1")
    list(resume_run(folder, "cpu"))
    assert len(list((folder / "tensorboard").iterdir())) == 2


def test_a_tensorboard_that_is_missing_is_said_before_a_folder_is_made(tiny: Request, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"dreamkiln\[tensorboard\]"):
        next(run_request(tiny, tmp_path / "run", "cpu", tensorboard=True))
    assert not (tmp_path / "run").exists()
    assert len(trackers_of(tiny, tmp_path)) == 1
