"""What a run does where memory does not suffice: it goes down a ladder, a rung at a time, says so, and goes on.

The rungs, gentlest first: fewer pictures at once through the prior, and a prior that trades time for memory, which
change the result by rounding alone; fewer samples along the rays of a field; smaller renders. Each is a function from a
request to one with a thriftier stage or prior, or to None where it ends. ``memory.json`` in the run's folder says which
were taken, and from which step on, so that a run that is killed and resumed takes the same steps in the same way.
"""

import dataclasses
import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from guidance.critic import Criticised
from guidance.priors.loading import pipeline_of
from representations.hash_field import HashField
from representations.particles import Particles
from studio.checkpoints import write_atomically
from studio.codec import decode, encode
from studio.folder import RunError
from studio.paths import resolve_prior
from studio.request import Request, Stage

Rung = Literal["guidance batch", "offload", "ray samples", "resolution"]

_FEWEST_PER_CELL = 0.15
"""Samples in a cell of the finest level, below which rays would step over what is there."""
_SMALLEST = 32
"""Pixels a side of a render, below which an object cannot be told by its looks."""


@dataclass(frozen=True)
class Down:
    """A step down the ladder."""

    stage: int
    step: int
    """Of the stage; the first that was taken in the thriftier way."""
    rung: Rung
    text: str
    """What it means, for people."""


def smaller_batch(stage: Stage) -> Stage | None:
    """Half as many pictures at once through the prior; at first as many as there are views."""
    if stage.at_once is None:
        return dataclasses.replace(stage, at_once=stage.cameras.views)
    return dataclasses.replace(stage, at_once=stage.at_once // 2) if stage.at_once > 1 else None


def fewer_samples(stage: Stage) -> Stage | None:
    """Half as many samples along the rays of a field."""
    match stage.representation:
        case HashField(steps_per_cell=density) as field if density > _FEWEST_PER_CELL:
            thinner = dataclasses.replace(field, steps_per_cell=max(density / 2, _FEWEST_PER_CELL))
            return dataclasses.replace(stage, representation=thinner)
        case Particles(kind=HashField() as field) as particles:
            one = fewer_samples(dataclasses.replace(stage, representation=field))
            if one is not None and isinstance(one.representation, HashField):
                return dataclasses.replace(
                    stage, representation=dataclasses.replace(particles, kind=one.representation)
                )
    return None


def smaller_renders(stage: Stage) -> Stage | None:
    """Renders of three quarters the side, in steps of eight pixels."""
    size = max(stage.cameras.size * 3 // 4 // 8 * 8, _SMALLEST)
    if size >= stage.cameras.size:
        return None
    return dataclasses.replace(stage, cameras=dataclasses.replace(stage.cameras, size=size))


LADDER: dict[Rung, Callable[[Stage], Stage | None]] = {
    "guidance batch": smaller_batch,
    "ray samples": fewer_samples,
    "resolution": smaller_renders,
}
"""The rungs that are a stage's alone; ``offload`` is of the prior, and thus of the request."""


def thriftier_prior(request: Request, index: int) -> Request | None:
    """A prior that computes again instead of keeping, encodes one picture at a time, and whose text encoders wait in
    main memory; below that the network's layers wait there too, unless a critic needs them."""
    resources = request.prior_options.resources
    saving = with_resources(
        request,
        vae_slicing=True,
        vae_checkpointing=True,
        network_checkpointing=True,
        offload="text" if resources.offload == "none" else resources.offload,
    )
    if saving != request:
        return saving
    learns = any(isinstance(stage.guidance, Criticised) for stage in request.stages[index:])
    if resources.offload == "layers" or resources.compile != "off" or learns:
        return None
    return with_resources(request, offload="layers")


def with_resources(request: Request, **changes: Any) -> Request:
    """The request with another use of the machine by its prior."""
    options = request.prior_options
    resources = dataclasses.replace(options.resources, **changes)
    return dataclasses.replace(request, prior_options=dataclasses.replace(options, resources=resources))


def step_down(request: Request, stage: int, step: int, device: str = "cpu") -> Down | None:
    """The next rung for a stage of ``request`` that met the end of memory before ``step`` was done; None: no more.

    Args:
        device: kind of the device whose memory it was; rungs that do not help there are left out.
    """
    for rung in get_args(Rung):
        thriftier = with_rung(request, stage, rung)
        if thriftier is not None and (rung != "offload" or _helps(request, thriftier, stage, device)):
            return Down(stage, step, rung, _words(thriftier, stage, rung))
    return None


def _helps(request: Request, thriftier: Request, index: int, device: str) -> bool:
    """Whether a thriftier prior needs less of the memory that came to its end."""
    before, after = request.prior_options.resources, thriftier.prior_options.resources
    try:
        place = resolve_prior(request.prior)
        folder = place.with_suffix("") if place.is_file() else place
        small = pipeline_of(folder) is None
    except (OSError, ValueError):
        return False
    if after.offload == "layers":
        return device != "cpu" and not small
    moves = device != "cpu" and not small and before.offload == "none"
    encodes = (folder / "vae").is_dir() and not (before.vae_slicing and before.vae_checkpointing)
    learns = isinstance(request.stages[index].guidance, Criticised) and not before.network_checkpointing
    return moves or encodes or learns


def with_rung(request: Request, index: int, rung: Rung) -> Request | None:
    """The request with a stage one rung further down; None: that rung is at its end."""
    if rung == "offload":
        return thriftier_prior(request, index)
    stages = list(request.stages)
    stage = stages[index]
    lower = LADDER[rung](dataclasses.replace(stage, representation=request.representation(index)))
    if lower is None:
        return None
    named = max(i for i in range(index + 1) if stages[i].representation is not None)
    stages[named] = dataclasses.replace(stages[named], representation=lower.representation)
    stages[index] = dataclasses.replace(lower, representation=stages[index].representation)
    return dataclasses.replace(request, stages=tuple(stages))


def _words(request: Request, index: int, rung: Rung) -> str:
    stage = request.stages[index]
    if rung == "guidance batch":
        return f"{stage.at_once} pictures at once through the prior, which takes longer and changes nothing else"
    if rung == "offload" and request.prior_options.resources.offload == "layers":
        return "the prior's layers wait in main memory, which takes many times longer and changes nothing else"
    if rung == "offload":
        return (
            "text encoders wait in main memory, and what the way back needs of the prior is computed again, which "
            "takes longer and changes nothing else"
        )
    if rung == "ray samples":
        return "half as many samples along each ray"
    return f"renders of {stage.cameras.size} x {stage.cameras.size} pixels"


# The record -----------------------------------------------------------------------------------------------------------


def downs_of(folder: Path) -> tuple[Down, ...]:
    """The rungs that the run in ``folder`` went down, in the order of its steps.

    Raises:
        RunError: the record cannot be read.
    """
    path = folder / "memory.json"
    try:
        return decode(tuple[Down, ...], json.loads(path.read_text(encoding="utf-8")), "memory.json")
    except FileNotFoundError:
        return ()
    except ValueError as problem:
        raise RunError(f"{path} cannot be read: {problem}") from problem


def add_down(folder: Path, down: Down) -> tuple[Down, ...]:
    """Add a rung to the record of the run in ``folder``; returns all.

    Raises:
        OSError: it cannot be written.
    """
    downs = tuple(sorted([*downs_of(folder), down], key=lambda d: (d.stage, d.step)))
    write_atomically(folder / "memory.json", json.dumps(encode(downs), indent=2).encode())
    return downs


def thrifty(request: Request, downs: tuple[Down, ...], stage: int, step: int) -> Request:
    """What was asked for, as the step after ``step`` steps of ``stage`` carries it out."""
    for down in downs:
        if (down.stage, down.step) <= (stage, step):
            request = with_rung(request, down.stage, down.rung) or request
    return request


def next_change(downs: tuple[Down, ...], stage: int, step: int, end: int) -> int:
    """The step of a stage, after ``step``, at which it becomes thriftier; ``end`` if it does not."""
    return min([down.step for down in downs if down.stage == stage and down.step > step], default=end)


class OutOfMemory(MemoryError):
    """Memory did not suffice for the step after ``step`` steps of a stage, on one of several processes."""

    def __init__(self, stage: int, step: int):
        super().__init__(f"out of memory in step {step + 1} of stage {stage + 1}")
        self.stage, self.step = stage, step


# The device -----------------------------------------------------------------------------------------------------------


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that memory did not suffice, on whatever device."""
    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(problem).lower()
    signs = ("not enough memory", "can't allocate memory", "out of memory", "cublas_status_alloc_failed")
    return isinstance(problem, RuntimeError) and any(sign in words for sign in signs)


def give_back(device: torch.device) -> None:
    """Let go of what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
