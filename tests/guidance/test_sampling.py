"""Sampling the exact prior: pictures have the statistics that were asked for."""

import pytest
import torch

from guidance.contract import Condition
from guidance.sampling import sample
from guidance.testing import GaussianPrior, embedding


def conditioned(mean: float, variance: float) -> Condition:
    text = embedding((mean, variance)).expand(4, -1, -1)
    return Condition(text, text, text)


class Raw(GaussianPrior):
    """An exact prior whose pictures are its latents, as they are."""

    def decode(self, latents):
        return latents


def test_an_exact_prior_gives_its_own_distribution():
    latents = sample(Raw(resolution=32), conditioned(0.2, 0.04), steps=250, scale=1.0)
    assert latents.mean().item() == pytest.approx(0.2, abs=0.01)
    assert latents.std().item() == pytest.approx(0.2, rel=0.08)


def test_estimates_of_pixels_are_clamped_and_no_others():
    prior, condition = Raw(), conditioned(3.0, 0.01)
    assert sample(prior, condition, steps=5).max().item() <= 1
    free = sample(prior, condition, steps=5, clamp=False)
    assert free.min().item() > 2
    prior.pixel_space = False
    assert torch.equal(sample(prior, condition, steps=5), free)
