"""Every method against the exact prior: the table of the specification, its further rows, and identities on paper."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from guidance import ASD, CDS, CSD, DDS, ISM, JSD, NFSD, PDS, SDI, SDS, SJC
from guidance.contract import Condition, Draw
from guidance.controls import Controls
from guidance.inversion import carry_up
from guidance.noising import add_noise, ddim_step
from guidance.pds import published_coefficients
from guidance.schedules import Schedule
from guidance.testing import GaussianPrior, embedding, oracle_gradient

PRIOR = GaussianPrior()
AT: dict[str, Any] = {"z0": -1.0, "n": 0.3}
TABLE = {
    50: (-0.749947, -0.096764, -0.626708, -0.735420, -3.481087, -8.674465, -22.491678, -15.487374, -3.493672),
    300: (-6.596149, -0.842965, -5.535140, -6.925038, -13.829567, -16.586026, -26.479267, -16.107853, -13.413858),
    900: (-1.871911, -0.233504, -1.655577, -1.988545, -15.484070, -0.218349, -3.581427, -1.898781, -15.848358),
}
METHODS = (SDS(), CSD(), ASD(), NFSD(), ISM(), CDS(), DDS(), SJC(), SDS(form="clean"))


@pytest.mark.parametrize("t", TABLE)
@pytest.mark.parametrize("column", range(len(METHODS)), ids=lambda i: type(METHODS[i]).__name__ + str(i))
def test_the_table(column: int, t: int):
    assert oracle_gradient(METHODS[column], t=t, **AT) == pytest.approx(TABLE[t][column], abs=1e-6)


@pytest.mark.parametrize(("t", "expected"), [(199, -4.582994), (200, -4.893065)])
def test_noise_counts_as_small_below_a_fifth_of_the_schedule(t: int, expected: float):
    assert oracle_gradient(NFSD(), t=t, **AT) == pytest.approx(expected, abs=1e-6)


def numbers(z0: float, n: float, t: int, **changes: Any) -> tuple[torch.Tensor, Condition, Draw]:
    """Latents, condition and draw of the oracle's scalars."""

    def number(value: float) -> torch.Tensor:
        return torch.full((1, 1, 1, 1), value, dtype=torch.float64)

    text, negative, null = embedding((2, 0.25)), embedding((-2, 0.25)), embedding((0, 1))
    condition = Condition(text, negative, null, source=negative)
    one = torch.ones(1, dtype=torch.float64)
    draw = Draw(torch.tensor([t]), number(n), one, 0 * one, one / 2, 0)
    return number(z0), dataclasses.replace(condition, **changes), draw


def at(knobs: Any, z0: float = -1.0, n: float = 0.3, t: int = 300, progress: float = 0.0, **changes: Any) -> float:
    latents, condition, draw = numbers(z0, n, t, **changes)
    return knobs.gradient(knobs.init(PRIOR), PRIOR, latents, condition, draw, progress).item()


@pytest.mark.parametrize(("t", "expected"), [(50, -4.897556), (300, -20.996250), (900, -27.994039)])
def test_interval_scores_measured_from_the_negative_prompt(t: int, expected: float):
    knobs = ISM(base="negative", delta=Schedule(50.0), controls=Controls())
    assert at(knobs, t=t) == pytest.approx(expected, abs=1e-6)


# Closed forms: the scores of Gaussians, written out -------------------------------------------------------------------


def levels(t: int) -> tuple[float, float]:
    abar = math.prod(1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2 for i in range(t + 1))
    return math.sqrt(abar), math.sqrt(1 - abar)


def eps(z: float, t: int, mean: float, variance: float) -> float:
    a, s = levels(t)
    return s * (z - a * mean) / (a * a * variance + s * s)


def guided(z: float, t: int, scale: float) -> float:
    return eps(z, t, 0, 1) + scale * (eps(z, t, 2, 0.25) - eps(z, t, 0, 1))


def ddim(z: float, e: float, now: int, then: int) -> float:
    (a, s), (b, r) = levels(now), levels(then)
    return b * (z - s * e) / a + r * e


@pytest.mark.parametrize("t", [37, 250, 512, 851])
@pytest.mark.parametrize(("z0", "n", "scale"), [(-1.0, 0.3, 7.5), (0.6, -1.1, 3.0)])
def test_rows_that_are_in_no_table(t: int, z0: float, n: float, scale: float):
    a, s = levels(t)
    z = a * z0 + s * n
    c, u, neg, cfg = eps(z, t, 2, 0.25), eps(z, t, 0, 1), eps(z, t, -2, 0.25), guided(z, t, scale)
    here: dict[str, Any] = {"z0": z0, "n": n, "t": t}
    later = min(t + math.floor(max(0.0, 0.1 * (t - 20))), 999)
    b, r = levels(later)
    shifted = eps(b * z0 + r * n, later, 2, 0.25)
    assert oracle_gradient(ASD(scale=scale), **here) == pytest.approx(s * s * (cfg - shifted), rel=1e-9)
    assert oracle_gradient(CSD(), **here) == pytest.approx(s * s * (c - u), rel=1e-9)
    delta = u if t < 200 else u - neg
    assert oracle_gradient(NFSD(scale=scale), **here) == pytest.approx(s * s * (delta + scale * (c - u)), rel=1e-9)
    earlier = min(t, max(t - 100, 20))
    stepped = ddim(z, cfg, t, earlier)
    assert oracle_gradient(CDS(scale=scale), **here) == pytest.approx(cfg - guided(stepped, earlier, scale), rel=1e-9)
    assert oracle_gradient(SJC(scale=scale, variance_reduced=False), **here) == pytest.approx(cfg, rel=1e-9)
    source = a * 0.2 + s * n
    before = eps(source, t, 0, 1) + scale * (eps(source, t, -2, 0.25) - eps(source, t, 0, 1))
    assert oracle_gradient(DDS(scale=scale), **here, source_z0=0.2) == pytest.approx(cfg - before, rel=1e-9)
    edited = PDS(scale=scale, identity=0.3, change=2.0)
    expected = 0.3 * (z0 - 0.2) + 2 * (cfg - before)
    assert oracle_gradient(edited, **here, source_z0=0.2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("t", [20, 130, 250, 700])
def test_inversions_walk_their_grid_and_ask_at_the_level_they_have(t: int):
    z = -1.0
    for now in range(0, t, 100):
        z = ddim(z, guided(z, now, -7.5), now, min(now + 100, t))
    a, s = levels(t)
    expected = -1.0 - (z - s * guided(z, t, 7.5)) / a
    assert oracle_gradient(SDI(), t=t, **AT) == pytest.approx(expected, rel=1e-9)

    s_end, (a0, s0) = max(t - 50, 0), levels(0)
    z = a0 * -1.0 + s0 * 0.3
    for now in range(0, s_end, 200):
        z = ddim(z, eps(z, now, 0, 1), now, min(now + 200, s_end))
    reference = eps(z, s_end, 0, 1)
    z = ddim(z, reference, s_end, t)
    assert oracle_gradient(ISM(), t=t, **AT) == pytest.approx(s / a * (guided(z, t, 7.5) - reference), rel=1e-9)


def test_the_noise_of_an_inversion_has_the_variance_of_a_stochastic_sampler():
    latents, condition, draw = numbers(-1.0, 0.3, 100)
    found = []
    for seed in range(400):
        knobs = SDI(eta=0.5)
        gradient = knobs.gradient(
            knobs.init(PRIOR), PRIOR, latents, condition, dataclasses.replace(draw, seed=seed), 0.0
        )
        found.append(gradient.item())
    (a, s), (b, r) = levels(0), levels(100)
    spread = 0.5 * math.sqrt((s / r) ** 2 * (1 - (b / a) ** 2))
    # The estimate is linear in z_t: z0_hat = (z - r eps) / b.
    slope = (1 - r * (guided(1.0, 100, 7.5) - guided(0.0, 100, 7.5))) / b
    assert torch.tensor(found).std().item() == pytest.approx(abs(slope) * spread, rel=0.12)


@pytest.mark.parametrize(("stride", "psi", "chi"), [(1, 0.0, 0.0836), (2, 0.080, 0.0839)])
def test_the_published_coefficients_hang_on_the_stride(stride: int, psi: float, chi: float):
    found = published_coefficients(PRIOR, torch.tensor([300]), stride, torch.zeros(1, dtype=torch.float64))
    assert [round(value.item(), 3) for value in found] == pytest.approx([psi, chi], abs=6e-4)


def test_joint_energy_sets_in_when_its_schedule_says_so():
    assert oracle_gradient(JSD(), t=300, **AT) == pytest.approx(oracle_gradient(SDS(), t=300, **AT), abs=1e-12)
    z, (a, s) = levels(300)[0] * -1.0 + levels(300)[1] * 0.3, levels(300)
    apart = (z - s * eps(z, 300, 0, 1)) / a - (z - s * eps(z, 300, 2, 0.25)) / a
    expected = s * s * (guided(z, 300, 7.5) - 0.3 + 5 * s / a * apart)
    assert at(JSD(scale=7.5), t=300, progress=0.12) == pytest.approx(expected, rel=1e-9)


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [50, 300, 900])
def test_asynchronous_without_a_shift_is_classifier_distillation(t: int):
    still, pull = oracle_gradient(ASD(shift=0.0), t=t, **AT), oracle_gradient(CSD(), t=t, **AT)
    assert still == pytest.approx(6.5 * pull, abs=1e-12)


def test_consistency_at_one_timestep_is_nothing():
    assert oracle_gradient(CDS(gap=0.0, gap_spread=0.0), t=300, **AT) == 0
    assert oracle_gradient(CDS(), t=20, **AT) == 0  # nothing lies below the lower bound


@pytest.mark.parametrize("method", [DDS(), PDS()])
def test_an_edit_of_nothing_into_itself_is_nothing(method: Any):
    same: dict[str, Any] = {"conditional": (-2, 0.25), "negative": (-2, 0.25)}
    assert abs(oracle_gradient(method, t=300, **AT, **same)) < 1e-12
    assert abs(oracle_gradient(method, t=300, **AT)) > 0.1


@pytest.mark.parametrize("t", [50, 300, 900])
def test_the_forms_of_sds_are_one_in_other_units(t: int):
    (a, s), noise = levels(t), oracle_gradient(SJC(), t=t, **AT)
    assert oracle_gradient(SDS(), t=t, **AT) == pytest.approx(s * s * noise, abs=1e-12)
    assert oracle_gradient(SDS(form="clean"), t=t, **AT) == pytest.approx(s / a * noise, abs=1e-9)


def test_dmd_weights_measure_the_distance_to_the_estimate():
    z, (a, s) = levels(300)[0] * -1.0 + levels(300)[1] * 0.3, levels(300)
    target = guided(z, 300, 7.5)
    expected = s / a * (target - 0.3) / abs(-1.0 - (z - s * target) / a)
    assert oracle_gradient(SDS(weighting="dmd"), t=300, **AT) == pytest.approx(expected, rel=1e-9)
    assert abs(expected) == pytest.approx(1.0, rel=1e-9)  # of one number, only the sign is left


# Inversion ------------------------------------------------------------------------------------------------------------


def test_whoever_has_arrived_waits():
    asked: list[list[int]] = []

    def step(z: torch.Tensor, now: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
        asked.append(then.tolist())
        return z + (then - now)[:, None, None, None] + 0.125 * (now == then)[:, None, None, None]

    end = torch.tensor([250, 0, 100, 200])
    found = carry_up(torch.zeros(4, 1, 1, 1, dtype=torch.float64), end, 100, step)
    assert found.flatten().tolist() == [250, 0, 100, 200]
    assert asked == [[100, 0, 100, 100], [200, 0, 100, 200], [250, 0, 100, 200]]


def test_a_step_up_and_down_again_comes_back():
    latents, _, _ = numbers(0.7, 0.0, 0)
    now, then = torch.tensor([100]), torch.tensor([400])
    up = ddim_step(PRIOR, latents, latents * 0 + 0.2, now, then)
    torch.testing.assert_close(ddim_step(PRIOR, up, latents * 0 + 0.2, then, now), latents, rtol=1e-12, atol=1e-12)
    noisy = add_noise(PRIOR, latents, latents * 0 + 0.2, now)
    torch.testing.assert_close(
        ddim_step(PRIOR, noisy, latents * 0 + 0.2, now, then),
        add_noise(PRIOR, latents, latents * 0 + 0.2, then),
        rtol=1e-12,
        atol=1e-12,
    )
