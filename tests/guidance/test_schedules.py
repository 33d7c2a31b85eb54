"""Schedules: values at the ends, in between, and what is refused."""

import dataclasses
import json
import math

import pytest

from guidance.schedules import Schedule


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(0.3), (0.3, 0.3, 0.3)),
        (Schedule(0.3, shape="constant"), (0.3, 0.3, 0.3)),
        (Schedule(0.98, 0.5, until=0.8), (0.98, 0.68, 0.5)),
        (Schedule(1.0, 2.0, begin=0.25, until=0.75, shape="cosine"), (1.0, 1.5, 2.0)),
        (Schedule(700.0, 100.0, shape="square_root"), (700.0, 700 - 600 * math.sqrt(0.5), 100.0)),
        (Schedule(points=((0.0, 1.0), (0.5, 1.0), (0.5, 3.0)), shape="piecewise"), (1.0, 3.0, 3.0)),
        (Schedule(points=((0.25, 0.0), (0.75, 2.0)), shape="piecewise"), (0.0, 1.0, 2.0)),
    ],
)
def test_values_at_start_middle_and_end(schedule: Schedule, expected: tuple[float, ...]):
    assert [schedule(p) for p in (0.0, 0.5, 1.0)] == pytest.approx(expected)


@pytest.mark.parametrize("shape", ["linear", "square_root", "cosine"])
def test_a_schedule_is_monotonic_and_rests_outside_its_span(shape):
    schedule = Schedule(0.0, 1.0, begin=0.2, until=0.6, shape=shape)
    course = [schedule(i / 100) for i in range(-10, 111)]
    assert course == sorted(course)
    assert schedule(-1.0) == schedule(0.2) == 0 and schedule(0.6) == schedule(2.0) == 1


def test_a_schedule_travels_through_json():
    schedule = Schedule(points=((0.0, 1.0), (1.0, 2.0)), shape="piecewise")
    fields = json.loads(json.dumps(dataclasses.asdict(schedule)))
    fields["points"] = tuple(map(tuple, fields["points"]))
    assert Schedule(**fields) == schedule


def test_a_schedule_is_set_from_a_command_line():
    import tyro

    said = tyro.cli(Schedule, args=["--start", "1", "--end", "2", "--shape", "cosine", "--until", "0.5"])
    assert said == Schedule(1.0, 2.0, until=0.5, shape="cosine")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"start": math.nan}, "finite"),
        ({"begin": 0.5, "until": 0.5}, "begin"),
        ({"end": 1.0, "until": 1.5}, "until"),
        ({"shape": "piecewise"}, "needs points"),
        ({"points": ((0.0, 1.0),)}, "need that shape"),
        ({"start": 1.0, "points": ((0.0, 1.0),), "shape": "piecewise"}, "leave start and end out"),
        ({"points": ((0.6, 1.0), (0.2, 0.0)), "shape": "piecewise"}, "grow"),
        ({"end": 1.0, "shape": "constant"}, "no end"),
    ],
)
def test_nonsense_is_refused_in_words(fields, words: str):
    with pytest.raises(ValueError, match=words):
        Schedule(**fields)
