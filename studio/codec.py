"""Settings as JSON and back: a dataclass is its fields, a member of a union also says which class it "is".

Reading is strict: a wrong name or type is refused in words that name the place and the nearest right name.
"""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def encode(value: Any) -> Any:
    """Plain JSON values of a tree of dataclasses, tuples, paths and numbers."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"is": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def decode(kind: Any, value: Any, where: str = "request") -> Any:
    """The value of type ``kind`` that ``encode`` wrote.

    Raises:
        ValueError: a name, a type or a literal does not fit; the message says where.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin is tuple:
        return _decode_tuple(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where}: {value!r} is none of {', '.join(map(repr, arguments))}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: wanted {kind.__name__}, got {value!r}")
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """Words for an unknown name: the closest known one, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(known))}"


def members(union: Any) -> dict[str, type]:
    """Classes of a union (or the one class itself) by name."""
    classes = typing.get_args(union) or (union,)
    return {c.__name__: c for c in classes if c is not type(None)}


def _decode_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None:
        if type(None) in arguments:
            return None
        raise ValueError(f"{where}: a value is needed, got null")
    kinds = [a for a in arguments if a is not type(None)]
    if isinstance(value, dict) and "is" in value:
        named = {k.__name__: k for k in kinds if isinstance(k, type)}
        name = str(value["is"])
        if name not in named:
            raise ValueError(f"{where}: no {name!r}; {nearest(name, named)}")
        return decode(named[name], value, where)
    problems = []
    for kind in kinds:
        try:
            return decode(kind, value, where)
        except ValueError as problem:
            problems.append(str(problem))
    raise ValueError(problems[0])


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: wanted the fields of {kind.__name__}, got {value!r}")
    hints = _hints(kind)
    known = list(hints)
    given = {name: item for name, item in value.items() if name != "is"}
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: no {name!r}; {nearest(name, known)}")
    for f in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        if f.name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: {f.name!r} is missing")
    return kind(**{name: decode(hints[name], item, f"{where}.{name}") for name, item in given.items()})


@functools.lru_cache(maxsize=256)
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass' fields, by name; a batch has a hundred thousand of one kind."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]


def _decode_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: wanted a list, got {value!r}")
    kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
    if len(kinds) != len(value):
        raise ValueError(f"{where}: wanted {len(kinds)} values, got {len(value)}")
    return tuple(decode(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
