"""The store of jobs: a queue that survives its processes, in one SQLite file beside the folders of the runs.

A job is a template request, which many share, with a prompt and a seed of its own. Who works on it is not decided here:
that is whoever holds the lock on its folder, which the system frees with the process (``studio.jobs.claims``).
"""

import secrets
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from studio.jobs.claims import Claim, card_of, claim_next, place
from studio.jobs.database import Database
from studio.jobs.folders import change_card, is_held, write_card
from studio.jobs.job import STATES, Item, Job, State, StoreError, UnknownJob, WorkerInfo, WrongState
from studio.jobs.rows import (
    change,
    conditions,
    find,
    folder_names,
    job_of,
    keep_template,
    last_position,
    refuse_unstorable,
    request_of,
)
from studio.request import Request

__all__ = ["STATES", "Claim", "Item", "Job", "State", "Store", "StoreError", "UnknownJob", "WorkerInfo", "WrongState"]
_ALIVE = 30.0
"""Seconds since a worker last said that it is alive until it is taken for gone."""


class Store:
    """The jobs of one home, a folder of runs. Any number of threads and processes use it at once."""

    def __init__(self, home: Path):
        self.home = home
        self.database = Database(home)

    # Submitting -------------------------------------------------------------------------------------------------------

    def submit(
        self,
        template: Request,
        items: Sequence[Item],
        *,
        priority: int = 0,
        batch: str = "",
        limit: int = 3,
        timeout: float | None = None,
        folders: bool = False,
    ) -> list[str]:
        """Queue all of the items, or none; returns their ids.

        Args:
            template: what the items share; its prompt and seed do not matter.
            limit: failures after which a job stays failed.
            timeout: seconds that an attempt may take.
            folders: whether to make the folders now, so that the jobs outlive the store. A batch keeps a plan instead.

        Raises:
            ValueError: a name that is no folder's, or is taken; a prompt or a seed that cannot be kept.
            OSError: a folder cannot be made.
        """
        refuse_unstorable(items)
        ids = [secrets.token_hex(6) for _ in items]
        with self.database.write() as db:
            names = folder_names(db, self.home, items)
            last = last_position(db)
            common = (keep_template(db, template), priority, batch, limit, timeout, time.time())
            rows = [
                (id, item.prompt, item.seed, name, *common, last + 1 + i)
                for i, (id, item, name) in enumerate(zip(ids, items, names, strict=True))
            ]
            db.executemany(
                "INSERT INTO jobs(id, prompt, seed, name, settings, priority, batch, most, timeout, created, position)"
                " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            for id in ids if folders else ():
                change(db, id, name=place(db, self.home, self._find(db, id)))
        return ids

    # Reading ----------------------------------------------------------------------------------------------------------

    def job(self, id: str) -> Job:
        """The job of an id.

        Raises:
            UnknownJob: there is none.
        """
        return self._find(self.database.read(), id)

    def _find(self, db: sqlite3.Connection, id: str) -> Job:
        return find(db, self.home, id)

    def jobs(
        self,
        states: Iterable[State] | None = None,
        batch: str | None = None,
        search: str = "",
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[Job]:
        """Jobs in the order in which they are worked on, or the newest first.

        Args:
            states: only those in one of these.
            batch: only those of this batch; "" for those of none.
            search: only those whose prompt, folder's name, batch or id holds every word of this.
            limit: as many at most.
        """
        tests, values = conditions(states, batch, search)
        order = "created DESC, position DESC" if newest_first else "priority DESC, position"
        query = f"SELECT * FROM jobs WHERE {tests} ORDER BY {order} LIMIT ?"
        rows = self.database.read().execute(query, (*values, -1 if limit is None else max(0, limit)))
        return [job_of(row, self.home) for row in rows]

    def folders(self, state: State) -> set[str]:
        """Names of the folders of all jobs in a state, and nothing else of them."""
        return {row[0] for row in self.database.read().execute("SELECT name FROM jobs WHERE state = ?", (state,))}

    def counts(self, batch: str | None = None) -> dict[State, int]:
        """How many jobs there are in each state."""
        tests, values = conditions(None, batch, "")
        rows = self.database.read().execute(f"SELECT state, count(*) FROM jobs WHERE {tests} GROUP BY state", values)
        found = {row[0]: row[1] for row in rows}
        return {state: found.get(state, 0) for state in STATES}

    def position(self, id: str) -> int | None:
        """Place in the queue, 1 is next; None for a job that is not queued.

        Raises:
            UnknownJob: there is none.
        """
        job = self.job(id)
        if job.state != "queued":
            return None
        before = "state = 'queued' AND (priority > ? OR priority = ? AND position < ?)"
        query = f"SELECT count(*) FROM jobs WHERE {before}"
        return 1 + self.database.read().execute(query, (job.priority, job.priority, job.position)).fetchone()[0]

    def request(self, job: Job) -> Request:
        """The whole request of a job.

        Raises:
            ValueError: it was written by another version of the studio and cannot be read; in words.
        """
        return request_of(self.database.read(), job)

    def changed(self) -> int:
        """A number that grows with every change; cheap to ask for."""
        return self.database.read().execute("SELECT value FROM notes WHERE key = 'changes'").fetchone()[0]

    # What people ask of a job -----------------------------------------------------------------------------------------

    def pause(self, id: str) -> None:
        """Let a job rest: at once if it waits; if it runs, after the step it is at.

        Raises:
            UnknownJob: there is none.
            WrongState: it has ended.
        """
        self._rest(id, "paused")

    def cancel(self, id: str) -> None:
        """Give a job up: at once if it waits; if it runs, after the step it is at. What it made so far stays.

        Raises:
            UnknownJob: there is none.
            WrongState: it is done or failed.
        """
        self._rest(id, "cancelled")

    def _rest(self, id: str, state: State) -> None:
        wish = "pause" if state == "paused" else "cancel"
        with self.database.write() as db:
            job = self._find(db, id)
            if job.state in ("done", "failed") or (job.state, state) == ("cancelled", "paused"):
                raise WrongState(f"Job {id} is {job.state}; there is nothing to {wish}.")
            if job.state == "running" and is_held(job.folder):
                change(db, id, wish=wish)
            elif job.state != state:
                change_card(job.folder, held=state)
                change(db, id, state=state, wish="", worker="", ended=time.time() if state == "cancelled" else None)

    def resume(self, id: str) -> None:
        """Queue a paused or cancelled job again; it goes on from its last checkpoint. Takes a wish to pause back.

        Raises:
            UnknownJob: there is none.
            WrongState: it is done or failed.
        """
        with self.database.write() as db:
            job = self._find(db, id)
            if job.state in ("done", "failed"):
                advice = " `retry` queues it again." if job.state == "failed" else ""
                raise WrongState(f"Job {id} is {job.state}; there is nothing to resume.{advice}")
            if job.state in ("paused", "cancelled"):
                self._queue_again(db, job)
            else:
                change(db, id, wish="")

    def retry(self, id: str) -> None:
        """Queue a failed or cancelled job again, with all its attempts before it.

        Raises:
            UnknownJob: there is none.
            WrongState: it has not failed.
        """
        with self.database.write() as db:
            job = self._find(db, id)
            if job.state not in ("failed", "cancelled"):
                raise WrongState(f"Job {id} is {job.state}; there is nothing to retry.")
            self._queue_again(db, job)

    def _queue_again(self, db: sqlite3.Connection, job: Job) -> None:
        change_card(job.folder, held=None)
        fresh = {} if job.state == "paused" else {"attempts": 0, "deaths": 0, "ended": None}
        change(db, job.id, state="queued", wish="", worker="", error="", **fresh)

    def prioritize(self, id: str, priority: int) -> None:
        """Give a job another priority; higher comes first.

        Raises:
            UnknownJob: there is none.
        """
        with self.database.write() as db:
            job = self._find(db, id)
            change_card(job.folder, priority=priority)
            change(db, id, priority=priority)

    def move(self, id: str, before: str | None) -> None:
        """Put a job right before another in the queue, with its priority; None: behind all others of its own.

        Raises:
            UnknownJob: there is no such job.
        """
        with self.database.write() as db:
            job = self._find(db, id)
            if before == id:
                return
            priority, position = job.priority, last_position(db) + 1
            if before is not None:
                priority, position = self._place_before(db, job, before)
            change_card(job.folder, priority=priority, position=position)
            change(db, id, priority=priority, position=position)

    def _place_before(self, db: sqlite3.Connection, job: Job, before: str) -> tuple[int, float]:
        """A priority and a position right before a job; all are counted anew where they got too close."""
        for _ in range(2):
            other = self._find(db, before)
            query = "SELECT max(position) FROM jobs WHERE priority = ? AND position < ? AND id <> ?"
            last = db.execute(query, (other.priority, other.position, job.id)).fetchone()[0]
            position = other.position - 1 if last is None else (last + other.position) / 2
            if position < other.position and (last is None or last < position):
                return other.priority, position
            db.execute(
                "UPDATE jobs SET position = n FROM (SELECT id AS i, row_number() OVER (ORDER BY position, number) AS n"
                " FROM jobs) WHERE id = i"
            )
        raise AssertionError("whole numbers have room between them")

    def clear(self, id: str) -> None:
        """Take a job that nobody works on off the list for good. Its folder stays.

        Raises:
            UnknownJob: there is none.
            WrongState: it is running.
        """
        with self.database.write() as db:
            job = self._find(db, id)
            if job.state == "running":
                raise WrongState(f"Job {id} is running; cancel it first.")
            if (job.folder / "request.json").is_file():  # or it would come back with the next look at the folders
                write_card(job.folder, card_of(job, "cleared"))
            db.execute("DELETE FROM jobs WHERE id = ?", (id,))

    def set_limits(self, batch: str, limit: int, timeout: float | None) -> None:
        """Change the limits of a batch's jobs that are not done.

        Args:
            batch: its name.
            limit: failures after which a job stays failed.
            timeout: seconds that an attempt may take.
        """
        with self.database.write() as db:
            db.execute(
                "UPDATE jobs SET most = ?, timeout = ? WHERE batch = ? AND state <> 'done'", (limit, timeout, batch)
            )

    # The queue and its workers ----------------------------------------------------------------------------------------

    def hold_queue(self, reason: str = "") -> None:
        """Let no worker take another job, until ``release_queue``."""
        with self.database.write() as db:
            db.execute("INSERT OR REPLACE INTO notes VALUES('held', ?)", (reason,))

    def release_queue(self) -> None:
        """Let workers take jobs again."""
        with self.database.write() as db:
            db.execute("DELETE FROM notes WHERE key = 'held'")

    def queue_held(self) -> str | None:
        """Why the queue is held ("" if nobody said), or None if it is not."""
        row = self.database.read().execute("SELECT value FROM notes WHERE key = 'held'").fetchone()
        return None if row is None else row[0]

    def claim(self, worker: str) -> Claim | None:
        """Take the next job for a worker; None if there is none. The claim is to be used as a context manager.

        Raises:
            OSError: the folder of the job cannot be made.
        """
        return claim_next(self.database, self.home, worker)

    def beat(self, worker: WorkerInfo) -> None:
        """Say that a worker is alive, and what it works on."""
        with self.database.write(counts=False) as db:
            row = (worker.name, worker.pid, worker.device, worker.seen, worker.job)
            db.execute("INSERT OR REPLACE INTO workers VALUES(?, ?, ?, ?, ?)", row)
            db.execute("DELETE FROM workers WHERE seen < ?", (worker.seen - 100 * _ALIVE,))

    def dismiss(self, worker: str) -> None:
        """Say that a worker is gone."""
        with self.database.write(counts=False) as db:
            db.execute("DELETE FROM workers WHERE name = ?", (worker,))

    def workers(self) -> list[WorkerInfo]:
        """Workers that were alive a moment ago."""
        query = "SELECT name, pid, device, seen, job FROM workers WHERE seen > ? ORDER BY name"
        return [WorkerInfo(*row) for row in self.database.read().execute(query, (time.time() - _ALIVE,))]
