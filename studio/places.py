"""Places in a request by name, such as ``stages.0.guidance.scale``: what is there, and the request with something else.

Two kinds of value are one thing to people and several to a dataclass, so they are read and written whole here: which
class a member of a union is (``--stages.0.guidance VSD``), and a schedule as text (``--stages.0.guidance.t-max "0.98 ->
0.5"``).
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from guidance.methods import AnyGuidance
from guidance.schedules import Schedule
from representations.kinds import AnyRepresentation
from studio.codec import members, nearest
from studio.request import Request, Stage
from studio.schedule_text import parse_schedule
from studio.tuning import suited, wishes

NOTHING = "none"
"""In place of a class: no member of an optional union."""


@dataclass(frozen=True)
class Place:
    """A field somewhere in a request."""

    path: str
    """Names of fields and numbers of stages from the request to it, joined by dots."""
    owner: type
    """The dataclass whose field it is."""
    name: str
    """Of the field."""
    hint: Any
    """Its declared type."""
    value: Any
    """What is there."""

    @property
    def optional(self) -> bool:
        """Whether nothing may be there."""
        return type(None) in typing.get_args(self.hint)

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that may be there, besides nothing."""
        union = typing.get_origin(self.hint) in (typing.Union, types.UnionType)
        return tuple(k for k in (typing.get_args(self.hint) if union else (self.hint,)) if k is not type(None))

    @property
    def is_schedule(self) -> bool:
        """Whether a schedule belongs there."""
        return self.kinds == (Schedule,)

    @property
    def is_union(self) -> bool:
        """Whether one of several dataclasses belongs there, or one or nothing."""
        classes = all(isinstance(kind, type) and dataclasses.is_dataclass(kind) for kind in self.kinds)
        return classes and not self.is_schedule and (self.optional or len(self.kinds) > 1)


def places(request: Request) -> Iterator[Place]:
    """Every field of a request and of what lies in it, an owner before its own; schedules are not gone into."""
    yield from _places(request, "")


def put(request: Request, path: str, value: Any) -> Request:
    """The request with ``value`` at a place that is there.

    Raises:
        ValueError: what lies around it does not allow this value.
    """
    return _put(request, path.split("."), value)


def switch(request: Request, place: Place, name: str) -> Request:
    """The request with a member of the union at ``place``, by the name of its class, in knobs that suit it.

    A method gets the knobs that suit the prior; with a representation come the regularisers that suit it, as for the
    command line's ``--method`` and ``--representation``. A member of that class already stays as it is.

    Raises:
        ValueError: no such member, or one that cannot be made out of nothing.
    """
    names = switchable(place)
    by_lower = {n.lower(): n for n in names}
    if name.lower() not in by_lower:
        raise ValueError(f"{place.path}: no {name!r}; {nearest(name, names)}")
    if (known := by_lower[name.lower()]) == member_name(place.value):
        return request
    if known == NOTHING:
        return put(request, place.path, None)
    kind = members(place.hint)[known]
    if kind in members(AnyGuidance).values():
        return put(request, place.path, suited(kind, request.prior))
    request = put(request, place.path, kind())
    if place.owner is Stage and kind in members(AnyRepresentation).values():
        return put(request, f"{place.path.rpartition('.')[0]}.regularizers", wishes(kind()))
    return request


def switchable(place: Place) -> list[str]:
    """Names of what can be put at the place of a union; the class that is there already is among them."""
    known = [n for n, kind in members(place.hint).items() if kind is type(place.value) or not _needs_values(kind)]
    return [*known, NOTHING] if place.optional else known


def member_name(value: Any) -> str:
    """What ``switch`` calls the class of a value."""
    return NOTHING if value is None else type(value).__name__


def with_whole_values(request: Request, arguments: list[str]) -> tuple[Request, list[str]]:
    """The request with the unions and schedules that a command line sets whole, and the rest of that command line.

    Raises:
        ValueError: a name or a text that does not fit.
    """
    rest, at = [], 0
    while at < len(arguments):
        flag, equals, value = arguments[at].partition("=")
        place = _whole(request, flag)
        if place is None:
            rest.append(arguments[at])
            at += 1
            continue
        if not equals:
            if at + 1 == len(arguments):
                raise ValueError(f"{flag} wants a value")
            value = arguments[at + 1]
        request = switch(request, place, value) if place.is_union else put(request, place.path, _schedule(place, value))
        at += 1 if equals else 2
    return request, rest


def _whole(request: Request, flag: str) -> Place | None:
    if not flag.startswith("--"):
        return None
    path = flag[2:].replace("-", "_")
    return next((p for p in places(request) if p.path == path and (p.is_union or p.is_schedule)), None)


def _schedule(place: Place, text: str) -> Schedule | None:
    if place.optional and text.lower() == NOTHING:
        return None
    try:
        return parse_schedule(text)
    except ValueError as problem:
        raise ValueError(f"{place.path}: {problem}") from problem


def _places(owner: Any, above: str) -> Iterator[Place]:
    for name, hint in _hints(type(owner)).items():
        value = getattr(owner, name)
        place = Place(f"{above}{name}", type(owner), name, hint, value)
        yield place
        if isinstance(value, Schedule):
            continue
        if dataclasses.is_dataclass(value):
            yield from _places(value, f"{place.path}.")
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from _places(item, f"{place.path}.{i}.")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]


def _needs_values(kind: type) -> bool:
    nothing = dataclasses.MISSING
    return any(f.default is nothing and f.default_factory is nothing for f in dataclasses.fields(kind))  # pyright: ignore[reportArgumentType]


def _put(owner: Any, path: list[str], value: Any) -> Any:
    first, rest = path[0], path[1:]
    if isinstance(owner, tuple):
        i = int(first)
        return (*owner[:i], _put(owner[i], rest, value) if rest else value, *owner[i + 1 :])
    return dataclasses.replace(owner, **{first: _put(getattr(owner, first), rest, value) if rest else value})
