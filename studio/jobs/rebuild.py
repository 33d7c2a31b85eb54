"""The store made anew from what lies on the disk, and runs of the command line taken into it."""

import contextlib
import hashlib
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studio.folder import RunError, read_request
from studio.jobs.database import NAME
from studio.jobs.folders import Card, Resting, ended, is_held, read_card, words_of_failure, write_card
from studio.jobs.job import State, StoreError
from studio.jobs.plan import Plan, read_plan
from studio.jobs.rows import keep_template, last_position, shared
from studio.jobs.store import Store
from studio.request import Request

_YOUNG = 60.0
"""Seconds in which a run that the command line has just begun is left alone."""


@dataclass(frozen=True)
class _Found:
    """A run on the disk."""

    name: str
    request: Request
    card: Card
    state: State
    error: str
    ended: float | None


def adopt(home: Path) -> int:
    """Take runs into the store that are below ``home`` and not in it, such as those of ``studio generate``.

    Jobs that were finished by other means, such as ``studio resume``, are marked as done. Returns how many runs came.

    Raises:
        StoreError: the store cannot be used.
    """
    store = Store(home)
    rows = store.database.read().execute("SELECT id, name, state FROM jobs").fetchall()
    found = list(_runs(home, {row["name"] for row in rows}, {row["id"] for row in rows}))
    resting = [row for row in rows if row["state"] in ("paused", "cancelled", "failed")]
    finished = [row for row in resting if ended(home / row["name"]) == "done"]
    if found or finished:
        with store.database.write() as db:
            done = "UPDATE jobs SET state = 'done', error = '', ended = ? WHERE id = ? AND state = ?"
            db.executemany(done, [(time.time(), row["id"], row["state"]) for row in finished])
            return _insert(db, found)
    return 0


def rebuild(home: Path) -> int:
    """Make the store of ``home`` anew from the folders of its runs and the plan of its batch; returns how many jobs.

    Jobs that wait and have no folder yet are kept, if the old store can be read. Workers may go on meanwhile.

    Raises:
        StoreError: the store is of another version.
        ValueError: the plan of the batch cannot be read.
    """
    plan = read_plan(home)
    store = _opened(home)
    found = list(_runs(home, (), set()))
    with store.database.write() as db:
        old = db.execute("SELECT id, name, state, worker FROM jobs").fetchall()
        waiting = [r["id"] for r in old if r["state"] in ("queued", "paused") and not (home / r["name"]).exists()]
        gone = [(r["id"],) for r in old if r["id"] not in set(waiting)]
        db.executemany("DELETE FROM jobs WHERE id = ?", gone)
        _insert(db, found)
        workers = [(r["worker"], r["id"]) for r in old if r["state"] == "running"]
        db.executemany("UPDATE jobs SET worker = ? WHERE id = ? AND state = 'running'", workers)
    if plan is not None:
        _queue_rest(store, plan)
    return sum(store.counts().values())


def _queue_rest(store: Store, plan: Plan) -> None:
    """Queue what a plan names and neither a job nor a folder is there for."""
    there = Counter((job.settings, job.prompt, job.seed) for job in store.jobs(batch=plan.batch))
    there.update(_cleared(store.home, plan.batch))
    for template, items in plan.groups():
        key, missing = shared(template)[0], []
        for item in items:
            what = (key, item.prompt, item.seed)
            there[what] -= 1
            if there[what] < 0:
                missing.append(replace(item, name="") if (store.home / item.name).exists() else item)
        store.submit(template, missing, batch=plan.batch, limit=plan.limit, timeout=plan.timeout)


def _opened(home: Path) -> Store:
    """The store; a damaged one is set aside for a new one."""
    try:
        store = Store(home)
        with contextlib.closing(sqlite3.connect(store.database.path)) as db:
            if db.execute("PRAGMA quick_check").fetchone()[0] == "ok":
                store.counts()
                return store
    except sqlite3.OperationalError:
        raise
    except (StoreError, sqlite3.DatabaseError) as problem:
        if "another version" in str(problem):
            raise
    for ending in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            (home / f"{NAME}{ending}").rename(home / f"{NAME}{ending}.damaged")
    return Store(home)


def _runs(home: Path, names: Collection[str], ids: set[str]) -> Iterator[_Found]:
    """Runs on the disk, oldest first, but those of these names."""
    folders = [path for path in sorted(home.iterdir()) if path.name not in names and not path.name.startswith(".")]
    found = [one for path in folders if (path / "request.json").is_file() and (one := _run(path, ids)) is not None]
    yield from sorted(found, key=lambda one: (one.card.created, one.card.position))


def _run(folder: Path, ids: set[str]) -> _Found | None:
    """What is in a folder; None if it is not to be in the store."""
    try:
        request = read_request(folder)
    except (RunError, OSError):
        return None
    card = read_card(folder)
    if card is None or card.id in ids:
        card = _new_card(folder)
    if card is None or card.id in ids or card.held == "cleared":
        return None
    ids.add(card.id)
    state = _state(folder, card.held)
    error = words_of_failure(folder) if state == "failed" else ""
    at = card.created
    with contextlib.suppress(FileNotFoundError):
        at = (folder / "events.jsonl").stat().st_mtime
    return _Found(folder.name, request, card, state, error, at if state in ("done", "failed", "cancelled") else None)


def _new_card(folder: Path) -> Card | None:
    """A card for a run of the command line, or for a copy of a run; None while somebody works on it or is about to."""
    end, began = ended(folder), (folder / "request.json").stat().st_mtime
    if end is None and (is_held(folder) or time.time() - began < _YOUNG):
        return None
    held = None if end == "done" else end or "paused"  # nobody asked us to go on with it
    card = Card(hashlib.sha256(folder.name.encode()).hexdigest()[:12], created=began, held=held)
    with contextlib.suppress(OSError):
        write_card(folder, card)
    return card


def _state(folder: Path, held: Resting | None) -> State:
    if ended(folder) == "done":
        return "done"
    return "running" if is_held(folder) else held or "queued"


def _insert(db: sqlite3.Connection, found: list[_Found]) -> int:
    """Put runs into the store, unless somebody else did meanwhile; returns how many."""
    before, last = _count(db), last_position(db)
    for i, one in enumerate(found):
        card = one.card
        values: dict[str, Any] = {
            "id": card.id,
            "state": one.state,
            "prompt": one.request.prompt,
            "seed": one.request.seed,
            "name": one.name,
            "settings": keep_template(db, one.request),
            "priority": card.priority,
            "position": card.position or last + 1 + i,
            "batch": card.batch,
            "most": card.limit,
            "timeout": card.timeout,
            "error": one.error,
            "created": card.created,
            "started": one.ended and card.created,
            "ended": one.ended,
        }
        places = ", ".join("?" * len(values))
        db.execute(f"INSERT OR IGNORE INTO jobs({', '.join(values)}) VALUES({places})", tuple(values.values()))
    return _count(db) - before


def _count(db: sqlite3.Connection) -> int:
    return db.execute("SELECT count(*) FROM jobs").fetchone()[0]


def _cleared(home: Path, batch: str) -> Iterator[tuple[str, str, int]]:
    """Settings, prompts and seeds of a batch's jobs that were taken off the list."""
    for path in home.glob("*/job.json"):
        card = read_card(path.parent)
        if card is not None and card.held == "cleared" and card.batch == batch:
            with contextlib.suppress(RunError):
                request = read_request(path.parent)
                yield shared(request)[0], request.prompt, request.seed
