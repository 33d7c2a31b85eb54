"""A batch carried out: settled in the store, worked on by an engine, shown while it goes on, concluded in files."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from studio.batch.agreement import Agreement, agree, settings_in_words
from studio.batch.engines import devices_of, here, side_by_side
from studio.batch.options import Batch
from studio.batch.page import page
from studio.batch.planning import Draft
from studio.batch.results import Result, Results, write_tables
from studio.batch.settling import held, jobs_by_name, planned, settle
from studio.batch.sheet import contact_sheet
from studio.batch.showing import Bars, JsonLines, Meter, say
from studio.checkpoints import write_atomically
from studio.cli import FAILED, OK, SOME_FAILED
from studio.folder import RunError
from studio.jobs.store import Job, State, Store
from studio.jobs.terminal import asked_to_stop, printable
from studio.optimize import Stop
from studio.options import UsageError

_REFRESH = 30.0
"""Seconds between two writings of the results while the batch goes on."""
_SHARE = 20
"""Writing them takes a while in a large batch; at least this many times as long passes until the next."""
_MOST_NAMED = 10
"""Failed items that the conclusion names."""


@dataclass(frozen=True)
class _Ended:
    """How a start of a batch ended."""

    rows: Sequence[Result]
    """Of the items that the file has."""
    stopped: bool
    """Whether somebody asked it to."""
    problem: RunError | None
    """What ended it before its time."""
    held: str | None
    """Why the queue is held, if it is."""

    def count(self, state: State) -> int:
        """Rows in a state."""
        return sum(row.state == state for row in self.rows)


def carry_out(drawn: Draft, options: Batch, home: Path, name: str, quota: int | None, arguments: list[str]) -> int:
    """Make what is missing; returns the exit status.

    Args:
        drawn: what the file and the options come to.
        options: of the command line.
        home: the batch's folder.
        name: of the batch.
        quota: bytes that ``home`` may take.
        arguments: of the command line, to say how to go on.

    Raises:
        UsageError, RunError: it cannot begin; in words.
        StoreError, OSError: the store or a file cannot be used.
    """
    console = Console(stderr=True)
    begin = _engine(options, home, quota)
    with held(home), asked_to_stop("Stopping at the next checkpoint; Ctrl-C again ends at once.\n") as stop:
        before = planned(home)
        if before is not None and before.batch != name and options.out is None:
            raise UsageError(f"{home} is the folder of {before.batch}; name another with --out.")
        agreed = agree(drawn, name, options.attempts, options.timeout, home, before)
        for text in [*_beginning(drawn, agreed), *settle(home, agreed, options.retry_failed)]:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        files = Files(home, agreed)
        meter = Meter(files.store, agreed.plan.batch, agreed.current, files.jobs())
        problem: RunError | None = None
        shown = (JsonLines if options.json else Bars)(files.store, agreed.plan.batch, meter, console)
        try:
            with shown:
                for _ in begin(stop):
                    shown.update()
                    files.update(going_on=True)
        except RunError as found:
            problem = found
        results = files.update(going_on=False)
        rows = [row for name, row in results.items() if name in agreed.current]
        ended = _Ended(rows, stop(), problem, files.store.queue_held())
        return _conclude(ended, home, shlex.join(["studio", "batch", *arguments]), options.json)


def _engine(options: Batch, home: Path, quota: int | None) -> Callable[[Stop], Iterator[None]]:
    """What does the work, once it is told how to learn that it should stop.

    Raises:
        RunError: there is no such device, or no Ray.
    """
    if options.engine == "ray":
        from studio.batch.ray_engine import across, refuse_without_ray

        refuse_without_ray()
        return lambda stop: across(home, options.device, options.workers, stop, quota)
    devices = devices_of(options.device, options.workers)
    if len(devices) == 1:
        return lambda stop: here(home, devices[0], stop, quota)
    return lambda stop: side_by_side(home, devices, stop, quota)


def _beginning(drawn: Draft, agreed: Agreement) -> Iterator[str]:
    """What a user should know before the work begins."""
    yield from (f"Note: {text}" for text in drawn.warnings)
    if drawn.duplicates:
        yield f"{drawn.duplicates:,} said twice (the same prompt, seed and settings) are made once."
    if 0 < agreed.added < len(agreed.current):
        yield f"{agreed.added:,} new since the last start."


class Files:
    """Summary, contact sheet and page of a batch, written anew now and then."""

    def __init__(self, home: Path, agreed: Agreement):
        self.store = Store(home)
        self._home, self._plan = home, agreed.plan
        self._results = Results(home, settings_in_words(agreed.plan))
        self._places = {item.name: i for i, item in enumerate(agreed.plan.items)}
        self._due = 0.0
        self._last: list[Result] = []

    def jobs(self) -> dict[str, Job]:
        """The batch's jobs by name, in the order of the plan."""
        found = jobs_by_name(self.store.jobs(batch=self._plan.batch))
        return dict(sorted(found.items(), key=lambda pair: self._places.get(pair[0], len(self._places))))

    def update(self, going_on: bool) -> dict[str, Result]:
        """Write them if it is time, or the end; returns the rows by name, {} if it was not time.

        Raises:
            OSError: they cannot be written.
        """
        began = time.monotonic()
        if going_on and began < self._due:
            return {}
        jobs = self.jobs()
        rows = self._results.read(jobs.values())
        if rows != self._last or not going_on:
            self._last = rows
            made = sum(row.state == "done" for row in rows)
            title = f"{self._plan.batch}: {made:,} of {len(rows):,}"
            write_tables(self._home, self._plan.batch, rows)
            write_atomically(self._home / "index.html", page(title, self._home, rows, going_on))
            write_atomically(self._home / "contact_sheet.png", contact_sheet(title, self._home, rows))
        now = time.monotonic()
        self._due = now + max(_REFRESH, _SHARE * (now - began))
        return dict(zip(jobs, rows, strict=True))


def _conclude(ended: _Ended, home: Path, go_on: str, as_json: bool) -> int:
    """Say what came of it; returns the exit status."""
    counts = {"done": ended.count("done"), "failed": ended.count("failed")}
    counts["left"] = len(ended.rows) - counts["done"] - counts["failed"]
    status = _status(ended, counts["done"])
    if as_json:
        say({"event": "BatchEnded", **counts, "status": status, "summary": str(home / "summary.json")})
    else:
        failed = f", {counts['failed']:,} failed" if counts["failed"] else ""
        sys.stdout.write(f"{counts['done']:,} of {len(ended.rows):,} made{failed}: {home}/index.html\n")
    lines = list(_parked(ended.rows, home))
    lines += [str(ended.problem)] if ended.problem is not None else []
    lines += [f"The queue is held. {ended.held}".strip()] if ended.held is not None else []
    if counts["left"]:
        lines.append(f"{counts['left']:,} left. Go on with: {go_on}")
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return status


def _status(ended: _Ended, done: int) -> int:
    if done == len(ended.rows):
        return OK
    return SOME_FAILED if done and not ended.stopped and ended.problem is None else FAILED


def _parked(rows: Sequence[Result], home: Path) -> Iterator[str]:
    """Lines on items that are left aside."""
    parked = [row for row in rows if row.state == "failed"]
    for row in parked[:_MOST_NAMED]:
        yield f"  failed: {printable(row.prompt)}, seed {row.seed}: {home / row.folder}/error.txt"
    if len(parked) > _MOST_NAMED:
        yield f"  and {len(parked) - _MOST_NAMED:,} more, in {home}/summary.csv"
    if parked:
        yield "  They are left aside; --retry-failed makes them again."
