"""``studio worker`` and ``studio jobs``."""

import itertools
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from studio.arguments import MaybeNumber, MaybeSize
from studio.cli import BAD_USAGE, FAILED, OK
from studio.jobs.terminal import asked_to_stop, printable
from studio.verbs import complain, in_words


@dataclass(frozen=True)
class Worker:
    """Do queued jobs, one after the other, on one device. `studio ui` and `studio batch` start workers by themselves.

    After Ctrl-C or SIGTERM the job is queued again at a checkpoint; after any other end another worker resumes it.
    """

    runs: Path = Path("runs")
    """Folder of the runs and of the store."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ...; each device has room for one worker."""
    until_empty: bool = False
    """End when nothing is queued any more, instead of waiting for more."""
    quota: MaybeSize = None
    """Disk that the folder of the runs may take, e.g. 20GB. What is least missed goes first: old previews, then debug
    pictures, then earlier checkpoints of finished runs; never a result. When that is not enough, the queue is held."""
    parent: MaybeNumber = None
    """Id of the process to end with."""


@dataclass(frozen=True)
class Jobs:
    """List jobs, or change what becomes of them.

    - list: what runs, what waits, what has ended; `studio jobs` alone does the same.
    - pause ID: let it rest at its next step. resume ID: queue it again, where it was.
    - cancel ID: give it up at its next step; what it made so far stays.
    - retry ID: a failed or cancelled one again, from its last checkpoint.
    - first ID: before all others that wait.
    - clear [ID]: take it, or all that have ended, off the list; folders stay.
    - hold, release: whether workers take new jobs.
    - rebuild: make the store anew from the folders of the runs.
    """

    action: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ACTION")] = "list"
    """list, pause, resume, cancel, retry, first, clear, hold, release or rebuild."""
    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")] = ""
    """Of a job; its first digits do, if no other begins like it."""
    runs: Path = Path("runs")
    """Folder of the runs and of the store."""
    state: Annotated[
        tuple[Literal["queued", "running", "paused", "done", "failed", "cancelled"], ...],
        tyro.conf.arg(help_behavior_hint=""),
    ] = ()
    """Only jobs in these states."""
    search: str = ""
    """Only jobs whose prompt, folder, batch or id holds every word of this."""
    limit: int = 100
    """Most rows of the table; 0 for all."""
    json: bool = False
    """All of them, one JSON object a line, instead of a table."""


# studio worker --------------------------------------------------------------------------------------------------------


def worker(arguments: list[str]) -> int:
    """``studio worker``."""
    options = tyro.cli(Worker, args=arguments, prog="studio worker")
    from studio.folder import RunError
    from studio.jobs.job import StoreError
    from studio.jobs.quota import bytes_of
    from studio.jobs.worker import work

    def orphaned() -> bool:
        return options.parent is not None and os.getppid() != options.parent

    try:
        quota = None if options.quota is None else bytes_of(options.quota)
        with asked_to_stop() as asked:
            events = work(options.runs, options.device, lambda: asked() or orphaned(), options.until_empty, quota=quota)
            for job, event in events:
                _log(job, event)
    except (RunError, ValueError) as problem:
        return complain(str(problem), BAD_USAGE)
    except (StoreError, sqlite3.Error) as problem:
        return complain(str(problem), FAILED)
    except OSError as problem:
        return complain(in_words(problem), FAILED)
    return OK


def _log(job: Any, event: Any) -> None:
    """A line for what an owner of the machine wants to find later."""
    from studio.events import Failed, Finished, Started, Stopped, Warned

    match event:
        case Started(step=step, steps=steps, device=device):
            words = f"begins on {device} at step {step} of {steps}: {printable(job.prompt)}"
        case Finished(seconds=seconds):
            words = f"done in {seconds:.0f} s"
        case Stopped(step=step):
            words = f"stopped at step {step}"
        case Failed(text=text):
            words = f"failed: {printable(text)}"
        case Warned(text=text):
            words = f"note: {printable(text)}"
        case _:
            return
    sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {job.id} {words}\n")
    sys.stdout.flush()


# studio jobs ----------------------------------------------------------------------------------------------------------


def jobs(arguments: list[str]) -> int:
    """``studio jobs``."""
    options = tyro.cli(Jobs, args=arguments, prog="studio jobs")
    from studio.jobs.job import StoreError, UnknownJob, WrongState

    if not options.runs.is_dir():
        return complain(f"There is no folder {options.runs}; name the one with the runs by --runs.", BAD_USAGE)
    try:
        return _act(options)
    except (UnknownJob, WrongState, ValueError) as problem:
        return complain(str(problem), BAD_USAGE)
    except (StoreError, sqlite3.Error) as problem:
        return complain(str(problem), FAILED)
    except OSError as problem:
        return complain(in_words(problem), FAILED)


def _act(options: Jobs) -> int:
    from studio.codec import nearest
    from studio.jobs.rebuild import adopt, rebuild
    from studio.jobs.store import Store

    if options.action == "rebuild":
        return _say(f"{_count(rebuild(options.runs))} in {options.runs}.")
    store = Store(options.runs)
    if options.action == "list":
        adopt(options.runs)
        return _list(store, options)
    whole: dict[str, Callable[[], int]] = {
        "hold": lambda: store.hold_queue() or _say("Workers take no new jobs until `studio jobs release`."),
        "release": lambda: store.release_queue() or _say("Workers take jobs again."),
        "clear": lambda: _say(f"{_count(_clear(store))} off the list; their folders stay."),
    }
    single: dict[str, Callable[[str], None]] = {
        "pause": store.pause,
        "resume": store.resume,
        "cancel": store.cancel,
        "retry": store.retry,
        "first": lambda id: _first(store, id),
        "clear": store.clear,
    }
    if options.action not in whole | single:
        known = {"list", "rebuild", *whole, *single}
        return complain(f"No action {options.action!r}; {nearest(options.action, known)}", BAD_USAGE)
    if options.action in whole and not options.id:
        return whole[options.action]()
    if options.action not in single:
        return complain(f"`studio jobs {options.action}` takes no id of a job.", BAD_USAGE)
    if not options.id:
        return complain(f"Which job? `studio jobs {options.action} ID`; `studio jobs` lists them.", BAD_USAGE)
    id = _whole_id(store, options.id)
    single[options.action](id)
    return _say(_outcome(store, id))


def _whole_id(store: Any, beginning: str) -> str:
    """The id that begins like this, or the same if there is none or more than one."""
    alike = [job.id for job in store.jobs(search=beginning) if job.id.startswith(beginning)]
    if len(alike) > 1:
        raise ValueError(f"{len(alike)} jobs begin with {beginning!r}: {', '.join(alike[:5])}; say more of the id.")
    return alike[0] if alike else beginning


def _first(store: Any, id: str) -> None:
    waiting = [job.id for job in store.jobs(["queued"], limit=1)]
    store.move(id, waiting[0] if waiting else None)


def _clear(store: Any) -> int:
    """Clear all jobs that have ended; returns how many."""
    over = store.jobs(["done", "failed", "cancelled"])
    for job in over:
        store.clear(job.id)
    return len(over)


def _outcome(store: Any, id: str) -> str:
    """What became of a job, for people."""
    from studio.jobs.job import UnknownJob

    try:
        job = store.job(id)
    except UnknownJob:
        return f"Job {id} is off the list; its folder stays."
    if job.wish:
        return f"Job {id} will {job.wish} after the step it is at."
    place = f", number {store.position(id)}" if job.state == "queued" else ""
    return f"Job {id} is {job.state}{place}."


def _list(store: Any, options: Jobs) -> int:
    found = _in_order(store, options)
    if options.json:
        for job in found:
            values = {name: getattr(job, name) for name in job.__dataclass_fields__}
            sys.stdout.write(json.dumps(values | {"folder": str(job.folder)}) + "\n")
        return OK
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    shown = found[: options.limit] if options.limit else found
    if shown:
        console.print(_table(store, shown))
    if len(found) > len(shown):
        console.print(f"and {len(found) - len(shown)} more; --limit 0 lists all.", markup=False)
    counts = ", ".join(f"{count} {state}" for state, count in store.counts().items() if count)
    console.print(counts or f"No jobs in {options.runs} yet.", markup=False)
    if (reason := store.queue_held()) is not None:
        console.print(f"The queue is held. {reason} `studio jobs release` lets it go on.", markup=False)
    return OK


def _in_order(store: Any, options: Jobs) -> list[Any]:
    """What runs, then the queue and what is paused, then what has ended, the last first."""
    from studio.jobs.job import STATES

    wanted = options.state or STATES
    found = [store.jobs([state], search=options.search) for state in ("running", "queued", "paused") if state in wanted]
    over = [state for state in ("failed", "done", "cancelled") if state in wanted]
    ended = store.jobs(over, search=options.search)
    return [*itertools.chain(*found), *sorted(ended, key=lambda job: job.ended or 0.0, reverse=True)]


def _table(store: Any, found: list[Any]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    colours = {"running": "cyan", "done": "green", "failed": "red", "paused": "yellow", "cancelled": "dim"}
    places = {job.id: str(i + 1) for i, job in enumerate(store.jobs(["queued"]))}
    table = Table("", "id", "state", "prompt", "seed", "folder", "note", box=box.SIMPLE_HEAD)
    table.columns[0].justify = table.columns[4].justify = "right"
    for job in found:
        state = Text(f"{job.state}, to {job.wish}" if job.wish else job.state, colours.get(job.state, ""))
        prompt, folder = Text(printable(job.prompt)), Text(printable(str(job.folder)))
        table.add_row(places.get(job.id, ""), job.id, state, prompt, str(job.seed), folder, Text(printable(_note(job))))
    return table


def _note(job: Any) -> str:
    from studio.jobs.folders import progress

    if job.state == "running" and (steps := progress(job.folder)) is not None:
        return f"step {steps[0]} of {steps[1]}"
    if job.error:
        tries = f" ({job.attempts} of {job.limit} attempts)" if job.attempts else ""
        return job.error.splitlines()[0] + tries
    return f"priority {job.priority}" if job.priority else ""


def _count(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def _say(text: str) -> int:
    sys.stdout.write(text + "\n")
    return OK
