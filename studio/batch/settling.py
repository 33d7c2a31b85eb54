"""A batch's plan and its store brought together: what is planned and not there is submitted, in one transaction a kind.

The plan is written first, so this may stop anywhere and be done again.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from studio.batch.agreement import Agreement
from studio.folder import RunError
from studio.jobs.database import NAME
from studio.jobs.plan import Plan, plan_file, read_plan, write_plan
from studio.jobs.rebuild import rebuild
from studio.jobs.store import Job, Store, WrongState


@contextlib.contextmanager
def held(home: Path) -> Iterator[None]:
    """Keep other batches out of a folder, which is made if it is not there; a killed process lets go by itself.

    Raises:
        RunError: another process has it, or it is no folder of a batch.
        OSError: it cannot be made.
    """
    home.mkdir(parents=True, exist_ok=True)
    if not plan_file(home).is_file() and _is_of_others(home):
        raise RunError(f"{home} holds runs that are not of a batch; name another folder with --out.")
    with (home / ".batch.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise RunError(f"Another `studio batch` works in {home}; wait for it or stop it.") from problem
        yield


def _is_of_others(home: Path) -> bool:
    """Whether there are runs or jobs in a folder, although no batch was ever planned there."""
    return any(home.glob("*/request.json")) or ((home / NAME).is_file() and bool(Store(home).jobs(limit=1)))


def planned(home: Path) -> Plan | None:
    """What was planned in a folder, if anything was.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return read_plan(home)
    except ValueError as problem:
        raise RunError(str(problem)) from problem


def settle(home: Path, agreed: Agreement, retry: bool) -> list[str]:
    """Write the plan and make the store fit it; returns words about what is not as before.

    Raises:
        OSError, StoreError: it cannot be written.
    """
    plan = agreed.plan
    lost = planned(home) is not None and not (home / NAME).is_file()
    write_plan(home, plan)
    if lost:
        rebuild(home)
    store = Store(home)
    there = jobs_by_name(store.jobs(batch=plan.batch))
    for template, items in plan.groups():
        missing = [item for item in items if item.name not in there and not (home / item.name).exists()]
        if missing:
            store.submit(template, missing, batch=plan.batch, limit=plan.limit, timeout=plan.timeout)
    store.set_limits(plan.batch, plan.limit, plan.timeout)
    known = jobs_by_name(store.jobs(batch=plan.batch))
    return [*_drop(store, agreed, known), *_take_up(store, agreed, known, retry)]


def jobs_by_name(jobs: list[Job]) -> dict[str, Job]:
    """Jobs by the names that the plan has for their folders; one whose name was taken has its id behind it."""
    return {job.folder.name.removesuffix(f"-{job.id}"): job for job in jobs}


def _drop(store: Store, agreed: Agreement, known: dict[str, Job]) -> Iterator[str]:
    """Let those go that the file no longer has; what they made stays."""
    planned = {item.name for item in agreed.plan.items}
    gone = [job for name, job in known.items() if name in agreed.dropped or name not in planned]
    open_ones = [job for job in gone if job.state in ("queued", "running", "paused")]
    for job in open_ones:
        store.cancel(job.id)
        if not job.folder.exists():
            store.clear(job.id)
    if gone:
        made = sum(job.state == "done" for job in gone)
        count = counted_items(len(gone))
        yield f"{count} no longer in the file: {made} made earlier, which stay; the others are not made."


def _take_up(store: Store, agreed: Agreement, known: dict[str, Job], retry: bool) -> Iterator[str]:
    """Queue again what may go on, and let workers take it."""
    reason = store.queue_held()
    if reason is not None:
        store.release_queue()
        yield f"The queue was held; it goes on. {reason}".strip()
    if off := len(agreed.current - known.keys()):
        yield f"{counted_items(off)} that somebody took off the list; delete their folders to make them anew."
    current = [job for name, job in known.items() if name in agreed.current]
    rests = [job for job in current if job.state in ("failed", "cancelled", "paused")]
    again = [job for job in rests if retry or (job.state == "failed" and job.attempts < agreed.plan.limit)]
    again += [job for job in rests if job.state == "paused" and job.error and job not in again]  # of a full disk
    for job in again:
        with contextlib.suppress(WrongState):  # somebody was faster
            store.resume(job.id) if job.state == "paused" else store.retry(job.id)
    for state, words in (("failed", "left aside"), ("cancelled", "cancelled"), ("paused", "paused")):
        left = [job for job in rests if job.state == state and job not in again]
        if left:
            yield f"{counted_items(len(left))} {words} earlier: --retry-failed takes them up again."


def counted_items(count: int) -> str:
    """E.g. "1 item", "3 items"."""
    return f"{count:,} item" if count == 1 else f"{count:,} items"
