"""What critics learn and what not: renders, never the scene or the prior; and what of it a checkpoint holds."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from guidance import BSD, DSD, FVSD, VSD
from guidance.contract import Condition, Draw, Views
from guidance.controls import Controls
from guidance.critic import Critic, Learner, Learning
from guidance.diffusers_prior import DiffusersPrior
from studio.checkpoints import read_state, write_state
from tests.guidance.learning import (
    PRIOR,
    Recorder,
    different_samples,
    memory,
    named,
    rng,
    same,
    some_condition,
    some_views,
)


@pytest.fixture
def case() -> tuple[torch.Tensor, Condition, Draw]:
    return different_samples()


# What a critic learns -------------------------------------------------------------------------------------------------


def test_a_critic_learns_the_renders():
    # All renders have the value 0.65, latents .3, a Gaussian of no spread; the prior expects N(2, .25).
    views = some_views(value=0.65)
    condition = some_condition(views=views)
    critic = Critic(PRIOR, Learning(rate=0.05), 0)
    losses = []
    for step in range(300):
        losses.append(critic.train_step(PRIOR, PRIOR.encode(views.images), condition, rng(step))["critic_loss"].item())
    assert sum(losses[-50:]) < 0.1 * sum(losses[:50])
    adapter: Any = critic.adapter
    assert adapter.shift.item() == pytest.approx(0.3 - 2.0, abs=0.05)
    assert adapter.log_spread.item() < -2
    assert critic.learner.steps == 300


@pytest.mark.parametrize("kind", [VSD, DSD, BSD, FVSD])
def test_the_critic_is_told_the_camera_and_the_prompt_without_a_direction(kind: type, case):
    latents, condition, draw = case
    prior, method = Recorder(), kind()
    method.gradient(method.init(prior), prior, latents, condition, draw, 0.0)
    target, critic = prior.asked  # the branches of the target in one pass
    assert torch.equal(critic["text"], condition.plain) and torch.equal(critic["pose"], condition.camera)
    assert torch.equal(target["text"], torch.cat([condition.text, condition.null]))
    assert critic["adapter"] is not None and not critic["graph"] and not target["graph"]
    # This prior takes no camera; one that is tuned on a scene does, in all but the null branch.
    if kind is BSD:
        assert torch.equal(target["pose"], torch.cat([torch.eye(4).expand(4, 4, 4), torch.zeros(4, 4, 4)]))
    else:
        assert target["pose"] is None


@pytest.mark.parametrize(("blind", "low", "high"), [(0.0, 0, 0), (0.1, 5, 40), (1.0, 200, 200)])
def test_the_camera_is_left_out_now_and_then(blind: float, low: int, high: int, case):
    latents, condition, _ = case
    prior = Recorder()
    critic = Critic(prior, Learning(blind=blind), 0)
    for step in range(50):
        critic.train_step(prior, latents, condition, rng(step))
    poses = torch.cat([asked["pose"] for asked in prior.asked])
    left_out = int((poses == 0).all((1, 2)).sum())
    assert low <= left_out <= high and len(poses) == 200
    assert (poses[(poses != 0).any(2).any(1)] == torch.eye(4)).all()
    times = torch.cat([asked["t"] for asked in prior.asked])
    assert times.min() < 20 and times.max() > 980  # the whole schedule
    assert all(torch.equal(asked["text"], condition.plain) and asked["graph"] for asked in prior.asked)


def test_views_of_a_group_share_a_timestep():
    for controls, alike in [(Controls(), False), (Controls(shared_t=True), True), (Controls(group=True), True)]:
        for method in (VSD(controls=controls), FVSD(controls=controls), BSD(controls=controls)):
            prior = Recorder()
            method.train_critic(method.init(prior), prior, some_views(), some_condition(), rng())  # pyright: ignore[reportArgumentType]
            learnt = next(asked for asked in prior.asked if asked["graph"])
            assert (len(set(learnt["t"].tolist())) == 1) == alike


# Scene and critic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [VSD(), DSD(), BSD(tuning_steps=0), BSD(), FVSD()], ids=named)
def test_scene_and_critic_never_see_each_others_gradients(method: Any):
    raw = torch.zeros(3, 3, 8, 8, requires_grad=True)
    images = raw.sigmoid()
    views = dataclasses.replace(some_views(), images=images)
    condition, state = some_condition(), method.init(PRIOR)
    learnt = memory(state)
    loss = method.loss(state, PRIOR, views, condition, 0.0, rng())
    loss.value.backward(retain_graph=True)
    assert same(memory(state), learnt) and all(p.grad is None for p in state.parameters())
    assert raw.grad is not None and (raw.grad.abs().sum() > 0) != loss.resting
    before, scene = raw.grad.clone(), raw.detach().clone()
    method.train_critic(state, PRIOR, views, condition, rng())
    assert torch.equal(raw.grad, before) and torch.equal(raw, scene)
    assert not same(memory(state), learnt)


def test_latents_on_a_graph_teach_the_critic_and_get_nothing_back(case):
    latents, condition, _ = case
    Critic(PRIOR, Learning(), 0).train_step(PRIOR, latents.requires_grad_(), condition, rng())
    assert latents.grad is None


@pytest.fixture(scope="session")
def diffusion(diffusion_folder: Path) -> DiffusersPrior:
    return DiffusersPrior.load(diffusion_folder, torch.device("cpu"))


@pytest.mark.parametrize("method", [VSD(), BSD(cycle=2, tuning_steps=1, edit_steps=2), FVSD()], ids=named)
@pytest.mark.parametrize("name", ["toy_prior", "diffusion"])
def test_a_run_leaves_the_prior_as_it_was(method: Any, name: str, request: pytest.FixtureRequest, views: Views):
    prior: DiffusersPrior = request.getfixturevalue(name)
    before = prior.fingerprint()
    raw = torch.zeros(3, 3, 64, 64, requires_grad=True)
    optimiser, state = torch.optim.Adam([raw], 0.05), method.init(prior, 3)
    untrained, moved = memory(state), False
    for step in range(3):
        shown = dataclasses.replace(views, images=raw.sigmoid())
        condition, generator = some_condition(prior, shown), rng(step)
        loss = method.loss(state, prior, shown, condition, step / 3, generator)
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
        learnt = method.train_critic(state, prior, shown, condition, generator)
        assert all(value.isfinite().all() for value in learnt.values())
        moved = moved or not loss.resting
    assert prior.fingerprint() == before
    assert not same(memory(state), untrained) and moved and raw.detach().abs().max() > 0.01


# What is not finite ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [VSD(), DSD(), BSD(tuning_steps=0), BSD(), FVSD()], ids=named)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_teaches_nothing_and_is_counted(method: Any, bad: float):
    state, condition = method.init(PRIOR), some_condition()
    method.train_critic(state, PRIOR, some_views(), condition, rng(0))  # so that there are moments to damage
    if isinstance(method, BSD):
        state.pictures = []
    before = {name: value for name, value in memory(state).items() if "pictures" not in name}
    broken = some_views()
    broken.images[:, 0, 2, 3] = bad
    learnt = method.train_critic(state, PRIOR, broken, condition, rng(1))
    after = memory(state)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith((".steps", ".skipped")) for name in changed)
    counts = [value.item() for name, value in learnt.items() if name.endswith("_skipped")]
    assert counts and set(counts) == {1.0}
    state.pictures = []
    again = method.train_critic(state, PRIOR, some_views(), condition, rng(2))
    assert all(value.isfinite() for value in again.values())
    assert [value.item() for name, value in again.items() if name.endswith("_skipped")] == counts


def test_a_skipped_step_is_as_if_it_had_not_been():
    plain, hit = (Learner(nn.Linear(2, 1), 0.1) for _ in range(2))
    hit.module.load_state_dict(plain.module.state_dict())
    for value in (1.0, math.nan, -2.0):
        for learner in (plain, hit) if math.isfinite(value) else (hit,):
            learner.descend((learner.module(torch.full((1, 2), value)) - 1).square().mean())
    assert same(memory(plain.module), memory(hit.module))
    assert (plain.skipped.item(), hit.skipped.item(), hit.steps.item()) == (0, 1, 3)


# Checkpoints ----------------------------------------------------------------------------------------------------------

TURNS = BSD(cycle=5, tuning_steps=4, refresh=2, album=4, edit_steps=2)
RESUMED: list[Any] = [
    *((method, "gaussian") for method in (VSD(), DSD(), FVSD(), BSD(tuning_steps=0), TURNS)),
    *((method, "toy_prior") for method in (VSD(), FVSD(), TURNS)),
]


@pytest.mark.parametrize(("method", "name"), RESUMED, ids=named)
def test_a_resumed_critic_learns_the_very_same(method: Any, name: str, request: pytest.FixtureRequest, tmp_path: Path):
    prior: Any = PRIOR if name == "gaussian" else request.getfixturevalue(name)
    views = some_views(prior)
    condition = some_condition(prior, views)

    def learn(state: nn.Module, steps: range) -> nn.Module:
        for step in steps:
            method.train_critic(state, prior, views, condition, rng(step))
        return state

    whole = learn(method.init(prior, 1), range(3))
    write_state(tmp_path / "state", {"guidance": dict(whole.state_dict())})
    resumed = method.init(prior, 2)
    resumed.load_state_dict(read_state(tmp_path / "state")["guidance"])
    assert same(memory(resumed), memory(whole))
    assert same(memory(learn(resumed, range(3, 6))), memory(learn(whole, range(3, 6))))
    assert any("exp_avg" in name for name in memory(resumed))


def test_a_loaded_state_shares_nothing_with_the_one_it_came_from():
    method, condition = VSD(), some_condition()
    first, second = method.init(PRIOR), method.init(PRIOR)
    method.train_critic(first, PRIOR, some_views(), condition, rng())
    second.load_state_dict(first.state_dict())
    before = memory(first)
    method.train_critic(second, PRIOR, some_views(), condition, rng(1))
    assert same(memory(first), before) and not same(memory(second), before)


@pytest.mark.parametrize("kind", [VSD, DSD, BSD, FVSD])
def test_memory_begins_from_the_seed_and_leaves_global_generators_alone(kind: type, toy_prior: DiffusersPrior):
    before = torch.get_rng_state()
    first, again, other = (memory(kind().init(toy_prior, seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, again) and not same(first, other)
