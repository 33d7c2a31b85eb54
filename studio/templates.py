"""Prompt templates: ``a {red|blue} mug`` is two prompts.

Braces that hold a ``|`` of their own are a choice; choices may lie inside each other and an alternative may be empty.
Braces without one are text like any other (``a cat ${oc.env:HOME}`` stays as it is), and so is what a backslash
precedes: ``\\{``, ``\\}`` and ``\\|``. A prompt without any brace is left alone; one with a choice has its white space
tidied, since an empty alternative leaves two spaces behind.
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

MOST = 1000
"""Prompts out of one template, unless the caller says otherwise."""
LONGEST = 20_000
"""Characters of a template."""
_DEEPEST = 20
"""Choices inside each other."""


@dataclass(frozen=True)
class _Choice:
    """One of several texts, each a row of literal text and choices."""

    alternatives: tuple[tuple[Any, ...], ...]


@dataclass
class _Open:
    """A brace that is not closed yet, and what it holds so far."""

    at: int
    alternatives: list[list[Any]] = field(default_factory=lambda: [[]])


def expand(template: str, limit: int = MOST) -> list[str]:
    """Every prompt that ``template`` stands for, in reading order: the last choice changes first.

    Raises:
        ValueError: a brace without its partner, or more than ``limit`` prompts; the message says where, or how many.
    """
    parts = _parse(template)
    if parts is None:
        return [template]
    if (count := _count(parts)) > limit:
        many = f"{count:,}" if count < 1e15 else "far too many"
        raise ValueError(
            f"The template stands for {many} prompts; at most {limit:,} are made at once: use fewer choices."
        )
    return [_finished(text, parts) for text in _texts(parts)]


def pick(template: str, seed: int) -> str:
    """One of the prompts that ``template`` stands for; the same seed picks the same one, everywhere.

    Raises:
        ValueError: a brace without its partner; the message says where.
    """
    parts = _parse(template)
    if parts is None:
        return template
    return _finished(_picked(parts, random.Random(str(seed))), parts)


def _parse(template: str) -> tuple[Any, ...] | None:
    """Text and choices in turn; None where there is no brace at all."""
    if "{" not in template and "}" not in template:
        return None
    if len(template) > LONGEST:
        raise ValueError(f"The template has {len(template):,} characters; shorten it to {LONGEST:,} or fewer.")
    stack, at = [_Open(-1)], 0
    while at < len(template):
        character, now = template[at], stack[-1]
        if character == "\\" and template[at + 1 : at + 2] in ("{", "}", "|"):
            at += 1
            now.alternatives[-1].append(template[at])
        elif character == "{":
            if len(stack) > _DEEPEST:
                _refuse(template, at, f"choices lie more than {_DEEPEST} deep inside each other")
            stack.append(_Open(at))
        elif character == "}":
            if len(stack) == 1:
                _refuse(template, at, "this } closes no {")
            stack[-2].alternatives[-1].extend(_closed(stack.pop()))
        elif character == "|" and len(stack) > 1:
            now.alternatives.append([])
        else:
            now.alternatives[-1].append(character)
        at += 1
    if len(stack) > 1:
        _refuse(template, stack[-1].at, "this { is never closed")
    return _joined(stack[0].alternatives[0])


def _refuse(template: str, at: int, problem: str) -> NoReturn:
    before, after = template[max(0, at - 20) : at], template[at : at + 20]
    raise ValueError(
        f"{problem}, character {at + 1} of the template, at >>> in: {before}>>>{after}  "
        "(write \\{ or \\} for a brace that is meant as such)"
    )


def _closed(brace: _Open) -> list[Any]:
    if len(brace.alternatives) == 1:
        return ["{", *brace.alternatives[0], "}"]
    return [_Choice(tuple(_joined(alternative) for alternative in brace.alternatives))]


def _joined(parts: list[Any]) -> tuple[Any, ...]:
    """The same with neighbouring characters as one text."""
    joined: list[Any] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)


def _count(parts: tuple[Any, ...]) -> int:
    return math.prod(sum(map(_count, part.alternatives)) for part in parts if isinstance(part, _Choice))


def _texts(parts: tuple[Any, ...]) -> Iterator[str]:
    each = [[p] if isinstance(p, str) else [t for a in p.alternatives for t in _texts(a)] for p in parts]
    return map("".join, itertools.product(*each))


def _picked(parts: tuple[Any, ...], rng: random.Random) -> str:
    return "".join(
        part if isinstance(part, str) else _picked(part.alternatives[int(rng.random() * len(part.alternatives))], rng)
        for part in parts
    )


def _finished(text: str, parts: tuple[Any, ...]) -> str:
    return " ".join(text.split()) if any(isinstance(part, _Choice) for part in parts) else text
