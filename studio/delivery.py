"""What a run leaves when its steps are done: the asset, pictures that compare, the report, whom to cite."""

import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from guidance.conditioning import Prompts
from guidance.contract import Views
from guidance.diffusers_prior import DiffusersPrior
from guidance.piecewise import Piecewise
from representations.cameras import orbit
from representations.scene import EmptySceneError, Representation
from studio import __version__
from studio.checkpoints import write_atomically
from studio.cite import bibliography
from studio.codec import encode
from studio.events import Event, Exported, Warned, Working
from studio.guard import refuse_unsound
from studio.memory import downs_of, give_back, is_out_of_memory
from studio.optimize import Timing
from studio.request import Request

_SAMPLE_SCALE = 4.0
"""Guidance scale of the prior's own pictures on the contact sheet."""


def deliver(
    request: Request,
    folder: Path,
    prior: DiffusersPrior,
    prompts: Prompts,
    made: Representation,
    before: Representation | None,
    timing: Timing,
    seconds: dict[str, float],
) -> Iterator[Event]:
    """Write everything into ``folder``; particles beyond the first into folders of their own below it.

    Args:
        made: what the run ended with.
        before: what an edit began with.
        timing: of the run's steps.
        seconds: of what was done before.

    Raises:
        NonFiniteError: there are numbers that are not finite in what the run ended with.
        EmptySceneError: nothing solid; the message has the numbers.
        OSError: the folder cannot be written.
    """
    refuse_unsound(made)
    write_atomically(folder / "citation.bib", bibliography(request).encode())
    yield Working("asking the prior for its own pictures")
    began = time.perf_counter()
    samples = frugal_pictures(prior, prompts, request.seed)
    seconds = {**seconds, "samples": round(time.perf_counter() - began, 2)}
    asset = yield from _export(request, folder, prior, samples, made, before, 0)
    report = asset | {
        "seconds": seconds | asset["seconds"],
        "seconds_per_iteration": round(timing.seconds / timing.steps, 4) if timing.steps else None,
        "prior_share": round(timing.in_prior / timing.seconds, 4) if timing.steps else None,
        "peak_memory_mb": peak_memory_mb(prior.device),
        "stepped_down": [down.text for down in downs_of(folder)],
        "prompt_match": None,
        "seed": request.seed,
        "versions": versions(),
    }
    write_atomically(folder / "report.json", json.dumps(report, indent=2).encode())
    yield Exported(folder / "result.glb", report)
    for variant in range(1, made.variants):
        try:
            yield from _export(request, folder / "particles" / str(variant), prior, samples, made, before, variant)
        except EmptySceneError as problem:
            yield Warned(f"Particle {variant} leaves no asset: {problem}")


def _export(
    request: Request,
    folder: Path,
    prior: DiffusersPrior,
    samples: torch.Tensor,
    made: Representation,
    before: Representation | None,
    variant: int,
) -> Iterator[Event]:
    """The asset of one scene; returns its part of the report."""
    from studio.export.asset import export_asset

    phases = export_asset(
        made.scene(variant=variant).detach(),
        folder,
        faces=request.export.faces,
        texture=request.export.texture,
        grid=request.export.grid,
        smoothing=request.export.smoothing,
        picture=request.export.picture,
        settings=encode(request),
        prompt=request.prompt,
        distance=prior.hints["distance"],
        field_of_view=prior.hints["field_of_view"],
        samples=samples,
        before=None if before is None else before.scene(variant=variant).detach(),
        region=None if request.task is None else request.task.region,
    )
    of = f" of particle {variant}" if variant else ""
    while True:
        try:
            yield Working(f"export{of}: {next(phases)}")
        except StopIteration as end:
            return end.value.as_dict()


def frugal_pictures(prior: DiffusersPrior, prompts: Prompts, seed: int) -> torch.Tensor:
    """``prior_pictures``, one after the other where there is no memory for all of them at once."""
    try:
        return prior_pictures(prior, prompts, seed)
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
    give_back(prior.device)
    return prior_pictures(prior, prompts, seed, at_once=1)


@torch.no_grad()
def prior_pictures(prior: DiffusersPrior, prompts: Prompts, seed: int, at_once: int | None = None) -> torch.Tensor:
    """What the prior itself draws from eight sides [8, 3, h, w], to compare the object with."""
    from guidance.sampling import sample
    from studio.export.asset import AZIMUTHS, ELEVATION

    size = prior.resolution
    hints = prior.hints
    cameras = orbit(AZIMUTHS, (ELEVATION,) * len(AZIMUTHS), size, hints["distance"], hints["field_of_view"])
    blank = torch.zeros(len(cameras), 3, size, size, device=prior.device)
    white = torch.ones(len(cameras), 3, device=prior.device)
    condition = prompts.condition(Views(blank, cameras.pose.to(prior.device), white))
    asked = prior if at_once is None else Piecewise(prior, at_once, hints["views"])
    return sample(asked, condition, steps=20, scale=_SAMPLE_SCALE, seed=seed).cpu()


def peak_memory_mb(device: torch.device) -> dict[str, int]:
    """Peak memory of this process, and of the device where that is another memory, in MiB."""
    import resource
    import sys

    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit}
    if device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device) // 2**20
    return peak


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    import importlib.metadata as metadata

    names = ("torch", "diffusers", "transformers")
    found = {"dreamkiln": __version__}  # of the code that runs; an editable installation's record may be older
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"python": platform.python_version(), "platform": platform.platform()}
