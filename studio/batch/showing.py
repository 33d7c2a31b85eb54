"""How far a batch is, read from the store and the records of its runs: bars for people, JSON lines for machines."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from studio.jobs.progress import Tail
from studio.jobs.store import Job, State, Store, UnknownJob
from studio.jobs.terminal import printable

_EVERY = 0.25
"""Seconds between looks."""
_LONGEST_PROMPT = 36
"""Characters of a prompt beside a bar."""
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "paused")


@dataclass(frozen=True)
class Standing:
    """How far a batch is."""

    done: int
    failed: int
    """After their last attempt."""
    resting: int
    """Cancelled or paused."""
    left: int
    """That wait or run."""
    seconds_left: float | None
    """At the pace since this command began; None where there is none yet."""

    @property
    def total(self) -> int:
        """All items of the file."""
        return self.done + self.failed + self.resting + self.left

    def words(self) -> str:
        """For people, e.g. "3 done, 1 failed, 8 left, about 0.4 h"."""
        parts = [f"{self.done:,} done", *([f"{self.failed:,} failed"] * bool(self.failed))]
        parts += [f"{self.resting:,} paused or cancelled"] * bool(self.resting)
        parts += [f"{self.left:,} left"] * bool(self.left)
        return ", ".join(parts)


class Meter:
    """Measures how far the items of a file are, and how long the rest will take."""

    def __init__(self, store: Store, batch: str, current: frozenset[str], names: dict[str, Job]):
        """Begin.

        Args:
            store: of the batch's folder.
            batch: its name.
            current: names of the file's items.
            names: all jobs of the batch by their names.
        """
        self._store, self._batch = store, batch
        others = [job.state for name, job in names.items() if name not in current]
        self._others = {state: others.count(state) for state in set(others)}
        self._began = time.monotonic()
        self._made_before: float | None = None

    def read(self, shares: float = 0.0) -> Standing:
        """How far it is.

        Args:
            shares: of running items, what is done of each in [0, 1], added up.
        """
        counts = {s: n - self._others.get(s, 0) for s, n in self._store.counts(self._batch).items()}
        left = max(0, counts["queued"] + counts["running"])
        made = counts["done"] + counts["failed"] + shares
        self._made_before = made if self._made_before is None else self._made_before
        pace = (made - self._made_before) / max(time.monotonic() - self._began, 1e-9)
        seconds = (left - shares) / pace if left and pace > 0 else None
        return Standing(counts["done"], counts["failed"], counts["cancelled"] + counts["paused"], left, seconds)


@dataclass
class _Followed:
    """A job that somebody works on, or did a moment ago."""

    job: Job
    tail: Tail
    task: TaskID | None = None


class Bars:
    """A bar for the batch and one for each worker; a line for every item that ended. A context manager."""

    def __init__(self, store: Store, batch: str, meter: Meter, console: Console):
        self._store, self._batch, self._meter, self.console = store, batch, meter, console
        self._followed: dict[str, _Followed] = {}
        self._due = 0.0
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._whole = self._progress.add_task("batch", total=None, words="starting")

    def __enter__(self) -> "Bars":
        """Show them."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """A last look, and they stay as they are."""
        self.update(at_once=True)
        self._progress.stop()

    def update(self, at_once: bool = False) -> None:
        """Look again, if it is time."""
        if not at_once and time.monotonic() < self._due:
            return
        running = {job.id: job for job in self._store.jobs(["running"], batch=self._batch)}
        for id, job in running.items():
            if id not in self._followed:
                task = self._progress.add_task(_cut(job.prompt), total=None, words="")
                self._followed[id] = _Followed(job, Tail(job.folder), task)
        shares = 0.0
        for id, followed in list(self._followed.items()):
            if id in running:
                shares += self._show(followed)
            else:
                with contextlib.suppress(UnknownJob):  # somebody took it off the list a moment ago
                    self._tell(self._store.job(id))
                if followed.task is not None:
                    self._progress.remove_task(followed.task)
                del self._followed[id]
        standing = self._meter.read(shares)
        words = standing.words() + (f", about {in_hours(standing.seconds_left)}" if standing.seconds_left else "")
        ended = standing.done + standing.failed + standing.resting
        self._progress.update(self._whole, total=standing.total, completed=ended, words=words)
        self._due = time.monotonic() + _EVERY

    def _show(self, followed: _Followed) -> float:
        """Move a job's bar; returns its share."""
        now = followed.tail.progress()
        pace = f"{now.rate:.1f} it/s" if now.rate else ""
        words = now.phase or pace
        assert followed.task is not None
        self._progress.update(followed.task, total=now.steps or None, completed=now.step, words=words)
        return now.share

    def _tell(self, job: Job) -> None:
        """A line on an item that nobody works on any more."""
        line = Text(f"{job.state:>9}  {printable(job.prompt)}, seed {job.seed}  ")
        line.stylize({"done": "green", "failed": "red"}.get(job.state, "yellow"), 0, 9)
        line.append(str(job.folder.name), "dim")
        if job.error and job.state != "done":
            again = f", attempt {job.attempts} of {job.limit}" if job.attempts else ""
            line.append(f"  {printable(job.error)[:200]}{again}")
        self.console.print(line, soft_wrap=True)


class JsonLines:
    """Every event of every item as JSON, one object a line, with the item's id, folder and state of the batch."""

    def __init__(self, store: Store, batch: str, meter: Meter, console: Console):
        self._store, self._batch, self._meter = store, batch, meter
        self._began = time.time()
        self._read: dict[str, int] = {}
        self._open: dict[str, Job] = {}
        self._last: dict[str, int] = {}
        self._due = 0.0

    def __enter__(self) -> "JsonLines":
        """Begin."""
        self.update(at_once=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Say what is still unsaid."""
        for job in self._store.jobs(ENDED, batch=self._batch):
            if job.ended is not None and job.ended >= self._began:
                self._open[job.id] = job
        self.update(at_once=True)

    def update(self, at_once: bool = False) -> None:
        """Look again, if it is time."""
        if not at_once and time.monotonic() < self._due:
            return
        running = {job.id: job for job in self._store.jobs(["running"], batch=self._batch)}
        for id, job in {**self._open, **running}.items():
            for event in self._new_events(job):
                say({"job": id, "folder": str(job.folder), **event})
        self._open = running
        standing = self._meter.read()
        counts = {"done": standing.done, "failed": standing.failed, "resting": standing.resting, "left": standing.left}
        if counts != self._last:
            self._last = counts
            seconds = None if standing.seconds_left is None else round(standing.seconds_left, 1)
            say({"event": "Batch", **counts, "total": standing.total, "seconds_left": seconds})
        self._due = time.monotonic() + _EVERY

    def _new_events(self, job: Job) -> Iterator[dict[str, Any]]:
        """Whole lines of a run's record that were not read yet, without those from before this command."""
        try:
            with (job.folder / "events.jsonl").open("rb") as file:
                file.seek(self._read.get(job.id, 0))
                content = file.read()
        except OSError:
            return
        whole = content.rfind(b"\n") + 1
        self._read[job.id] = self._read.get(job.id, 0) + whole
        for line in content[:whole].splitlines():
            try:
                event = json.loads(line)
                if event["time"] >= self._began - 1:
                    yield event
            except (ValueError, KeyError, TypeError):  # cut short by a crash
                continue


def say(said: dict[str, Any]) -> None:
    """One JSON object on a line of the standard output."""
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def in_hours(seconds: float) -> str:
    """A long time for people: hours, or minutes where there are less than two."""
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{max(1, round(seconds / 60))} min"


def _cut(prompt: str) -> str:
    text = printable(prompt)
    return text if len(text) <= _LONGEST_PROMPT else f"{text[: _LONGEST_PROMPT - 1]}…"
