"""What a training says of itself in its folder: it goes on as what it was begun as, or not at all."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from studio.checkpoints import write_atomically


class Refused(ValueError):
    """A training that cannot start or go on as asked; the message says why."""


def noted(work: Path) -> dict[str, Any] | None:
    """The settings that the training in a folder was begun with; None if it has not begun.

    Raises:
        Refused: the note cannot be read.
    """
    path = _place(work)
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as problem:
        raise Refused(f"{path} cannot be read: {problem}") from problem


def note(work: Path, settings: Mapping[str, Any]) -> None:
    """Keep the settings of a training, as plain values.

    Raises:
        OSError: the folder cannot be written.
    """
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(_place(work), json.dumps(settings, indent=2).encode())


def refuse_other(work: Path, before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """Refuse to go on with a training that had other settings.

    Args:
        work: its folder.
        before, now: its settings then and now.
        free: names of those that may change.

    Raises:
        Refused: the names and values that differ.
    """
    changed = [f"{n} was {before.get(n)}, now {v}" for n, v in now.items() if n not in free and before.get(n) != v]
    if changed:
        raise Refused(f"{work} holds a training with other settings ({'; '.join(changed)}); choose another --work.")


def _place(work: Path) -> Path:
    return work / "settings.json"
