"""Methods with a critic against the exact prior: identities, and a batch against its samples."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from guidance import BSD, CSD, DSD, FVSD, SDS, VSD
from guidance.classifier_free import combine, guided, predict_branches
from guidance.contract import Condition, Draw
from guidance.controls import Controls
from guidance.noising import add_noise
from guidance.schedules import Schedule
from guidance.testing import GaussianPrior, embedding, oracle_gradient
from tests.guidance.learning import PRIOR, different_samples, knowing, named

WEIGHTS: tuple[Any, ...] = ("sds", "uniform", "fantasia3d", "snr_sqrt")
AT: dict[str, Any] = {"z0": -1.0, "n": 0.3}


@pytest.fixture
def case() -> tuple[torch.Tensor, Condition, Draw]:
    return different_samples()


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [20, 50, 300, 900, 980])
@pytest.mark.parametrize("weighting", WEIGHTS)
def test_vsd_whose_critic_knows_the_render_exactly_is_sds(t: int, weighting: Any):
    for z0, n in [(-1.0, 0.3), (0.7, -1.9)]:
        prior, latents = GaussianPrior(channels=1, resolution=1), torch.full((1, 1, 1, 1), z0, dtype=torch.float64)
        condition = Condition(embedding((2.0, 0.25)), embedding((-2.0, 0.25)), embedding((0.0, 1.0)))
        one = torch.ones(1, dtype=torch.float64)
        draw = Draw(torch.tensor([t]), n * one[:, None, None, None], one, one, one, 0)
        method = VSD(7.5, weighting=weighting)
        state: Any = method.init(prior)
        with torch.no_grad():  # N(z0, 0)
            state.adapter.shift.fill_(z0 - 2.0)
            state.adapter.log_spread.fill_(-math.inf)
        found = method.gradient(state, prior, latents, condition, draw, 0.0)
        sds = SDS(7.5, weighting=weighting)
        expected = sds.gradient(sds.init(prior), prior, latents, condition, draw, 0.0)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weighting", [*WEIGHTS, "dmd"])
def test_vsd_whose_critic_answers_as_the_guided_prior_is_zero(weighting: Any, case, monkeypatch):
    latents, condition, draw = case
    method = VSD(weighting=weighting)
    state = method.init(PRIOR)
    monkeypatch.setattr(state, "predict", lambda prior, noisy, t, c: guided(prior, noisy, t, c, 7.5))
    assert method.gradient(state, PRIOR, latents, condition, draw, 0.0).abs().max() == 0


@pytest.mark.parametrize("method", [VSD(), DSD(variation=1.0), BSD(), FVSD(), FVSD(divergence="hellinger")], ids=named)
@pytest.mark.parametrize("t", [50, 300, 900])
def test_untrained_it_is_what_csd_says_times_s_minus_1(method: Any, t: int):
    expected = 6.5 * oracle_gradient(CSD(), t=t, **AT)
    assert oracle_gradient(method, t=t, **AT) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weighting", [*WEIGHTS, "dmd"])
def test_without_a_plain_prompt_the_untrained_critic_answers_as_the_prompt(weighting: Any, case):
    latents, condition, draw = case
    condition = dataclasses.replace(condition, plain=None)
    noisy = add_noise(PRIOR, latents, draw.noise, draw.timesteps)
    conditional, null = predict_branches(PRIOR, noisy, draw.timesteps, condition)
    method, unweighted = VSD(weighting=weighting), VSD(weighting="uniform")
    found = unweighted.gradient(unweighted.init(PRIOR), PRIOR, latents, condition, draw, 0.0)
    torch.testing.assert_close(found, 6.5 * (conditional - null), rtol=1e-12, atol=1e-12)
    ratio = method.gradient(method.init(PRIOR), PRIOR, latents, condition, draw, 0.0) / found
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio), rtol=1e-9, atol=0)


@pytest.mark.parametrize("weighting", [*WEIGHTS, "dmd"])
def test_three_methods_are_vsd_where_they_should_be(weighting: Any, case):
    latents, condition, draw = case
    controls = Controls(rescale=0.3, clamp=2.0)
    vsd = VSD(5.0, weighting=weighting, controls=controls)
    expected = vsd.gradient(knowing(vsd.init(PRIOR)), PRIOR, latents, condition, draw, 0.3)
    dsd = DSD(5.0, 1.0, weighting=weighting, controls=controls)
    reverse = FVSD(5.0, "reverse_kl", weighting=weighting, controls=controls)
    for method in (dsd, reverse):
        found = method.gradient(knowing(method.init(PRIOR)), PRIOR, latents, condition, draw, 0.3)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # And BSD, while its prior has learnt nothing.
    bsd = BSD(5.0, weighting=weighting, controls=controls)
    state = bsd.init(PRIOR)
    knowing(state.critic)
    found = bsd.gradient(state, PRIOR, latents, condition, draw, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_dsd_mixes_two_differences(case):
    latents, condition, draw = case
    noisy = add_noise(PRIOR, latents, draw.noise, draw.timesteps)
    conditional, null = predict_branches(PRIOR, noisy, draw.timesteps, condition)
    for scale, variation in [(3.0, 0.0), (0.0, 2.0), (3.0, 0.25)]:
        method = DSD(scale, variation, weighting="uniform")
        state = knowing(method.init(PRIOR))
        critic = state.predict(PRIOR, noisy, draw.timesteps, condition)
        expected = scale * (conditional - null) + variation * (null - critic)
        found = method.gradient(state, PRIOR, latents, condition, draw, 0.0)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_bsd_asks_the_tuned_prior_and_the_critic(case):
    latents, condition, draw = case
    method = BSD(weighting="uniform")
    state = method.init(PRIOR)
    knowing(state.critic, 0.4)
    knowing(state.tuning, -0.7, 0.2)
    noisy, t = add_noise(PRIOR, latents, draw.noise, draw.timesteps), draw.timesteps
    conditional, null = (
        PRIOR.predict_noise(noisy, t, text, adapter=state.tuning.adapter) for text in (condition.text, condition.null)
    )
    expected = combine(conditional, null, 2.0) - state.critic.predict(PRIOR, noisy, t, condition)
    found = method.gradient(state, PRIOR, latents, condition, draw, 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# A batch is its samples -----------------------------------------------------------------------------------------------

LIMITED = Controls(rescale=0.5, clamp=1.5, score_clamp=Schedule(0.5, 2.0), max_norm=3.0)
KNOBS: list[Any] = [
    *(kind(controls=controls) for kind in (VSD, DSD, BSD, FVSD) for controls in (Controls(), LIMITED)),
    *(kind(weighting="dmd", controls=Controls(random_scale=(2.0, 9.0))) for kind in (VSD, DSD, BSD, FVSD)),
    *(FVSD(divergence=d, ratio_limit=1.2) for d in ("reverse_kl", "forward_kl", "hellinger")),  # pyright: ignore[reportArgumentType]
]


@pytest.mark.parametrize("method", KNOBS, ids=named)
def test_a_batch_is_its_samples_one_by_one(method: Any, case):
    latents, condition, draw = case
    state = knowing(method.init(PRIOR))
    batch = method.gradient(state, PRIOR, latents, condition, draw, 0.4)
    # The discriminator computes in 32 bits, and convolutions of other batches may add up in another order.
    rtol, atol = (1e-5, 1e-6) if isinstance(method, FVSD) else (1e-12, 1e-12)
    for i in range(4):

        def only(value: Any, i: int = i) -> Any:
            parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            tensors = {name: part[i : i + 1] for name, part in parts.items() if isinstance(part, torch.Tensor)}
            return dataclasses.replace(value, **tensors)

        alone = method.gradient(state, PRIOR, latents[i : i + 1], only(condition), only(draw), 0.4)
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=rtol, atol=atol)


@pytest.mark.parametrize("method", [VSD(), DSD(), BSD(), FVSD()], ids=named)
def test_the_high_levels_are_left_after_a_fifth_of_the_run(method: Any):
    assert [method.t_max(p) for p in (0.0, 0.19, 0.2, 1.0)] == [0.98, 0.98, 0.5, 0.5]
