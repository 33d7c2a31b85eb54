"""What the right side of the page shows of a run, piece by piece, and which pieces a page does not have yet.

A page says what it has (``seen``), and gets what differs. So a viewer is never sent the file that it shows already,
which would put its camera back.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from studio.app import panels
from studio.app.maps import write_maps
from studio.app.service import Run, Service
from studio.app.shelf import Shelf, fitted_splats
from studio.folder import RunError, slug
from studio.jobs.progress import Progress

LIVE, MESH, SPLATS, TURNTABLE, MAPS, SHEET, REPORT = VIEWS = (
    "live",
    "mesh",
    "splats",
    "turntable",
    "maps",
    "sheet",
    "report",
)
_SOURCES = {
    MESH: "result.glb",
    SPLATS: "splats.ply",
    TURNTABLE: "turntable.webp",
    MAPS: "result.glb",
    SHEET: "contact_sheet.png",
}
"""The file of a run that a view is of."""
FILES = tuple(_SOURCES)
"""Views of a file; the others are HTML."""
_ENDINGS = {MESH: ".glb", SPLATS: ".ply", TURNTABLE: ".webp", MAPS: "-maps.png", SHEET: "-sheet.png"}
"""Behind the prompt, in the name of the file that a page gets."""


@dataclass(frozen=True)
class Frame:
    """What a page is to change."""

    view: str
    """The view it is to show."""
    turned: bool
    """Whether that is another view than the page showed."""
    pieces: dict[str, str]
    """HTML by name; only what the page does not have."""
    flags: dict[str, bool]
    """Whether there is a run, whether it has gaussians, whether it is finished; {} unless one of them changed."""
    wanted: str
    """Run, view and state of its file, if the view is one of a file: asks ``files`` for it when it changes."""
    seen: dict[str, Any]
    """To be sent with the next question."""


def frame(service: Service, ref: str, view: str, seen: dict[str, Any]) -> Frame | None:
    """What a page has to change to show ``ref`` in ``view``; None: nothing."""
    run = service.find(ref) if ref else None
    flags = _flags(run)
    chosen = _view(run, ref, view, seen, flags)
    stamp = [ref, chosen, *map(str, service.stamp(run))]
    if seen.get("stamp") == stamp:
        return None
    pieces = _pieces(service, run, chosen)
    had = seen.get("digests", {})
    digests = {name: _digest(piece) for name, piece in pieces.items()}
    fresh = {name: piece for name, piece in pieces.items() if digests[name] != had.get(name)}
    now = {"stamp": stamp, "ref": ref, "flags": flags, "digests": {**had, **digests}}
    changed = flags if flags != seen.get("flags") else {}
    return Frame(chosen, chosen != view, fresh, changed, _wanted(run, chosen), now)


def files(
    service: Service, shelf: Shelf, wanted: str, have: dict[str, str]
) -> tuple[dict[str, str | None], dict[str, str]]:
    """The files that viewers are to show now, by view (None: nothing), and what the page has then.

    Args:
        wanted: as ``frame`` said.
        have: what was wanted for each view when its file was sent, and the run, as "ref".
    """
    ref, view = (*wanted.split(" "), "", "")[:2]
    changes: dict[str, str | None] = {}
    if have.get("ref") != ref:  # what other views show is of another run
        changes, have = {name: None for name in FILES if have.get(name)}, {"ref": ref}
    run = service.find(ref)
    if run is not None and view in FILES and have.get(view) != wanted:
        changes[view] = view_file(shelf, run, service.asked(run)[0], view)
        have = {**have, view: wanted}
    return changes, have


def _wanted(run: Run | None, view: str) -> str:
    if run is None:
        return ""
    if view not in FILES:
        return f"{run.ref} - -"
    path = run.folder / _SOURCES[view]
    return f"{run.ref} {view} {path.stat().st_mtime_ns if path.is_file() else 0}"


def _flags(run: Run | None) -> dict[str, bool]:
    if run is None:
        return {"any": False, "splats": False, "done": False}
    return {"any": True, "splats": (run.folder / "splats.ply").is_file(), "done": run.state == "done"}


def _view(run: Run | None, ref: str, view: str, seen: dict[str, Any], flags: dict[str, bool]) -> str:
    """The view for a run: a finished one shows its mesh at first, any other its making."""
    if run is None:
        return ""
    before = seen.get("flags", {}) if seen.get("ref") == ref else {}
    just_done = flags["done"] and not before.get("done")
    if not flags["done"]:
        return view if view == REPORT and before else LIVE
    if (just_done and view in ("", LIVE)) or view not in VIEWS or (view == SPLATS and not flags["splats"]):
        return MESH
    return view


def _pieces(service: Service, run: Run | None, view: str) -> dict[str, str]:
    """The HTML that belongs to a run in a view, and the list of jobs."""
    held = service.store.queue_held()
    rows = [(r, service.progress(r), service.position(r)) for r in service.listed()]
    pieces = {"queue": panels.queue(rows, held, run.ref if run else "")}
    if run is None:
        recent = [entry(service, found) for found in service.finished(limit=4)]
        nothing = panels.strip(None, "", Progress(), None, False, "")
        return {**pieces, "strip": nothing, "welcome": panels.welcome(recent)}
    progress = service.progress(run)
    prompt, told = _told(service, run)
    pieces["strip"] = panels.strip(run, prompt, progress, service.position(run), held is not None, told)
    if view == LIVE:
        pieces[LIVE] = panels.live(run, progress)
    elif view == REPORT:
        pieces[REPORT] = panels.report(run)
    return pieces


def view_file(shelf: Shelf, run: Run, prompt: str, view: str) -> str | None:
    """The path of what a viewer shows of a run; None if the run has none."""
    source, name = run.folder / _SOURCES[view], f"{slug(prompt)}{_ENDINGS[view]}"
    make = {SPLATS: fitted_splats, MAPS: write_maps}.get(view)
    try:
        return shelf.copy(source, name) if make is None else shelf.made(source, name, make)
    except (OSError, ValueError):  # being written, or damaged: the report says more than a viewer could
        return None


def entry(service: Service, run: Run) -> tuple[Run, str, int]:
    """A run for the gallery: with its prompt and seed."""
    return run, *service.asked(run)


def _told(service: Service, run: Run) -> tuple[str, str]:
    """A run's prompt, and what was asked for besides it, in short."""
    prompt, seed = service.asked(run)
    try:
        task = service.request(run).task
    except RunError:
        return prompt, ""
    return prompt, f"edit of {task.source.name}, seed {seed}" if task else f"seed {seed}"


def _digest(piece: str) -> str:
    return hashlib.sha256(piece.encode()).hexdigest()[:16]
