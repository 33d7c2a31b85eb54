"""What runs on a machine of a Ray cluster: one run at a time, in a folder that the head holds for it."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from studio.events import Event, Failed, Finished, Stopped, Working
from studio.folder import RunError, RunFolder, read_request
from studio.jobs.folders import steps_saved
from studio.jobs.worker import disk_is_full

_LEASE = 120.0
"""Seconds to wait for an actor of an earlier head, which may be at its last step in the same folder."""
_VISIBLE = 10.0
"""Seconds that a network file system may take to show a new folder to another machine."""


@dataclass(frozen=True)
class Where:
    """Where an actor is."""

    machine: str
    pid: int
    device: str


@dataclass(frozen=True)
class Ended:
    """How an actor's work on a job ended, other than by an exception."""

    kind: Literal["done", "stopped", "late", "full"]
    words: str = ""


class Actor:
    """Does what its head asks; ``stop`` may be called while ``work`` goes on."""

    def __init__(self, gpu: bool):
        from studio.run import choose_device

        self._device = choose_device("cuda" if gpu else "cpu")
        self._stopped: set[str] = set()

    def where(self) -> Where:
        """Where this is."""
        return Where(socket.gethostname(), os.getpid(), str(self._device))

    def stop(self, job: str) -> None:
        """Let the work on a job end at the next step, even if it has not begun yet."""
        self._stopped.add(job)

    def work(self, job: str, folder: str, timeout: float | None) -> Ended:
        """Do, or go on with, the run in a folder.

        Raises:
            RunError: the run failed, or this machine does not see its folder.
        """
        until = time.monotonic() + (timeout or float("inf"))
        self._stopped &= {job}
        path = _visible(Path(folder))
        try:
            with _lease(path):
                return self._work(job, RunFolder.open(path), timeout, until)
        finally:
            self._stopped.discard(job)

    def _work(self, job: str, home: RunFolder, timeout: float | None, until: float) -> Ended:
        from studio.run import refuse_wrong, work_in

        def asked() -> bool:
            return job in self._stopped or time.monotonic() > until

        request, last = read_request(home.path), None
        refuse_wrong(request)
        try:
            for event in work_in(home, request, self._device, asked):
                last = event
                if isinstance(event, Working) and asked():  # between phases; within stages a step ends first
                    break
        except Exception as problem:
            if disk_is_full(problem):
                return Ended("full", "The disk is full. Free some space; then start the batch again.")
            raise
        return _ended(home, last, job in self._stopped, timeout)


def _ended(home: RunFolder, last: Event | None, stopped: bool, timeout: float | None) -> Ended:
    """How it ended, which the run's record is told too where it does not know yet."""
    if isinstance(last, Finished):
        return Ended("done")
    if not stopped:
        words = f"It took longer than the {timeout:g} s that an attempt may take."
        home.record(Failed(words))
        return Ended("late", words)
    if not isinstance(last, Stopped):
        home.record(Stopped(max(0, steps_saved(home.path)), home.path))
    return Ended("stopped")


def _visible(folder: Path) -> Path:
    """The folder, once this machine sees it.

    Raises:
        RunError: it does not.
    """
    until = time.monotonic() + _VISIBLE
    while not (folder / "request.json").is_file():
        if time.monotonic() > until:
            raise RunError(
                f"{socket.gethostname()} does not see {folder}. All machines of the Ray cluster must share the folder "
                "of the batch, under the same path; name such a one with --out."
            )
        time.sleep(0.5)
    return folder


@contextlib.contextmanager
def _lease(folder: Path) -> Iterator[None]:
    """Be the only actor in a folder: one whose head was killed may still be at its last step.

    Raises:
        RunError: it does not end.
    """
    handle = os.open(folder / ".actor", os.O_RDWR | os.O_CREAT, 0o644)
    until = time.monotonic() + _LEASE
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise RunError(f"Another process still works in {folder}.") from None
                time.sleep(0.2)
        yield
    finally:
        os.close(handle)
