"""Workers as processes of their own, one for each device: begun anew when they die, and asked to stop in the end.

A worker whose job was cancelled and goes on nevertheless, since it hangs or is at a phase that takes long, is ended: it
is begun anew for the next job.
"""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from studio.jobs.job import StoreError
from studio.jobs.store import Store

GRACE = 30.0
"""Seconds that a job may go on after it was cancelled before its process is ended."""
_EVERY = 0.2
"""Seconds between looks at the processes."""
_LONGEST_WAIT = 60.0
"""Seconds before a worker that keeps dying is begun anew, at most; at first it is one, then twice as many each time."""
_HEALTHY = 60.0
"""Seconds after which a worker's death is taken for its first."""
_LARGEST_LOG = 2_000_000
"""Bytes of a worker's log; the half before goes when it is full."""


def all_devices() -> list[str]:
    """Every GPU there is, or else the CPU."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


class Workers:
    """A ``studio worker`` for each device, for as long as this context lasts."""

    def __init__(
        self, home: Path, devices: Sequence[str] | None = None, quota: int | None = None, patience: float = 30
    ):
        """Plan them.

        Args:
            home: folder of the runs.
            devices: one worker each; None: every device there is.
            quota: bytes that ``home`` may take.
            patience: seconds that workers have, in the end, to reach a checkpoint before they are killed.
        """
        home.mkdir(parents=True, exist_ok=True)
        self._home = home
        self._workers = [_Worker(home, device, quota) for device in devices or all_devices()]
        self._cancelled: dict[str, float] = {}  # running jobs, and when they were first seen to be
        self._patience = patience
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor of workers", daemon=True)

    def __enter__(self) -> "Workers":
        """Begin them."""
        for worker in self._workers:
            worker.begin()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ask them to stop: each queues its job again at a checkpoint, for the next worker there will be."""
        self._over.set()
        self._thread.join()
        for worker in self._workers:
            worker.ask_to_stop()
        until = time.monotonic() + self._patience
        for worker in self._workers:
            worker.wait(until - time.monotonic())

    def pids(self) -> list[int]:
        """Processes that live at the moment."""
        return [worker.process.pid for worker in self._workers if worker.process is not None and worker.lives()]

    def _run(self) -> None:
        store = Store(self._home)
        while not self._over.wait(_EVERY):
            for worker in self._workers:
                worker.tend()
            with contextlib.suppress(sqlite3.Error, StoreError, OSError, LookupError):  # the next look may succeed
                self._end_cancelled(store)

    def _end_cancelled(self, store: Store) -> None:
        """End the processes whose jobs were cancelled some time ago."""
        now = time.monotonic()
        cancelled = {job.id: job for job in store.jobs(["running"]) if job.wish == "cancel"}
        self._cancelled = {id: self._cancelled.get(id, now) for id in cancelled}
        for worker in self._workers:
            for id, job in cancelled.items():
                if now - self._cancelled[id] >= GRACE and worker.is_called(job.worker):
                    worker.kill()
                    store.cancel(id)  # nobody holds its folder any more


@dataclass
class _Worker:
    """A process, and when to begin it anew."""

    home: Path
    device: str
    quota: int | None
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    began: float = 0.0
    due: float | None = None
    """When to begin it anew, if it has died."""

    @property
    def log(self) -> Path:
        return self.home / f"worker-{self.device.replace(':', '-')}.log"

    def begin(self) -> None:
        """Start the process; in a group of its own, so that Ctrl-C on a terminal reaches its parent alone."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                _command(self.home, self.device, self.quota),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": import_path()},
                start_new_session=True,
            )
        self.began, self.due = time.monotonic(), None

    def tend(self) -> None:
        """Begin it anew some time after it died, and keep its log short."""
        now = time.monotonic()
        if self.due is not None:
            if now >= self.due:
                with contextlib.suppress(OSError):  # no room for a log, too many processes: the next try may succeed
                    self.begin()
        elif not self.lives():
            self.deaths = 1 if now - self.began > _HEALTHY else self.deaths + 1
            self.due = now + min(_LONGEST_WAIT, 2.0 ** (self.deaths - 1))
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > _LARGEST_LOG:
                _halve(self.log)

    def lives(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def is_called(self, name: str) -> bool:
        """Whether this is the name of the process in the store: that ends with its number."""
        return self.process is not None and self.lives() and name.endswith(f"-{self.process.pid}")

    def ask_to_stop(self) -> None:
        if self.process is not None and self.lives():
            self.process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait until it has ended; kill it when the time is up, which loses a few steps and nothing else."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.1, seconds))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it and what it began, such as an unwrapping, at once."""
        if self.process is not None and self.lives():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _command(home: Path, device: str, quota: int | None) -> list[str]:
    """A worker that ends with this process."""
    command = [sys.executable, "-P", "-m", "studio.cli", "worker", "--runs", str(home)]
    command += ["--device", device, "--parent", str(os.getpid())]
    return command if quota is None else [*command, "--quota", str(quota)]


def import_path() -> str:
    """Where a process finds this very program, and not one that happens to lie in the current folder."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


def _halve(log: Path) -> None:
    """Keep the newer half; the process goes on appending to the same file."""
    with log.open("r+b") as file:
        file.seek(-_LARGEST_LOG // 2, os.SEEK_END)
        tail = file.read()
        file.seek(0)
        file.write(tail)
        file.truncate()
