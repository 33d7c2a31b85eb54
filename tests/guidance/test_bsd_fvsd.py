"""BSD's turns and pictures, FVSD's discriminator and weights."""

import dataclasses
from typing import Any

import pytest
import torch

from guidance import BSD, FVSD, VSD
from guidance.contract import Condition
from guidance.controls import Controls
from guidance.critic import Learning
from guidance.diffusers_prior import DiffusersPrior
from guidance.drawing import make_draw
from guidance.fvsd import Discriminator
from guidance.testing import GaussianPrior, embedding
from tests.guidance.learning import PRIOR, Recorder, knowing, memory, rng, same, some_condition, some_views

# BSD: turns -----------------------------------------------------------------------------------------------------------


def test_scene_and_prior_take_turns():
    method, views, condition = BSD(cycle=5, tuning_steps=2, edit_steps=1), some_views(), some_condition()
    views.images.requires_grad_()
    state, turns = method.init(PRIOR), []
    for step in range(12):
        critic, tuning = memory(state.critic), memory(state.tuning)
        loss = method.loss(state, PRIOR, views, condition, 0.5, rng(step))
        (gradient,) = torch.autograd.grad(loss.value, views.images)
        learnt = method.train_critic(state, PRIOR, views, condition, rng(step))
        assert loss.resting == (gradient.abs().max() == 0) == same(memory(state.critic), critic)
        assert loss.resting != same(memory(state.tuning), tuning)
        assert set(learnt) == ({"prior_loss", "prior_skipped"} if loss.resting else {"critic_loss", "critic_skipped"})
        turns.append(loss.resting)
    assert turns == [True, True, False, False, False] * 2 + [True, True]


def test_without_turns_of_the_prior_it_is_vsd():
    bsd, vsd, views, condition = BSD(3.0, tuning_steps=0), VSD(3.0), some_views(), some_condition()
    states: list[Any] = [bsd.init(PRIOR), vsd.init(PRIOR)]
    for step in range(3):
        losses = [m.loss(s, PRIOR, views, condition, 0.0, rng(step)) for m, s in zip((bsd, vsd), states, strict=True)]
        assert losses[0].value == losses[1].value and not losses[0].resting
        for method, state in zip((bsd, vsd), states, strict=True):
            method.train_critic(state, PRIOR, views, condition, rng(step))
    assert same(memory(states[0].critic), memory(states[1]))


def test_critic_and_tuned_prior_begin_apart(toy_prior: DiffusersPrior):
    state = BSD().init(toy_prior)
    assert not same(memory(state.critic), memory(state.tuning))


def test_pictures_are_made_now_and_then_and_the_oldest_make_room():
    method, prior = BSD(tuning_steps=100, refresh=3, album=5, edit_steps=2), Recorder()
    views, condition, state = some_views(), some_condition(), method.init(prior)
    made = []
    for step in range(7):
        before, asked = [picture["latents"] for picture in state.pictures], len(prior.asked)
        method.train_critic(state, prior, views, condition, rng(step))
        now = [picture["latents"] for picture in state.pictures]
        made.append(len(prior.asked) - asked == 3)  # two evaluations of the tuned prior, and one to learn
        if made[-1]:
            kept = [*before, *now[-3:]][-5:]
            assert len(now) == len(kept) and all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))
        else:
            assert len(prior.asked) - asked == 1 and all(a is b for a, b in zip(now, before, strict=True))
    assert made == [True, False, False, True, False, False, True]


def test_pictures_are_renders_as_the_prior_would_have_them():
    # The prior expects 2 everywhere, with a spread of .1; renders are -.4.
    prior = GaussianPrior({"a red mug": (2.0, 0.01)})
    views = some_views(value=0.3)
    condition = some_condition(prior, views)
    condition = dataclasses.replace(condition, text=condition.plain)

    def picture(**knobs: Any) -> torch.Tensor:
        method = BSD(edit_scale=1.0, **knobs)
        state = method.init(prior)
        method.train_critic(state, prior, views, condition, rng())
        return torch.stack([picture["latents"] for picture in state.pictures])

    faint, strong = picture(strength=0.05), picture(strength=0.9, edit_steps=8)
    assert -0.4 < faint.mean() < strong.mean() < 2.1
    assert (strong - 2).abs().mean() < 0.3
    # The tuned prior makes them, not the prior.
    method = BSD(edit_scale=1.0, strength=0.9, edit_steps=8)
    state = method.init(prior)
    knowing(state.tuning, shift=-1.0, spread=0.0)
    method.train_critic(state, prior, views, condition, rng())
    assert state.pictures[0]["latents"].mean() < strong.mean() - 0.5


def test_the_prior_learns_its_pictures_and_draws_the_scene_there():
    prior = GaussianPrior({"a red mug": (2.0, 0.01)})
    views = some_views(value=0.3)
    condition = some_condition(prior, views)
    condition = dataclasses.replace(condition, text=condition.plain)
    method = BSD(edit_scale=1.0, strength=0.2, tuning=Learning(rate=0.02))
    state: Any = method.init(prior)
    for step in range(150):
        method.train_critic(state, prior, views, condition, rng(step))
    pictures = torch.stack([picture["latents"] for picture in state.pictures]).mean().item()
    assert -0.4 < pictures < 1.9
    assert 2.0 + state.tuning.adapter.shift.item() == pytest.approx(pictures, abs=0.2)


def test_a_picture_keeps_what_it_is_to_be_told():
    views, method = some_views(), BSD(edit_steps=1)
    condition = Condition(
        text=torch.cat([embedding((float(i), 0.2)) for i in range(3)]),
        negative=embedding((0.0, 1.0)).expand(3, -1, -1),
        null=embedding((0.0, 1.0)).expand(3, -1, -1),
        camera=torch.arange(3.0)[:, None, None].expand(3, 4, 4) + 1,
        extra={"background": torch.rand(3, 3)},
    )
    prior = Recorder()
    state = method.init(prior)
    method.train_critic(state, prior, views, condition, rng())
    learnt = prior.asked[-1]
    which = learnt["text"][:, 0, 0].long()
    told = learnt["pose"].abs().sum((1, 2)) > 0
    assert told.any() and torch.equal(learnt["pose"][told], condition.camera[which][told])  # pyright: ignore[reportOptionalSubscript]
    assert torch.equal(state.pictures[2]["extra"]["background"], condition.extra["background"][2])


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"cycle": 0, "tuning_steps": 0}, "of 1 or more"),
        ({"cycle": 10}, "tuning_steps from 0 to cycle"),
        ({"refresh": 0}, "refresh"),
        ({"strength": 1.0}, "strength between 0 and 1"),
        ({"edit_steps": 0}, "edit_steps of 1 or more"),
    ],
)
def test_what_bsd_cannot_do_is_refused(knobs: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        BSD(**knobs)


# FVSD: weights --------------------------------------------------------------------------------------------------------

DIVERGENCES: list[Any] = ["reverse_kl", "forward_kl", "jensen_shannon", "hellinger"]


class Certain(torch.nn.Module):
    """A discriminator that is sure of a ratio."""

    def __init__(self, log_ratio: torch.Tensor) -> None:
        super().__init__()
        self.log_ratio = log_ratio

    def forward(self, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.log_ratio


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_each_sample_weighs_what_its_ratio_says(divergence: Any):
    ratios = torch.tensor([0.01, 0.5, 1.0, 3.0, 1000.0])
    latents = torch.randn(5, 3, 8, 8, generator=rng(), dtype=torch.float64)
    text, null = (embedding(g).expand(5, -1, -1) for g in ((2.0, 0.25), (0.0, 1.0)))
    condition, draw = Condition(text, null, null), make_draw(latents, (20, 980), rng())
    method, vsd = FVSD(divergence=divergence, ratio_limit=8.0), VSD()
    state = method.init(PRIOR)
    state.discriminator.module = Certain(ratios.log())
    state.mean.fill_(0.7)
    found = method.gradient(state, PRIOR, latents, condition, draw, 0.0)
    share = found / vsd.gradient(vsd.init(PRIOR), PRIOR, latents, condition, draw, 0.0)
    r = torch.tensor([0.125, 0.5, 1.0, 3.0, 8.0])
    expected = {
        "reverse_kl": torch.ones(5),
        "forward_kl": r,
        "jensen_shannon": r / (1 + r),
        "hellinger": r.sqrt() / 4,
    }[divergence]
    torch.testing.assert_close(share[:, 0, 0, 0].float(), expected / 0.7)
    joint = dataclasses.replace(method, controls=Controls(group=True))
    alike = joint.gradient(state, PRIOR, latents, condition, draw, 0.0) / found * share
    assert (alike - alike[0, 0, 0, 0]).abs().max() < 1e-6


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_running_mean_follows_and_begins_where_nothing_is_known(divergence: Any):
    method = FVSD(divergence=divergence, memory=0.5)
    state, views, condition = method.init(PRIOR), some_views(), some_condition()
    start = {"reverse_kl": 1.0, "forward_kl": 1.0, "jensen_shannon": 0.5, "hellinger": 0.25}[divergence]
    assert state.mean.item() == start
    state.discriminator.module = _knowing_nothing(torch.log(torch.tensor(4.0)).item())
    seen = {"reverse_kl": 1.0, "forward_kl": 4.0, "jensen_shannon": 0.8, "hellinger": 0.5}[divergence]
    learnt = method.train_critic(state, PRIOR, views, condition, rng())
    assert learnt["emphasis"].item() == pytest.approx((start + seen) / 2) == state.mean.item()


def _knowing_nothing(log_ratio: float) -> Discriminator:
    discriminator = Discriminator(3)
    torch.nn.init.constant_(discriminator.last.bias, log_ratio)
    return discriminator


def test_the_discriminator_learns_to_tell_the_prior_from_the_renders():
    method, views, condition = FVSD(scale=1.0, discriminator_rate=3e-3), some_views(value=0.3), some_condition()
    state, losses = method.init(PRIOR), []
    for step in range(120):
        losses.append(method.train_critic(state, PRIOR, views, condition, rng(step))["discriminator_loss"].item())
    assert losses[0] == pytest.approx(2 * torch.log(torch.tensor(2.0)).item())
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    noise, t = torch.randn(3, 3, 8, 8, generator=rng(), dtype=torch.float64), torch.tensor([100, 200, 300])
    a, s = (
        PRIOR.alphas_cumprod[t].sqrt()[:, None, None, None],
        (1 - PRIOR.alphas_cumprod[t]).sqrt()[:, None, None, None],
    )
    with torch.no_grad():
        liked, disliked = (state.log_ratio(PRIOR, a * z0 + s * noise, t) for z0 in (2.0, -0.4))
    assert liked.min() > 0 > disliked.max()


@pytest.mark.parametrize("knobs", [{"ratio_limit": 0.5}, {"memory": 1.0}, {"memory": -0.1}])
def test_what_fvsd_cannot_do_is_refused(knobs: dict[str, float]):
    with pytest.raises(ValueError, match="ratio_limit of 1 or more"):
        FVSD(**knobs)  # pyright: ignore[reportArgumentType]
