"""What the page and its API do: submit forms, find runs, say how they are. It owns no job: the store and folders do."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.app.counting import Counter
from studio.app.form import Form, objections, request_of, wanted
from studio.estimate import Estimate, estimate
from studio.folder import RunError, read_request
from studio.jobs.progress import Progress, Tail
from studio.jobs.store import Item, Job, Store, UnknownJob
from studio.options import UsageError
from studio.request import Problem, Request, check

_MOST_SHOWN = 40
"""Jobs in the list of the page, besides those that run."""
_TAILS = 256


@dataclass(frozen=True)
class Run:
    """Something the page can show: a job, or a folder that the command line made."""

    ref: str
    """What the page's address calls it: the job's id, else the folder's name below home."""
    folder: Path
    job: Job | None

    @property
    def state(self) -> str:
        """The job's state; of a folder without one, whether it is finished."""
        if self.job is not None:
            return self.job.state
        return "done" if (self.folder / "report.json").is_file() else "stopped"

    @property
    def report(self) -> dict[str, Any]:
        """What ``report.json`` says; {} while there is none."""
        try:
            found = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Plan:
    """What a form comes to, before it is submitted."""

    request: Request | None
    jobs: int
    prompts: tuple[str, ...]
    problems: tuple[Problem, ...]
    estimate: Estimate | None
    counting: bool = False
    """Whether its memory will be known better in a while."""

    @property
    def refused(self) -> bool:
        """Whether it cannot be submitted."""
        return any(problem.severity == "error" for problem in self.problems)


class Service:
    """The studio behind a page: one home of runs, its store, and the priors that may be named."""

    def __init__(self, home: Path, priors: Mapping[str, str]):
        self.home = home.absolute()
        self.store = Store(self.home)
        self.priors = dict(priors)
        self.counter = Counter()
        self._tails: dict[Path, Tail] = {}
        self._lock = threading.Lock()

    # Making --------------------------------------------------------------------------------------------------------

    def plan(self, form: Form) -> Plan:
        """What would be made, how long that takes, and every objection to it."""
        try:
            request, jobs = request_of(form, self.priors), wanted(form)
            problems = tuple(objections(form, request))
        except ValueError as problem:
            return Plan(None, 0, (), (Problem("error", str(problem)),), None)
        prompts = tuple(dict.fromkeys(job.prompt for job in jobs))
        first = dataclasses.replace(request, prompt=prompts[0])
        plan = Plan(first, len(jobs), prompts, problems, estimate(first, self.home))
        return self._counted(plan, first)

    def _counted(self, plan: Plan, request: Request) -> Plan:
        """The plan with what is known of its memory, if that is a guess and nothing forbids the run."""
        if plan.refused or plan.estimate is None or not plan.estimate.guessed:
            return plan
        count = self.counter.ask(request)
        known = plan.estimate if count.size is None else estimate(request, self.home, count.size)
        return dataclasses.replace(plan, estimate=known, counting=not count.known)

    def submit(self, form: Form) -> list[str]:
        """Put the jobs of a form into the queue; returns their ids, the first to be done first.

        Raises:
            UsageError: it is refused; in words.
        """
        try:
            request, jobs = request_of(form, self.priors), wanted(form)
        except ValueError as problem:
            raise UsageError(str(problem)) from problem
        _refuse(objections(form, request))
        return self.store.submit(request, [Item(job.prompt, job.seed) for job in jobs], folders=True)

    def submit_checked(self, request: Request) -> str:
        """Put one request into the queue, such as an edit; returns its id.

        Raises:
            UsageError: there are objections to it; in words.
        """
        _refuse(check(request))
        return self.store.submit(request, [Item(request.prompt, request.seed)], folders=True)[0]

    # Finding -------------------------------------------------------------------------------------------------------

    def find(self, ref: str) -> Run | None:
        """The run of a job's id, or of a folder's name below home; None if there is none."""
        if re.fullmatch(r"[0-9a-f]{12}", ref):
            with contextlib.suppress(UnknownJob):
                return _run(self.store.job(ref))
        folder = self.home / ref
        if not ref or "\0" in ref or ref.startswith((".", "/")) or ".." in Path(ref).parts:
            return None
        inside = folder.resolve().is_relative_to(self.home.resolve())
        return Run(ref, folder, None) if inside and (folder / "request.json").is_file() else None

    def request(self, run: Run) -> Request:
        """What a run was asked to make.

        Raises:
            RunError: it cannot be read, as when another version of the studio wrote it; in words.
        """
        if run.job is None:
            return read_request(run.folder)
        try:
            return self.store.request(run.job)
        except ValueError as problem:
            raise RunError(str(problem)) from problem

    def asked(self, run: Run) -> tuple[str, int]:
        """Prompt and seed of a run; its own name and 0 where nobody can say."""
        if run.job is not None:
            return run.job.prompt, run.job.seed
        try:
            request = self.request(run)
        except RunError:
            return run.ref, 0
        return request.prompt, request.seed

    def done(self, ref: str | None) -> Run | None:
        """The run of a ``ref``, if it is finished."""
        run = self.find(ref or "")
        return run if run is not None and run.state == "done" else None

    def position(self, run: Run) -> int | None:
        """Its place in the queue; None if it does not wait there."""
        if run.state != "queued":
            return None
        with contextlib.suppress(UnknownJob):  # it may have been taken off the list since
            return self.store.position(run.ref)
        return None

    def progress(self, run: Run) -> Progress:
        """How far a run is."""
        with self._lock:
            if len(self._tails) >= _TAILS:
                self._tails.clear()
            return self._tails.setdefault(run.folder, Tail(run.folder)).progress()

    def listed(self) -> list[Run]:
        """Jobs for the list on the page: what runs, then the queue in order, then what ended last."""
        states = ("running", "paused", "queued")
        active = [job for state in states for job in self.store.jobs([state], limit=_MOST_SHOWN)]
        ended = self.store.jobs(["failed", "cancelled", "done"], limit=5, newest_first=True)
        return [_run(job) for job in [*active, *ended]]

    def finished(self, search: str = "", limit: int = 60) -> list[Run]:
        """Finished runs, newest first: the store's, and those that the command line left in the same home."""
        jobs = self.store.jobs(["done"], search=search, limit=limit, newest_first=True)
        runs = [_run(job) for job in jobs if (job.folder / "result.glb").is_file()]
        runs += itertools.islice(self._strangers(search.strip().lower()), limit)
        return sorted(runs, key=_ended, reverse=True)[:limit]

    def _strangers(self, search: str) -> Iterator[Run]:
        """Finished runs in folders that are no finished job's, newest first; only those are looked into."""
        jobs = self.store.folders("done")
        with os.scandir(self.home) as entries:
            folders = [Path(entry.path) for entry in entries if entry.name not in jobs and entry.name[0] != "."]
        dated = [(_stat(folder / "report.json")[0], folder) for folder in folders]
        for ended, folder in sorted(dated, reverse=True):
            whole = ended and all((folder / name).is_file() for name in ("request.json", "result.glb"))
            if whole and (not search or search in _prompt(folder).lower()):
                yield Run(folder.name, folder, None)

    # Changing ------------------------------------------------------------------------------------------------------

    def act(self, action: str, ref: str) -> None:
        """Do what a button of the page says to a job, or to the queue.

        Raises:
            ValueError: no such action or job, or it cannot be done now; in words.
        """
        plain = {
            "pause": self.store.pause,
            "resume": self.store.resume,
            "cancel": self.store.cancel,
            "retry": self.store.retry,
            "clear": self.store.clear,
        }
        try:
            if action == "hold":
                self.store.hold_queue("held from the page")
            elif action == "release":
                self.store.release_queue()
            elif action in ("up", "down"):
                self._move(ref, up=action == "up")
            elif action in plain:
                plain[action](ref)
            else:
                raise ValueError(f"No action {action!r}.")
        except UnknownJob as problem:
            raise ValueError(str(problem)) from problem

    def _move(self, ref: str, up: bool) -> None:
        """One place up or down in the queue."""
        queue = [job.id for job in self.store.jobs(["queued"])]
        if ref not in queue:
            raise ValueError("Only a job that waits in the queue has a place in it.")
        at = queue.index(ref)
        rest = [*queue[:at], *queue[at + 1 :]]
        to = max(0, at - 1) if up else min(len(rest), at + 1)
        self.store.move(ref, rest[to] if to < len(rest) else None)

    def stamp(self, run: Run | None) -> Sequence[Any]:
        """Changes whenever anything that the page shows of a run or of the queue does."""
        own = () if run is None else tuple(_stat(run.folder / name) for name in ("events.jsonl", "report.json"))
        return (self.store.changed(), *own)


def _run(job: Job) -> Run:
    return Run(job.id, job.folder, job)


def _refuse(problems: Sequence[Problem]) -> None:
    """Refuse what has errors.

    Raises:
        UsageError: with all of them.
    """
    errors = [problem.text for problem in problems if problem.severity == "error"]
    if errors:
        raise UsageError("\n".join(errors))


def _prompt(folder: Path) -> str:
    """The prompt of a run, "" where nobody can say; read once, for a run's request is written once."""
    return _prompt_read(folder, _stat(folder / "request.json")[0])


@functools.lru_cache(maxsize=4096)
def _prompt_read(folder: Path, changed: float) -> str:
    try:
        return read_request(folder).prompt
    except RunError:
        return ""


def _ended(run: Run) -> float:
    if run.job is not None and run.job.ended is not None:
        return run.job.ended
    return _stat(run.folder / "report.json")[0]


def _stat(path: Path) -> tuple[float, int]:
    try:
        found = path.stat()
    except OSError:
        return (0.0, 0)
    return (found.st_mtime, found.st_size)
