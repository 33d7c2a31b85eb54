"""The one loop: render, ask the prior, follow.

What a step draws is a function of (seed, stage, step), so a resumed run needs no generator's state, and on a CPU it
ends bit-equal to a run that was never interrupted.
"""

import dataclasses
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
from guidance.priors.resources import Resources
from guidance.sharing import WHOLE, Share
from representations.box import Box
from representations.cameras import Cameras
from representations.kinds import AnyRepresentation
from representations.scene import RenderOutput, Representation
from studio.events import Stepped
from studio.guard import PATIENCE, Guard, NonFiniteError, unsound
from studio.region import pixels_of
from studio.request import Edit, Regularizers, Stage

Stop = Callable[[], bool]


@dataclass
class Run:
    """Everything that changes while a stage is optimised, and nothing else."""

    stage: int
    step: int
    representation: Representation
    optimiser: torch.optim.Optimizer
    guidance_state: nn.Module
    spec: AnyRepresentation | None = None
    """What the representation was built from, if that is known."""
    resources: Resources | None = None
    """How the prior used the machine when ``guidance_state`` was made of it, if that is known."""
    skipped: int | Tensor = 0
    """Steps that came to nothing, because something in them was not finite."""
    whole: bool = True
    """Not in the midst of a step's changes: what stops now is the state after the last step."""

    def state(self) -> dict[str, Any]:
        """The named parts of a checkpoint."""
        return {
            "stage": self.stage,
            "stage_step": self.step,
            "skipped": int(self.skipped),
            "representation": dict(self.representation.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "guidance": dict(self.guidance_state.state_dict()),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same stage."""
        self.step, self.skipped, self.whole = saved["stage_step"], saved.get("skipped", 0), True
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

    def forget(self) -> None:
        """Leave out the step that was begun, which was not finished."""
        self._marks = []

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
    share: Share = WHOLE
    """Which of a step's views are here."""

    @property
    def region(self) -> Box | None:
        """The box outside of which nothing may change, if there is one."""
        return None if self.task is None else self.task.region


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
        NonFiniteError: ``PATIENCE`` steps in a row were not finite; those steps changed nothing.
    """
    stage, prior, device = setting.stage, setting.prior, setting.prior.alphas_cumprod.device
    guidance = cast(Guidance[nn.Module], stage.guidance)  # a method and its own state go together
    guard, share = Guard(run.optimiser, device, run.skipped), setting.share
    timing.forget()
    while run.step < stage.steps and not stop():
        timing.mark(run.step, device)
        progress, rng = run.step / stage.steps, step_rng(setting.seed, run.stage, run.step)
        set_rates(run, progress, setting.task)
        cameras, background = stage.cameras.draw(setting.hints, rng)
        cameras, background = own_views(cameras.to(device), background.to(device), share)

        variant = run.representation.turn(run.step)
        out = run.representation.scene(variant=variant).render(cameras, background)
        source = rendered(setting.source, variant, cameras, background)
        mask = pixels_of(setting.region, cameras)
        views = Views(out.rgb, cameras.pose, background, out.depth, out.normal, source, mask, share, out.alpha)
        condition = setting.prompts.condition(views)
        timing.mark(run.step, device)
        loss = guidance.loss(run.guidance_state, prior, views, condition, progress, rng)
        timing.mark(run.step, device)
        objective = loss.value + regularize(out, stage.regularizers, progress)
        run.optimiser.zero_grad(set_to_none=True)
        objective.backward()
        out, value = over_all_views(run.optimiser, out, objective.detach(), share)
        guard.check(value, loss.resting)
        run.whole = False
        run.optimiser.step()
        if not loss.resting:
            run.representation.restructure(run.step, out, run.optimiser)
        learnt = guidance.train_critic(run.guidance_state, prior, views, condition, rng)
        timing.mark(run.step, device)

        guard.note_critics(learnt)
        run.step, run.skipped, run.whole = run.step + 1, guard.skipped, True
        measured = {**loss.diagnostics, **learnt, "opacity": out.alpha.detach().mean()}
        share.average(list(measured.values()))
        measured["skipped"] = guard.skipped
        event = Stepped(run.stage, run.step, run.step, stage.steps, value, measured)
        yield Step(event, views, condition, loss, progress)
        if guard.is_stuck():
            raise NonFiniteError(
                f"step {run.step}: {PATIENCE} steps in a row were not finite, in {whatever_is_not(run)}"
            )


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


def own_views(
    cameras: Cameras, background: Float[Tensor, "b 3"], share: Share
) -> tuple[Cameras, Float[Tensor, "own 3"]]:
    """Those of a step's cameras and backgrounds that are here."""
    pose, focal = share.own(cameras.pose), share.own(cameras.focal)
    return Cameras(pose, focal, cameras.size, share.first), share.own(background)


def over_all_views(
    optimiser: torch.optim.Optimizer, out: RenderOutput, objective: Float[Tensor, ""], share: Share
) -> tuple[RenderOutput, Float[Tensor, ""]]:
    """Gradients, objective and what the render measured as they are for all of a step's views.

    This is where processes that share a step meet; nothing happens where all views are here.
    """
    gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    probes = [probe.grad for probe in out.aux.values() if probe.grad is not None]
    share.average([*gradients, *probes, objective])
    aux = {name: value if value.requires_grad else share.gather(value) for name, value in out.aux.items()}
    return dataclasses.replace(out, aux=aux), objective


def whatever_is_not(run: Run) -> str:
    """Names of what is not finite in a run."""
    return ", ".join(unsound(run.representation, run.optimiser, run.guidance_state)) or "the loss"
