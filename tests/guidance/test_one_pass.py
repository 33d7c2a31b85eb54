"""Both answers from one pass: what is asked, what the adapter is, and that it comes back from its file as it was."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import ASD, CSD, DDS, DSD, ISM, NFSD, PDS, SDI, SDS, SJC, UCM, VSD
from guidance.classifier_free import Ask, predict
from guidance.conditioning import Prompts
from guidance.contract import Views
from guidance.critic import Adapted
from guidance.diffusers_prior import DiffusersPrior
from guidance.drawing import make_draw
from guidance.one_pass import OnePassAdapter, add_one_pass, one_pass_notes
from guidance.piecewise import Piecewise
from tests.guidance.conftest import write_stable_diffusion


class Twice:
    """A prior whose two answers in one pass are exactly those of two passes; it counts questions."""

    def __init__(self, prior: DiffusersPrior) -> None:
        self._prior, self.rows, self.passes = prior, 0, 0
        self.takes = prior.takes | {"both"}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)

    def predict_noise(self, noisy: Any, t: Any, text: Any, pose: Any = None, extra: Any = None, adapter: Any = None):
        self.rows, self.passes = self.rows + len(noisy), self.passes + 1
        return self._prior.predict_noise(noisy, t, text, pose, extra, adapter)

    def predict_both(self, noisy: Any, t: Any, text: Any, pose: Any = None, extra: Any = None):
        self.rows, self.passes = self.rows + len(noisy), self.passes + 1
        empty = self._prior.embed([""]).expand_as(text)
        null = self._prior.predict_noise(noisy, t, empty, None if pose is None else torch.zeros_like(pose), extra)
        return self._prior.predict_noise(noisy, t, text, pose, extra), null


@pytest.fixture
def question(toy_prior: DiffusersPrior, views: Views):
    latents = toy_prior.encode(views.images).detach()
    return latents, make_draw(latents, (20, 980), torch.Generator().manual_seed(1))


METHODS = [SDS(), SJC(), ASD(), ISM(), CSD(), NFSD(), DDS(), PDS(), SDI(), UCM(), VSD(), DSD()]


@pytest.mark.parametrize("view_dependent", ["off", "perp_neg"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_every_method_is_the_same(method: Any, view_dependent: Any, toy_prior: DiffusersPrior, views: Views, question):
    latents, draw = question
    prompts = Prompts.embed(toy_prior, "a red mug", "ugly", view_dependent, source="a tree")
    condition = dataclasses.replace(prompts.condition(views), source_latents=latents + 0.1)
    twice = Twice(toy_prior)
    state = method.init(toy_prior, 0)
    one: Any = method.gradient(state, twice, latents, condition, draw, 0.5)
    two = method.gradient(state, toy_prior, latents, condition, draw, 0.5)
    assert torch.allclose(one, two, atol=1e-4 * float(two.abs().max()))


def test_guidance_asks_half_as_many_questions(toy_prior: DiffusersPrior, views: Views, question):
    latents, draw = question
    condition = Prompts.embed(toy_prior, "a red mug").condition(views)
    twice: Any = Twice(toy_prior)
    SDS().gradient(SDS().init(toy_prior), twice, latents, condition, draw, 0.5)
    assert (twice.passes, twice.rows) == (1, len(latents))


def test_an_answer_without_the_other_is_asked_for_alone(toy_prior: DiffusersPrior, views: Views, question):
    latents, draw = question
    condition = Prompts.embed(toy_prior, "a red mug").condition(views)
    twice: Any = Twice(toy_prior)
    elsewhere = latents + 1
    found = predict(twice, condition, Ask(latents, draw.timesteps), Ask(elsewhere, draw.timesteps, "null"))
    assert twice.rows == 2 * len(latents)
    expected = predict(toy_prior, condition, Ask(latents, draw.timesteps), Ask(elsewhere, draw.timesteps, "null"))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_negative_prompt_in_the_null_prompts_place_is_asked_about(toy_prior: DiffusersPrior, views: Views, question):
    latents, draw = question
    condition = Prompts.embed(toy_prior, "a red mug", "a tree", negative_as_null=True).condition(views)
    twice: Any = Twice(toy_prior)
    one = SDS().gradient(SDS().init(toy_prior), twice, latents, condition, draw, 0.5)
    assert twice.rows == 2 * len(latents)
    assert torch.equal(one, SDS().gradient(SDS().init(toy_prior), toy_prior, latents, condition, draw, 0.5))


def test_in_pieces_it_is_the_same(toy_prior: DiffusersPrior, views: Views, question):
    latents, draw = question
    condition = Prompts.embed(toy_prior, "a red mug").condition(views)
    twice: Any = Twice(toy_prior)
    whole, part = (
        SDS().gradient(SDS().init(toy_prior), p, latents, condition, draw, 0.5) for p in (twice, Piecewise(twice, 1))
    )
    assert twice.passes == 1 + len(latents)
    assert torch.allclose(whole, part, atol=1e-3 * float(whole.abs().max()))


def test_a_prior_that_is_tuned_answers_once(toy_prior: DiffusersPrior):
    twice: Any = Twice(toy_prior)
    assert "both" not in Adapted(twice, toy_prior.adapter(2, 0)).takes


# The adapter ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["epsilon", "v_prediction", "sample", "toy"])
def prior(request: pytest.FixtureRequest, tmp_path: Path, toy_folder: Path) -> tuple[DiffusersPrior, Path]:
    folder = toy_folder
    if request.param != "toy":
        folder = tmp_path / "prior"
        write_stable_diffusion(folder, request.param)
    return DiffusersPrior.load(folder, "cpu"), folder


def learnt(network: Any) -> OnePassAdapter:
    """An adapter as if it had learnt something."""
    adapter, rng = OnePassAdapter(network, 3, 0), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=rng)
    return adapter


def detached(answers: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [answer.detach() for answer in answers]


def ask(prior: DiffusersPrior, views: Views) -> dict[str, Any]:
    noisy = torch.randn(prior.encode(views.images).shape, generator=torch.Generator().manual_seed(0))
    text, t = prior.embed(["a red mug", "a tree", "a cube"]), torch.tensor([20, 500, 970])
    return {"noisy": noisy, "t": t, "text": text, "pose": views.pose if "pose" in prior.takes else None}


def test_at_first_the_prompt_makes_no_difference(prior: tuple[DiffusersPrior, Path], views: Views):
    loaded, _ = prior
    before = loaded.fingerprint()
    told, null = loaded.predict_both(**ask(loaded, views), adapter=OnePassAdapter(loaded.network, 4, 0))
    assert torch.equal(told, null) and torch.equal(told, loaded.predict_noise(**ask(loaded, views)))
    assert loaded.fingerprint() == before


def test_it_comes_back_from_its_file(prior: tuple[DiffusersPrior, Path], views: Views, tmp_path: Path):
    loaded, folder = prior
    adapter = learnt(loaded.network)
    adapter.write(tmp_path / "one.safetensors", {"steps": 7})
    assert one_pass_notes(tmp_path / "one.safetensors") == {"steps": 7}
    with_it = DiffusersPrior.load(folder, "cpu", one_pass=tmp_path / "one.safetensors")
    assert "both" in with_it.takes and "both" not in loaded.takes
    expected = detached(loaded.predict_both(**ask(loaded, views), adapter=adapter))
    found = with_it.predict_both(**ask(loaded, views))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=3e-3 * float(b.abs().max()))  # 16 bits
    assert torch.equal(with_it.predict_noise(**ask(loaded, views)), found[0])


def test_answers_are_the_networks_own_halves(prior: tuple[DiffusersPrior, Path], views: Views):
    """Noise from either half by the formulas of the kinds of prediction, written out here once more."""
    loaded, _ = prior
    adapter, question = learnt(loaded.network), ask(loaded, views)
    raw: list[torch.Tensor] = []
    handle = adapter.network.conv_out.register_forward_hook(lambda module, given, out: raw.append(out.detach()))
    found = detached(loaded.predict_both(**question, adapter=adapter))
    handle.remove()
    abar = loaded.alphas_cumprod[question["t"]].view(-1, 1, 1, 1)
    a, s, z = abar.sqrt(), (1 - abar).sqrt(), question["noisy"]
    for half, noise in zip(raw[0].chunk(2, 1), found, strict=True):
        expected = {"epsilon": half, "v_prediction": s * z + a * half, "sample": (z - a * half) / s}
        assert torch.allclose(noise, expected[loaded.prediction_type], atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-4)


def test_critics_adapt_a_prior_that_answers_twice(prior: tuple[DiffusersPrior, Path], views: Views, tmp_path: Path):
    loaded, folder = prior
    learnt(loaded.network).write(tmp_path / "one.safetensors", {})
    with_it = DiffusersPrior.load(folder, "cpu", one_pass=tmp_path / "one.safetensors")
    question: dict[str, Any] = ask(with_it, views) | {"pose": views.pose}
    without = with_it.predict_noise(**question)
    assert torch.equal(with_it.predict_noise(**question, adapter=with_it.adapter(2, 0)), without)


def test_gradients_reach_the_adapter_alone(toy_prior: DiffusersPrior, views: Views):
    adapter = learnt(toy_prior.network)
    told, null = toy_prior.predict_both(**ask(toy_prior, views), adapter=adapter)
    (told - 2 * null).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())
    assert all(p.grad is None for p in toy_prior.network.parameters())


# What is refused ------------------------------------------------------------------------------------------------------


def test_without_an_adapter_there_is_one_answer(toy_prior: DiffusersPrior, views: Views):
    with pytest.raises(ValueError, match="one answer a pass; `studio distill-guidance`"):
        toy_prior.predict_both(**ask(toy_prior, views))


def test_other_files_are_refused(toy_folder: Path, toy_prior: DiffusersPrior, tmp_path: Path):
    missing, other, lora = (tmp_path / f"{name}.safetensors" for name in ("missing", "other", "lora"))
    with pytest.raises(ValueError, match="there is no file"):
        DiffusersPrior.load(toy_folder, "cpu", one_pass=missing)
    other.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="no safetensors file of one-pass guidance"):
        DiffusersPrior.load(toy_folder, "cpu", one_pass=other)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, lora)
    with pytest.raises(ValueError, match="`studio distill-guidance` makes them"):
        DiffusersPrior.load(toy_folder, "cpu", one_pass=lora)
    for head, words in (('{"format": "2"}', "another format"), ("[1]", "no safetensors file of one-pass guidance")):
        save_file({"a": torch.zeros(1)}, other, {"dreamkiln one-pass guidance": head})
        with pytest.raises(ValueError, match=words):
            DiffusersPrior.load(toy_folder, "cpu", one_pass=other)


def test_the_same_adapter_is_the_same_file_open_to_all(toy_prior: DiffusersPrior, tmp_path: Path):
    files = [tmp_path / name for name in ("one.safetensors", "two.safetensors", "plain")]
    for file in files[:2]:
        learnt(toy_prior.network).write(file, {"prior": "toy", "date": "today", "of": 7})
    files[2].touch()
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len({file.stat().st_mode for file in files}) == 1


def test_that_of_another_network_is_refused(toy_prior: DiffusersPrior, diffusion_folder: Path, tmp_path: Path):
    learnt(toy_prior.network).write(tmp_path / "toy.safetensors", {})
    with pytest.raises(ValueError, match="of another network"):
        DiffusersPrior.load(diffusion_folder, "cpu", one_pass=tmp_path / "toy.safetensors")


def test_networks_without_room_for_it_are_refused(toy_prior: DiffusersPrior):
    with_it = OnePassAdapter(toy_prior.network, 2, 0).network
    with pytest.raises(ValueError, match="U-Nets that text alone prompts"):
        add_one_pass(with_it, Path("any"))
