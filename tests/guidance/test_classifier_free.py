"""Classifier-free guidance: the convention, and what each branch is told."""

from typing import Any

import pytest
import torch

from guidance.classifier_free import guided, predict_branches
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
