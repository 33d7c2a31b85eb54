"""A limit on the disk that runs take: what is least missed goes first, and what a user made or asked for never goes."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from studio.checkpoints import Checkpoints, discard
from studio.jobs.folders import ended
from studio.jobs.store import Store

_EVERY = 60.0
"""Seconds between looks while a job runs."""
_SHARE = 20
"""A look at a large home takes a while; at least this many times as long passes until the next."""
_OLD = 3600.0
"""Seconds after which a half-written file was left by a process that died."""
_WORDS = "The disk quota"


@dataclass
class Quota:
    """Bytes that the files of a home may take."""

    home: Path
    limit: int
    _due: float = 0.0

    def keep(self, store: Store, at_once: bool = False) -> None:
        """Make room if it is time to look; hold the queue where that is not enough, and release it when it is again.

        Args:
            at_once: a job has just ended, so look now.
        """
        began = time.monotonic()
        if began < self._due - (_EVERY if at_once else 0.0):
            return
        taken = make_room(self.home, self.limit)
        took = time.monotonic() - began
        self._due = began + _EVERY + _SHARE * took
        reason = store.queue_held()
        if taken > self.limit and reason is None:
            store.hold_queue(
                f"{_WORDS} of {in_words(self.limit)} is used up: the runs take {in_words(taken)}, and nothing is left "
                "that could go by itself. Delete runs, or give the workers a larger --quota."
            )
        elif taken <= self.limit and reason is not None and reason.startswith(_WORDS):
            store.release_queue()


def make_room(home: Path, limit: int) -> int:
    """Delete what is least missed until ``home`` takes ``limit`` bytes or fewer; returns what it takes then.

    In this order, oldest first: halves of files that a killed process left; previews but the last of each run; debug
    pictures; checkpoints of finished runs but the last, from which edits begin. Nothing else.
    """
    taken = size_of(home)
    for path in _expendable(home) if taken > limit else ():
        size = size_of(path)
        if path.is_dir():
            discard(path)
        else:
            path.unlink(missing_ok=True)
        taken -= size
        if taken <= limit:
            break
    return taken


def _expendable(home: Path) -> Iterator[Path]:
    runs = [path.parent for path in home.glob("*/request.json")]
    halves = [*home.glob(".*.part"), *(path for run in runs for path in run.rglob(".*.part"))]
    yield from _oldest_first(path for path in halves if _age(path) > _OLD)
    yield from _oldest_first(path for run in runs for path in sorted(run.glob("previews/*.png"))[:-1])
    yield from _oldest_first(path for run in runs for path in run.glob("debug/*.png"))
    finished = (run for run in runs if ended(run) == "done")
    yield from _oldest_first(path for run in finished for path in Checkpoints(run / "checkpoints").all()[:-1])


def _oldest_first(paths: Iterator[Path]) -> list[Path]:
    return sorted(paths, key=_age, reverse=True)


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed, and a file of two names counts once."""
    if not path.is_dir():
        with contextlib.suppress(OSError):
            return path.lstat().st_size
        return 0
    total, folders, seen = 0, [str(path)], set[tuple[int, int]]()
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    with contextlib.suppress(OSError):
                        found = entry.stat(follow_symlinks=False)
                        file = found.st_dev, found.st_ino
                        total += 0 if file in seen else found.st_size
                        if found.st_nlink > 1:
                            seen.add(file)
    return total


_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1, "": 1}


def bytes_of(text: str) -> int:
    """The number of bytes that a text like 20GB or 1.5 TB means.

    Raises:
        ValueError: it means none.
    """
    number = text.strip().upper().rstrip("TGMKB")
    unit = text.strip().upper()[len(number) :]
    try:
        size = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        raise ValueError(f"{text!r} is no amount of disk; say for instance 20GB or 500MB") from None
    if not 0 < size < 10**18:
        raise ValueError(f"{text!r} is no amount of disk; say for instance 20GB or 500MB")
    return int(size)


def in_words(size: int) -> str:
    """Bytes for people, e.g. 1.5 GB."""
    unit = next(name for name, worth in _UNITS.items() if size >= worth or worth == 1)
    return f"{size / _UNITS[unit]:.3g} {unit}"
