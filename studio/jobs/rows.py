"""Rows of the store's tables as values, and the statements that several parts of it share."""

import functools
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from studio.anchoring import anchored
from studio.codec import decode, encode
from studio.folder import slug
from studio.jobs.folders import names_like
from studio.jobs.job import Item, Job, State, UnknownJob
from studio.request import Request

_LONGEST_SEARCH = 200
"""Characters of a search that are read."""
_LONGEST_NAME = 100


def job_of(row: sqlite3.Row, home: Path) -> Job:
    """A row of the table as a job."""
    values = dict(row)
    del values["number"], values["deaths"], values["reached"]
    return Job(folder=home / values.pop("name"), limit=values.pop("most"), **values)


def find(db: sqlite3.Connection, home: Path, id: str) -> Job:
    """The job of an id.

    Raises:
        UnknownJob: there is none.
    """
    row = db.execute("SELECT * FROM jobs WHERE id = ?", (storable(id),)).fetchone()
    if row is None:
        raise UnknownJob(f"There is no job {id!r}; `studio jobs` lists them.")
    return job_of(row, home)


def change(db: sqlite3.Connection, id: str, **values: Any) -> None:
    """Set columns, named by the program, of a job to ``values``."""
    columns = ", ".join(f"{name} = ?" for name in values)
    db.execute(f"UPDATE jobs SET {columns} WHERE id = ?", (*values.values(), id))


def last_position(db: sqlite3.Connection) -> float:
    """The highest position there is; 0 without jobs."""
    return db.execute("SELECT coalesce(max(position), 0) FROM jobs").fetchone()[0]


def storable(text: str) -> str:
    """Text that SQLite can keep: half a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


# Templates: what jobs have in common ----------------------------------------------------------------------------------


def keep_template(db: sqlite3.Connection, template: Request) -> str:
    """Keep what jobs share of a request; returns its key."""
    key, text = shared(template)
    db.execute("INSERT OR IGNORE INTO settings VALUES(?, ?)", (key, text))
    return key


def shared(template: Request) -> tuple[str, str]:
    """What jobs share of a request, which is all but prompt and seed: the hash of the content, and the content."""
    text = json.dumps(encode(replace(anchored(template), prompt="", seed=0)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16], text


def request_of(db: sqlite3.Connection, job: Job) -> Request:
    """The whole request of a job.

    Raises:
        ValueError: it cannot be read, as when another version of the studio wrote it; in words.
    """
    row = db.execute("SELECT request FROM settings WHERE key = ?", (job.settings,)).fetchone()
    if row is None:
        raise ValueError(f"The settings of job {job.id} are gone.")
    return replace(_template(row[0]), prompt=job.prompt, seed=job.seed)


@functools.lru_cache(maxsize=64)
def _template(text: str) -> Request:
    return decode(Request, json.loads(text))


# Conditions of queries: texts are the program's own, values of users are always bound ---------------------------------


def conditions(states: Iterable[State] | None, batch: str | None, search: str) -> tuple[str, list[Any]]:
    """A condition for WHERE, and the values that are to be bound to it."""
    tests, values = ["1"], []
    if states is not None:
        wanted = list(states)
        tests.append(f"state IN ({', '.join('?' * len(wanted))})")
        values += wanted
    if batch is not None:
        tests.append("batch = ?")
        values.append(storable(batch))
    for word in storable(search[:_LONGEST_SEARCH]).split():
        escaped = re.sub(r"([%_\\])", r"\\\1", word)
        columns = ("prompt", "name", "batch", "id")
        tests.append("(" + " OR ".join(f"{column} LIKE ? ESCAPE '\\'" for column in columns) + ")")
        values += [f"%{escaped}%"] * len(columns)
    return " AND ".join(tests), values


# Names of folders -----------------------------------------------------------------------------------------------------


def refuse_unstorable(items: Sequence[Item]) -> None:
    """Refuse items that the store or the disk cannot keep.

    Raises:
        ValueError: in words.
    """
    for item in items:
        if not -(2**63) <= item.seed < 2**63:
            raise ValueError(f"The seed {item.seed} is too large; take one of 64 bits.")
        if storable(item.prompt) != item.prompt:
            raise ValueError("The prompt holds half a surrogate pair, which is no character.")
        name = item.name
        if name and (not re.fullmatch(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*", name) or len(name) > _LONGEST_NAME):
            raise ValueError(f"{name[:_LONGEST_NAME]!r} is no name for a folder of a run.")
        if storable(name) != name:
            raise ValueError(f"{name!r} is no name for a folder of a run.")


def folder_names(db: sqlite3.Connection, home: Path, items: Sequence[Item]) -> list[str]:
    """A name for each item's folder that neither the store nor the disk has: its own, or one made of the prompt.

    Raises:
        ValueError: an item's own name is taken.
    """
    bases = [item.name or slug(item.prompt) for item in items]
    taken = set(os.listdir(home))
    for base in set(bases):  # "." comes right after "-", so this finds the base itself and the base with a number
        query = "SELECT name FROM jobs WHERE name >= ? AND name < ?"
        taken.update(row[0] for row in db.execute(query, (base, f"{base}.")))
    names, ways = [], {}
    for item, name in zip(items, bases, strict=True):
        if name in taken:
            if item.name:
                raise ValueError(f"There is a run {name!r} already.")
            name = next(free for free in ways.setdefault(name, names_like(name)) if free not in taken)
        taken.add(name)
        names.append(name)
    return names
