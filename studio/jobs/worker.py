"""A worker: it takes one job after the other, and stops at a step's notice. It may be killed at any moment."""

import contextlib
import errno
import gc
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from studio.events import Checkpointed, Event, Failed, Finished, Stopped, Working
from studio.folder import read_request
from studio.jobs.claims import Claim
from studio.jobs.folders import steps_saved
from studio.jobs.quota import Quota
from studio.jobs.store import Job, Store
from studio.jobs.watch import Watch, too_long
from studio.optimize import Stop
from studio.run import choose_device, never, refuse_wrong, work_in

_IDLE = 0.25
"""Seconds until an idle worker looks for jobs again."""


def work(
    home: Path,
    device: str = "auto",
    stop: Stop = never,
    until_empty: bool = False,
    *,
    name: str = "",
    quota: int | None = None,
) -> Iterator[tuple[Job, Event]]:
    """Do the jobs of ``home``, one after the other; yields whatever happens, and to which job.

    Args:
        device: of which this is the only worker.
        stop: asked at every step; when it says so, the job is queued again at a checkpoint, and the worker ends.
        until_empty: end when nothing is queued, or the queue is held; otherwise wait for more.
        name: of the worker; one made of device and process without it.
        quota: bytes that ``home`` may take.

    Raises:
        RunError: there is no such device.
        StoreError: the store is damaged.
    """
    store, chosen = Store(home), choose_device(device)
    room = None if quota is None else Quota(home, quota)
    with Watch(store, name or f"{chosen}-{os.getpid()}", str(chosen), stop) as watch:
        while not stop():
            claim = _next(store, watch)
            if claim is not None:
                with claim:
                    yield from _carry_out(claim, chosen, watch, room)
                _free_memory(chosen)
            elif until_empty and (store.counts()["queued"] == 0 or store.queue_held() is not None):
                return
            else:
                watch.pause(_IDLE)
            if room is not None:
                room.keep(store, at_once=claim is not None)


def _next(store: Store, watch: Watch) -> Claim | None:
    """The next job; a disk on which not even a folder can be made holds the queue."""
    try:
        return store.claim(watch.name)
    except OSError as problem:
        store.hold_queue(f"A job's folder could not be made: {problem}. Release the queue when that is mended.")
        return None


def _carry_out(claim: Claim, device: torch.device, watch: Watch, room: Quota | None) -> Iterator[tuple[Job, Event]]:
    """Work on a job until it is done, fails, or there is a reason to stop; say in the store what came of it."""
    job, last = claim.job, None
    watch.begin(claim)
    try:
        request = read_request(job.folder)
        refuse_wrong(request)
        events = work_in(claim.home, request, device, watch.asked)
        for event in events:
            last = event
            yield job, event
            if isinstance(event, Checkpointed) and room is not None:
                room.keep(watch.store)
            if isinstance(event, Working) and watch.asked():  # between phases; within stages a step ends first
                break
        yield from ((job, event) for event in _end(claim, last, watch))
    except Exception as problem:
        yield from ((job, event) for event in _end_failed(claim, last, problem, watch))
    finally:
        _insist(claim.stopped, watch)  # says nothing where an end was said; else whoever listens has gone
        watch.end()


def _end(claim: Claim, last: Event | None, watch: Watch) -> Iterator[Event]:
    """The ends that are no failure of the run."""
    if isinstance(last, Finished):
        _insist(claim.done, watch)
    elif watch.why() == "timeout":
        yield from _failed(claim, too_long(claim), None, watch)
    else:
        _insist(claim.stopped, watch)
        if not isinstance(last, Stopped):
            stopped = Stopped(max(0, steps_saved(claim.job.folder)), claim.job.folder)
            claim.home.record(stopped)
            yield stopped


def _end_failed(claim: Claim, last: Event | None, problem: Exception, watch: Watch) -> Iterator[Event]:
    """An exception: the run's own have said ``Failed`` already. A full disk is nobody's failure."""
    if disk_is_full(problem):
        words = "The disk is full. Free some space; then `studio jobs release`, and `studio jobs resume` for this job."
        _insist(lambda: watch.store.hold_queue(words), watch)
        _insist(lambda: claim.paused(words), watch)
        if not isinstance(last, Failed):
            yield Failed(words)
        return
    words = str(problem) or type(problem).__name__
    if isinstance(last, Failed):
        _insist(lambda: claim.failed(words, problem), watch)
    else:
        yield from _failed(claim, words, problem, watch)


def _failed(claim: Claim, words: str, problem: Exception | None, watch: Watch) -> Iterator[Event]:
    failure = Failed(words)
    with contextlib.suppress(OSError):
        claim.home.record(failure)
    _insist(lambda: claim.failed(words, problem), watch)
    yield failure


def disk_is_full(problem: BaseException | None) -> bool:
    """Whether a full disk is at the bottom of a problem."""
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def _insist(say: Callable[[], None], watch: Watch) -> None:
    """Say an end in the store, even if that takes until the disk has room again."""
    while True:
        try:
            return say()
        except sqlite3.OperationalError:
            if watch.why() == "leave":  # the next worker finds out from the folder
                return
            watch.pause(1.0)


def _free_memory(device: torch.device) -> None:
    """Give back what a job held, in cycles and in torch's own cache; other programs may want the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
