"""Schedules as short text and back: ``0.98 -> 0.5 until 0.8``; ``0:0.98, 0.2:0.98, 0.2:0.5`` jumps at a fifth."""

from typing import Any, get_args

from guidance.schedules import Schedule, Shape
from studio.codec import nearest

EXAMPLES = "0.5, or 0.98 -> 0.5 until 0.8, or 0.98 -> 0.5 cosine, or 0:1, 0.5:1, 0.5:3"
"""What a schedule may look like."""

_MARKS = {"->": "end", "from": "begin", "until": "until"}


def schedule_text(schedule: Schedule) -> str:
    """START [-> END] [from BEGIN] [until UNTIL] [SHAPE], without what is as it is by itself."""
    words = [", ".join(f"{_number(at)}:{_number(value)}" for at, value in schedule.points)]
    if not schedule.points:
        words = [_number(schedule.start)]
        words += [] if schedule.end is None else ["->", _number(schedule.end)]
    words += [] if schedule.begin == 0 else ["from", _number(schedule.begin)]
    words += [] if schedule.until == 1 else ["until", _number(schedule.until)]
    words += [] if schedule.shape in ("linear", "piecewise") else [schedule.shape]
    return " ".join(words)


def parse_schedule(text: str) -> Schedule:
    """The schedule that ``schedule_text`` wrote, or anybody.

    Raises:
        ValueError: not a schedule; the message says what is wrong and shows what one looks like.
    """
    words = text.replace("→", "->").replace("->", " -> ").replace(",", " ").split()
    fields: dict[str, Any] = {}
    points: list[tuple[float, float]] = []
    try:
        while words:
            word = words.pop(0)
            if ":" in word:
                at, _, value = word.partition(":")
                points.append((_read(at), _read(value)))
            else:
                name, value = _named(word, words)
                if name in fields:
                    raise ValueError(f"{name} is said twice")
                fields[name] = value
        if points:
            fields |= {"points": tuple(points), "shape": fields.get("shape", "piecewise")}
        elif "start" not in fields:
            raise ValueError("not a schedule: there is no value to start with")
        return Schedule(**fields)
    except ValueError as problem:
        raise ValueError(f"{problem}, in {text[:80]!r}; write {EXAMPLES}") from problem


def _named(word: str, rest: list[str]) -> tuple[str, Any]:
    """The field that a word is for, with its value; takes what belongs to it from the ``rest``."""
    if word in _MARKS:
        if not rest:
            raise ValueError(f"nothing follows {word!r}")
        return _MARKS[word], _read(rest.pop(0))
    if word in get_args(Shape):
        return "shape", word
    if word.isalpha():
        raise ValueError(f"no {word!r}; {nearest(word, [*get_args(Shape), *_MARKS])}")
    return "start", _read(word)


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _read(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a number") from None
