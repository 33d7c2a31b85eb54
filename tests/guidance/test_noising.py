"""The forward process: conversions agree with one another, weights with the published figures."""

import pytest
import torch

from guidance.noising import (
    add_noise,
    alphas_cumprod_of_flow,
    clean_estimate,
    clean_from_flow,
    clean_from_v,
    flow_input,
    levels,
    noise_estimate,
    noise_from_flow,
    noise_from_v,
    weight,
)
from guidance.testing import GaussianPrior

PRIOR = GaussianPrior()
T = torch.tensor([0, 20, 500, 999])


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 4, 3, 2, 2, generator=rng, dtype=torch.float64).unbind()
    return clean, noise


def test_the_clean_latent_and_the_noise_come_back(pair):
    clean, noise = pair
    noisy = add_noise(PRIOR, clean, noise, T)
    torch.testing.assert_close(clean_estimate(PRIOR, noisy, noise, T), clean)
    torch.testing.assert_close(noise_estimate(PRIOR, noisy, clean, T), noise)


def test_v_prediction_is_the_same_answer(pair):
    clean, noise = pair
    a, s = levels(PRIOR, T, clean)
    noisy, v = a * clean + s * noise, a * noise - s * clean
    torch.testing.assert_close(noise_from_v(PRIOR, noisy, v, T), noise)
    torch.testing.assert_close(clean_from_v(PRIOR, noisy, v, T), clean)


def test_rectified_flow_is_the_same_answer(pair):
    clean, noise = pair
    z_sigma, sigma = flow_input(PRIOR, add_noise(PRIOR, clean, noise, T), T)
    torch.testing.assert_close(z_sigma, sigma * noise + (1 - sigma) * clean)
    torch.testing.assert_close(noise_from_flow(z_sigma, noise - clean, sigma), noise)
    torch.testing.assert_close(clean_from_flow(z_sigma, noise - clean, sigma), clean)
    torch.testing.assert_close(alphas_cumprod_of_flow(sigma.flatten()), PRIOR.alphas_cumprod[T])


@pytest.mark.parametrize(
    ("t", "sds", "fantasia3d", "snr_sqrt"),
    [(20, 0.0187, 0.0185, 0.1380), (500, 0.7237, 0.3804, 1.6183), (980, 0.9942, 0.0760, 13.043)],
)
def test_weights_have_the_published_values(t: int, sds: float, fantasia3d: float, snr_sqrt: float):
    where, like = torch.tensor([t]), torch.zeros(1, dtype=torch.float64)
    assert weight(PRIOR, where, "sds", like).item() == pytest.approx(sds, abs=5e-5)
    assert weight(PRIOR, where, "uniform", like).item() == 1
    assert weight(PRIOR, where, "fantasia3d", like).item() == pytest.approx(fantasia3d, abs=5e-5)
    assert weight(PRIOR, where, "snr_sqrt", like).item() == pytest.approx(snr_sqrt, rel=4e-4)
