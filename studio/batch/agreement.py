"""A batch begun again: what the file says now beside what was planned, item by item. Nothing is made twice."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studio.batch.planning import Draft, Wanted, content_key
from studio.codec import encode
from studio.folder import slug
from studio.jobs.database import NAME
from studio.jobs.folders import names_like
from studio.jobs.job import Item
from studio.jobs.plan import Plan
from studio.jobs.store import Store
from studio.options import UsageError
from studio.request import Request

OWN_FILES = ("batch.json", "summary.csv", "summary.json", "contact_sheet.png", "index.html", "thumbnails", NAME)
"""Names in a batch's folder that are no run's."""
_MOST_SHOWN = 3
"""Differences of settings that a message names."""


@dataclass(frozen=True)
class Agreement:
    """What a batch is from now on."""

    plan: Plan
    """All items: those of the file, and those begun earlier that the file no longer has."""
    current: frozenset[str]
    """Names of those that the file has."""
    added: int
    """Items that were not planned before."""
    dropped: frozenset[str]
    """Names of planned items that the file no longer has."""


def agree(draft: Draft, batch: str, limit: int, timeout: float | None, home: Path, planned: Plan | None) -> Agreement:
    """Bring a file together with what was planned in ``home``; items that are planned keep their folders.

    Raises:
        UsageError: the options mean other settings than before.
    """
    planned = planned or Plan(batch, draft.template, ())
    if changes := list(differences(planned.template, draft.template)):
        shown = "; ".join(f"{where} was {old}, is {new}" for where, old, new in changes[:_MOST_SHOWN])
        shown += "; and more" if len(changes) > _MOST_SHOWN else ""
        raise UsageError(f"{home} was begun with other settings: {shown}. Name another folder with --out.")
    growing = _Growing(planned, _taken(home))
    kinds = [growing.kind(request) for request in (draft.template, *draft.others)]
    current = frozenset(growing.name(wanted, kinds[wanted.of]) for wanted in draft.items)
    dropped = frozenset(item.name for item in planned.items) - current
    plan = growing.plan(without={name for name in dropped if not (home / name).exists()})
    plan = replace(plan, limit=limit, timeout=timeout)
    return Agreement(plan, current, len(growing.items) - len(planned.items), dropped)


class _Growing:
    """A plan that items are added to, unless they are there."""

    def __init__(self, planned: Plan, taken: set[str]):
        self._planned = planned
        self._requests = [planned.template, *planned.others]
        self._places = {content_key(request): i for i, request in enumerate(self._requests)}
        self.items = list(planned.items)
        self._of = list(planned.of or (0,) * len(self.items))
        self._names = {
            (item.prompt, item.seed, kind): item.name for item, kind in zip(self.items, self._of, strict=True)
        }
        self._taken = taken | {item.name for item in self.items}
        self._free: dict[str, Iterator[str]] = {}

    def kind(self, request: Request) -> int:
        """The place of an item's settings."""
        place = self._places.setdefault(content_key(request), len(self._requests))
        if place == len(self._requests):
            self._requests.append(request)
        return place

    def name(self, wanted: Wanted, kind: int) -> str:
        """The name of an item's folder: the one it has, or a free one."""
        key = (wanted.prompt, wanted.seed, kind)
        if key not in self._names:
            stem = wanted.name or slug(wanted.prompt)
            stem = f"{stem}-seed{wanted.seed}" if wanted.varied else stem
            ways = self._free.setdefault(stem, names_like(stem))
            self._names[key] = name = next(way for way in ways if way not in self._taken)
            self._taken.add(name)
            self.items.append(Item(wanted.prompt, wanted.seed, name))
            self._of.append(kind)
        return self._names[key]

    def plan(self, without: set[str]) -> Plan:
        """The plan, but for items of these names."""
        kept = [i for i, item in enumerate(self.items) if item.name not in without]
        items, of = tuple(self.items[i] for i in kept), tuple(self._of[i] for i in kept)
        return replace(self._planned, items=items, of=of, others=tuple(self._requests[1:]))


def _taken(home: Path) -> set[str]:
    """Names in a batch's folder that are no longer free."""
    there = set(os.listdir(home)) if home.is_dir() else set()
    stored = {job.folder.name for job in Store(home).jobs()} if (home / NAME).is_file() else set()
    return {*OWN_FILES, *there, *stored}


def settings_in_words(plan: Plan) -> dict[str, str]:
    """For items that have settings of their own, by name: which, e.g. ``guidance VSD, steps 300``."""
    words = [_in_short(plan.template, request) for request in (plan.template, *plan.others)]
    return {item.name: words[kind] for item, kind in zip(plan.items, plan.of, strict=False) if kind}


def _in_short(template: Request, request: Request) -> str:
    changes = itertools.islice(differences(template, request), _MOST_SHOWN)
    return ", ".join(f"{where.rpartition('.')[2]} {after}" for where, _, after in changes)


def differences(before: Request, after: Request) -> Iterator[tuple[str, str, str]]:
    """What of the settings differs, in words, e.g. ``("stages.0.guidance.scale", "7.5", "20")``."""
    return _differences("", encode(before), encode(after))


def _differences(where: str, before: Any, after: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(before, dict) and isinstance(after, dict) and before.get("is") == after.get("is"):
        for name in {**before, **after}:
            yield from _differences(f"{where}.{name}".strip("."), before.get(name), after.get(name))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _differences(f"{where}.{i}", old, new)
    elif before != after:
        yield where, _in_words(before), _in_words(after)


def _in_words(tree: Any) -> str:
    if isinstance(tree, dict):
        return str(tree.get("is", "something else"))
    if isinstance(tree, list) and any(isinstance(value, dict | list) for value in tree):
        return f"{len(tree)} of them"
    return "nothing" if tree is None or tree == "" else str(tree)
