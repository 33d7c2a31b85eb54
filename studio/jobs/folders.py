"""A job's folder: a run's, with ``job.json`` beside ``request.json``, so that the store can be made anew from it."""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from studio.checkpoints import Checkpoints, write_atomically
from studio.codec import decode
from studio.folder import RunFolder
from studio.request import Request

Resting = Literal["paused", "cancelled", "failed"]
"""Why nobody works on a job that is not done."""
_TAIL = 65536
"""Bytes at the end of ``events.jsonl`` that its last events are looked for in; a report has some two thousand."""


@dataclass(frozen=True)
class Card:
    """``job.json``: what the folder of a job says of it besides the request."""

    id: str
    priority: int = 0
    position: float = 0.0
    batch: str = ""
    created: float = 0.0
    limit: int = 3
    timeout: float | None = None
    held: Resting | Literal["cleared"] | None = None


def make_folder(home: Path, names: Iterable[str], request: Request, card: Card) -> str:
    """Make a job's folder in one atomic step, under the first name that is free; returns it, or that of another worker.

    Raises:
        OSError: it cannot be made.
    """
    temporary = home / f".{uuid.uuid4().hex}.part"
    try:
        RunFolder.create(temporary, request)
        write_card(temporary, card)
        for name in names:
            if _moved(temporary, home / name) or says(home / name, card.id):
                return name
        raise FileExistsError(f"Something else lies in {home} where the folder of job {card.id} belongs.")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def names_like(name: str) -> Iterator[str]:
    """A name and what to try if it is taken: a-mug, a-mug-2, a-mug-3, ..."""
    yield name
    for number in itertools.count(2):
        yield f"{name}-{number}"


def _moved(folder: Path, target: Path) -> bool:
    if target.exists():
        return False
    try:
        folder.rename(target)
    except OSError as problem:
        if problem.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # somebody was faster
            return False
        raise
    return True


def read_card(folder: Path) -> Card | None:
    """What ``job.json`` says; None where there is none that can be read."""
    try:
        said = json.loads((folder / "job.json").read_bytes())
        known = {f.name: said[f.name] for f in fields(Card) if f.name in said}
        card: Card = decode(Card, known, "job.json")
    except (OSError, ValueError, TypeError):
        return None
    return card if re.fullmatch("[0-9a-f]{12}", card.id) else None


def says(folder: Path, id: str) -> bool:
    """Whether a folder is that of a job."""
    card = read_card(folder)
    return card is not None and card.id == id


def write_card(folder: Path, card: Card) -> None:
    """Write ``job.json``, whole or not at all."""
    write_atomically(folder / "job.json", json.dumps(asdict(card), indent=2).encode())


def change_card(folder: Path, **values: Any) -> None:
    """Change what ``job.json`` says, where there is one."""
    if (card := read_card(folder)) is not None:
        write_card(folder, replace(card, **values))


def ended(folder: Path) -> Literal["done", "failed"] | None:
    """How the last work in a folder ended, by its last events; None if it did not, or there was none."""
    for said in _last_events(folder):
        event = said["event"]
        if event in ("Finished", "Failed"):
            return "done" if event == "Finished" else "failed"
        if event not in ("Working", "Warned", "Exported"):  # those may follow an end, as when an asset is made anew
            return None
    return None


def words_of_failure(folder: Path) -> str:
    """What the last ``Failed`` in a folder's events says."""
    return next((str(said.get("text", "")) for said in _last_events(folder) if said["event"] == "Failed"), "")


def progress(folder: Path) -> tuple[int, int] | None:
    """Steps done and steps in all, by a run's last event that says so."""
    for said in _last_events(folder):
        names = {"Stepped": ("done", "total"), "Started": ("step", "steps")}.get(said["event"])
        if names is not None and all(isinstance(said.get(name), int) for name in names):
            return said[names[0]], said[names[1]]
    return None


def _last_events(folder: Path) -> Iterator[dict[str, Any]]:
    """The last events, newest first; a line that a crash cut short is passed over."""
    try:
        with (folder / "events.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            if isinstance(said := json.loads(line), dict) and "event" in said:
                yield said


def said_since(folder: Path, began: float) -> int:
    """How many events there are since a time, besides steps, which are not all recorded."""
    since = itertools.takewhile(lambda said: said.get("time", 0.0) >= began, _last_events(folder))
    return sum(said["event"] != "Stepped" for said in since)


def is_held(folder: Path) -> bool:
    """Whether a process works in this folder at the moment."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with RunFolder(folder):
            return False
    except BlockingIOError:
        return True


def steps_saved(folder: Path) -> int:
    """Steps that the newest checkpoint has behind it; -1 without any."""
    saved = Checkpoints(folder / "checkpoints").all()
    return int(saved[-1].name) if saved else -1
