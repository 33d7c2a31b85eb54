"""The one loop: render, ask the prior, follow.

What a step draws is a function of (seed, stage, step), so a resumed run needs no generator's state, and on a CPU it
ends bit-equal to a run that was never interrupted.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.conditioning import Prompts
from guidance.contract import Condition, Guidance, Loss, Prior, Views
from guidance.prior_folder import Hints
from representations.cameras import Cameras
from representations.scene import RenderOutput, Representation
from studio.events import Stepped
from studio.request import Edit, Regularizers, Stage

Stop = Callable[[], bool]
PATIENCE = 3
"""Steps in a row without a finite gradient before a run goes back to its last checkpoint."""


class NonFiniteError(FloatingPointError):
    """The gradients stopped being numbers; the message names the step and the parameters."""


@dataclass
class Run:
    """Everything that changes while a stage is optimised, and nothing else."""

    stage: int
    step: int
    representation: Representation
    optimiser: torch.optim.Optimizer
    guidance_state: nn.Module

    def state(self) -> dict[str, Any]:
        """The named parts of a checkpoint."""
        return {
            "stage": self.stage,
            "stage_step": self.step,
            "representation": dict(self.representation.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "guidance": dict(self.guidance_state.state_dict()),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same stage."""
        self.step = saved["stage_step"]
        self.representation.load_state_dict(saved["representation"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.guidance_state.load_state_dict(saved["guidance"])


@dataclass
class Timing:
    """Seconds of the steps that were timed, and the part of them spent in the guidance."""

    every: int = 10
    steps: int = 0
    seconds: float = 0.0
    in_prior: float = 0.0
    _marks: list[float] = field(default_factory=list)

    def mark(self, step: int, device: torch.device) -> None:
        """Note the time, on every ``every``-th step, after what was asked of the device is done."""
        if step % self.every == 0:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self._marks.append(time.perf_counter())
            if len(self._marks) == 4:
                start, before, after, end = self._marks
                self.steps, self.seconds = self.steps + 1, self.seconds + end - start
                self.in_prior += after - before
                self._marks = []


@dataclass(frozen=True)
class Setting:
    """What the steps of a stage read and none of them changes."""

    stage: Stage
    prior: Prior
    prompts: Prompts
    hints: Hints
    seed: int
    task: Edit | None = None
    source: Representation | None = None
    """The object that an edit starts from."""


@dataclass(frozen=True)
class Step:
    """A step that was taken: what to say of it, and what it was made of, for those who want to look closer."""

    event: Stepped
    views: Views
    condition: Condition
    loss: Loss
    progress: float


def optimize(run: Run, setting: Setting, timing: Timing, stop: Stop) -> Iterator[Step]:
    """Optimise ``run`` until the stage's steps are done or ``stop`` says so, one step at a time.

    Raises:
        NonFiniteError: ``PATIENCE`` steps in a row had a gradient that is not finite; those steps changed nothing.
    """
    stage, prior, device = setting.stage, setting.prior, setting.prior.alphas_cumprod.device
    guidance = cast(Guidance[nn.Module], stage.guidance)  # a method and its own state go together
    guard = Guard(run.optimiser, device)
    while run.step < stage.steps and not stop():
        timing.mark(run.step, device)
        progress, rng = run.step / stage.steps, step_rng(setting.seed, run.stage, run.step)
        set_rates(run, progress, setting.task)
        cameras, background = stage.cameras.draw(setting.hints, rng)
        cameras, background = cameras.to(device), background.to(device)

        variant = run.representation.turn(run.step)
        out = run.representation.scene(variant=variant).render(cameras, background)
        source = rendered(setting.source, variant, cameras, background)
        views = Views(out.rgb, cameras.pose, background, out.depth, out.normal, source)
        condition = setting.prompts.condition(views)
        timing.mark(run.step, device)
        loss = guidance.loss(run.guidance_state, prior, views, condition, progress, rng)
        timing.mark(run.step, device)
        wishes = regularize(out, stage.regularizers, progress)
        run.optimiser.zero_grad(set_to_none=True)
        (loss.value + wishes).backward()
        guard.check_gradients(loss.resting)
        run.optimiser.step()
        if not loss.resting:
            run.representation.restructure(run.step, out, run.optimiser)
        learnt = guidance.train_critic(run.guidance_state, prior, views, condition, rng)
        timing.mark(run.step, device)

        run.step += 1
        measured = {**loss.diagnostics, **learnt, "opacity": out.alpha.detach().mean(), "skipped": guard.skipped}
        value = loss.value.detach() + wishes.detach()
        event = Stepped(run.stage, run.step, run.step, stage.steps, value, measured)
        yield Step(event, views, condition, loss, progress)
        guard.raise_if_stuck(run)


def step_rng(seed: int, stage: int, step: int) -> torch.Generator:
    """A generator on the CPU that depends on (seed, stage, step) alone."""
    return torch.Generator().manual_seed(step_seed(seed, stage, step))


def step_seed(seed: int, stage: int, step: int) -> int:
    """A seed of 56 bits that depends on (seed, stage, step) alone; steps below 0 are what a stage begins with."""
    return int.from_bytes(hashlib.sha256(f"{seed} {stage} {step}".encode()).digest()[:7], "big")


def make_optimiser(representation: Representation) -> torch.optim.Optimizer:
    """Adam with a group for each of the representation's; a short memory, because the target moves."""
    groups = [{"params": g.parameters, "name": g.name, "lr": g.rate(0.0)} for g in representation.groups()]
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)


def set_rates(run: Run, progress: float, task: Edit | None = None) -> None:
    """Learning rates for this progress; an edit's enter late, and what it keeps has none."""
    begin, keep = (0.0, ()) if task is None else (task.begin, task.keep)
    for group, source in zip(run.optimiser.param_groups, run.representation.groups(), strict=True):
        group["lr"] = 0.0 if source.name in keep else source.rate(begin + (1 - begin) * progress)


@torch.no_grad()
def rendered(
    source: Representation | None, variant: int, cameras: Cameras, background: Float[Tensor, "b 3"]
) -> Float[Tensor, "b 3 h w"] | None:
    """What an edit's source looks like from the same cameras, if there is one."""
    return None if source is None else source.scene(variant=variant).detach().render(cameras, background).rgb


def regularize(out: RenderOutput, wishes: Regularizers, progress: float) -> Tensor:
    """Opacity (DreamFusion, arXiv 2209.14988, app. A.2) and its decisiveness, as means over pixels."""
    alpha = out.alpha
    return wishes.opacity(progress) * alpha.mean() + wishes.binary(progress) * (alpha * (1 - alpha)).mean()


class Guard:
    """Masks, on the device and in the very step, an update whose gradient is not finite, and counts them."""

    def __init__(self, optimiser: torch.optim.Optimizer, device: torch.device):
        self._optimiser = optimiser
        self.skipped = torch.zeros((), device=device)
        self._in_a_row = torch.zeros((), device=device)
        self._since_read = 0

    def check_gradients(self, resting: bool = False) -> None:
        """Tell the optimiser whether to step; fused optimisers read ``found_inf`` without asking the host.

        A ``resting`` step changes nothing either, and is not counted: its method wants it so.
        """
        self._optimiser.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
        if resting:
            self._optimiser.found_inf = torch.ones_like(self.skipped)  # pyright: ignore[reportAttributeAccessIssue]
            return
        gradients = [p.grad for g in self._optimiser.param_groups for p in g["params"] if p.grad is not None]
        bad = ~torch.stack([g.isfinite().all() for g in gradients]).all()
        self.skipped = self.skipped + bad
        self._in_a_row = (self._in_a_row + 1) * bad
        self._optimiser.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]

    def raise_if_stuck(self, run: Run) -> None:
        """Raise after ``PATIENCE`` bad steps in a row; on a GPU the count is read every few steps only."""
        self._since_read += 1
        if self._in_a_row.device.type == "cpu" or self._since_read >= PATIENCE:
            self._since_read = 0
            if self._in_a_row >= PATIENCE:
                names = [n for n, p in run.representation.named_parameters() if not _finite(p.grad)]
                raise NonFiniteError(
                    f"step {run.step}: {PATIENCE} steps in a row had gradients that are not finite, in "
                    f"{', '.join(names) or 'the optimiser'}"
                )


def _finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(gradient.isfinite().all())
