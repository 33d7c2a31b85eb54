"""The folder of a run: made once, held by one process at a time, and a record of everything that happened in it."""

import fcntl
import json
import os
import re
import time
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from studio.checkpoints import write_atomically
from studio.codec import decode, encode
from studio.events import Event, Stepped, Working
from studio.request import Request

_RECORD_EVERY = 1.0
"""Seconds between recorded steps: reading a loss makes the host wait for the device."""


class RunError(RuntimeError):
    """A run cannot go on; the message says why and what to do."""


class FolderTaken(FileExistsError):
    """There is something in the folder that a new run was to have."""


class DiskFull(RunError):
    """There is no room left for a run's files; it can go on when there is."""


def in_words(problem: OSError) -> str:
    """What went wrong with a file, for people."""
    if isinstance(problem, PermissionError) and problem.filename:
        return f"No right to use {problem.filename}."
    if problem.errno is None:  # one of ours, in words already
        return str(problem)
    return f"{problem.strerror}: {problem.filename}" if problem.filename else str(problem.strerror)


def read_request(folder: Path) -> Request:
    """The request of a run.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    try:
        return decode(Request, json.loads((folder / "request.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError) as problem:
        raise RunError(f"{folder} is not a run: it has no request.json.") from problem
    except ValueError as problem:
        raise RunError(f"{folder}/request.json cannot be read: {problem}") from problem


class RunFolder:
    """A run's folder, locked for as long as it is used as a context manager; a killed process frees it by itself."""

    def __init__(self, path: Path):
        self.path = path
        self._lock: int | None = None
        self._last_step = float("-inf")

    @classmethod
    def create(cls, path: Path, request: Request) -> "RunFolder":
        """Make the folder of a new run; of several processes that want the same one, one has it.

        Raises:
            FolderTaken: there is something in it already.
            OSError: it cannot be made.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise _taken(path)
        for folder in (path, path / "checkpoints", path / "previews"):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError as problem:
            raise _taken(path) from problem
        write_atomically(path / "request.json", json.dumps(encode(request), indent=2).encode())
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of an existing run."""
        for folder in (path / "checkpoints", path / "previews"):
            folder.mkdir(exist_ok=True)
        return cls(path)

    def __enter__(self) -> "RunFolder":
        """Hold the folder.

        Raises:
            BlockingIOError: another process holds it.
        """
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            os.close(self._lock)
            raise BlockingIOError(f"Another process is working on {self.path}; wait for it or stop it.") from problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            os.close(self._lock)

    @property
    def handles(self) -> tuple[int, ...]:
        """The open file whose lock holds the folder, if it is held: a process that inherits it holds the folder too."""
        return () if self._lock is None else (self._lock,)

    def record(self, event: Event) -> None:
        """Append an event to ``events.jsonl``; of steps, one a second. The record must never stop the work."""
        if isinstance(event, Stepped):
            now = time.monotonic()  # a clock that is set back must not silence the record
            if now - self._last_step < _RECORD_EVERY:
                return
            self._last_step = now
        line = json.dumps({"time": round(time.time(), 3), **plain(event)})
        try:
            _append(self.path / "events.jsonl", line.encode() + b"\n")
        except OSError:
            if not isinstance(event, Stepped | Working):
                raise


def _taken(path: Path) -> FolderTaken:
    advice = f"go on with `studio resume {path}`, or " if (path / "request.json").is_file() else ""
    return FolderTaken(f"{path} exists already; {advice}choose another folder with --out.")


def _append(path: Path, line: bytes) -> None:
    """Add a line, or nothing of it."""
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            file.truncate(end)
            raise


def plain(event: Event) -> dict[str, Any]:
    """An event as JSON values; reads its tensors."""
    values = {f.name: _plain_value(getattr(event, f.name)) for f in fields(event)}
    return {"event": type(event).__name__, **values}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return round(value.item(), 6)
    if isinstance(value, dict):
        return {k: _plain_value(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def slug(prompt: str) -> str:
    """A prompt as a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-") or "run"


def free_name(runs: Path, prompt: str) -> Path:
    """A folder for a prompt that does not exist yet: runs/a-red-mushroom, runs/a-red-mushroom-2, ..."""
    path, number = runs / slug(prompt), 2
    while path.exists():
        path, number = runs / f"{slug(prompt)}-{number}", number + 1
    return path
