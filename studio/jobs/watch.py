"""A thread beside the work: it learns why to stop, says that the worker is alive, and ends a process that hangs."""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from studio.jobs.claims import Claim
from studio.jobs.job import WorkerInfo
from studio.jobs.store import Store

Reason = Literal["", "wish", "timeout", "leave"]
_EVERY = 0.1
"""Seconds between looks at the store, so that a wish is obeyed within a step."""
_BEAT = 2.0
"""Seconds between signs of life."""
GRACE = 30.0
"""Seconds that a job may go on after its time is up before its process is ended."""


class Watch:
    """What a worker asks while it works; a context manager, during which the thread runs."""

    def __init__(self, store: Store, name: str, device: str, leave: Callable[[], bool]):
        self.store, self.name, self._device, self._leave = store, name, device, leave
        self._claim: Claim | None = None
        self._reason: Reason = ""
        self._deadline = float("inf")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch of {name}", daemon=True)
        self._beaten = 0.0

    def __enter__(self) -> "Watch":
        """Start the thread."""
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread, and say that the worker is gone."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(sqlite3.Error):
            self.store.dismiss(self.name)

    def begin(self, claim: Claim) -> None:
        """The worker begins with a job."""
        self._reason = ""
        self._deadline = time.monotonic() + (claim.job.timeout or float("inf"))
        self._claim = claim
        self._beaten = 0.0

    def end(self) -> None:
        """The worker is through with its job."""
        self._claim, self._deadline = None, float("inf")
        self._beaten = 0.0

    def why(self) -> Reason:
        """Why to stop, or nothing; cheap enough for every step."""
        if self._reason == "" and self._leave():
            self._reason = "leave"
        return self._reason

    def asked(self) -> bool:
        """Whether to stop."""
        return self.why() != ""

    def pause(self, seconds: float) -> None:
        """Wait, unless it is time to leave."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._leave():
            time.sleep(min(0.05, seconds))

    def _run(self) -> None:
        while not self._over.wait(_EVERY):
            with contextlib.suppress(sqlite3.Error, OSError, KeyError):  # it is only a look; the next may succeed
                self._look()

    def _look(self) -> None:
        if (claim := self._claim) is not None:
            late = time.monotonic() - self._deadline
            if self._reason == "" and late >= 0:
                self._reason = "timeout"
            if late >= GRACE:  # whatever else it was asked to stop for meanwhile
                self._end_process(claim)
            if self._reason == "" and self.store.job(claim.job.id).wish and self._claim is claim:
                self._reason = "wish"
        if time.monotonic() - self._beaten >= _BEAT:
            self._beat()

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        job = self._claim.job.id if self._claim is not None else ""
        self.store.beat(WorkerInfo(self.name, os.getpid(), self._device, time.time(), job))

    def _end_process(self, claim: Claim) -> None:
        """The last resort: nothing in Python ends a thread that hangs in a library or a driver.

        One that keeps even this thread from running is ended by the supervisor, if it was cancelled.
        """
        claim.failed(f"{too_long(claim)} It hung, so its process was ended.")
        os._exit(70)


def too_long(claim: Claim) -> str:
    """Words for a job whose time is up."""
    return f"It took longer than the {claim.job.timeout:g} s that an attempt may take."
