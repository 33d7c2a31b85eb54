"""What holds for every method in the union, whatever its options: a new method is tested by existing."""

import dataclasses
import subprocess
import sys
from typing import Any, get_args, get_type_hints

import pytest
import torch

from guidance.contract import Condition, Draw, Guidance, Views
from guidance.controls import Controls
from guidance.drawing import make_draw
from guidance.methods import AnyGuidance
from guidance.schedules import Schedule
from guidance.testing import GaussianPrior, embedding, oracle_gradient
from studio.codec import decode, encode, members

METHODS = list(members(AnyGuidance).values())
PRIOR = GaussianPrior()
OPTIONS = {
    "plain": Controls(),
    "falling scale": Controls(final_scale=1.5),
    "random scale": Controls(random_scale=(2.0, 9.0)),
    "rescaled, clamped": Controls(rescale=0.7, clamp=1.0),
    "score clamp": Controls(score_clamp=Schedule(0.5, 2.0)),
    "norm": Controls(max_norm=1.5),
    "weight": Controls(loss_weight=0.3),
}
COUNT = 4
"""Samples of a batch."""


def only(value: Any, i: int) -> Any:
    """Sample ``i`` of a condition or a draw, as a batch of one."""
    picked = {
        field.name: part[i : i + 1] if isinstance(part := getattr(value, field.name), torch.Tensor) else part
        for field in dataclasses.fields(value)
    }
    return dataclasses.replace(value, **picked)


def case(repelled: bool = False, size: int = 8) -> tuple[torch.Tensor, Condition, Draw]:
    """Latents, a condition with everything a method may ask for, and a draw; samples differ in everything."""
    rng = torch.Generator().manual_seed(3)
    count = COUNT

    def text(*gaussians: tuple[float, float]) -> torch.Tensor:
        return torch.cat([embedding(g) for g in gaussians])

    latents = torch.randn(count, 3, size, size, generator=rng, dtype=torch.float64)
    away = torch.stack([text((1.0, 0.5), (0.0, 0.3), (2.0, 1.0), (-2.0, 0.2)), text(*[(-1.0, 0.4)] * 4)], 1)
    condition = Condition(
        text=text((2.0, 0.25), (-1.0, 0.5), (0.0, 2.0), (0.5, 0.1)),
        plain=text((1.8, 0.3), (-1.2, 0.4), (0.1, 1.0), (0.4, 0.2)),
        negative=text((-2.0, 0.25), (0.3, 0.5), (1.0, 0.2), (0.0, 0.9)),
        null=text((0.0, 1.0)).expand(count, -1, -1),
        camera=torch.eye(4).expand(count, 4, 4),
        source=text((-1.0, 0.25), (1.0, 0.5), (2.0, 2.0), (-0.5, 0.1)),
        source_latents=torch.randn(count, 3, size, size, generator=rng, dtype=torch.float64),
        mask=torch.rand(count, 1, size, size, generator=rng),
        repelled=away if repelled else None,
        repelled_weight=-torch.rand(count, 2, generator=rng).double() if repelled else None,
    )
    return latents, condition, make_draw(latents, (20, 980), rng)


def gradient(knobs: Any, latents: Any, condition: Any, draw: Any, progress: float = 0.4) -> torch.Tensor:
    with torch.no_grad():
        return knobs.gradient(knobs.init(PRIOR), PRIOR, latents, condition, draw, progress)


# Form -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_it_is_a_frozen_dataclass_of_knobs_that_says_what_it_does(method: type):
    assert dataclasses.is_dataclass(method)
    assert method.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    assert "arXiv" in (method.__doc__ or "")
    knobs = method()
    assert isinstance(knobs, Guidance)
    assert isinstance(knobs.requires, frozenset)
    hash(knobs)
    assert decode(method, encode(knobs)) == knobs


@pytest.mark.parametrize("method", METHODS)
def test_its_state_is_a_module_that_checkpoints(method: type):
    state = method().init(PRIOR)
    assert isinstance(state, torch.nn.Module)
    state.load_state_dict(state.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_it_is_set_from_a_command_line(method: type):
    import tyro

    assert tyro.cli(method, args=[]) == method()
    assert tyro.cli(method, args=["--controls.max-norm", "3"]).controls.max_norm == 3
    if "scale" in {field.name for field in dataclasses.fields(method)}:
        assert tyro.cli(method, args=["--scale", "3"]).scale == 3


def test_importing_guidance_loads_no_model_library():
    check = "import guidance, guidance.diffusers_prior, guidance.prior_folder, guidance.testing, sys; "
    check += "sys.exit(any(name in sys.modules for name in ('diffusers', 'transformers', 'peft', 'tyro')))"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repelled", [False, True], ids=["", "perp-neg"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_samples_one_by_one(method: type, options: Controls, repelled: bool):
    knobs, (latents, condition, draw) = method(controls=options), case(repelled)
    batch = gradient(knobs, latents, condition, draw)
    assert batch.shape == latents.shape and batch.isfinite().all() and batch.abs().sum() > 0
    for i in range(len(latents)):
        alone = gradient(knobs, latents[i : i + 1], only(condition, i), only(draw, i))
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", [m for m in METHODS if "weighting" in {f.name for f in dataclasses.fields(m)}])
def test_every_weighting_it_admits_keeps_samples_apart(method: type):
    latents, condition, draw = case()
    for kind in get_args(get_type_hints(method)["weighting"]):
        knobs = method(weighting=kind)
        batch = gradient(knobs, latents, condition, draw)
        alone = gradient(knobs, latents[2:3], only(condition, 2), only(draw, 2))
        torch.testing.assert_close(batch[2:3], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_a_function_of_its_arguments(method: type):
    latents, condition, draw = case()
    knobs = method()
    state, before = knobs.init(PRIOR), latents.clone()
    memory = {name: value for name, value in state.state_dict().items() if isinstance(value, torch.Tensor)}
    memory = {name: value.clone() for name, value in memory.items()}
    with torch.no_grad():
        first = knobs.gradient(state, PRIOR, latents, condition, draw, 0.4)
        again = knobs.gradient(state, PRIOR, latents, condition, draw, 0.4)
    assert torch.equal(first, again) and torch.equal(latents, before)
    assert all(torch.equal(value, state.state_dict()[name]) for name, value in memory.items())


@pytest.mark.parametrize("method", METHODS)
def test_options_do_what_they_say(method: type):
    latents, condition, draw = case()
    plain = gradient(method(controls=Controls()), latents, condition, draw)
    assert torch.equal(gradient(method(controls=Controls(loss_weight=0.5)), latents, condition, draw), 0.5 * plain)
    clipped = gradient(method(controls=Controls(max_norm=1e-3)), latents, condition, draw)
    assert clipped.flatten(1).norm(dim=1).max() <= 1e-3 * (1 + 1e-12)
    clamped = gradient(method(controls=Controls(score_clamp=Schedule(1e-3))), latents, condition, draw)
    assert clamped.abs().max() <= 1e-3
    unmasked = gradient(method(controls=Controls()), latents, dataclasses.replace(condition, mask=None), draw)
    assert condition.mask is not None
    torch.testing.assert_close(plain, unmasked * condition.mask)


@pytest.mark.parametrize("method", [m for m in METHODS if "scale" in {f.name for f in dataclasses.fields(m)}])
def test_a_random_scale_is_drawn_apart_from_everything_else(method: type):
    latents, condition, draw = case()
    drawn = gradient(method(controls=Controls(random_scale=(2.0, 9.0))), latents, condition, draw)
    for i in range(len(latents)):
        knobs = method(scale=2.0 + 7.0 * draw.scale[i].item(), controls=Controls())
        alone = gradient(knobs, latents[i : i + 1], only(condition, i), only(draw, i))
        torch.testing.assert_close(drawn[i : i + 1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_stays_so_and_stays_alone(method: type):
    latents, condition, draw = case()
    latents[1, 0, 2, 3] = float("nan")
    found = gradient(method(), latents, condition, draw)
    assert not found[1].isfinite().all()
    assert found[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_the_oracle_takes_it(method: type):
    at: dict[str, Any] = {"z0": -1.0, "n": 0.3}
    values = [oracle_gradient(method(), t=t, **at) for t in (50, 300, 900)]
    assert len(set(values)) == 3 and values == [oracle_gradient(method(), t=t, **at) for t in (50, 300, 900)]


# Losses ---------------------------------------------------------------------------------------------------------------


def some_views(count: int = 3) -> Views:
    rng = torch.Generator().manual_seed(5)
    images, source = torch.rand(2, count, 3, 8, 8, generator=rng).unbind()
    return Views(images.requires_grad_(), torch.eye(4).expand(count, 4, 4), torch.ones(count, 3), source=source)


def some_condition(count: int = 3) -> Condition:
    prior = GaussianPrior({"bad": (-1, 0.5), "before": (-2, 0.25)})
    text, negative, null, source = (prior.embed([p]).expand(count, -1, -1) for p in ("chair", "bad", "", "before"))
    return Condition(text, negative, null, camera=torch.eye(4).expand(count, 4, 4), source=source)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_passes_on_exactly_the_gradient_it_traced(method: type):
    views, knobs = some_views(), method()
    loss = knobs.loss(knobs.init(PRIOR), PRIOR, views, some_condition(), 0.3, torch.Generator().manual_seed(1))
    (passed,) = torch.autograd.grad(loss.value, views.images)
    assert {"value", "gradient_norm", "timestep"} <= set(loss.diagnostics)
    if loss.resting:
        assert passed.abs().max() == 0
    else:
        assert passed.abs().sum() > 0
        assert torch.equal(passed, (loss.trace.gradient / 3 * 2).float())  # encoding doubles


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_a_function_of_its_seed(method: type):
    def step(seed: int) -> list[torch.Tensor]:
        knobs, views, rng = method(controls=Controls()), some_views(), torch.Generator().manual_seed(seed)
        state = knobs.init(PRIOR, 7)
        loss = knobs.loss(state, PRIOR, views, some_condition(), 0.3, rng)
        knobs.train_critic(state, PRIOR, views, some_condition(), rng)
        memory = [value for value in state.state_dict().values() if isinstance(value, torch.Tensor)]
        return [loss.value, *memory]

    first, again, other = step(1), step(1), step(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_the_scene_gets_nothing_from_the_critic_and_no_graph_leaks_into_it(method: type):
    views, knobs = some_views(), method()
    state = knobs.init(PRIOR)
    loss = knobs.loss(state, PRIOR, views, some_condition(), 0.3, torch.Generator().manual_seed(1))
    assert all(parameter.grad is None for parameter in state.parameters())
    loss.value.backward()
    assert all(parameter.grad is None for parameter in state.parameters())
    assert views.images.grad is not None
    before = views.images.grad.clone()
    knobs.train_critic(state, PRIOR, views, some_condition(), torch.Generator().manual_seed(2))
    assert torch.equal(views.images.grad, before)
