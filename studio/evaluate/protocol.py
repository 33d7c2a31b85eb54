"""All runs of a comparison, each kept in files of its own, so that what is there is not made again."""

import dataclasses
import functools
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from guidance.diffusers_prior import DiffusersPrior
from studio.checkpoints import write_atomically
from studio.codec import encode
from studio.evaluate.contenders import Contender
from studio.evaluate.cost import evaluations_of, within
from studio.evaluate.trial import Measured, measure, strip, true_strip
from studio.evaluate.truth import toy_of
from studio.export.pictures import save_png
from studio.folder import slug
from studio.paths import resolve_prior
from studio.request import Request

_FORMAT = 1
"""Counted up when figures of before can no longer be compared with those of now."""
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

    def picture(self, folder: Path) -> Path:
        """Where its pictures lie: eight sides of the result, and below them those of the truth."""
        return self.file(folder).with_suffix(".png")

    def file(self, folder: Path) -> Path:
        """Where its record lies."""
        cost = "" if self.budget is None else f"-{self.budget}"
        return folder / "runs" / slug(self.contender.label) / f"{slug(self.prompt)}-seed{self.seed}{cost}.json"


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


@dataclass(frozen=True)
class Ended:
    """A run is over, or was there already."""

    job: Job
    record: Record
    was_there: bool


def jobs(contenders: Sequence[Contender], prompts: Sequence[str], seeds: Sequence[int], budget: int) -> list[Job]:
    """Every run, in an order in which all contenders have been tried on one prompt before the next."""
    return [Job(c, p, s, budget if c.budgeted else None) for s in seeds for p in prompts for c in contenders]


def carry_out(work: Sequence[Job], folder: Path, device: torch.device) -> Iterator[Began | Advanced | Ended]:
    """Do the runs that are not there yet, or were made with other settings, or failed; say what happens.

    Raises:
        OSError: the folder cannot be written.
    """
    for index, job in enumerate(work):
        request = job.contender.request(job.prompt, job.seed)
        settings = {"format": _FORMAT, "budget": job.budget, "request": encode(request)}
        known = read_record(job.file(folder))
        if known is not None and known["settings"] == settings and known["error"] in (None, EMPTY):
            yield Ended(job, known, was_there=True)
            continue
        yield Began(job, index)
        record = {"settings": settings, **_identity(job, request)}
        record |= {"device": str(device), "threads": torch.get_num_threads()}
        job.file(folder).parent.mkdir(parents=True, exist_ok=True)
        try:
            record |= yield from _done(job, request, folder, device)
        except Exception as problem:  # one method's failure is a row of the table and stops no other
            record |= {"error": f"{type(problem).__name__}: {problem}"}
        write_atomically(job.file(folder), json.dumps(record, indent=1).encode())
        yield Ended(job, record, was_there=False)


def read_record(file: Path) -> Record | None:
    """A run's record, or none where there is none that can be read."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"settings", "error"} <= record.keys() else None


def _identity(job: Job, request: Request) -> Record:
    methods = dict.fromkeys(type(stage.guidance).__name__ for stage in request.stages)
    return {
        "label": job.contender.label,
        "recipe": job.contender.recipe,
        "method": job.contender.label if job.contender.budgeted else ", ".join(methods),
        "prompt": job.prompt,
        "seed": job.seed,
    }


def _done(job: Job, request: Request, folder: Path, device: torch.device) -> Generator[Advanced, None, Record]:
    """One run; returns what it adds to its record."""
    prior, toy = _loaded(request.prior, device), toy_of(job.prompt)
    stages = request.stages if job.budget is None else tuple(within(stage, job.budget) for stage in request.stages)
    request = dataclasses.replace(request, stages=stages)
    found = Measured()
    for found in measure(request, prior, toy, sum(map(evaluations_of, stages)), job.budget):
        yield Advanced(job, found.steps, request.steps)
    assert found.scene is not None
    rows = torch.cat([*strip(found.scene, device)], 2), torch.cat([*true_strip(toy)], 2)
    save_png(torch.cat(rows, 1), job.picture(folder))
    return as_record(found)


def as_record(found: Measured) -> Record:
    """A run's figures as plain values."""
    curve = [{"evaluations": spent, "quality": like.quality, **asdict(like)} for spent, like in found.curve]
    end = curve[-1]
    cost = {name: getattr(found, name) for name in ("steps", "evaluations", "images")}
    return {
        **cost,
        "seconds": round(found.seconds, 2),
        **{name: end[name] for name in ("iou", "colour_error", "quality", "yaw")},
        "curve": curve,
        "error": None if end["solid"] else EMPTY,
    }


@functools.lru_cache(maxsize=2)
def _loaded(name: str, device: torch.device) -> DiffusersPrior:
    return DiffusersPrior.load(resolve_prior(name), device)
