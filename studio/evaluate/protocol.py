"""All runs of a comparison, each kept in files of its own, so that what is there is not made again."""

import dataclasses
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from studio.checkpoints import write_atomically
from studio.codec import decode, encode
from studio.evaluate.contenders import Contender
from studio.evaluate.cost import evaluations_of, within
from studio.evaluate.sources import make_source
from studio.evaluate.trial import Measured, measure, strip, true_strip
from studio.evaluate.truth import Likeness, likeness, recoloured, toy_of
from studio.export.pictures import save_png
from studio.folder import slug
from studio.request import Request
from studio.run import loaded_prior

_FORMAT = 1
"""Counted up when figures of before can no longer be compared with those of now."""
EDIT_SHARE = 3 / 8
"""Part of a budget that an edit has, since it begins with an object: of the usual 800 evaluations as many as
``studio edit`` takes."""
EMPTY = "nothing is left of the object: no view shows it"

Record = dict[str, Any]
"""What is known of a run, as it is written."""


@dataclass(frozen=True)
class Job:
    """One run of the comparison."""

    contender: Contender
    prompt: str
    seed: int
    budget: int | None
    """Evaluations it may spend; none: the steps of its recipe."""
    source: str | None = None
    """The prompt of the object that it changes; none: it makes one from nothing."""

    def picture(self, folder: Path) -> Path:
        """Where its pictures lie: eight sides of the result, below them those of the truth, and of an edit's source."""
        return self.file(folder).with_suffix(".png")

    def file(self, folder: Path) -> Path:
        """Where its record lies."""
        name = slug(self.prompt) if self.source is None else f"{slug(self.source)}-to-{slug(self.prompt)}"
        cost = "" if self.budget is None else f"-{self.budget}"
        return folder / "runs" / slug(self.contender.label) / f"{name}-seed{self.seed}{cost}.json"


@dataclass(frozen=True)
class Began:
    """A run begins; ``index`` counts from 0."""

    job: Job
    index: int


@dataclass(frozen=True)
class Advanced:
    """``done`` of a run's ``total`` steps are done."""

    job: Job
    done: int
    total: int
    what: str = ""
    """What else than the run itself."""


@dataclass(frozen=True)
class Ended:
    """A run is over, or was there already."""

    job: Job
    record: Record
    was_there: bool


def jobs(contenders: Sequence[Contender], prompts: Sequence[str], seeds: Sequence[int], budget: int) -> list[Job]:
    """Every run, in an order in which all contenders have been tried on one prompt before the next; edits at last.

    What edits begin with are the prompts' objects, which they are to change into another colour for ``EDIT_SHARE`` of
    the evaluations.
    """
    new, edits = ([c for c in contenders if c.edits == whether] for whether in (False, True))
    other = {prompt: recoloured(toy_of(prompt)).caption for prompt in prompts}
    fewer = max(1, round(EDIT_SHARE * budget))
    return [
        *(Job(c, p, s, budget if c.budgeted else None) for s in seeds for p in prompts for c in new),
        *(Job(c, other[p], s, fewer, source=p) for s in seeds for p in prompts for c in edits),
    ]


def carry_out(work: Sequence[Job], folder: Path, device: torch.device) -> Iterator[Began | Advanced | Ended]:
    """Do the runs that are not there yet, or were made with other settings, or failed; say what happens.

    Raises:
        OSError: the folder cannot be written.
    """
    for index, job in enumerate(work):
        yield Began(job, index)
        record, was_there = yield from _attempt(job, folder, device)
        yield Ended(job, record, was_there)


def _attempt(job: Job, folder: Path, device: torch.device) -> Generator[Advanced, None, tuple[Record, bool]]:
    """One run's record, and whether it was there already."""
    record: Record = {**_identity(job), "device": str(device), "threads": torch.get_num_threads(), "settings": None}
    try:
        request = yield from _requested(job, folder, device)
        record["settings"] = settings(job, request)
        known = read_record(job.file(folder))
        if known is not None and same(known["settings"], record["settings"]) and known["error"] in (None, EMPTY):
            return known, True
        record |= yield from _done(job, request, folder, device)
    except Exception as problem:  # one method's failure is a row of the table and stops no other
        record["error"] = f"{type(problem).__name__}: {problem}"
    job.file(folder).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(job.file(folder), json.dumps(record, indent=1).encode())
    return record, False


def settings(job: Job, request: Request) -> dict[str, Any]:
    """All that decides what comes of a run; a run with other settings is another one."""
    told = encode(request)
    if request.task is not None:
        told["task"]["source"] = request.task.source.name  # a folder that moved is the same
    return {"format": _FORMAT, "budget": job.budget, "request": told}


def same(known: Any, wanted: dict[str, Any]) -> bool:
    """Whether ``settings`` that were written once decide the same run; a knob that came later has its default."""
    if not isinstance(known, dict):
        return False
    try:
        return {**known, "request": encode(decode(Request, known.get("request")))} == wanted
    except ValueError:  # of a knob or a kind that is gone
        return False


def read_record(file: Path) -> Record | None:
    """A run's record, or none where there is none that can be read."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"settings", "error"} <= record.keys() else None


def _identity(job: Job) -> Record:
    contender = job.contender
    return {
        "label": contender.label,
        "recipe": contender.recipe,
        "method": contender.label if contender.budgeted else None,
        "prompt": job.prompt,
        "source": job.source,
        "seed": job.seed,
    }


def _requested(job: Job, folder: Path, device: torch.device) -> Generator[Advanced, None, Request]:
    """What a job runs; an edit's source is made on the way, if it is not there."""
    if job.source is None:
        return job.contender.request(job.prompt, job.seed)
    making = make_source(job.source, job.seed, folder, device)
    while True:
        try:
            yield Advanced(job, *next(making), "its source")
        except StopIteration as end:
            return job.contender.edit(end.value, job.prompt)


def _done(job: Job, request: Request, folder: Path, device: torch.device) -> Generator[Advanced, None, Record]:
    """One run; returns what it adds to its record."""
    prior, toy = loaded_prior(request.prior, device, request.prior_options), toy_of(job.prompt)
    stages = request.stages if job.budget is None else tuple(within(stage, job.budget) for stage in request.stages)
    request, found = dataclasses.replace(request, stages=stages), Measured()
    for found in measure(request, prior, toy, sum(map(evaluations_of, stages)), job.budget):
        yield Advanced(job, found.steps, request.steps)
    assert found.scene is not None
    rows = [strip(found.scene, device), true_strip(toy)]
    record = as_record(found)
    if not job.contender.budgeted:
        record["method"] = ", ".join(dict.fromkeys(type(stage.guidance).__name__ for stage in stages))
    if found.before is not None:
        rows.append(strip(found.before, device))
        record["before"] = as_values(likeness(found.before, toy, device))
    job.file(folder).parent.mkdir(parents=True, exist_ok=True)
    save_png(torch.cat([torch.cat([*row], 2) for row in rows], 1), job.picture(folder))
    return record


def as_values(found: Likeness) -> dict[str, Any]:
    """A likeness as plain values."""
    return {"quality": found.quality, **asdict(found)}


def as_record(found: Measured) -> Record:
    """A run's figures as plain values."""
    curve = [{"evaluations": spent, **as_values(like)} for spent, like in found.curve]
    end = curve[-1]
    cost = {name: getattr(found, name) for name in ("steps", "evaluations", "images")}
    return {
        **cost,
        "seconds": round(found.seconds, 2),
        **{name: end[name] for name in ("iou", "colour_error", "quality", "yaw")},
        "curve": curve,
        "error": None if end["solid"] else EMPTY,
    }
