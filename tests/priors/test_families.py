"""Every family through the class that a user's checkpoint goes through: all methods run, and samples stay apart."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from guidance import VSD
from guidance.classifier_free import predict_branches
from guidance.contract import Condition, Prior
from guidance.controls import Controls
from guidance.diffusers_prior import DiffusersPrior
from guidance.methods import AnyGuidance
from guidance.sampling import sample
from studio.codec import members
from tests.priors.conftest import prompts_of, some_views
from tests.priors.tiny import FAMILIES, PIXELS

METHODS = members(AnyGuidance)
SHORT: dict[str, dict[str, Any]] = {
    "BSD": {"cycle": 1, "tuning_steps": 0, "edit_steps": 1},
    "ISM": {"stride": 1.0},
    "UCM": {"steps": 1, "plain_until": 0.0},
}
"""Knobs that keep a step short."""


def count_of(prior: DiffusersPrior) -> int:
    return prior.hints["views"] if prior.hints["views"] > 1 else 2


def picked(condition: Condition, samples: slice) -> Condition:
    """Some samples of a condition."""
    parts: dict[str, Any] = {
        f.name: getattr(condition, f.name) for f in dataclasses.fields(condition) if f.name != "extra"
    }
    parts = {name: part[samples] if isinstance(part, torch.Tensor) else part for name, part in parts.items()}
    return dataclasses.replace(condition, **parts, extra={n: value[samples] for n, value in condition.extra.items()})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_whole_iteration(method: str, family: str, prior_of: Callable[[str], DiffusersPrior]):
    prior = prior_of(family)
    views = some_views(count_of(prior))
    condition = prompts_of(prior).condition(views)
    knobs: Any = METHODS[method](controls=Controls(shared_t=True), **SHORT.get(method, {}))
    state, rng = knobs.init(prior, 3), torch.Generator().manual_seed(0)
    loss = knobs.loss(state, prior, views, condition, 0.25, rng)
    (gradient,) = torch.autograd.grad(loss.value, views.images)
    assert gradient.isfinite().all() and (loss.resting or gradient.abs().sum() > 0)
    learnt = knobs.train_critic(state, prior, views, condition, rng)
    assert all(value.isfinite().all() for value in learnt.values())
    assert learnt.get("critic_skipped", torch.zeros(())) == 0


def test_it_is_a_prior(prior: DiffusersPrior):
    assert isinstance(prior, Prior) and prior.resolution == PIXELS and len(prior.alphas_cumprod) == 1000
    assert (prior.alphas_cumprod.diff() <= 0).all() and prior.alphas_cumprod[-1] > 0
    for module in prior.parts.modules.values():
        assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_a_batch_is_its_samples_one_by_one(prior: DiffusersPrior):
    group = prior.hints["views"]
    views = some_views(2 * group if group > 1 else 3)
    count = len(views.images)
    condition = prompts_of(prior).condition(views)
    noisy = prior.encode(views.images).detach()
    t = torch.arange(100, 900, 800 // count)[:count] // group * group if group == 1 else torch.full((count,), 300)
    text, null = predict_branches(prior, noisy, t, condition)
    assert text.shape == noisy.shape and (text - null).abs().max() > 1e-5
    for start in range(0, count, group):
        own = slice(start, start + group)
        alone = predict_branches(prior, noisy[own], t[own], picked(condition, own))
        torch.testing.assert_close(torch.stack(alone), torch.stack([text[own], null[own]]), atol=2e-5, rtol=1e-4)


def test_a_critic_leaves_the_prior_as_it_was(prior: DiffusersPrior):
    views = some_views(count_of(prior))
    condition = prompts_of(prior).condition(views)
    before, method, rng = prior.fingerprint(), VSD(), torch.Generator().manual_seed(0)
    state = method.init(prior, 3)
    noisy, t = prior.encode(views.images).detach(), torch.full((len(views.images),), 500)
    untrained = state.predict(prior, noisy, t, condition)
    plain = prior.predict_noise(noisy, t, condition.plain, condition.camera, condition.extra)  # pyright: ignore[reportArgumentType]
    assert torch.equal(untrained, plain)
    for _ in range(3):
        method.train_critic(state, prior, views, condition, rng)
    assert not torch.equal(state.predict(prior, noisy, t, condition), plain)
    turned = dataclasses.replace(condition, camera=condition.camera.flip(0))  # pyright: ignore[reportOptionalMemberAccess]
    assert not torch.equal(state.predict(prior, noisy, t, turned), state.predict(prior, noisy, t, condition))
    assert prior.fingerprint() == before
    assert torch.equal(prior.predict_noise(noisy, t, condition.plain, condition.camera, condition.extra), plain)  # pyright: ignore[reportArgumentType]


def test_perp_neg_and_interpolation_take_its_embeddings(prior: DiffusersPrior):
    views = some_views(count_of(prior))
    noisy, t = prior.encode(views.images).detach(), torch.full((len(views.images),), 500)
    for kind in ("interpolated", "perp_neg"):
        condition = prompts_of(prior, kind).condition(views)
        text, _ = predict_branches(prior, noisy, t, condition)
        assert text.isfinite().all()


def test_it_imagines(prior: DiffusersPrior):
    views = some_views(count_of(prior))
    pictures = sample(prior, prompts_of(prior).condition(views), steps=2)
    assert pictures.shape == views.images.shape and pictures.isfinite().all() and pictures.std() > 0.01
