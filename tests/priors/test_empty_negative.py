"""A negative prompt that says nothing is the null prompt, with priors of every way to be told."""

import dataclasses
from typing import Any

import pytest
import torch

from guidance import CSD, ISM, NFSD
from guidance.classifier_free import Branch, predict_branches
from guidance.contract import Condition, Draw, Prior
from guidance.schedules import Schedule
from tests.priors.conftest import prompts_of, some_views


def gradient_at(prior: Prior, condition: Condition, blend: float) -> tuple[torch.Tensor, Any]:
    """CSD's gradient with a share of the negative prompt, and the three answers that it is made of."""
    views = some_views(len(condition.text))
    latents = prior.encode(views.images).detach()
    t, one = torch.full((len(latents),), 400), torch.ones(len(latents))
    draw = Draw(t, torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)), one, one, one, 0)
    method = CSD(blend=Schedule(blend))
    a = prior.alphas_cumprod[400].sqrt().float()
    noisy = a * latents + (1 - a * a).sqrt() * draw.noise
    names: tuple[Branch, ...] = ("text", "null", "negative")
    answers = dict(zip(names, predict_branches(prior, noisy, t, condition, names), strict=True))
    return method.gradient(method.init(prior), prior, latents, condition, draw, 0.9), answers


def condition_of(prior: Prior, negative: str) -> Condition:
    count = 4 if "pose_in_null" in prior.takes else 2
    told = dataclasses.replace(prompts_of(prior), negative=prior.embed([negative]))  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(told.condition(some_views(count)), mask=None)


@pytest.mark.parametrize("family", ["stable_diffusion", "multiview", "ip_adapter", "zero123"])
@pytest.mark.parametrize("blend", [0.0, 0.5, 1.0])
def test_an_empty_negative_prompt_leaves_the_null_prompt_as_the_reference(family: str, blend: float, prior_of):
    prior = prior_of(family)
    gradient, answers = gradient_at(prior, condition_of(prior, ""), blend)
    torch.testing.assert_close(gradient, answers["text"] - answers["null"], atol=1e-5, rtol=1e-4)
    assert gradient.abs().max() > 1e-3


def test_every_negative_prompt_is_empty_to_a_prior_without_words(prior_of):
    prior = prior_of("zero123")
    gradient, answers = gradient_at(prior, condition_of(prior, "blurry, ugly"), 1.0)
    torch.testing.assert_close(answers["negative"], answers["null"], atol=1e-5, rtol=1e-4)  # not that of the text
    torch.testing.assert_close(gradient, answers["text"] - answers["null"], atol=1e-5, rtol=1e-4)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("family", ["stable_diffusion", "ip_adapter"])
def test_a_negative_prompt_with_words_is_the_reference_late(family: str, prior_of):
    prior = prior_of(family)
    condition = condition_of(prior, "blurry, ugly")
    assert (condition.negative != condition.null).flatten(1).any(1).all()
    gradient, answers = gradient_at(prior, condition, 1.0)
    torch.testing.assert_close(gradient, answers["text"] - answers["negative"], atol=1e-5, rtol=1e-4)
    assert (answers["negative"] - answers["null"]).abs().max() > 1e-4


def test_samples_are_told_apart(prior_of):
    prior = prior_of("ip_adapter")
    condition = condition_of(prior, "blurry, ugly")
    mixed = dataclasses.replace(condition, negative=torch.stack([condition.null[0], condition.negative[1]]))
    gradient, answers = gradient_at(prior, mixed, 1.0)
    torch.testing.assert_close(gradient[0], (answers["text"] - answers["null"])[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient[1], (answers["text"] - answers["negative"])[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["multiview", "zero123"])
def test_methods_that_measure_from_it_measure_from_the_null_prompt(family: str, prior_of):
    """Else ISM's guidance is nothing where words say nothing, and NFSD's direction the prompt's own."""
    prior = prior_of(family)
    condition = condition_of(prior, "")
    latents = prior.encode(some_views(len(condition.text)).images).detach()
    t, one = torch.full((len(latents),), 400), torch.ones(len(latents))
    draw = Draw(t, torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)), one, one, one, 0)

    def gradient(method: Any) -> torch.Tensor:
        return method.gradient(method.init(prior), prior, latents, condition, draw, 0.9)

    torch.testing.assert_close(gradient(ISM(base="negative")), gradient(ISM(base="null")), atol=1e-4, rtol=1e-3)
    # eps_u - eps_neg is nothing, so what is left of NFSD is the pull of the prompt.
    pull = gradient(CSD(blend=Schedule(0.0), weighting="sds"))
    torch.testing.assert_close(gradient(NFSD(scale=3.0)), 3 * pull, atol=1e-4, rtol=1e-3)
