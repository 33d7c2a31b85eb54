"""What the store knows of a job and of a worker, as plain values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

State = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)


class StoreError(RuntimeError):
    """The store cannot be used; the message says why and what to do."""


class UnknownJob(KeyError):
    """There is no job of this id."""

    def __str__(self) -> str:
        """The words alone; a KeyError would put quotes around them."""
        return str(self.args[0])


class WrongState(ValueError):
    """What is asked of a job does not fit the state it is in."""


@dataclass(frozen=True)
class Item:
    """What is to be made: a template request, with this prompt and seed."""

    prompt: str
    """What to make."""
    seed: int
    """Seed of everything that is drawn."""
    name: str = ""
    """Name of its folder below the home; a free one made of the prompt without it."""


@dataclass(frozen=True)
class Job:
    """A job as it was when it was read; times are seconds since 1970."""

    id: str
    """12 hexadecimal digits."""
    state: State
    """queued -> running -> done, or paused, cancelled, failed."""
    prompt: str
    """What to make."""
    seed: int
    """Seed of everything that is drawn."""
    folder: Path
    """Of its run, there once the job was claimed (or submitted with ``folders``)."""
    settings: str
    """Key of the template that it shares with others."""
    priority: int
    """Higher comes first."""
    position: float
    """Among those of the same priority, lower comes first."""
    batch: str
    """Name of the batch it belongs to, or nothing."""
    attempts: int
    """Failures so far."""
    limit: int
    """Failures after which it stays failed."""
    timeout: float | None
    """Seconds that an attempt may take."""
    wish: str
    """What was asked of it while it ran: nothing, "pause" or "cancel"."""
    error: str
    """Why the last attempt failed, in words; the traceback is in ``error.txt`` of the folder."""
    created: float
    """When it was submitted."""
    started: float | None
    """When a worker last took it."""
    ended: float | None
    """When it was done, failed for good or cancelled."""
    worker: str
    """Who works on it, while it is running."""


@dataclass(frozen=True)
class WorkerInfo:
    """A worker that was alive a moment ago."""

    name: str
    pid: int
    device: str
    seen: float
    """When it last said so, in seconds since 1970."""
    job: str
    """Id of what it works on, or nothing."""
