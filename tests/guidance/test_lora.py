"""Adapters of a diffusers prior: nothing until they learn, nothing of the prior's own, and nothing left in it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from guidance.contract import Views
from guidance.diffusers_prior import DiffusersPrior
from guidance.lora import LoraAdapter
from guidance.prior_folder import save_prior
from studio.checkpoints import read_state, write_state
from tests.guidance.conftest import TOY_HINTS, toy_parts

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def diffusion(diffusion_folder: Path) -> DiffusersPrior:
    return DiffusersPrior.load(diffusion_folder, CPU)


@pytest.fixture(params=["toy_prior", "diffusion"])
def prior(request: pytest.FixtureRequest) -> DiffusersPrior:
    return request.getfixturevalue(request.param)


Ask = Callable[..., torch.Tensor]


@pytest.fixture
def ask(prior: DiffusersPrior, views: Views) -> Ask:
    """Questions to the prior that differ in adapter and pose alone."""
    rng = torch.Generator().manual_seed(0)
    noisy = torch.randn(prior.encode(views.images).shape, generator=rng)
    text, t = prior.embed(["a red mug", "", "a tree"]), torch.tensor([20, 500, 970])
    return lambda adapter=None, pose=views.pose: prior.predict_noise(noisy, t, text, pose, adapter=adapter)


def disturbed(adapter: LoraAdapter, size: float = 0.05) -> LoraAdapter:
    """The adapter as if it had learnt something."""
    rng = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight += size * torch.randn(weight.shape, generator=rng)
    return adapter


def test_it_is_nothing_at_first(prior: DiffusersPrior, views: Views, ask: Ask):
    adapter = prior.adapter(4, 0)
    for pose in (views.pose, None, torch.zeros(3, 4, 4)):
        assert torch.equal(ask(adapter, pose), ask(None, pose))


def test_it_holds_its_own_weights_alone(prior: DiffusersPrior):
    adapter = prior.adapter(4, 0)
    assert {name.split(".")[0] for name in adapter.state_dict()} == {"lora", "camera"}
    assert all(p.requires_grad and p.dtype == torch.float32 for p in adapter.parameters())
    own = {p.data_ptr() for p in prior.network.parameters()}
    assert not own & {p.data_ptr() for p in adapter.parameters()}
    assert own <= {p.data_ptr() for p in adapter.network.parameters()}  # shared, not copied
    assert sum(p.numel() for p in adapter.lora.values()) < 0.5 * sum(p.numel() for p in prior.network.parameters())


def test_every_layer_of_the_blocks_is_adapted(prior: DiffusersPrior):
    adapter = prior.adapter(3, 0)
    layers = [
        name
        for name, module in prior.network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and "block" in name.split(".")[0]
    ]
    expected = {f"{name}.lora_{part}".replace(".", "/") for name in layers for part in "AB"}
    assert set(adapter.lora) == expected and len(expected) > 40
    assert all((w.shape[0] if name.endswith("A") else w.shape[1]) == 3 for name, w in adapter.lora.items())


def test_the_prior_is_the_same_before_during_and_after(prior: DiffusersPrior, ask: Ask):
    def portrait() -> tuple:
        modules = [(name, type(module), module.training) for name, module in prior.network.named_modules()]
        return prior.fingerprint(), modules, {n: (id(p), p.requires_grad) for n, p in prior.network.named_parameters()}

    before, answer = portrait(), ask()
    adapter = prior.adapter(4, 0)
    optimiser = torch.optim.AdamW(adapter.parameters(), 1e-2)
    for _ in range(2):
        ask(adapter).square().mean().backward()
        assert portrait() == before and torch.equal(ask(), answer)
        optimiser.step()
    assert (ask(adapter) - answer).abs().max() > 1e-3
    assert portrait() == before and torch.equal(ask(), answer)
    assert all(p.grad is None for p in prior.network.parameters())


def test_a_fingerprint_notices_a_single_weight(prior: DiffusersPrior):
    before = prior.fingerprint()
    weight = prior.network.conv_in.weight.data
    value = weight[0, 0, 0, 0].item()
    weight[0, 0, 0, 0] += 1e-3
    assert prior.fingerprint() != before
    weight[0, 0, 0, 0] = value
    assert prior.fingerprint() == before


def test_the_graph_is_that_of_the_adapter_where_gradients_are_enabled(prior: DiffusersPrior, ask: Ask):
    adapter = disturbed(prior.adapter(4, 0))
    answer = ask(adapter)
    gradients = torch.autograd.grad(answer.square().sum(), list(adapter.parameters()))
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)
    with torch.no_grad():
        assert not ask(adapter).requires_grad
    assert not ask().requires_grad


def test_latents_get_no_gradient_through_it(prior: DiffusersPrior, views: Views):
    latents = prior.encode(views.images).requires_grad_()
    t, text = torch.tensor([5, 50, 500]), prior.embed([""] * 3)
    answer = prior.predict_noise(latents, t, text, adapter=prior.adapter(1, 0))
    (gradient,) = torch.autograd.grad(answer.sum(), latents, allow_unused=True)
    assert gradient is None


def test_it_is_a_function_of_the_seed_and_global_generators_stay(prior: DiffusersPrior):
    before = torch.get_rng_state()
    first, again, other = (prior.adapter(4, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert sum(not torch.equal(first[name], other[name]) for name in first) > 20


def test_the_camera_reaches_it_and_zeros_leave_it_out(prior: DiffusersPrior, views: Views, ask: Ask):
    adapter = disturbed(prior.adapter(4, 0), 0.2)
    with torch.no_grad():
        seen, blind = ask(adapter, views.pose), ask(adapter, None)
        assert torch.equal(ask(adapter, torch.zeros(3, 4, 4)), blind)
        assert adapter.camera(torch.zeros(1, 16)).abs().max() == 0 < adapter.camera(torch.ones(1, 16)).abs().max()
        assert (seen - blind).abs().amax((1, 2, 3)).min() > 1e-3
        some = views.pose.clone()
        some[1] = 0
        mixed = ask(adapter, some)
        torch.testing.assert_close(mixed[1], blind[1])
        torch.testing.assert_close(mixed[[0, 2]], seen[[0, 2]])


def test_its_state_makes_another_the_same(prior: DiffusersPrior, ask: Ask, tmp_path: Path):
    adapter, other = disturbed(prior.adapter(4, 0)), prior.adapter(4, 1)
    write_state(tmp_path / "state", {"adapter": dict(adapter.state_dict())})
    other.load_state_dict(read_state(tmp_path / "state")["adapter"])
    assert torch.equal(ask(other), ask(adapter))


def test_two_of_them_do_not_meet(prior: DiffusersPrior, ask: Ask):
    first, second = disturbed(prior.adapter(4, 0)), prior.adapter(4, 0)
    assert torch.equal(ask(second), ask())
    assert not torch.equal(ask(first), ask())


def test_passes_and_samples_are_counted(prior: DiffusersPrior, ask: Ask):
    before = (prior.evaluations, prior.images, prior.adapter_evaluations, prior.adapter_images)
    ask()
    ask(prior.adapter(1, 0))
    after = (prior.evaluations, prior.images, prior.adapter_evaluations, prior.adapter_images)
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 6, 1, 3]


def test_it_learns_in_32_bits_what_a_16_bit_network_cannot_hold(tmp_path: Path, views: Views):
    save_prior(tmp_path / "prior", *toy_parts(), TOY_HINTS)
    full, brief = (DiffusersPrior.load(tmp_path / "prior", CPU, dtype) for dtype in (torch.float32, torch.bfloat16))
    t, text = torch.tensor([20, 500, 900]), full.embed(["a tree"] * 3)
    noisy = torch.randn(3, 12, 32, 32, generator=torch.Generator().manual_seed(1))

    def ask(prior: DiffusersPrior, adapter: LoraAdapter | None = None) -> torch.Tensor:
        return prior.predict_noise(noisy, t, text, views.pose, adapter=adapter)

    adapter = brief.adapter(4, 0)
    assert torch.equal(ask(brief, adapter), ask(brief))
    assert all(p.dtype == torch.float32 for p in adapter.parameters())
    ask(brief, adapter).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters())
    with torch.no_grad():
        changes = [ask(p, disturbed(p.adapter(4, 0))) - ask(p) for p in (full, brief)]
    assert (changes[0] - changes[1]).norm() < 0.05 * changes[0].norm()
