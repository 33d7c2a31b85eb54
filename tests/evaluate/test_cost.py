"""A run's evaluations are known before it: counted on a prior that costs nothing, and the same on a real one."""

import dataclasses
from typing import Any

import pytest

from guidance.classifier_free import predict_branches
from guidance.ism import ISM
from guidance.noising import add_noise
from guidance.sds import SDS
from guidance.vsd import VSD
from studio.evaluate.contenders import METHODS, contenders
from studio.evaluate.cost import evaluations_of, within
from studio.request import Stage


@dataclasses.dataclass(frozen=True)
class Growing(SDS):
    """Asks once in the first half of a run and three times in the second."""

    def gradient(self, state, prior, latents, condition, draw, progress):
        noisy = add_noise(prior, latents, draw.noise, draw.timesteps)
        asked = [predict_branches(prior, noisy, draw.timesteps, condition) for _ in range(3 if progress >= 0.5 else 1)]
        return asked[0][0]


def staged(guidance: Any, steps: int) -> Stage:
    return dataclasses.replace(Stage(None, steps=steps), guidance=guidance)


def test_one_forward_of_the_views_is_one_evaluation():
    assert evaluations_of(staged(SDS(), 7)) == 7
    assert evaluations_of(staged(Growing(), 8)) == 4 * 1 + 4 * 3


def test_critics_and_inversion_count():
    assert evaluations_of(staged(VSD(), 5)) > 5
    assert evaluations_of(staged(ISM(), 20)) > 20


@pytest.mark.parametrize("guidance", [SDS(), Growing(), VSD(), ISM()])
def test_steps_fit_a_budget(guidance):
    stage = within(staged(guidance, 900), 30)
    assert abs(evaluations_of(stage) - 30) <= 2 * evaluations_of(stage) / stage.steps
    assert within(staged(SDS(), 900), 30).steps == 30


def test_a_budget_below_one_step_is_one_step():
    assert within(staged(VSD(), 900), 1).steps == 1


@pytest.mark.parametrize("contender", contenders(METHODS, []), ids=lambda contender: contender.label)
def test_every_method_can_be_budgeted(contender):
    (stage,) = contender.request("a red cube", 0).stages
    assert 0 < evaluations_of(dataclasses.replace(stage, steps=3))
