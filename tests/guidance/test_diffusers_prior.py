"""One class for the pixel-space prior with a camera and for Stable Diffusion's layout, in every kind of prediction."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from guidance import SDS
from guidance.camera_features import camera_features
from guidance.conditioning import Prompts
from guidance.contract import Condition, Prior, Views
from guidance.diffusers_prior import DiffusersPrior
from guidance.noising import noise_estimate, noise_from_v
from guidance.prior_folder import MissingPriorError, save_prior
from guidance.sampling import sample
from tests.guidance.conftest import TOY_HINTS, toy_parts, write_stable_diffusion

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def diffusion(diffusion_folder: Path) -> DiffusersPrior:
    return DiffusersPrior.load(diffusion_folder, CPU)


@pytest.fixture(params=["toy_prior", "diffusion"])
def prior(request: pytest.FixtureRequest) -> DiffusersPrior:
    return request.getfixturevalue(request.param)


# Either kind ----------------------------------------------------------------------------------------------------------


def test_it_is_a_prior_and_frozen(prior: DiffusersPrior):
    assert isinstance(prior, Prior)
    assert len(prior.alphas_cumprod) == 1000 and prior.resolution == 64
    assert {"unet", "text_encoder"} <= set(prior.parts.modules)
    for module in prior.parts.modules.values():
        assert not (module.training or any(p.requires_grad for p in module.parameters()))


def test_shapes_and_resizing(prior: DiffusersPrior, views: Views):
    latents = prior.encode(views.images)
    assert latents.shape[:2] == (3, prior.channels) and latents.dtype == torch.float32
    assert prior.encode(torch.rand(2, 3, 96, 80)).shape[1:] == latents.shape[1:]
    assert prior.decode(latents).shape == views.images.shape
    text = prior.embed(["a red mug", "", "a blue chair"])
    noise = prior.predict_noise(latents, torch.tensor([10, 500, 990]), text, pose=views.pose)
    assert noise.shape == latents.shape and noise.isfinite().all() and noise.std() > 0.01


def test_encoding_is_differentiable_and_predicting_is_not(prior: DiffusersPrior, views: Views):
    images = views.images.requires_grad_()
    latents = prior.encode(images)
    (gradient,) = torch.autograd.grad(latents.square().sum(), images, retain_graph=True)
    assert gradient.abs().sum() > 0
    assert not prior.predict_noise(latents, torch.tensor([1, 2, 3]), prior.embed([""] * 3)).requires_grad


def test_embeddings_are_computed_once_and_keep_their_order(prior: DiffusersPrior, monkeypatch):
    asked: list[list[str]] = []
    encode = prior._encode_text
    monkeypatch.setattr(prior, "_embedded", {})
    monkeypatch.setattr(prior, "_encode_text", lambda prompts: asked.append(prompts) or encode(prompts))
    first = prior.embed(["a red mug", "", "a red mug"])
    second = prior.embed(["a tree", "a red mug"])
    assert asked == [["a red mug", ""], ["a tree"]]
    assert torch.equal(first[0], first[2]) and torch.equal(first[0], second[1])
    torch.testing.assert_close(second[0], encode(["a tree", ""])[0])
    assert (first[0] - first[1]).abs().max() > 0.01


def test_a_method_runs_on_it(prior: DiffusersPrior, views: Views):
    condition = Prompts.embed(prior, "a red mug").condition(views)
    images = views.images.requires_grad_()
    method = SDS(7.5, form="clean")
    loss = method.loss(
        method.init(prior), prior, Views(images, views.pose, views.background), condition, 0.0, torch.Generator()
    )
    (gradient,) = torch.autograd.grad(loss.value, images)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_sampling_is_a_function_of_the_seed(prior: DiffusersPrior, views: Views):
    condition = Prompts.embed(prior, "a red mug").condition(views)
    pictures = sample(prior, condition, steps=3, seed=1)
    assert pictures.shape == views.images.shape and pictures.min() >= 0 and pictures.max() <= 1
    assert torch.equal(pictures, sample(prior, condition, steps=3, seed=1))
    assert not torch.equal(pictures, sample(prior, condition, steps=3, seed=2))
    with pytest.raises(ValueError, match="1 to 1000 steps, not 0"):
        sample(prior, condition, steps=0)


# The pixel-space prior ------------------------------------------------------------------------------------------------


def test_pixels_come_back(toy_prior: DiffusersPrior, views: Views):
    assert toy_prior.pixel_space and toy_prior.channels == 12
    assert toy_prior.takes == {"pose", "background"}
    latents = toy_prior.encode(views.images)
    assert torch.equal(latents, F.pixel_unshuffle(views.images * 2 - 1, 2))
    torch.testing.assert_close(toy_prior.decode(latents), views.images, atol=1e-7, rtol=0)


def test_the_network_is_fed_as_in_training(toy_prior: DiffusersPrior, views: Views):
    t, text = torch.tensor([3, 300, 900]), toy_prior.embed(["a red mug", "a tree", ""])
    noisy = torch.randn(3, 12, 32, 32, generator=torch.Generator().manual_seed(0))
    features = camera_features(views.pose, views.background)
    v = toy_prior.network(noisy, t, text, class_labels=features).sample
    given = toy_prior.predict_noise(noisy, t, text, pose=views.pose, extra={"background": views.background})
    torch.testing.assert_close(given, noise_from_v(toy_prior, noisy, v, t))


def test_a_pose_of_zeros_leaves_the_camera_out_and_white_is_the_background(toy_prior: DiffusersPrior, views: Views):
    t, text = torch.tensor([3, 300, 900]), toy_prior.embed([""] * 3)
    noisy = torch.randn(3, 12, 32, 32, generator=torch.Generator().manual_seed(0))
    blind = toy_prior.predict_noise(noisy, t, text)
    white = {"background": torch.ones(3, 3)}
    assert torch.equal(blind, toy_prior.predict_noise(noisy, t, text, pose=torch.zeros(3, 4, 4), extra=white))
    assert (blind - toy_prior.predict_noise(noisy, t, text, pose=views.pose)).abs().max() > 1e-3
    some = views.pose.clone()
    some[1] = 0
    mixed = toy_prior.predict_noise(noisy, t, text, pose=some)
    torch.testing.assert_close(mixed[1], blind[1])


def test_the_folder_says_what_the_prior_knows(toy_prior: DiffusersPrior, toy_folder: Path):
    assert toy_prior.hints["words"] == ("red",) and toy_prior.hints["distance"] == 2.6
    index = json.loads((toy_folder / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert not list(toy_folder.parent.glob(".*"))


def test_saving_keeps_the_weights_and_the_caller_keeps_its_own(tmp_path: Path):
    unet, text_encoder, words, schedule = toy_parts()
    unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    before = copy.deepcopy(unet.state_dict())
    for half in (True, False):  # the second replaces the first
        save_prior(tmp_path / "prior", unet, text_encoder, words, schedule, TOY_HINTS, half=half)
    assert unet.dtype == torch.float32 and unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    loaded = DiffusersPrior.load(tmp_path / "prior", CPU).network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in before.items())
    assert [path.name for path in tmp_path.iterdir()] == ["prior"]


def test_sixteen_bits_load_to_the_type_asked(toy_folder: Path, views: Views, toy_prior: DiffusersPrior):
    stored = (toy_folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    count = sum(p.numel() for p in toy_prior.network.parameters())
    assert stored < 2.2 * count and toy_prior.dtype == torch.float32
    brief = DiffusersPrior.load(toy_folder, CPU, torch.bfloat16)
    t, text = torch.tensor([300] * 3), toy_prior.embed(["a tree"] * 3)
    noisy = torch.randn(3, 12, 32, 32)
    full = toy_prior.predict_noise(noisy, t, text, pose=views.pose)
    short = brief.predict_noise(noisy, t, text, pose=views.pose)
    assert short.dtype == torch.float32 and (full - short).abs().max() < 0.1


# Stable Diffusion's layout --------------------------------------------------------------------------------------------


def test_a_latent_prior(diffusion: DiffusersPrior, views: Views):
    assert not diffusion.pixel_space and diffusion.channels == 4 and diffusion.takes == frozenset()
    moments = diffusion.parts.modules["vae"].encode(views.images * 2 - 1).latent_dist
    torch.testing.assert_close(diffusion.encode(views.images), moments.mean * 0.18215)
    assert diffusion.alphas_cumprod[500].item() == pytest.approx(1 - 0.7237, abs=5e-5)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_every_kind_of_prediction_is_converted(kind, diffusion: DiffusersPrior, tmp_path: Path):
    write_stable_diffusion(tmp_path / "prior", kind)
    other = DiffusersPrior.load(tmp_path / "prior", CPU)
    noisy, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([20, 700])
    text = diffusion.embed(["a tree", "a red mug"])
    answer = diffusion.predict_noise(noisy, t, text)  # of the same network, as it is
    convert = noise_from_v if kind == "v_prediction" else noise_estimate
    torch.testing.assert_close(other.predict_noise(noisy, t, text), convert(other, noisy, answer, t))


def test_a_folder_as_published_years_ago_is_the_same_prior(
    diffusion: DiffusersPrior, diffusion_folder: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(diffusion_folder, tmp_path / "prior"))
    weights = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(weights).items()}
    named["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(named, weights, metadata={"format": "pt"})
    tokens = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(tokens["vocab"]))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in tokens["merges"])]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(merges) + "\n")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pndm = {"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "skip_prk_steps": True, "steps_offset": 1}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(pndm | betas))
    other, prompts = DiffusersPrior.load(folder, CPU), ["a red mug", "", "something else entirely"]
    assert torch.equal(other.embed(prompts), diffusion.embed(prompts))
    assert torch.equal(other.alphas_cumprod, diffusion.alphas_cumprod) and other.prediction_type == "epsilon"


def test_a_folder_of_sixteen_bit_variants_alone_is_read(diffusion_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(diffusion_folder, tmp_path / "prior"))
    for component, stem in [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")]:
        weights = folder / component / f"{stem}.safetensors"
        weights.rename(weights.with_name(f"{stem}.fp16.safetensors"))
    assert DiffusersPrior.load(folder, CPU).channels == 4


# What is refused ------------------------------------------------------------------------------------------------------


def test_the_last_embeddings_are_kept_and_no_more(toy_prior: DiffusersPrior, monkeypatch: pytest.MonkeyPatch):
    one = toy_prior.embed(["a"])[0]
    monkeypatch.setattr(toy_prior, "_embedded", {})
    monkeypatch.setattr("guidance.diffusers_prior._MOST_EMBEDDED", 2 * one.nbytes)
    first = toy_prior.embed(["a", "b", "c"])
    assert list(toy_prior._embedded) == ["b", "c"] and len(first) == 3
    toy_prior.embed(["b", "d"])
    assert list(toy_prior._embedded) == ["b", "d"] and torch.equal(toy_prior.embed(["a"]), first[:1])
    # Each is a tensor of its own: one that is kept does not keep the others of its batch.
    assert all(kept.untyped_storage().nbytes() == kept.nbytes for kept in toy_prior._embedded.values())


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(MissingPriorError, match=r"from .*nowhere: there is no such folder.*--prior PATH"):
        DiffusersPrior.load(tmp_path / "nowhere", CPU)


@pytest.mark.parametrize("component", ["unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(component: str, toy_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(toy_folder, tmp_path / "prior"))
    shutil.rmtree(folder / component)
    with pytest.raises(MissingPriorError, match=rf"its {component}/ is missing.*diffusers folder"):
        DiffusersPrior.load(folder, CPU)


@pytest.mark.parametrize(
    ("damage", "words"),
    [("absent", "holds no"), ("truncated", "cannot be read"), ("no config", "no config.json"), ("partial", "lacks")],
)
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_damaged_components_are_named(component: str, damage: str, words: str, toy_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(toy_folder, tmp_path / "prior"))
    (weights,) = (folder / component).glob("*.safetensors")
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "partial":
        save_file(dict(list(load_file(weights).items())[1:]), weights, metadata={"format": "pt"})
    else:
        (weights if damage == "absent" else folder / component / "config.json").unlink()
    with pytest.raises(MissingPriorError, match=rf"its {component}/ {words}|its {component}/ has {words}"):
        DiffusersPrior.load(folder, CPU)


def test_what_does_not_fit_is_refused_in_words(toy_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(toy_folder, tmp_path / "prior"))
    for hints, words in [
        ({"pixel_shuffle": 1, "camera": "harmonics"}, "12 input channels where its latents have 3"),
        ({"pixel_shuffle": 2}, 'class embedding .projection. with camera "none"'),
        ({"camera": "sideways"}, "camera is"),
        ({"format": 2}, "reads format 1"),
        ({"colour": 1}, "unknown key 'colour'"),
    ]:
        (folder / "dreamkiln.json").write_text(json.dumps(hints))
        with pytest.raises(ValueError, match=words):
            DiffusersPrior.load(folder, CPU)
    (folder / "dreamkiln.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        DiffusersPrior.load(folder, CPU)


def test_bad_hints_are_not_written(tmp_path: Path):
    with pytest.raises(ValueError, match="unknown key"):
        save_prior(tmp_path / "prior", *toy_parts(), {"colour": 1})
    assert not list(tmp_path.iterdir())


def test_weights_are_open_to_whom_the_rest_is(toy_folder: Path):
    modes = {file.stat().st_mode for file in toy_folder.rglob("*") if file.is_file()}
    assert len(modes) == 1


def test_a_failed_save_leaves_the_old_prior(toy_folder: Path, tmp_path: Path, monkeypatch):
    folder = Path(shutil.copytree(toy_folder, tmp_path / "prior"))
    unet, text_encoder, words, schedule = toy_parts()
    monkeypatch.setattr(schedule, "save_pretrained", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_prior(folder, unet, text_encoder, words, schedule, TOY_HINTS)
    assert DiffusersPrior.load(folder, CPU).channels == 12
    assert [path.name for path in tmp_path.iterdir()] == ["prior"]


def test_an_adapter_of_something_else_is_refused(toy_prior: DiffusersPrior, diffusion: DiffusersPrior):
    noisy, t, text = torch.zeros(1, 12, 32, 32), torch.tensor([1]), toy_prior.embed([""])
    for stranger in (object(), diffusion.adapter(1, 0)):
        with pytest.raises(ValueError, match="only the adapters that it made itself"):
            toy_prior.predict_noise(noisy, t, text, adapter=stranger)


def test_conditions_of_a_camera_prior_pass_through_the_null_branch(toy_prior: DiffusersPrior, views: Views):
    condition: Condition = Prompts.embed(toy_prior, "a red mug", view_dependent="off").condition(views)
    assert condition.pose is not None and set(condition.extra) == {"background"}
