"""What came of a batch: a row for each item, as CSV and JSON, and a thumbnail of each result."""

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.checkpoints import write_atomically
from studio.jobs.store import Job, State

THUMBNAILS = "thumbnails"
_SIZE = 256
"""Pixels a side of a thumbnail, at most."""
_FIRST_EVENT = ("Working", "loading the prior")
"""What a run's record says when a process begins to work on it."""


@dataclass(frozen=True)
class Result:
    """A row of the summary; what is not known is None."""

    prompt: str
    seed: int
    state: State
    folder: str
    """Below the batch's."""
    seconds: float | None = None
    """That processes worked on it, all attempts together."""
    faces: int | None = None
    watertight: bool | None = None
    psnr: float | None = None
    """Decibels between the asset and the render of what was optimised."""
    silhouette_iou: float | None = None
    attempts: int = 0
    """Failures."""
    error: str = ""
    settings: str = ""
    """What of its settings is other than the batch's."""


class Results:
    """The results of a batch as they come; those of ended jobs are read once."""

    def __init__(self, home: Path, settings: Mapping[str, str]):
        """Begin.

        Args:
            home: the batch's folder.
            settings: of items with settings of their own, by the names of their folders: words for those.
        """
        self.home = home
        self._settings = settings
        self._known: dict[str, tuple[float | None, Result]] = {}

    def read(self, jobs: Iterable[Job]) -> list[Result]:
        """Rows for jobs, in their order, with thumbnails of those that are done."""
        return [self._read(job) for job in jobs]

    def _read(self, job: Job) -> Result:
        known = self._known.get(job.id)
        if known is not None and job.ended is not None and known[0] == job.ended:
            return known[1]
        settings = self._settings.get(job.folder.name, "")
        row = Result(job.prompt, job.seed, job.state, job.folder.name, settings=settings)
        row = dataclasses.replace(row, attempts=job.attempts, error=job.error if job.state != "done" else "")
        if job.started is not None or job.ended is not None:
            row = dataclasses.replace(row, seconds=working_seconds(job.folder))
        if job.state == "done":
            row = dataclasses.replace(row, **_measured(job.folder))
            make_thumbnail(job.folder, self.home / THUMBNAILS)
        self._known[job.id] = (job.ended, row)
        return row


def _measured(folder: Path) -> dict[str, Any]:
    """What the report of a run says that belongs into the summary."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = {name: report.get(name) for name in ("faces", "watertight", "silhouette_iou")}
    return {**known, "psnr": report.get("render_to_asset_psnr")}


def working_seconds(folder: Path) -> float | None:
    """Seconds that processes have worked on a run, by its record: not the time between a stop and its resumption."""
    total, before = 0.0, None
    try:
        lines = (folder / "events.jsonl").read_bytes().splitlines()
    except OSError:
        return None
    for line in lines:
        try:
            event = json.loads(line)
            now, begins = float(event["time"]), (event["event"], event.get("what")) == _FIRST_EVENT
        except (ValueError, KeyError, TypeError):  # cut short by a crash
            continue
        if before is not None and not begins:
            total += max(0.0, now - before)
        before = now
    return None if before is None else round(total, 2)


def make_thumbnail(run: Path, folder: Path) -> None:
    """Write the first picture of a run's turntable as a small WebP of the run's name, unless it is there."""
    target, source = folder / f"{run.name}.webp", run / "turntable.webp"
    if target.is_file() and source.is_file() and target.stat().st_mtime >= source.stat().st_mtime:
        return
    from PIL import Image

    with contextlib.suppress(OSError), Image.open(source) as opened:
        picture = opened.convert("RGB")
        picture.thumbnail((_SIZE, _SIZE))
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=88)
        folder.mkdir(exist_ok=True)
        write_atomically(target, buffer.getvalue())


def newest_preview(run: Path) -> Path | None:
    """The last picture of a run that is not finished: four views side by side, the front first."""
    return max((run / "previews").glob("*.png"), default=None)


# Files ----------------------------------------------------------------------------------------------------------------


def counted(results: Sequence[Result]) -> dict[str, int]:
    """How many rows there are in each state that occurs."""
    counts: dict[str, int] = {}
    for row in results:
        counts[row.state] = counts.get(row.state, 0) + 1
    return counts


def write_tables(home: Path, batch: str, results: Sequence[Result]) -> None:
    """Write ``summary.json`` and ``summary.csv``, each whole or not at all.

    Raises:
        OSError: they cannot be written.
    """
    rows = [dataclasses.asdict(row) for row in results]
    said = {"batch": batch, "counts": counted(results), "rows": rows}
    write_atomically(home / "summary.json", json.dumps(said, indent=1).encode())
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in dataclasses.fields(Result)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(home / "summary.csv", buffer.getvalue().encode("utf-8", "replace"))
