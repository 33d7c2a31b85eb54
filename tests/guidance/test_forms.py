"""One Gaussian asked for noise, for v, for the picture and for a flow's velocity; and unique couple matching."""

import dataclasses
from typing import Any

import pytest
import torch

from guidance import SDS, UCM
from guidance.contract import Stateless
from guidance.controls import Controls
from guidance.noising import stable_diffusion_alphas
from guidance.testing import GaussianPrior, oracle_gradient
from guidance.ucm import nearest_timestep, sigmas
from tests.guidance.test_methods import METHODS, case

FORMS = ("v_prediction", "sample", "flow")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_every_form_of_a_prior_gives_the_same_gradient(method: type, form):
    latents, condition, draw = case(repelled=True)
    found = []
    for prior in (GaussianPrior(), GaussianPrior(prediction=form)):
        knobs = method(controls=Controls())
        with torch.no_grad():
            found.append(knobs.gradient(knobs.init(prior), prior, latents, condition, draw, 0.5))
    assert found[0].abs().max() > 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


# Unique couple matching -----------------------------------------------------------------------------------------------

AT: dict[str, Any] = {"z0": -1.0, "n": 0.3}


def levels(t: int) -> tuple[float, float]:
    abar = stable_diffusion_alphas()[t].item()
    return abar**0.5, (1 - abar) ** 0.5


@pytest.mark.parametrize("t", [50, 300, 900])
def test_with_plain_noise_it_is_sds_under_another_weight(t: int):
    a, s = levels(t)
    sds = oracle_gradient(SDS(weighting="uniform"), t=t, **AT)
    assert oracle_gradient(UCM(), t=t, **AT) == pytest.approx((a + s) / a * sds, rel=1e-12)


@pytest.mark.parametrize("t", [300, 900])
def test_the_noise_of_a_render_follows_the_flow_step_by_step(t: int):
    """Written out: velocities of N(2, .25) and N(0, 1), at the levels of the schedule nearest to 0, 1/3 and 2/3."""

    def velocity(z: float, sigma: float, mean: float, variance: float) -> float:
        c = 1 - sigma
        return -mean + (sigma - c * variance) * (z - c * mean) / (c * c * variance + sigma * sigma)

    shares = [s / (a + s) for a, s in map(levels, range(1000))]
    z = -1.0
    for k in range(3):
        z += velocity(z, min(shares, key=lambda share: abs(share - k / 3)), 2, 0.25) / 3
    z_sigma = shares[t] * z + (1 - shares[t]) * -1.0
    null, text = velocity(z_sigma, shares[t], 0, 1), velocity(z_sigma, shares[t], 2, 0.25)
    expected = null + 7.5 * (text - null) - (z + 1.0)
    method = dataclasses.replace(UCM(), plain_until=0.0)
    assert oracle_gradient(method, t=t, **AT) == pytest.approx(expected, rel=1e-9)


def test_its_noise_does_not_depend_on_the_draw():
    at = [oracle_gradient(UCM(plain_until=0.0), t=300, z0=-1.0, n=n) for n in (0.3, -2.0)]
    assert at[0] == at[1]


def test_its_noise_is_plain_in_1800_of_10000_steps():
    prior, method = GaussianPrior(), UCM()
    latents, condition, draw = case()
    other = dataclasses.replace(draw, noise=draw.noise + 1)
    for step, plain in ((1799, True), (1800, False)):
        found = [method.gradient(Stateless(), prior, latents, condition, d, step / 10_000) for d in (draw, other)]
        assert torch.equal(*found) is not plain


def test_levels_are_drawn_by_sigma():
    prior = GaussianPrior()
    assert sigmas(prior)[nearest_timestep(prior, 0.3)].item() == pytest.approx(0.3, abs=1e-3)
    with pytest.raises(ValueError, match="1 step or more"):
        UCM(steps=0)
