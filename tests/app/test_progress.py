"""The record of a run, read as it grows."""

import json
from pathlib import Path
from typing import Any

import pytest

from studio.app.plot import loss_plot
from studio.app.service import Service
from studio.app.words import duration, memory, ordinal, pace
from studio.jobs.progress import Progress, Tail


def stepped(time: float, done: int, total: int = 100, loss: float = 2.0, **measured: float) -> dict[str, Any]:
    diagnostics = {"value": loss, "opacity": 0.3, "skipped": 0.0, **measured}
    return {"time": time, "event": "Stepped", "stage": 0, "step": done, "done": done, "total": total, "loss": 9.0} | {
        "diagnostics": diagnostics
    }


def started(step: int = 0) -> dict[str, Any]:
    return {
        "time": 0,
        "event": "Started",
        "prompt": "a mug",
        "folder": "x",
        "device": "cpu",
        "step": step,
        "steps": 100,
    }


def write(folder: Path, *events: dict[str, Any] | str, mode: str = "a") -> None:
    lines = [event if isinstance(event, str) else json.dumps(event) + "\n" for event in events]
    with (folder / "events.jsonl").open(mode) as file:
        file.write("".join(lines))


def test_nothing_is_known_of_a_run_without_a_record(tmp_path: Path) -> None:
    assert Tail(tmp_path).progress() == Progress()


def test_pace_and_health(tmp_path: Path) -> None:
    write(tmp_path, started(), stepped(10.0, 10), stepped(12.0, 20, loss=1.5))
    progress = Tail(tmp_path).progress()
    assert (progress.step, progress.steps, progress.share) == (20, 100, 0.2)
    assert progress.rate == 5 and progress.left == 16
    assert pace(progress) == ["step 20 of 100", "5.0 it/s", "16 s left"]
    assert progress.losses == [(10, 2.0), (20, 1.5)]
    assert progress.health() == [(True, "loss is finite"), (True, "opacity 30%")]


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (stepped(1, 1, loss=float("nan")), "loss is not finite"),
        (stepped(1, 1, skipped=2.0), "2 steps skipped"),
        (stepped(1, 1, opacity=0.001), "opacity 0%, nearly empty"),
    ],
)
def test_what_is_not_well_is_said(event: dict[str, Any], words: str, tmp_path: Path) -> None:
    write(tmp_path, started(), event)
    assert (False, words) in Tail(tmp_path).progress().health()


def test_only_what_is_new_is_read_and_half_a_line_waits(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    whole = json.dumps(stepped(3.0, 30)) + "\n"
    write(tmp_path, started(), stepped(1.0, 10), whole[:40])
    assert tail.progress().step == 10
    write(tmp_path, whole[40:])
    assert tail.progress().step == 30 and len(tail.progress().losses) == 2


def test_lines_that_a_crash_left_behind_say_nothing(tmp_path: Path) -> None:
    write(tmp_path, started(), '{"time": 1, "event": "Step\n', "[]\n", '{"event": "Stepped"}\n', stepped(2.0, 7))
    assert Tail(tmp_path).progress().step == 7


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    write(tmp_path, started(), stepped(1.0, 10), stepped(2.0, 20), {"time": 3, "event": "Failed", "text": "no disk"})
    tail = Tail(tmp_path)
    assert tail.progress().error == "no disk"
    write(tmp_path, started(10))
    progress = tail.progress()
    assert (progress.error, progress.step, progress.losses, progress.rate) == ("", 10, [(10, 2.0)], None)


def test_another_run_in_the_folder_is_noticed(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    write(tmp_path, started(), stepped(1.0, 10), stepped(2.0, 20))
    assert tail.progress().step == 20
    write(tmp_path, started(), mode="w")
    assert tail.progress().step == 0 and tail.progress().losses == []


def test_what_was_read_does_not_change_afterwards(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    write(tmp_path, started(), stepped(1.0, 10), stepped(2.0, 20))
    before = tail.progress()
    write(tmp_path, started(0), stepped(3.0, 1))
    tail.progress()
    assert before.step == 20 and before.rate == 10


def test_a_long_run_keeps_few_points(tmp_path: Path) -> None:
    write(tmp_path, started(), *(stepped(float(i), i, 2000) for i in range(1, 2001)))
    losses = Tail(tmp_path).progress().losses
    assert 100 < len(losses) <= 400 and losses[-1][0] > 1990


def test_a_real_run_is_read_to_its_end(studio: Service) -> None:
    (run,) = studio.finished()
    progress = studio.progress(run)
    assert progress.step == progress.steps == 6
    assert progress.seconds is not None and progress.seconds > 0
    assert progress.stage == "HashField under SDS" and progress.device == "cpu" and progress.losses


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (80, "1 min 20 s"),
        (60, "1 min"),
        (1500, "25 min"),
        (11100, "3 h 5 min"),
        (7200, "2 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_other_words() -> None:
    assert [
        ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 112)
    ] == "1st 2nd 3rd 4th 11th 12th 13th 21st 112th".split()
    assert [memory(m) for m in (850, 1229)] == ["850 MB", "1.2 GB"]


def test_the_plot_spans_its_values() -> None:
    assert loss_plot([(1, 2.0)], 10) == ""
    plot = loss_plot([(0, 1000.0), (50, 10.0), (100, 1.0)], 100)
    assert "logarithmic" in plot and "100 steps" in plot
    points = [tuple(map(float, pair.split(","))) for pair in plot.split('points="')[1].split('"')[0].split()]
    assert points[0][1] < points[1][1] < points[2][1]  # y grows downwards
    assert points[1][0] - points[0][0] == points[2][0] - points[1][0]
    assert "logarithmic" not in loss_plot([(0, 2.0), (5, 1.0)], 5)
    assert "polyline" in loss_plot([(0, 1.0), (5, 1.0)], 5) and "polyline" in loss_plot([(0, -1.0), (5, 3.0)], 5)
