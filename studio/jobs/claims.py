"""Who works on what: a job is its worker's for as long as the worker holds the lock on the run's folder.

The store only repeats it for readers. So a running job whose folder nobody holds lost its worker, and is taken over by
whoever comes next; and two workers can never be at one job, whatever the store says.
"""

import contextlib
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from studio.checkpoints import write_atomically
from studio.folder import RunFolder
from studio.jobs.database import Database
from studio.jobs.folders import Card, Resting, change_card, ended, make_folder, said_since, says, steps_saved
from studio.jobs.job import Job, State
from studio.jobs.rows import change, find, job_of, last_position, request_of

DEATHS = 10
"""Workers that may die at a job, none further on than the one before, until it is given up."""
_TURNS = 3
"""Such deaths after which others come first."""
_PHASES = 1000
"""More than there are events within an attempt besides steps, to compare how far attempts came."""
_LOOK_AHEAD = 64
"""Queued jobs that are tried in turn; the first is free unless someone works in its folder by other means."""

WISHED: dict[str, Literal["paused", "cancelled"]] = {"pause": "paused", "cancel": "cancelled"}
"""What a wish makes of a job."""


def card_of(job: Job, held: Resting | Literal["cleared"] | None = None) -> Card:
    """What a job's folder says of it."""
    return Card(job.id, job.priority, job.position, job.batch, job.created, job.limit, job.timeout, held)


@dataclass
class Claim:
    """A job whose folder this process holds; leaving it as a context manager lets go, after one of the endings."""

    job: Job
    home: RunFolder
    database: Database
    _said: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Claim":
        """The claim."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the folder."""
        self.home.__exit__(kind, error, trace)

    def done(self) -> None:
        """The result is there."""
        self._end(lambda _, job: ("done", {"error": ""}))

    def stopped(self) -> None:
        """It stopped as somebody wished, or it is queued again, because the wish was taken back or the worker goes."""
        self._end(lambda _, job: (WISHED.get(job.wish, "queued"), {}))

    def paused(self, words: str) -> None:
        """It cannot go on, for a reason that it is not to blame for."""
        self._end(lambda _, job: ("paused", {"error": words}))

    def failed(self, words: str, problem: BaseException | None = None) -> None:
        """An attempt failed: it is queued again behind others, or, after the last attempt, stays failed."""
        text = "".join(traceback.format_exception(problem)) if problem is not None else words + "\n"
        with contextlib.suppress(OSError):  # a full disk must not hide why
            write_atomically(self.job.folder / "error.txt", text.encode("utf-8", "replace"))

        def count(db: sqlite3.Connection, job: Job) -> tuple[State, dict[str, Any]]:
            values = {"attempts": job.attempts + 1, "error": words, "position": last_position(db) + 1}
            return "failed" if values["attempts"] >= job.limit else WISHED.get(job.wish, "queued"), values

        self._end(count)

    def _end(self, decide: Callable[[sqlite3.Connection, Job], tuple[State, dict[str, Any]]]) -> None:
        """Write down once what becomes of the job, while its folder is still held."""
        if not self._said.acquire(blocking=False):
            return
        try:
            with self.database.write() as db:
                job = find(db, self.job.folder.parent, self.job.id)
                state, values = decide(db, job)
                held = state if state in ("paused", "cancelled", "failed") else None
                if held is not None or "position" in values:
                    with contextlib.suppress(OSError):
                        change_card(self.job.folder, held=held, position=values.get("position", job.position))
                at = time.time() if state in ("done", "cancelled", "failed") else None
                change(db, self.job.id, state=state, wish="", worker="", ended=at, **values)
        except BaseException:
            self._said.release()  # it can be said again
            raise


def claim_next(database: Database, home: Path, worker: str) -> Claim | None:
    """Take the next job: one that lost its worker, else the first of the queue, unless that is held.

    Raises:
        OSError: its folder cannot be made or held.
    """
    for job in _candidates(database, home):
        claim = _hold(database, home, job)
        if claim is None:
            continue
        with contextlib.ExitStack() as unless_taken:
            unless_taken.enter_context(claim)
            if _take(claim, worker):
                unless_taken.pop_all()
                return claim
    return None


def _candidates(database: Database, home: Path) -> Iterator[Job]:
    db = database.read()
    for row in db.execute("SELECT * FROM jobs WHERE state = 'running' ORDER BY priority DESC, position").fetchall():
        yield job_of(row, home)
    if not _queue_held(db):
        query = "SELECT * FROM jobs WHERE state = 'queued' ORDER BY priority DESC, position LIMIT ?"
        for row in db.execute(query, (_LOOK_AHEAD,)).fetchall():
            yield job_of(row, home)


def _queue_held(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM notes WHERE key = 'held'").fetchone() is not None


def _hold(database: Database, home: Path, job: Job) -> Claim | None:
    """Lock the job's folder, which is made if it is missing; None if another process has it, or it cannot be made."""
    try:
        name = place(database.read(), home, job)
    except ValueError as problem:  # settings of another version
        with database.write() as db:
            change(db, job.id, state="failed", error=str(problem), worker="", ended=time.time())
        return None
    if name != job.folder.name:
        with database.write() as db:
            change(db, job.id, name=name)
    folder = RunFolder.open(home / name)
    try:
        return Claim(replace(job, folder=home / name), folder.__enter__(), database)
    except BlockingIOError:
        return None


def place(db: sqlite3.Connection, home: Path, job: Job) -> str:
    """Make the job's folder, unless it is there; returns its name, another than planned if that was taken meanwhile.

    Raises:
        ValueError: the job's settings cannot be read.
        OSError: it cannot be made.
    """
    name = job.folder.name
    for known in (name, f"{name}-{job.id}"):
        if says(home / known, job.id):
            return known
    return make_folder(home, (name, f"{name}-{job.id}"), request_of(db, job), card_of(job))


def _take(claim: Claim, worker: str) -> bool:
    """Write down who works on a job whose folder is held; False if there is no work to be done on it."""
    folder, home = claim.job.folder, claim.job.folder.parent
    with claim.database.write() as db:
        row = db.execute("SELECT * FROM jobs WHERE id = ?", (claim.job.id,)).fetchone()
        if row is None or row["state"] not in ("queued", "running"):
            return False  # somebody asked for something else a moment ago
        values, held = _start(db, row, folder, worker)
        if held is not None:
            change_card(folder, held=held)
        change(db, claim.job.id, **values)
        claim.job = find(db, home, claim.job.id)
    return claim.job.state == "running"


def _start(
    db: sqlite3.Connection, row: sqlite3.Row, folder: Path, worker: str
) -> tuple[dict[str, Any], Resting | None]:
    """What becomes of a job whose folder was just locked: its new columns, and why it rests, if it does."""
    now, queue_held = time.time(), _queue_held(db)
    rest: dict[str, Any] = {"wish": "", "worker": ""}
    if ended(folder) == "done":  # killed after its last event, or finished by other means
        return {"state": "done", "error": "", "ended": now, **rest}, None
    if row["state"] == "queued":
        return {"state": "running", "worker": worker, "started": now, "wish": ""}, None
    if row["wish"]:
        state = WISHED[row["wish"]]
        return {"state": state, "ended": now if state == "cancelled" else None, **rest}, state
    step = steps_saved(folder)
    place = (step + 1) * _PHASES + min(said_since(folder, row["started"] or now), _PHASES - 1)
    deaths = row["deaths"] + 1 if place <= row["reached"] else 1
    died = {"deaths": deaths, "reached": place}
    if deaths >= DEATHS:
        words = f"Its process died {deaths} times in a row without getting past step {max(step, 0)}."
        return {"state": "failed", "error": words, "ended": now, **died, **rest}, "failed"
    if queue_held or deaths % _TURNS == 0:  # others must not wait for one that kills whoever takes it
        return {"state": "queued", "position": last_position(db) + 1, **died, **rest}, None
    return {"state": "running", "worker": worker, "started": now, **died}, None
