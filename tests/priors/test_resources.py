"""Options of memory and speed: the same answers; compiled networks; another use of a prior that is loaded."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from guidance.diffusers_prior import DiffusersPrior
from guidance.priors.resources import Resources, refuse_without_compiler, settle
from guidance.priors.reuse import use_as

SD = "stable_diffusion"


def answer(prior: DiffusersPrior, count: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    noisy = torch.randn(count, prior.channels, 8, 8, generator=rng)
    return prior.predict_noise(noisy, torch.arange(count) * 300 + 100, prior.embed(["a fox"] * count))


def gradient(prior: DiffusersPrior) -> Tensor:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    return torch.autograd.grad(prior.encode(images).square().sum(), images)[0]


def learnt(prior: DiffusersPrior) -> list[Tensor]:
    """Gradients of an adapter's weights."""
    adapter = prior.adapter(2, seed=0)
    noisy = torch.randn(2, prior.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    text, t, pose = prior.embed(["a fox"] * 2), torch.tensor([100, 400]), torch.eye(4).expand(2, 4, 4)
    prior.predict_noise(noisy, t, text, pose, adapter=adapter).square().sum().backward()
    return [weight.grad for weight in adapter.parameters() if weight.grad is not None]


THRIFTY = Resources(offload="text", vae_slicing=True, vae_checkpointing=True, network_checkpointing=True)


def test_a_critic_learns_the_same_from_less_that_is_kept(folder_of: Callable[[str], Path], prior_of):
    thrifty = DiffusersPrior.load(folder_of(SD), "cpu", resources=THRIFTY)

    def kept(prior: DiffusersPrior) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
            adapter = prior.adapter(2, seed=0)
            prior.predict_noise(torch.zeros(1, 4, 8, 8), torch.tensor([9]), prior.embed([""]), adapter=adapter)
        return sum(sizes)

    assert kept(thrifty) < 0.5 * kept(prior_of(SD))
    for ours, plain in zip(learnt(thrifty), learnt(prior_of(SD)), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [SD, "stable_diffusion_3"])
def test_a_loaded_prior_is_used_another_way_and_back(family: str, folder_of: Callable[[str], Path]):
    prior = DiffusersPrior.load(folder_of(family), "cpu")
    plain = answer(prior), gradient(prior), prior.fingerprint()
    changed = [THRIFTY, dataclasses.replace(THRIFTY, offload="layers"), THRIFTY, Resources()]
    for resources in changed:
        prior.parts = use_as(prior.parts, resources)
        torch.testing.assert_close(answer(prior), plain[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradient(prior), plain[1], atol=1e-5, rtol=1e-4)
        waiting = [weight.is_meta for weight in prior.network.parameters()]
        assert any(waiting) == (resources.offload == "layers")
        assert bool(prior.parts.idle) == (resources.offload != "none")
        vae = prior.parts.modules["vae"]
        assert vae.is_gradient_checkpointing == vae.use_slicing == resources.vae_slicing
        assert prior.network.is_gradient_checkpointing == resources.network_checkpointing
    assert prior.fingerprint() == plain[2] and learnt(prior)


def test_tiles_are_encoded_by_themselves_and_blended(folder_of: Callable[[str], Path]):
    """Tiles of 64 pixels every 48: what no other overlaps is what the tile alone gives, 12 of 16 elements a side."""
    tiled = DiffusersPrior.load(folder_of(SD), "cpu", resources=Resources(vae_tiling=True), resolution=128)
    vae, encode = tiled.parts.modules["vae"], tiled.parts.latents.encode
    vae.tile_sample_min_size, vae.tile_latent_min_size = 64, 16
    picture = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = encode(picture)
    vae.disable_tiling()
    whole, corner = encode(picture), encode(picture[:, :, :64, :64])
    torch.testing.assert_close(found[:, :, :12, :12], corner[:, :, :12, :12])
    assert found.shape == whole.shape == (1, 4, 32, 32) and not torch.allclose(found, whole, atol=1e-3)
    assert torch.autograd.grad(found.sum(), picture)[0].abs().amin((0, 1)).gt(0).all()


def test_sliced_attention_goes_on_seeing_pictures(folder_of: Callable[[str], Path], prior_of):
    sliced = DiffusersPrior.load(folder_of("ip_adapter"), "cpu", resources=Resources(attention_slicing=True))
    kinds = {type(one).__name__ for one in sliced.network.attn_processors.values()}
    assert "SlicedAttnProcessor" in kinds and len(kinds) == 2
    noisy, t, picture = torch.randn(1, 4, 8, 8), torch.tensor([400]), torch.rand(1, 3, 16, 16)
    told, same, nothing = (
        prior.predict_noise(noisy, t, prior.embed(["a fox"]), extra=prior.see(picture) if shown else None)
        for prior, shown in ((sliced, True), (prior_of("ip_adapter"), True), (sliced, False))
    )
    torch.testing.assert_close(told, same, atol=1e-5, rtol=1e-4)
    assert (told - nothing).abs().max() > 1e-4


# Compiled -------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """What ``settle`` needs of a network."""

    is_gradient_checkpointing = False

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Something to fuse."""
        return torch.nn.functional.silu(self.layer(x)) * 2 + 1


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own code, as it compiles
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_network_says_the_same(mode):
    torch.manual_seed(0)
    block, x = Block().eval().requires_grad_(False), torch.randn(1, 2, 8, 8)
    plain, weights = block(x), {name: id(weight) for name, weight in block.named_parameters()}
    settle(block, None, Resources(compile=mode), torch.device("cpu"))
    compiled = block._compiled_call_impl
    assert compiled is not None and {name: id(weight) for name, weight in block.named_parameters()} == weights
    torch.testing.assert_close(block(x), plain)


def test_a_critic_of_a_compiled_prior_is_its_own(folder_of: Callable[[str], Path], prior_of):
    """Adapters are copies that run as they are, so nothing is compiled here; gradients reach them as before."""
    prior = DiffusersPrior.load(folder_of(SD), "cpu", resources=Resources(compile="default"))
    assert prior.network._compiled_call_impl is not None
    assert prior.adapter(2, seed=0).network._compiled_call_impl is None
    for ours, plain in zip(learnt(prior), learnt(prior_of(SD)), strict=True):
        torch.testing.assert_close(ours, plain)


def test_a_machine_without_a_compiler_is_told_so(folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"takes a C\+\+ compiler, and there is no no-such-compiler; install one, or"):
        DiffusersPrior.load(folder_of(SD), "cpu", resources=Resources(compile="default"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"takes Triton, which is not installed.*leave out --prior-options"):
        refuse_without_compiler(torch.device("cuda"))


def test_everything_else_makes_room_for_text_encoders(folder_of: Callable[[str], Path]):
    """T5 is larger than the transformers it reads for, so the most that is needed is the larger of the two."""
    prior = DiffusersPrior.load(folder_of("stable_diffusion_3"), "cpu", resources=Resources(offload="text"))
    encoders, moves = set(prior.parts.idle), []
    for name, module in prior.parts.modules.items():
        module.to = lambda device, name=name: moves.append(name)
    prior.embed(["a fox"])
    others = set(prior.parts.modules) - encoders
    assert len(encoders) >= 2 and {"transformer", "vae"} <= others
    count = len(others)
    assert set(moves[:count]) == others and set(moves[-count:]) == others
    assert set(moves[count:-count]) == encoders and moves[count:-count].count("text_encoder") == 2
    prior.embed(["a fox"])
    assert len(moves) == 2 * len(prior.parts.modules)  # known prompts move nothing
