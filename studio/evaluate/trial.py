"""One run of the comparison: optimise, and look on the way how like the truth the scene has become."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.diffusers_prior import DiffusersPrior
from representations.scene import Representation, Scene
from studio.edit import finished
from studio.evaluate.truth import Likeness, likeness, pictures, seen
from studio.optimize import Timing, optimize
from studio.request import Request
from studio.stages import Stages
from studio.toybox.world import Toy

MARKS: tuple[float, ...] = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Parts of a run's evaluations after which the scene is compared with the truth; the first steps change most."""
STRIP_AZIMUTHS: tuple[float, ...] = tuple(range(0, 360, 45))
STRIP_SIZE = 128
_ELEVATION = 15.0


@dataclass
class Measured:
    """What a run cost and what came of it."""

    steps: int = 0
    evaluations: int = 0
    images: int = 0
    """Pictures that went through the network, every branch of classifier-free guidance counted."""
    seconds: float = 0.0
    """Without loading, and without the comparisons with the truth."""
    curve: list[tuple[int, Likeness]] = field(default_factory=list)
    """Evaluations so far and the likeness then, after each of ``MARKS``."""
    scene: Scene | None = None
    """The result, once it is there."""
    before: Scene | None = None
    """What an edit began with."""


def measure(
    request: Request, prior: DiffusersPrior, toy: Toy, expected: int, most: int | None = None
) -> Iterator[Measured]:
    """Optimise a request's stages; after each step, and once more at the end, what is known by then.

    Args:
        request: what to make.
        prior: loaded.
        toy: the truth.
        expected: evaluations that the run will take, by which it is looked at on the way.
        most: no step begins once so many were spent.

    Raises:
        NonFiniteError: gradients stopped being numbers.
    """
    stages = Stages.of(request, prior, None if request.task is None else finished(request.task.source))
    before, marks = (prior.evaluations, prior.images), [round(part * expected) for part in MARKS[:-1]]
    found, began, run = Measured(), time.perf_counter(), None
    found.before = None if stages.before is None else stages.before.scene().detach()

    def enough() -> bool:
        return most is not None and prior.evaluations - before[0] >= most

    for index in range(len(request.stages)):
        run = stages.begin(index, run)
        for _ in optimize(run, stages.setting(index), Timing(), enough):
            found.steps += 1
            found.evaluations, found.images = prior.evaluations - before[0], prior.images - before[1]
            found.seconds = time.perf_counter() - began
            passed = sum(found.evaluations >= mark for mark in marks) - len(found.curve)
            began += _look(found, passed, run.representation, toy, prior.device)
            yield found
    assert run is not None
    _look(found, len(MARKS) - len(found.curve), run.representation, toy, prior.device)
    found.scene = run.representation.scene().detach()
    yield found


def _look(found: Measured, passed: int, representation: Representation, toy: Toy, device: torch.device) -> float:
    """Add a point to the curve for each of the marks that were passed; returns the seconds it took."""
    began = time.perf_counter()
    if passed:
        found.curve += [(found.evaluations, likeness(representation.scene().detach(), toy, device))] * passed
    return time.perf_counter() - began


@torch.no_grad()
def strip(scene: Scene, device: torch.device) -> Float[Tensor, "8 3 h w"]:
    """What a scene looks like from eight sides, over white."""
    return seen(scene, STRIP_AZIMUTHS, (_ELEVATION,) * len(STRIP_AZIMUTHS), STRIP_SIZE, device)[0]


def true_strip(toy: Toy) -> Float[Tensor, "8 3 h w"]:
    """What a toy looks like from the same eight sides."""
    return pictures(toy, STRIP_AZIMUTHS, (_ELEVATION,) * len(STRIP_AZIMUTHS), STRIP_SIZE)[0]
