"""Every knob of a request, described for whatever draws it: out of the dataclasses, so a new field appears by itself.

Nothing here knows the page. A knob is named by its place in the request, has the docstring of its field as help, and
its value is what a form shows: a number, a switch, or text. ``with_knobs`` reads such values back, ``as_arguments``
says what a command line would have to say for the same.
"""

import ast
import dataclasses
import functools
import inspect
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from guidance.schedules import Schedule
from studio.codec import decode, nearest
from studio.places import NOTHING, Place, member_name, places, put, switch, switchable
from studio.prior_options import offers_one_pass
from studio.request import Request
from studio.restore import LARGEST_NUMBER
from studio.schedule_text import parse_schedule, schedule_text

Kind = Literal["number", "integer", "switch", "choice", "text", "schedule", "union"]
Value = float | int | bool | str | None

LEFT_OUT = {
    "Request.prompt": "has a box of its own, and templates",
    "Request.prior": "a folder by its path; people choose from a list",
    "Request.stages": "recipes decide how many there are",
    "Request.task": "an edit is begun from a finished run",
    "Edit.source": "a folder by its path",
    "JSD.multi_view": "a folder by its path",
    "PriorOptions.lora": "files by their paths",
    "PriorOptions.textual_inversion": "files by their paths",
    "PriorOptions.image": "a file by its path",
}
"""Fields that are no knobs, and why."""
_UNSAID = {"Request.prompt", "Request.stages", "Request.task", "Edit.source"}
"""Fields that no argument says: they are arguments of their own, or another verb's."""
_ONE_PASS = "PriorOptions.one_pass"
_LISTED = {_ONE_PASS: {NOTHING: "", "own": "own"}}
"""Texts that may be a file's path on a command line, and are one of a few words here; what those stand for."""


@dataclass(frozen=True)
class Knob:
    """One thing that can be set."""

    path: str
    """Where in the request, e.g. stages.0.guidance.scale."""
    heading: str
    """What it belongs to, in words; knobs of one heading follow each other."""
    label: str
    """Its name, in words."""
    kind: Kind
    """number, integer: may be None where ``optional``. switch: a bool. choice: one of ``choices``. union: the same, and
    other knobs appear with another choice. schedule, text: a string; text is also how several numbers are shown."""
    value: Value
    """What it is set to, as a form shows it."""
    choices: tuple[str, ...]
    """Of a choice or a union."""
    optional: bool
    """Whether it may be empty."""
    help: str
    """What it does."""


def knobs(request: Request) -> list[Knob]:
    """All knobs of a request, those of one heading together."""
    found: dict[str, list[Knob]] = {}
    for place in _settable(request).values():
        if _name(place) == _ONE_PASS and not (place.value or offers_one_pass(request.prior)):
            continue
        knob = _knob(place)
        found.setdefault(knob.heading, []).append(knob)
    return [knob for group in found.values() for knob in group]


def with_knobs(request: Request, values: Mapping[str, Value]) -> Request:
    """The request with some of its knobs set, by their paths; those of a member of a union after that member.

    Raises:
        ValueError: every path that is no knob, with the nearest that is, and every value that does not fit; in words.
    """
    problems, known = [], _settable(request)
    for path, value in sorted(values.items(), key=lambda item: item[0].count(".")):
        try:
            if path not in known:
                raise ValueError(f"No knob {path!r}; {nearest(path, known)}")
            request = _with_knob(request, known[path], value)
        except ValueError as problem:
            problems.append(str(problem))
        else:
            known = _settable(request) if known[path].is_union else known
    if problems:
        raise ValueError("\n".join(problems))
    return request


def as_arguments(before: Request, after: Request) -> list[str]:
    """Arguments of ``studio generate`` that turn one request into the other; prompt and task are left to the caller.

    Raises:
        ValueError: they differ in what no argument can say, such as the number of stages.
    """
    if len(before.stages) != len(after.stages):
        raise ValueError(f"No knob turns {len(before.stages)} stages into {len(after.stages)}; name another recipe.")
    arguments: list[str] = []
    if before.prior != after.prior:
        arguments += _flag("prior", [after.prior])
        before = dataclasses.replace(before, prior=after.prior)
    while (change := _first_switch(before, after)) is not None:
        place, name = change
        arguments += _flag(place.path, [name])
        before = switch(before, place, name)
    had = {place.path: place.value for place in places(before)}
    for place in places(after):
        said = not (_is_group(place) or place.is_union or _name(place) in _UNSAID)
        if said and had[place.path] != place.value:
            arguments += _argument(place)
    return arguments


# Describing -----------------------------------------------------------------------------------------------------------


def _name(place: Place) -> str:
    return f"{place.owner.__name__}.{place.name}"


def _is_left_out(place: Place) -> bool:
    return _name(place) in LEFT_OUT


def _is_group(place: Place) -> bool:
    """Whether a place is no knob but a heading: a dataclass that is always there."""
    return dataclasses.is_dataclass(place.kinds[0]) and not place.is_union and not place.is_schedule


def _knob(place: Place) -> Knob:
    kind = _kind(place)
    return Knob(
        place.path,
        _heading(place.path),
        place.name.replace("_", " ").capitalize(),
        kind,
        _shown(place),
        _choices(place),
        place.optional,
        field_help(place.owner).get(place.name, ""),
    )


def _kind(place: Place) -> Kind:
    if place.is_schedule:
        return "schedule"
    if place.is_union:
        return "union"
    if _name(place) in _LISTED or (len(place.kinds) == 1 and typing.get_origin(place.kinds[0]) is Literal):
        return "choice"
    plain: dict[Any, Kind] = {(bool,): "switch", (int,): "integer", (float,): "number"}
    return plain.get(place.kinds, "text")


def _choices(place: Place) -> tuple[str, ...]:
    if place.is_union:
        return tuple(switchable(place))
    if _kind(place) != "choice":
        return ()
    if (listed := _LISTED.get(_name(place))) is not None:
        return tuple(listed)
    return (*((NOTHING,) if place.optional else ()), *map(str, typing.get_args(place.kinds[0])))


def _shown(place: Place) -> Value:
    kind, value = _kind(place), place.value
    if kind == "union":
        return member_name(value)
    if kind == "choice":
        return NOTHING if value in (None, "") else str(value)
    if kind in ("number", "integer", "switch"):
        return value
    if value is None:
        return ""
    if isinstance(value, Schedule):
        return schedule_text(value)
    return " ".join(map(_word, value)) if isinstance(value, tuple) else str(value)


def _heading(path: str) -> str:
    """``stages.0.guidance.controls.clamp`` -> ``Stage 1: guidance, controls``."""
    groups = path.split(".")[:-1]
    if groups[:1] == ["stages"]:
        stage, within = f"Stage {int(groups[1]) + 1}", groups[2:]
        return f"{stage}: {', '.join(within)}".replace("_", " ") if within else stage
    return ", ".join(groups).replace("_", " ").capitalize() or "Run"


@functools.cache
def field_help(kind: type) -> dict[str, str]:
    """Docstrings of a dataclass's own fields, each on one line: the text below a field in the source."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in pairwise(definition.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


# Reading --------------------------------------------------------------------------------------------------------------


def _settable(request: Request) -> dict[str, Place]:
    return {place.path: place for place in places(request) if not _is_left_out(place) and not _is_group(place)}


def _with_knob(request: Request, place: Place, value: Value) -> Request:
    if place.is_union:
        return switch(request, place, str(value))
    try:
        return put(request, place.path, _read(place, value))
    except ValueError as problem:
        words = str(problem)
        raise ValueError(words if place.path in words else f"{place.path}: {words}") from problem


def _read(place: Place, value: Value) -> Any:
    """A form's value as the request has it."""
    kind, text = _kind(place), value.strip() if isinstance(value, str) else value
    if (listed := _LISTED.get(_name(place))) is not None:
        if str(text) not in listed:
            raise ValueError(f"{value!r} is none of {', '.join(listed)}")
        return listed[str(text)]
    if place.optional and (text is None or text == "" or text == NOTHING):
        return None
    if kind == "schedule":
        return parse_schedule(str(text))
    if kind == "text":
        return _read_text(place, "" if value is None else str(value))
    return decode(place.hint, _plain(place.kinds[0], text), place.path)


def _read_text(place: Place, text: str) -> Any:
    """Text for what is text, a path or several values."""
    kind = place.kinds[0]
    if kind in (str, Path):
        return kind(text)
    if typing.get_origin(kind) is not tuple:
        return decode(place.hint, text, place.path)
    words = text.replace(",", " ").split()
    return decode(place.hint, [_plain(typing.get_args(kind)[0], word) for word in words], place.path)


def _plain(kind: Any, value: Value) -> Value:
    """A number or a switch out of what a form gives; anything else is left to ``decode`` to judge."""
    if isinstance(value, str) and kind in (int, float):
        value = _number(value)
    if isinstance(value, str) and kind is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:  # a NaN is not either
        raise ValueError(f"{value:.3g} is no number to set" if isinstance(value, float) else "no knob is that large")
    return int(value) if kind is int and isinstance(value, float) and value.is_integer() else value


def _number(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# Arguments ------------------------------------------------------------------------------------------------------------


def _first_switch(before: Request, after: Request) -> tuple[Place, str] | None:
    """The first union that has another member afterwards; those inside a member come after it."""
    want = {place.path: place for place in places(after)}
    for place in places(before):
        if place.is_union and not _is_left_out(place) and place.path in want:
            name = member_name(want[place.path].value)
            if name != member_name(place.value):
                return place, name
    return None


def _argument(place: Place) -> list[str]:
    value = place.value
    if isinstance(value, bool):
        above, _, name = place.path.rpartition(".")
        return _flag(place.path if value else f"{above}.no_{name}" if above else f"no_{name}", [])
    if value is None:
        return _flag(place.path, [NOTHING if place.is_schedule else "None"])
    if isinstance(value, Schedule):
        return _flag(place.path, [schedule_text(value)])
    return _flag(place.path, list(map(_word, value)) if isinstance(value, tuple) else [_word(value)])


def _flag(path: str, words: list[str]) -> list[str]:
    name = f"--{path.replace('_', '-')}"
    joined = len(words) == 1 and words[0].startswith("-")  # or it would be taken for a flag itself
    return [f"{name}={words[0]}"] if joined else [name, *words]


def _word(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
