"""A request: everything that decides what a run makes, as plain data. It is written into the run and into the asset."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from guidance.conditioning import ViewDependence
from guidance.methods import AnyGuidance
from guidance.prior_folder import read_hints
from guidance.schedules import Schedule
from guidance.sds import SDS
from representations.box import Box
from representations.kinds import AnyRepresentation
from studio.cameras import Orbit
from studio.codec import nearest
from studio.limits import MOST_STAGES, too_large, too_large_export, too_large_kind
from studio.paths import BUNDLED_PRIOR, MissingAsset, UnknownPrior, resolve_prior
from studio.prior_options import PriorOptions, option_problems, resource_problems, view_problems
from studio.region import region_problems
from studio.second_prior import second_prior_problems

LONGEST_PROMPT = 500
"""Characters; every text encoder reads far less."""


@dataclass(frozen=True)
class Regularizers:
    """What is asked of the renders besides the prior's opinion; weights are schedules over the stage."""

    opacity: Schedule = field(default=Schedule(500.0, 50.0, until=0.5))
    """Weight of mean opacity: early on it keeps fog from explaining the background."""
    binary: Schedule = field(default=Schedule(0.0, 500.0))
    """Weight of opacity times transparency: later it makes surfaces solid."""


@dataclass(frozen=True)
class Stage:
    """One optimisation: a representation under a guidance."""

    representation: AnyRepresentation | None
    """What is optimised; nothing: go on with the representation of the stage before."""
    guidance: AnyGuidance = field(default=SDS())
    """Which method says how renders should change."""
    steps: int = 500
    """Optimiser steps."""
    cameras: Orbit = field(default=Orbit())
    """Where renders are taken from."""
    regularizers: Regularizers = field(default=Regularizers())
    """Further wishes."""
    at_once: int | None = None
    """Most pictures that go through the prior in one pass, every branch of guidance counted: fewer need less memory and
    more time, and change nothing else; none: all of a step's."""


@dataclass(frozen=True)
class Edit:
    """A task: not to begin anew, but to change the object that a finished run made.

    The first stage begins exactly as that run ended; every step also renders what it was, for the methods that compare
    (DDS, PDS). The run keeps a copy of what it needs, so the source may go once the run has begun.
    """

    source: Path
    """Folder of the finished run."""
    keep: tuple[str, ...] = ()
    """Groups of parameters that may not move, e.g. means (of gaussians)."""
    begin: float = 0.5
    """Where in a run the learning rates enter: 0 as at its start, 1 as at its end. The object is there already."""
    region: Box | None = None
    """The box outside of which nothing may change, nor what reaches across its sides; none: all may."""


@dataclass(frozen=True)
class Export:
    """What the finished asset is like."""

    faces: int = 12_000
    """Most triangles of the mesh, about."""
    texture: int = 1024
    """Texels a side of the texture."""
    grid: int = 96
    """Cells a side of the grid that the surface is extracted from."""
    smoothing: int = 4
    """Rounds of Taubin smoothing, which removes the staircase of the grid and keeps the volume."""
    picture: int = 256
    """Pixels a side of the turntable and of the pictures that compare the asset with the representation."""


@dataclass(frozen=True)
class Request:
    """One run."""

    prompt: str
    """What to make."""
    stages: tuple[Stage, ...]
    """Optimisations, one after the other."""
    negative: str = ""
    """What it should not look like."""
    prior: str = BUNDLED_PRIOR
    """Name of the bundled prior or a preset, the folder of any other in diffusers' layout, or one safetensors file."""
    prior_options: PriorOptions = field(default=PriorOptions())
    """How the prior is loaded: files on top of it, resolution, memory and speed."""
    view_prompts: ViewDependence | None = None
    """How prompts name the direction of view; none: bucketed, unless the prior is told where the camera stands."""
    seed: int = 0
    """Seed of everything that is drawn."""
    export: Export = field(default=Export())
    """What the finished asset is like."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    preview_every: int = 50
    """Steps between preview pictures; 0 for none."""
    debug_every: int = 0
    """Steps between pictures of what prior and method ask for; 0 for none."""
    task: Edit | None = None
    """What to edit; none: begin anew."""

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def representation(self, stage: int) -> AnyRepresentation:
        """What a stage works on: its own representation, or the last one named before it."""
        named = [s.representation for s in self.stages[: stage + 1] if s.representation is not None]
        return named[-1]


@dataclass(frozen=True)
class Problem:
    """Something wrong with a request: an error forbids the run, a warning does not."""

    severity: Literal["error", "warning"]
    text: str


def check(request: Request) -> list[Problem]:
    """Every objection to a request, in words, before anything heavy is loaded."""
    problems = [*_check_prompt(request), *_check_numbers(request), *_check_task(request)]
    try:
        folder = resolve_prior(request.prior)
        problems += _check_words(request, read_hints(folder)["words"])
        problems += [Problem("error", text) for text in option_problems(request.prior_options, folder)]
        problems += [Problem("error", text) for text in view_problems(request.stages, folder)]
        problems += [Problem("error", text) for text in resource_problems(request.stages, request.prior_options)]
        problems += [Problem("error", text) for text in second_prior_problems(request.stages)]
    except (UnknownPrior, MissingAsset, ValueError) as problem:
        problems.append(Problem("error", str(problem)))
    return problems


def _check_prompt(request: Request) -> list[Problem]:
    if any("\ud800" <= letter <= "\udfff" for letter in request.prompt + request.negative):
        return [Problem("error", "The prompt is not UTF-8; set the locale of the terminal, e.g. LC_ALL=C.UTF-8.")]
    if not request.prompt.strip():
        return [Problem("error", 'The prompt is empty; say what to make, e.g. "a red mushroom".')]
    if len(request.prompt) > LONGEST_PROMPT:
        return [
            Problem(
                "error",
                f"The prompt has {len(request.prompt)} characters; shorten it to {LONGEST_PROMPT} or fewer.",
            )
        ]
    return []


def _check_numbers(request: Request) -> list[Problem]:
    wrong = []
    if not request.stages or request.stages[0].representation is None:
        wrong.append("The first stage needs a representation to optimise")
    if len(request.stages) > MOST_STAGES:
        wrong.append(f"A run has at most {MOST_STAGES} stages, not {len(request.stages)}")
    for i, stage in enumerate(request.stages):
        low, high = stage.cameras.elevation or (-90.0, 90.0)
        checks = {
            f"stages.{i}.cameras.elevation must rise, within -90 to 90, not {low:g} {high:g}": -90 <= low <= high <= 90,
            f"stages.{i}.steps must be 1 or more, not {stage.steps}": stage.steps >= 1,
            f"stages.{i}.cameras.views must be 1 or more, not {stage.cameras.views}": stage.cameras.views >= 1,
            f"stages.{i}.cameras.size must be 8 or more pixels, not {stage.cameras.size}": stage.cameras.size >= 8,
            f"stages.{i}.at_once must be 1 or more, not {stage.at_once}": stage.at_once is None or stage.at_once >= 1,
        }
        wrong += [text for text, holds in checks.items() if not holds]
        wrong += too_large(stage, f"stages.{i}")
        wrong += _lacking(stage, request.task)
    wrong += export_problems(request.export)
    checks = {
        f"checkpoint_every must be 1 or more, not {request.checkpoint_every}": request.checkpoint_every >= 1,
        f"preview_every must be 0 or more, not {request.preview_every}": request.preview_every >= 0,
        f"debug_every must be 0 or more, not {request.debug_every}": request.debug_every >= 0,
        f"seed must be a number of 64 bits, not {request.seed}": -(2**63) <= request.seed < 2**63,
    }
    wrong += [text for text, holds in checks.items() if not holds]
    return [Problem("error", f"{text}.") for text in wrong]


def export_problems(export: Export) -> list[str]:
    """What is wrong with the numbers of an export, in words without a full stop."""
    checks = {
        f"export.faces must be 12 or more, not {export.faces}": export.faces >= 12,
        f"export.texture must be between 16 and 8192, not {export.texture}": 16 <= export.texture <= 8192,
        f"export.grid must be between 8 and 512, not {export.grid}": 8 <= export.grid <= 512,
        f"export.picture must be 16 or more, not {export.picture}": export.picture >= 16,
        f"export.smoothing must be 0 or more, not {export.smoothing}": export.smoothing >= 0,
    }
    return [*(text for text, holds in checks.items() if not holds), *too_large_export(export)]


def _lacking(stage: Stage, task: Edit | None) -> list[str]:
    """What the stage's method needs and is not there."""
    name = type(stage.guidance).__name__
    missing = stage.guidance.requires - {"text"} - (set() if task is None else {"source"})
    if "source" in missing:
        return [f"{name} changes an object that is there already; use `studio edit RUN PROMPT --method {name}`"]
    return [f"{name} needs {', '.join(sorted(missing))}"] if missing else []


def _check_task(request: Request) -> list[Problem]:
    if (task := request.task) is None:
        return []
    wrong = [] if 0 <= task.begin <= 1 else [f"task.begin must be between 0 and 1, not {task.begin}"]
    for i, stage in enumerate(request.stages):
        if stage.representation is None:
            continue
        wrong += _check_keep(task.keep, stage.representation) if task.keep else []
        wrong += [] if task.region is None else region_problems(task.region, stage.representation)
        if i and task.region is not None:
            wrong.append(f"stages.{i}.representation must be left out: an object that begins anew has no other outside")
    return [Problem("error", text if text.endswith("?") else f"{text}.") for text in wrong]


def _check_keep(keep: tuple[str, ...], representation: AnyRepresentation) -> list[str]:
    """What is wrong with keeping these groups of parameters."""
    if too_large_kind(representation, ""):  # said elsewhere, and not to be built
        return []
    try:
        made = representation.build(torch.Generator(), torch.device("cpu"))
    except ValueError as problem:
        return [f"{type(representation).__name__}: {problem}"]
    names = list(dict.fromkeys(group.name for group in made.groups()))
    wrong = [f"task.keep: no {name!r}; {nearest(name, names)}" for name in keep if name not in names]
    if set(names) <= set(keep):
        wrong.append("task.keep names all there is, so nothing would be left to change")
    return wrong


def strange_words(text: str, known: tuple[str, ...] | None) -> list[str]:
    """Words of a text that a prior which knows the words ``known`` does not; none if it knows any (None)."""
    words = [] if known is None else re.findall(r"[^\W\d_]+|\d+", text.lower())
    return [word for word in dict.fromkeys(words) if word not in (known or ())]


def _check_words(request: Request, known: tuple[str, ...] | None) -> list[Problem]:
    strange = strange_words(f"{request.prompt} {request.negative}", known)
    if known is None or not strange:
        return []
    named = ", ".join(repr(word) for word in strange)
    return [
        Problem(
            "warning",
            f"The prior {request.prior!r} does not know {named} and will guess or ignore it. It knows: "
            f"{', '.join(known)}. For anything else name a larger prior with --prior FOLDER, for instance Stable "
            "Diffusion in diffusers' layout.",
        )
    ]
