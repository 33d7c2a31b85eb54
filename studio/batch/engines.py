"""What carries a batch out on this machine: this very process, or one for each of several devices.

An engine is an iterator that yields again and again while there is work, so that its caller can show how far it is.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from studio.folder import RunError
from studio.jobs.store import Store
from studio.jobs.supervisor import Workers, all_devices
from studio.jobs.worker import work
from studio.optimize import Stop
from studio.run import choose_device

_EVERY = 0.2
"""Seconds between looks at the store."""
_PATIENCE = 120.0
"""Seconds without any sign of life of any worker until something is wrong with all of them."""


def devices_of(names: Sequence[str], workers: int | None) -> list[str]:
    """The device of each worker.

    Args:
        names: as given; ``auto`` is every GPU there is, or else the CPU.
        workers: how many; they share the devices in turn. None: one each.

    Raises:
        RunError: there is no such device here.
    """
    named = [one for name in names for one in (all_devices() if name == "auto" else [name])]
    devices = list(dict.fromkeys(str(choose_device(name)) for name in named))
    return [devices[i % len(devices)] for i in range(workers or len(devices))]


def here(home: Path, device: str, stop: Stop, quota: int | None) -> Iterator[None]:
    """Work in this process; the prior is loaded once."""
    store = Store(home)
    while not stop() and unfinished(store):
        for _ in work(home, device, stop, until_empty=True, quota=quota):
            yield
        time.sleep(_EVERY)  # what is left is in other hands
        yield


def side_by_side(home: Path, devices: Sequence[str], stop: Stop, quota: int | None) -> Iterator[None]:
    """A process for each device, begun anew when it dies.

    Raises:
        RunError: none of them comes to life.
    """
    store, seen = Store(home), time.monotonic()
    with Workers(home, devices, quota):
        while not stop() and unfinished(store):
            time.sleep(_EVERY)
            yield
            if store.workers():
                seen = time.monotonic()
            elif time.monotonic() - seen > _PATIENCE:
                logs = ", ".join(str(path) for path in home.glob("worker-*.log"))
                raise RunError(f"No worker has shown any sign of life for {_PATIENCE:.0f} s; their logs: {logs}.")


def unfinished(store: Store) -> bool:
    """Whether anything runs, or waits and may run."""
    counts = store.counts()
    return counts["running"] > 0 or (counts["queued"] > 0 and store.queue_held() is None)
