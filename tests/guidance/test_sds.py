"""SDS against the exact prior: the table of values, closed forms, identities, and every knob sample by sample."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from guidance import SDS
from guidance.contract import Condition, Draw, Stateless, Views
from guidance.controls import Controls
from guidance.drawing import make_draw
from guidance.schedules import Schedule
from guidance.testing import GaussianPrior, embedding, oracle_gradient

PRIOR = GaussianPrior()
NOISE_FORM = {50: -0.749947, 300: -6.596149, 900: -1.871911}
CLEAN_FORM = {50: -3.493672, 300: -13.413858, 900: -15.848358}
UNIFORM = {50: -15.487374, 300: -16.107853, 900: -1.898781}


@pytest.mark.parametrize("t", [50, 300, 900])
def test_the_table(t: int):
    at: dict[str, Any] = {"z0": -1.0, "n": 0.3, "t": t}
    assert oracle_gradient(SDS(), **at) == pytest.approx(NOISE_FORM[t], abs=1e-6)
    assert oracle_gradient(SDS(form="clean"), **at) == pytest.approx(CLEAN_FORM[t], abs=1e-6)
    assert oracle_gradient(SDS(form="clean", controls=Controls(rescale=0.5)), **at) == pytest.approx(
        CLEAN_FORM[t], abs=1e-6
    )
    assert oracle_gradient(SDS(weighting="uniform"), **at) == pytest.approx(UNIFORM[t], abs=1e-6)


@pytest.mark.parametrize("t", [20, 137, 612, 980])
@pytest.mark.parametrize(("z0", "n", "scale"), [(-1.0, 0.3, 7.5), (0.4, -1.7, 21.0)])
def test_any_timestep_against_a_closed_form(t: int, z0: float, n: float, scale: float):
    abar = math.prod(1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2 for i in range(t + 1))
    s, a = math.sqrt(1 - abar), math.sqrt(abar)
    z = a * z0 + s * n
    conditional, null = s * (z - 2 * a) / (0.25 * abar + 1 - abar), s * z
    residual = null + scale * (conditional - null) - n
    expected = {"sds": s * s, "uniform": 1.0, "fantasia3d": a * s * s, "snr_sqrt": s / a}
    for kind, w in expected.items():
        method = SDS(scale, weighting=kind)  # pyright: ignore[reportArgumentType]
        assert oracle_gradient(method, z0=z0, n=n, t=t) == pytest.approx(w * residual, rel=1e-9)
    clean = oracle_gradient(SDS(scale, form="clean"), z0=z0, n=n, t=t)
    assert clean == pytest.approx(s / a * residual, rel=1e-9)


@pytest.mark.parametrize("t", [50, 300, 900])
def test_the_mean_over_the_noise_pulls_towards_the_mode(t: int):
    # Hermite quadrature is exact here: the gradient is linear in the noise.
    mean, variance, z0 = 0.7, 0.3, -1.0
    both: dict[str, Any] = {"z0": z0, "t": t, "conditional": (mean, variance), "null": (mean, variance)}
    average = (oracle_gradient(SDS(), n=1.0, **both) + oracle_gradient(SDS(), n=-1.0, **both)) / 2
    abar = PRIOR.alphas_cumprod[t].item()
    s, a = math.sqrt(1 - abar), math.sqrt(abar)
    assert average == pytest.approx((1 - abar) * s * a * (z0 - mean) / (abar * variance + 1 - abar), abs=1e-12)


# Knobs ----------------------------------------------------------------------------------------------------------------

KNOBS = [
    SDS(),
    SDS(form="clean", controls=Controls(rescale=0.5)),
    SDS(form="clean", controls=Controls(clamp=1.0)),
    SDS(weighting="fantasia3d"),
    SDS(weighting="snr_sqrt", controls=Controls(score_clamp=Schedule(0.5, 2.0))),
    SDS(controls=Controls(max_norm=1.5)),
    SDS(scale=9.0, controls=Controls(final_scale=3.0)),
    SDS(form="clean", controls=Controls(rescale=0.5, score_clamp=Schedule(2.0), max_norm=0.1)),
]


@pytest.fixture
def case() -> tuple[torch.Tensor, Condition, Draw]:
    rng = torch.Generator().manual_seed(3)
    latents = torch.randn(4, 3, 8, 8, generator=rng, dtype=torch.float64)
    gaussians = [(2.0, 0.25), (-1.0, 0.5), (0.0, 2.0), (0.5, 0.1)]
    condition = Condition(
        text=torch.cat([embedding(g) for g in gaussians]),
        negative=embedding((-2.0, 0.25)).expand(4, -1, -1),
        null=embedding((0.0, 1.0)).expand(4, -1, -1),
        mask=torch.rand(4, 1, 8, 8, generator=rng),
    )
    return latents, condition, make_draw(latents, (20, 980), rng)


def only(value: Any, i: int) -> Any:
    """Sample ``i`` of a condition or a draw, as a batch of one."""
    picked = {
        field.name: part[i : i + 1] if isinstance(part := getattr(value, field.name), torch.Tensor) else part
        for field in dataclasses.fields(value)
    }
    return dataclasses.replace(value, **picked)


@pytest.mark.parametrize("method", KNOBS, ids=str)
def test_a_batch_is_its_samples_one_by_one(method: SDS, case):
    latents, condition, draw = case
    batch = method.gradient(Stateless(), PRIOR, latents, condition, draw, 0.4)
    for i in range(4):
        alone = method.gradient(Stateless(), PRIOR, latents[i : i + 1], only(condition, i), only(draw, i), 0.4)
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "method",
    [
        SDS(form="clean", controls=Controls(rescale=0.5, group=True)),
        SDS(controls=Controls(max_norm=1.5, group=True)),
        SDS(weighting="dmd", controls=Controls(group=True)),
    ],
    ids=str,
)
def test_a_group_is_one_sample(method: SDS, case):
    # Four views side by side in one wide picture have the statistics of four views in a group.
    latents, condition, draw = case
    condition = dataclasses.replace(condition, text=condition.text[:1].expand(4, -1, -1))
    draw = dataclasses.replace(draw, timesteps=draw.timesteps[:1].expand(4))
    views = method.gradient(Stateless(), PRIOR, latents, condition, draw, 0.0)

    def wide(x):
        return torch.cat(list(x), -1)[None]

    one = dataclasses.replace(only(condition, 0), mask=wide(condition.mask))
    side_by_side = dataclasses.replace(only(draw, 0), noise=wide(draw.noise))
    panorama = method.gradient(Stateless(), PRIOR, wide(latents), one, side_by_side, 0.0)
    torch.testing.assert_close(wide(views), panorama, rtol=1e-9, atol=1e-9)


def test_limits_hold(case):
    latents, condition, draw = case

    def gradient(method: SDS, progress: float = 0.0) -> torch.Tensor:
        return method.gradient(Stateless(), PRIOR, latents, condition, draw, progress)

    assert gradient(SDS(controls=Controls(max_norm=0.5))).flatten(1).norm(dim=1).max().item() <= 0.5 + 1e-12
    assert gradient(SDS(controls=Controls(score_clamp=Schedule(0.5, 2.0))), 1.0).abs().max().item() <= 2
    assert gradient(SDS(controls=Controls(score_clamp=Schedule(0.5, 2.0))), 0.0).abs().max().item() <= 0.5
    unmasked = SDS().gradient(Stateless(), PRIOR, latents, dataclasses.replace(condition, mask=None), draw, 0.0)
    assert condition.mask is not None
    torch.testing.assert_close(gradient(SDS()), unmasked * condition.mask)


def test_a_mask_at_the_size_of_the_picture_is_averaged(case):
    latents, condition, draw = case
    mask = torch.zeros(4, 1, 16, 16)
    mask[..., :8] = 1
    gradient = SDS().gradient(Stateless(), PRIOR, latents, dataclasses.replace(condition, mask=mask), draw, 0.0)
    assert gradient[..., 4:].abs().max() == 0 and gradient[..., :4].abs().min() > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", KNOBS, ids=str)
def test_what_is_not_finite_stays_so(method: SDS, bad: float, case):
    latents, condition, draw = case
    broken = latents.clone()
    broken[1, 0, 2, 3] = bad
    gradient = method.gradient(Stateless(), PRIOR, broken, condition, draw, 0.4)
    assert not gradient[1].isfinite().all()
    assert gradient[[0, 2, 3]].isfinite().all()


# Losses ---------------------------------------------------------------------------------------------------------------


def some_views(count: int = 3) -> Views:
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return Views(images.requires_grad_(), torch.eye(4).expand(count, 4, 4), torch.ones(count, 3))


def some_condition(count: int = 3) -> Condition:
    text, negative, null = (PRIOR.embed([p]).expand(count, -1, -1) for p in ("a chair", "", ""))
    return Condition(text, negative, null)


def test_the_loss_passes_on_exactly_the_gradient():
    views, condition, method = some_views(), some_condition(), SDS(7.5)
    loss = method.loss(method.init(PRIOR), PRIOR, views, condition, 0.3, torch.Generator().manual_seed(1))
    (passed,) = torch.autograd.grad(loss.value, views.images)
    latents = PRIOR.encode(views.images.detach())
    draw = make_draw(latents, (20, 980), torch.Generator().manual_seed(1))
    expected = method.gradient(Stateless(), PRIOR, latents, condition, draw, 0.3)
    assert torch.equal(passed, (expected / 3 * 2).float())  # encoding doubles
    assert loss.diagnostics["value"].item() == pytest.approx(0.5 * expected.square().sum().item() / 3)
    assert loss.diagnostics["timestep"].item() == pytest.approx(draw.timesteps.double().mean().item())
    assert set(loss.diagnostics) == {"value", "gradient_norm", "timestep"}


def test_a_loss_is_a_function_of_the_generator():
    views, condition = some_views(), some_condition()

    def value(seed: int, method: SDS) -> float:
        rng = torch.Generator().manual_seed(seed)
        return method.loss(Stateless(), PRIOR, views, condition, 0.0, rng).value.item()

    assert value(1, SDS()) == value(1, SDS()) != value(2, SDS())


def test_bounds_follow_the_run():
    views, condition = some_views(64), some_condition(64)
    method = SDS(t_min=Schedule(0.98, 0.02), t_max=Schedule(0.98, 0.5))
    for progress, low, high in [(0.0, 980, 980), (1.0, 20, 500)]:
        loss = method.loss(Stateless(), PRIOR, views, condition, progress, torch.Generator().manual_seed(0))
        assert low <= loss.diagnostics["timestep"].item() <= high
    with pytest.raises(ValueError, match=r"t_min <= t_max.*0\.6 and 0\.5"):
        SDS(t_min=Schedule(0.6), t_max=Schedule(0.5)).loss(Stateless(), PRIOR, views, condition, 0.0, torch.Generator())


def test_a_critic_there_is_none():
    assert SDS().train_critic(Stateless(), PRIOR, some_views(), some_condition(), torch.Generator()) == {}


def test_the_scale_can_fall_over_the_run(case):
    latents, condition, draw = case
    falling = SDS(scale=9.0, controls=Controls(final_scale=3.0))
    for progress, scale in ((0.0, 9.0), (0.5, 6.0), (1.0, 3.0)):
        expected = SDS(scale=scale).gradient(Stateless(), PRIOR, latents, condition, draw, 0.0)
        torch.testing.assert_close(falling.gradient(Stateless(), PRIOR, latents, condition, draw, progress), expected)
