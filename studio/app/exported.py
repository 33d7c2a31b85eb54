"""What the Export tab asks for, as a file on the shelf."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.app.shelf import Shelf
from studio.export.command import export_run
from studio.export.formats import Format
from studio.export.validate import validate_glb

_SIZED = ("glb", "obj")
"""Formats with a texture."""
_UNMESHED = ("splat-ply",)
"""Formats without faces."""


@dataclass(frozen=True)
class Standing:
    """How far an export is."""

    words: str
    """What is being done; in the end what was found, or why there is no file."""
    over: bool = False
    path: Path | None = None
    """The file, if there is one in the end."""


def options(kind: Format, faces: Any, texture: int | None) -> tuple[Format, int | None, int | None]:
    """As ``export_run`` takes them: None is the run's own. What was typed into the list of faces comes as text.

    Raises:
        ValueError: that is no number; in words.
    """
    typed = str(faces or "").replace(",", "").strip()
    if typed and not (typed.isdecimal() and len(typed) < 10):
        raise ValueError(f"Faces must be a whole number, not {typed[:40]!r}.")
    wanted = int(typed) if typed and kind not in _UNMESHED else None
    return kind, wanted or None, int(texture) if texture and kind in _SIZED else None


def exported(run: Path, shelf: Shelf, *chosen: Any) -> Iterator[Standing]:
    """Make a file of a finished run, in the words of the tab; the last one is over.

    Args:
        run: its folder.
        shelf: where the file lies for an hour.
        chosen: format, faces and texture as the tab has them.
    """
    yield Standing("Beginning")
    try:
        work = _Work(export_run(run, *options(*chosen), out=shelf.room(run)))
        for phase in work:
            yield Standing(phase.capitalize())
    except (OSError, ValueError, RuntimeError) as problem:
        yield Standing(str(problem), over=True)
        return
    yield Standing(_checked(work.out, str(chosen[0])), over=True, path=work.out)


class _Work:
    """The phases of an export, and its file once they are through."""

    def __init__(self, phases: Generator[str, None, Path]):
        self._phases = phases
        self.out = Path()

    def __iter__(self) -> Generator[str, None, None]:
        self.out = yield from self._phases


def _checked(path: Path, kind: str) -> str:
    """What was found when the file was looked at again."""
    size = path.stat().st_size
    words = [path.name, f"{size / 2**20:.1f} MB" if size >= 2**20 else f"{size / 2**10:.0f} KB"]
    found = validate_glb(path) if kind == "glb" else None
    if found is not None:
        bad = found["errors"] + found["warnings"]
        words.append(f"the validator has {bad} objections" if bad else "valid glTF")
    return ", ".join(words) + "."
