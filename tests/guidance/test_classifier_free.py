"""Classifier-free guidance: the convention, and what each branch is told."""

import dataclasses
from typing import Any

import pytest
import torch

from guidance.classifier_free import Ask, guided, predict, predict_branches
from guidance.contract import Condition
from guidance.testing import GaussianPrior, embedding


class Recording(GaussianPrior):
    """An exact prior that remembers what it was asked."""

    asked: dict[str, Any]

    def predict_noise(self, noisy, t, text, pose=None, extra=None, adapter=None):
        self.asked = {"text": text, "pose": pose, "extra": extra, "t": t}
        return GaussianPrior.predict_noise(self, noisy, t, text)


@pytest.fixture
def condition() -> Condition:
    text, negative, null = (embedding(g).expand(2, -1, -1) for g in [(2.0, 0.25), (-2.0, 0.25), (0.0, 1.0)])
    pose = torch.eye(4).repeat(2, 1, 1)
    return Condition(text, negative, null, pose=pose, extra={"background": torch.tensor([[0.0] * 3, [1.0] * 3])})


def test_branches_come_from_one_pass_in_the_order_asked(condition: Condition):
    prior, noisy, t = Recording(), torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([100, 700])
    negative, text, null = predict_branches(prior, noisy, t, condition, ("negative", "text", "null"))
    plain = GaussianPrior()
    assert torch.equal(text, plain.predict_noise(noisy, t, condition.text))
    assert torch.equal(negative, plain.predict_noise(noisy, t, condition.negative))
    assert torch.equal(null, plain.predict_noise(noisy, t, condition.null))
    assert prior.asked["t"].tolist() == [100, 700] * 3


def test_only_the_null_branch_loses_the_camera_and_none_the_background(condition: Condition):
    prior = Recording()
    guided(prior, torch.zeros(2, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 2]), condition, 7.5)
    pose, background = prior.asked["pose"], prior.asked["extra"]["background"]
    assert torch.equal(pose[:2], torch.eye(4).repeat(2, 1, 1)) and not pose[2:].any()
    assert torch.equal(background[:2], background[2:])


def test_the_convention(condition: Condition):
    prior, noisy, t = GaussianPrior(), torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([100, 700])
    text, null = predict_branches(prior, noisy, t, condition)
    assert torch.equal(guided(prior, noisy, t, condition, 0.0), null)
    torch.testing.assert_close(guided(prior, noisy, t, condition, 1.0), text)
    torch.testing.assert_close(guided(prior, noisy, t, condition, 7.5), 7.5 * text - 6.5 * null)


def test_questions_about_different_latents_share_a_pass(condition: Condition):
    prior, plain = Recording(), GaussianPrior()
    first, second = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64).unbind()
    t, later = torch.tensor([100, 700]), torch.tensor([120, 900])
    text, null = predict(prior, condition, Ask(first, t, "text"), Ask(second, later, "null"))
    assert prior.asked["t"].tolist() == [100, 700, 120, 900]
    assert torch.equal(text, plain.predict_noise(first, t, condition.text))
    assert torch.equal(null, plain.predict_noise(second, later, condition.null))


def test_a_prompt_that_is_missing_is_named(condition: Condition):
    noisy = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="no source prompt"):
        predict(GaussianPrior(), condition, Ask(noisy, torch.tensor([1, 2]), "source"))


# Perp-Neg -------------------------------------------------------------------------------------------------------------


def repelling(condition: Condition, weights: list[list[float]]) -> Condition:
    away = torch.cat([embedding((-1.0, 0.4)), embedding((1.0, 2.0))]).expand(2, 2, 1, 2)
    return dataclasses.replace(condition, repelled=away, repelled_weight=torch.tensor(weights, dtype=torch.float64))


def test_perp_neg_by_hand(condition: Condition):
    prior, noisy, t = GaussianPrior(), torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([100, 700])
    made = repelling(condition, [[-1.5, -0.2], [-0.3, -0.7]])
    found = guided(prior, noisy, t, made, 7.5)
    for i in range(2):
        one, at = noisy[i : i + 1], t[i : i + 1]
        null = prior.predict_noise(one, at, condition.null[:1])
        towards = prior.predict_noise(one, at, condition.text[:1]) - null
        pull = towards.clone()
        assert made.repelled is not None and made.repelled_weight is not None
        for k in range(2):
            d = prior.predict_noise(one, at, made.repelled[i : i + 1, k]) - null
            pull += made.repelled_weight[i, k] * (d - (d * towards).sum() / (towards * towards).sum() * towards)
        torch.testing.assert_close(found[i : i + 1], null + 7.5 * pull, rtol=1e-10, atol=1e-10)


def test_perp_neg_of_weight_zero_is_plain_guidance_and_what_is_pushed_is_perpendicular(condition: Condition):
    prior, noisy, t = GaussianPrior(), torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([100, 700])
    plain = guided(prior, noisy, t, condition, 7.5)
    torch.testing.assert_close(guided(prior, noisy, t, repelling(condition, [[0.0, 0.0]] * 2), 7.5), plain)
    pushed = guided(prior, noisy, t, repelling(condition, [[-1.0, -1.0]] * 2), 7.5) - plain
    text, null = predict_branches(prior, noisy, t, condition)
    along = (pushed * (text - null)).sum((1, 2, 3))
    assert pushed.abs().max() > 1e-3 and along.abs().max() < 1e-9 * pushed.abs().max() * noisy[0].numel()


def test_without_a_null_branch_nothing_is_repelled(condition: Condition):
    prior, noisy, t = GaussianPrior(), torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([100, 700])
    (text,) = predict_branches(prior, noisy, t, repelling(condition, [[-1.0, -1.0]] * 2), ("text",))
    assert torch.equal(text, prior.predict_noise(noisy, t, condition.text))
