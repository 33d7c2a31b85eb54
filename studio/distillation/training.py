"""The training of a guidance distillation: what its pictures are of, its one loop, its checkpoints.

What a step draws is a function of (seed, step), so a training killed at any moment ends as if it had not been.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidance.conditioning import DIRECTIONS, direction_seen
from guidance.diffusers_prior import DiffusersPrior
from guidance.distillation import Choose, Distillation, Sketches, Subjects, teach
from guidance.one_pass import OnePassAdapter
from studio.cameras import Orbit
from studio.checkpoints import Checkpoints
from studio.toybox.world import random_toy

_DIRECTED = 0.75
"""Share of the prompts that name the direction of view."""
_CHECKPOINT_EVERY = 100

Phrase = Callable[[random.Random], str]


@dataclass(frozen=True)
class Taught:
    """One report: ``loss`` is the mean since the last one, ``seconds`` counts this process alone."""

    step: int
    loss: float
    seconds: float
    seconds_a_step: float


def toys(rng: random.Random) -> str:
    """A prompt that the bundled prior knows."""
    return random_toy(rng).caption


def any_of(prompts: Sequence[str]) -> Phrase:
    """One of several prompts."""
    return lambda rng: rng.choice(prompts)


def chooser(prior: DiffusersPrior, phrase: Phrase, orbit: Orbit = Orbit()) -> Choose:  # noqa: B008 -- frozen
    """Subjects for pictures of a prior: cameras and backgrounds as runs have them, a prompt for each."""

    def choose(count: int, rng: torch.Generator) -> Subjects:
        cameras, background = dataclasses.replace(orbit, views=count).draw(prior.hints, rng)
        words = random.Random(int(torch.randint(2**62, (1,), generator=rng)))
        seen = direction_seen(cameras.pose).tolist()
        prompts = [_directed(phrase(words), DIRECTIONS[direction], words) for direction in seen]
        pose = cameras.pose.to(prior.device) if "pose" in prior.takes else None
        return Subjects(prior.embed(prompts), pose, background.to(prior.device))

    return choose


def _directed(prompt: str, direction: str, rng: random.Random) -> str:
    return f"{prompt}, {direction} view" if rng.random() < _DIRECTED else prompt


class Student:
    """The adapter, its running average and its optimiser, and the sketches: all that training changes."""

    def __init__(
        self, prior: DiffusersPrior, choose: Choose, knobs: Distillation, begin_with: Path | None = None
    ) -> None:
        self.knobs, self.choose, self.prior, self.step = knobs, choose, prior, 0
        self.adapter = OnePassAdapter(prior.network, knobs.rank, knobs.seed)
        if begin_with is not None:
            self.adapter.begin_with(begin_with)
        # Errors under high weights come in bursts: without clipping, and with a long memory of squares, it diverges.
        self.optimiser = torch.optim.AdamW(self.adapter.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
        self.average = [p.detach().clone() for p in self.adapter.parameters()]
        rng = self._rng(-1)
        self.sketches = Sketches.begin(prior, choose, knobs.batch, knobs, rng)
        # Else all would be at the same point of their way for the whole training.
        self.sketches.age = (3 / self.sketches.pull * torch.rand(knobs.batch, generator=rng).to(prior.device)).long()

    def learn(self) -> Tensor:
        """One step; returns its loss."""
        knobs, rng = self.knobs, self._rng(self.step)
        done = self.sketches.progress >= 1
        if done.any():
            begun = Sketches.begin(self.prior, self.choose, int(done.sum()), knobs, rng)
            self.sketches.replace(done, begun)
        for group in self.optimiser.param_groups:
            group["lr"] = knobs.rate(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        loss = teach(self.prior, self.adapter, self.sketches, knobs, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
        self.optimiser.step()
        decay = min(knobs.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.adapter.parameters()], 1 - decay)
        self.step += 1
        return loss.detach()

    def averaged(self) -> OnePassAdapter:
        """An adapter with the averaged weights."""
        made = OnePassAdapter(self.prior.network, self.knobs.rank, self.knobs.seed)
        for parameter, value in zip(made.parameters(), self.average, strict=True):
            parameter.data.copy_(value)
        return made.requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """Everything a resume needs."""
        return {
            "adapter": dict(self.adapter.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "sketches": self.sketches.state(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.adapter.load_state_dict(saved["adapter"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.average, self.step = list(saved["average"]), saved["step"]
        self.sketches = Sketches.of(saved["sketches"])

    def _rng(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(random.Random(f"{self.knobs.seed} {step}").getrandbits(48))


def train(student: Student, folder: Path, every: int = 20) -> Iterator[Taught]:
    """Train until the steps are done, reporting ``every`` so many; resumes from ``folder``.

    Raises:
        OSError: the folder cannot be written.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    saved, _ = checkpoints.newest(student.prior.device)
    if saved is not None:
        student.restore(saved)
    started, first, losses, steps = time.monotonic(), student.step, [], student.knobs.steps
    while student.step < steps:
        losses.append(student.learn())
        last = student.step == steps
        if student.step % every == 0 or last:
            seconds = time.monotonic() - started
            yield Taught(student.step, float(torch.stack(losses).mean()), seconds, seconds / (student.step - first))
            losses = []
        if student.step % _CHECKPOINT_EVERY == 0 or last:
            checkpoints.save(student.step, student.state())
