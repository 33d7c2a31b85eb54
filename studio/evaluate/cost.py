"""What a method asks of a prior, counted before it runs: evaluations, each one forward pass of a step's views, and
pictures in them."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from guidance.conditioning import Prompts, ViewDependence
from guidance.contract import Guidance, Views
from guidance.jsd import JSD
from guidance.prior_folder import default_hints
from guidance.testing import GaussianPrior
from studio.optimize import step_rng
from studio.request import Stage

_ROUNDS = 4


@dataclass
class Work:
    """What was asked of a prior."""

    evaluations: int = 0
    """Calls, whatever their batch."""
    pictures: int = 0
    """Samples in those calls that only answer."""
    learnt: int = 0
    """Samples in those calls that an adapter learns from."""
    widest: int = 0
    """Samples in the widest call."""
    ranks: tuple[int, ...] = ()
    """Of the adapters that were asked for."""


class CountedPrior:
    """A cheap exact prior that counts what it is asked."""

    def __init__(self, one_pass: bool = False) -> None:
        """A prior of small pictures that has answered nothing; ``one_pass``: it is a ``OnePassPrior``."""
        prior = GaussianPrior()
        self.alphas_cumprod, self.channels = prior.alphas_cumprod, prior.channels
        self.resolution, self.pixel_space = prior.resolution, prior.pixel_space
        self.takes = prior.takes | ({"both"} if one_pass else frozenset())
        self.embed, self.encode, self.decode = prior.embed, prior.encode, prior.decode
        self.work = Work()
        self._prior = prior

    def adapter(self, rank: int, seed: int) -> nn.Module:
        """The prior's adapter."""
        self.work.ranks += (rank,)
        return self._prior.adapter(rank, seed)

    def predict_noise(self, *arguments: Any, **named: Any) -> Tensor:
        """The prior's answer."""
        answer = self._prior.predict_noise(*arguments, **named)
        self.work.evaluations += 1
        self.work.widest = max(self.work.widest, len(answer))
        if answer.requires_grad:
            self.work.learnt += len(answer)
        else:
            self.work.pictures += len(answer)
        return answer

    def predict_both(self, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Both answers, for as much as one costs."""
        answer = self.predict_noise(*arguments, **named)
        return answer, answer


def evaluations_of(stage: Stage) -> int:
    """Evaluations that a stage takes from its first step to its last, those of its critic included."""
    return work_of(stage).evaluations


@functools.lru_cache(maxsize=256)
def work_of(stage: Stage, view_prompts: ViewDependence = "bucketed", one_pass: bool = False) -> Work:
    """What a stage asks of a prior from its first step to its last, its critic included.

    The steps are gone through with grey pictures before a prior that costs nothing: what a method asks depends on its
    knobs, on progress and on what it draws, never on the answers.

    Args:
        stage: of a request.
        view_prompts: how the prompt names the direction of view.
        one_pass: the prior answers with the prompt and without it in one pass.
    """
    prior, guidance = CountedPrior(one_pass), cast(Guidance[nn.Module], stage.guidance)
    if isinstance(guidance, JSD):  # what a second prior is asked counts as asked of the first
        guidance = dataclasses.replace(guidance, multi_view=None)
    prompts, state = Prompts.embed(prior, "", view_dependent=view_prompts, source=""), guidance.init(prior)
    for step in range(stage.steps):
        rng = step_rng(0, 0, step)
        cameras, background = stage.cameras.draw(default_hints(), rng)
        images = torch.full((len(cameras), 3, prior.resolution, prior.resolution), 0.5)
        views = Views(images, cameras.pose, background, source=images)
        condition = prompts.condition(views)
        guidance.loss(state, prior, views, condition, step / stage.steps, rng)
        guidance.train_critic(state, prior, views, condition, rng)
    return prior.work


@functools.lru_cache(maxsize=256)
def within(stage: Stage, budget: int) -> Stage:
    """The stage with as many steps as take ``budget`` evaluations, one step at least.

    A method's average cost may depend on how many steps there are, so their number is sought in a few rounds.
    """
    stage = dataclasses.replace(stage, steps=budget)
    for _ in range(_ROUNDS):
        cost, before = evaluations_of(stage) / stage.steps, stage.steps
        stage = dataclasses.replace(stage, steps=max(1, round(budget / cost)))
        if stage.steps == before:
            break
    return stage
