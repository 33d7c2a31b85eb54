"""Published MVDream and Zero123 weights are read by diffusers' own classes, and answer as these do."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from guidance import SDS, VSD
from guidance.diffusers_prior import DiffusersPrior
from guidance.prior_folder import CONVERT, MissingPriorError, read_hints
from guidance.priors.extensions import Extensions
from guidance.priors.ldm_names import as_diffusers, new_name, unet_settings, unet_without_weights
from guidance.priors.loading import pipeline_of
from guidance.priors.memory import native_pixels, need_of
from studio.cli import run
from tests.priors.conftest import prompts_of, some_views
from tests.priors.published import (
    MVDREAM,
    as_of_2022,
    as_zero123_xl,
    kohya_lora,
    kohya_name,
    write_authors_file,
    write_mvdream,
)
from tests.priors.test_command_line import SMALL

PUBLISHED = {
    "_class_name": "MultiViewUNetModel",
    "attention_resolutions": [4, 2, 1],
    "camera_dim": 16,
    "channel_mult": [1, 2, 4, 4],
    "context_dim": 1024,
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "num_head_channels": 64,
    "num_res_blocks": 2,
    "out_channels": 4,
    "transformer_depth": 1,
}
"""``unet/config.json`` of ``ashawkey/mvdream-sd2.1-diffusers``."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One network as Stable Diffusion with hints, and as MVDream is published."""
    home = tmp_path_factory.mktemp("mvdream")
    torch.manual_seed(7)
    write_mvdream(home / "plain", home / "published")
    return home / "plain", home / "published"


@pytest.fixture
def copied(both: tuple[Path, Path], tmp_path: Path) -> Path:
    """The published folder, which may be damaged."""
    return Path(shutil.copytree(both[1], tmp_path / "published"))


def answer(prior: DiffusersPrior) -> torch.Tensor:
    views = some_views(4)
    condition = prompts_of(prior, "off").condition(views)
    noisy, t = prior.encode(views.images).detach(), torch.full((4,), 400)
    return prior.predict_noise(noisy, t, condition.text, condition.pose, condition.extra)


# MVDream --------------------------------------------------------------------------------------------------------------


def test_a_published_mvdream_answers_as_the_same_network_of_diffusers(both: tuple[Path, Path]):
    plain, published = (DiffusersPrior.load(folder, "cpu") for folder in both)
    assert torch.equal(answer(published), answer(plain))
    assert published.resolution == 32 and published.hints["views"] == 4 and published.hints["elevations"] == (0, 30)
    assert {"pose", "pose_in_null"} <= published.takes
    assert dict(published.network.config)["attention_head_dim"] == (2, 2, 4)


def test_its_settings_are_those_of_stable_diffusion_2_1_and_a_camera(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    settings = unet_settings(tmp_path)
    assert settings["block_out_channels"] == (320, 640, 1280, 1280)
    assert settings["attention_head_dim"] == (5, 10, 20, 20) and settings["use_linear_projection"]
    assert settings["down_block_types"] == (*(["CrossAttnDownBlock2D"] * 3), "DownBlock2D")
    numbers = sum(weight.numel() for weight in unet_without_weights(settings).parameters())
    # The U-Net of 2.1 has 865,910,724, and the file of 1.74 GB holds as many again in 16 bits as the camera adds.
    assert numbers == 865_910_724 + (16 * 1280 + 1280) + (1280 * 1280 + 1280)


def test_names_worked_by_hand():
    assert new_name("input_blocks.5.1.proj_in.weight", 2) == "down_blocks.1.attentions.1.proj_in.weight"
    assert new_name("input_blocks.9.0.op.bias", 2) == "down_blocks.2.downsamplers.0.conv.bias"
    assert new_name("output_blocks.8.2.conv.weight", 2) == "up_blocks.2.upsamplers.0.conv.weight"
    assert new_name("output_blocks.11.0.skip_connection.bias", 2) == "up_blocks.3.resnets.2.conv_shortcut.bias"
    for name in ("label_emb.0.0.weight", "image_embed.latents", "input_blocks.1.0.h_upd.weight"):
        with pytest.raises(ValueError, match="which MVDream's network has not"):
            new_name(name, 2)


def test_methods_distil_it(both: tuple[Path, Path]):
    prior = DiffusersPrior.load(both[1], "cpu")
    views = some_views(4)
    condition = prompts_of(prior, "off").condition(views)
    for method in (SDS(), VSD()):
        state, rng = method.init(prior, 3), torch.Generator().manual_seed(0)
        loss = method.loss(state, prior, views, condition, 0.5, rng)  # pyright: ignore[reportArgumentType]
        (gradient,) = torch.autograd.grad(loss.value, views.images)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0
        learnt = method.train_critic(state, prior, views, condition, rng)  # pyright: ignore[reportArgumentType]
        assert learnt.get("critic_skipped", torch.zeros(())) == 0


@pytest.mark.parametrize("settings", ["published", "stable diffusion's"])
def test_one_file_of_the_authors_is_the_same_prior(settings: str, both: tuple[Path, Path], tmp_path: Path):
    """As made of ``MVDream/MVDream``: everything in one file, under the authors' names."""
    plain, published = both
    write_authors_file(plain, tmp_path / "whole.safetensors")
    config = Path(shutil.copytree(published if settings == "published" else plain, tmp_path / "whole"))
    for weights in config.rglob("*.safetensors"):
        weights.unlink()
    if settings != "published":  # as Stable Diffusion 2.1 has them, which knows of no camera
        file = config / "unet" / "config.json"
        said = json.loads(file.read_text()) | {"class_embed_type": None}
        file.write_text(json.dumps(said | {"projection_class_embeddings_input_dim": None}))
    prior, expected = DiffusersPrior.load(tmp_path / "whole.safetensors", "cpu"), DiffusersPrior.load(plain, "cpu")
    torch.testing.assert_close(answer(prior), answer(expected), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(prior.embed(["a red fox"]), expected.embed(["a red fox"]))


def test_what_is_no_mvdream_is_refused_in_words(copied: Path):
    unet = copied / "unet"
    file = unet / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for changes, words in [
        ({"ip_dim": 16}, "ImageDream, which is told by a picture"),
        ({"resblock_updown": True}, "MultiViewUNetModel with resblock_updown"),
        ({"model_channels": 64}, "size mismatch for conv_in.weight"),
    ]:
        (unet / "config.json").write_text(json.dumps(MVDREAM | changes))
        with pytest.raises((ValueError, MissingPriorError), match=words):
            DiffusersPrior.load(copied, "cpu")
    (unet / "config.json").write_text(json.dumps(MVDREAM))
    for changed, words in [
        ({n: w for n, w in weights.items() if n != "camera_embed.0.bias"}, "class_embedding.linear_1.bias"),
        (weights | {"image_embed.latents": torch.ones(1)}, "image_embed.latents.*which MVDream's network has not"),
    ]:
        save_file(changed, file)
        with pytest.raises(MissingPriorError, match=words):
            DiffusersPrior.load(copied, "cpu")
    with pytest.raises(ValueError, match="not supported: a MultiViewUNetModel"):
        as_diffusers(MVDREAM | {"camera_dim": None})


def test_only_known_classes_of_others_are_taken(copied: Path):
    index = json.loads((copied / "model_index.json").read_text())
    for named, taken in [
        (["pipeline_mvdream", "MVDreamPipeline"], True),
        (["pipeline_mvdream", "StableDiffusionPipeline"], False),
        (["MVDreamPipeline", "evil"], False),
    ]:
        (copied / "model_index.json").write_text(json.dumps(index | {"_class_name": named}))
        if taken:
            assert pipeline_of(copied) == "StableDiffusionPipeline" and read_hints(copied)["views"] == 4
        else:
            with pytest.raises(ValueError, match="not supported"):
                pipeline_of(copied)


# Zero123 --------------------------------------------------------------------------------------------------------------


def seen_and_answered(prior: DiffusersPrior) -> torch.Tensor:
    views = some_views(2)
    condition = prompts_of(prior).condition(views)
    noisy = prior.encode(views.images).detach()
    return prior.predict_noise(noisy, torch.tensor([100, 700]), condition.text, condition.pose, condition.extra)


def test_a_published_zero123_xl_is_the_same_prior(folder_of: Callable[[str], Path], prior_of, tmp_path: Path):
    as_zero123_xl(folder_of("zero123"), tmp_path / "xl")
    prior = DiffusersPrior.load(tmp_path / "xl", "cpu")
    assert torch.equal(seen_and_answered(prior), seen_and_answered(prior_of("zero123")))
    assert prior.hints["field_of_view"] == pytest.approx(49.13, abs=0.05)  # 2 atan(16 / 35)


def test_a_stable_zero123_is_told_from_how_high_the_picture_was_taken(folder_of, prior_of, tmp_path: Path):
    folder = Path(shutil.copytree(folder_of("zero123"), tmp_path / "stable"))
    (folder / "dreamkiln.json").write_text(json.dumps({"format": 1, "picture_camera": "elevation"}))
    prior = DiffusersPrior.load(folder, "cpu")
    assert (seen_and_answered(prior) - seen_and_answered(prior_of("zero123"))).abs().max() > 1e-4
    (folder / "dreamkiln.json").write_text(json.dumps({"format": 1, "picture_camera": "azimuth"}))
    with pytest.raises(ValueError, match='picture_camera is "distance" or "elevation"'):
        DiffusersPrior.load(folder, "cpu")


def test_a_novel_view_prior_without_its_projection_says_both_names(folder_of, tmp_path: Path):
    folder = Path(shutil.copytree(folder_of("zero123"), tmp_path / "prior"))
    shutil.rmtree(folder / "cc_projection")
    index = json.loads((folder / "model_index.json").read_text())
    del index["cc_projection"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(MissingPriorError, match="its cc_projection/ or clip_camera_projection/ is missing"):
        DiffusersPrior.load(folder, "cpu")


# Pickles --------------------------------------------------------------------------------------------------------------


def test_what_is_said_of_pickles_makes_safetensors_of_them(folder_of, prior_of, tmp_path: Path):
    """As ``kxic/zero123-165000``, whose weights are pickles alone."""
    folder = Path(shutil.copytree(folder_of("zero123"), tmp_path / "prior"))
    weights = folder / "cc_projection" / "diffusion_pytorch_model.safetensors"
    pickle = weights.with_suffix(".bin")
    torch.save({"state_dict": load_file(weights), "epoch": 3}, pickle)  # noqa: TID251 -- as strangers do
    weights.unlink()
    with pytest.raises(MissingPriorError, match=r"diffusion_pytorch_model\.bin could run code") as problem:
        DiffusersPrior.load(folder, "cpu")
    assert CONVERT in str(problem.value)
    places = {"python": sys.executable, "OLD": str(pickle), "NEW.safetensors": str(weights)}
    subprocess.run([places.get(word, word) for word in shlex.split(CONVERT)], check=True)
    assert torch.equal(seen_and_answered(DiffusersPrior.load(folder, "cpu")), seen_and_answered(prior_of("zero123")))


def test_a_single_file_of_another_kind_says_how_to_convert_it(tmp_path: Path):
    (tmp_path / "sd-v2.1-base-4view.pt").write_bytes(b"PK")
    with pytest.raises(MissingPriorError, match=r"could run code when opened.*python -c"):
        DiffusersPrior.load(tmp_path / "sd-v2.1-base-4view.pt", "cpu")


# Memory, and a whole run ----------------------------------------------------------------------------------------------


def test_an_mvdream_is_told_to_need_what_the_same_network_needs(both: tuple[Path, Path]):
    plain, published = both
    assert native_pixels(published) == native_pixels(plain) == 32
    assert need_of(published, 4, 2, 16, torch.float32) == need_of(plain, 4, 2, 16, torch.float32)


def test_a_run_with_a_published_mvdream(both: tuple[Path, Path], tmp_path: Path):
    small = ["4" if word == "2" else word for word in SMALL]
    order = ["generate", "a fox", "--prior", str(both[1]), "--steps", "2", "--out", str(tmp_path / "run"), "--json"]
    assert run([*order, *small]) == 0
    stamp = json.loads((tmp_path / "run" / "prior.json").read_text())
    assert "unet/diffusion_pytorch_model.safetensors" in stamp["weights"]
    assert (tmp_path / "run" / "result.glb").read_bytes()[:4] == b"glTF"


# Stable Diffusion -----------------------------------------------------------------------------------------------------


def test_stable_diffusion_is_read_as_it_was_published(folder_of, prior_of, tmp_path: Path):
    as_of_2022(folder_of("stable_diffusion"), tmp_path / "old")
    new, old = prior_of("stable_diffusion"), DiffusersPrior.load(tmp_path / "old", "cpu")
    prompts = ("a red fox, front view", "", "A  Table of PURPLE wood; 3d!")
    for one, other in zip(new.embed(prompts), old.embed(prompts), strict=True):
        assert torch.equal(one, other)
    pictures, wooden = torch.rand(1, 3, new.resolution, new.resolution), new.embed(prompts[2:])[0][None]
    latents = new.encode(pictures)
    assert torch.equal(latents, old.encode(pictures)) and torch.equal(new.alphas_cumprod, old.alphas_cumprod)
    one, other = (p.predict_noise(latents, torch.tensor([300]), wooden) for p in (new, old))
    assert torch.equal(one, other)
    assert need_of(tmp_path / "old", 2, 2, 32, torch.float32) == need_of(
        folder_of("stable_diffusion"), 2, 2, 32, torch.float32
    )


@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl"])
def test_a_lora_of_every_layer_as_they_are_passed_around(family: str, folder_of, prior_of, tmp_path: Path):
    plain = prior_of(family).parts.modules
    texts = {"lora_te_text_model": "text_encoder"}
    if "text_encoder_2" in plain:
        texts = {"lora_te1_text_model": "text_encoder", "lora_te2_text_model": "text_encoder_2"}
    named = {"lora_unet": "unet", **texts}
    state = kohya_lora({prefix: plain[part] for prefix, part in named.items()})
    save_file(state, tmp_path / "style.safetensors")
    styled = DiffusersPrior.load(
        folder_of(family), "cpu", extensions=Extensions(((tmp_path / "style.safetensors", 0.5),))
    )
    changed = 0
    for prefix, part in named.items():
        for name, layer in plain[part].named_modules():
            key = kohya_name(prefix, name)
            if f"{key}.alpha" in state:
                up, down = (state[f"{key}.lora_{way}.weight"].flatten(1) for way in ("up", "down"))
                found = styled.parts.modules[part].get_submodule(name).weight - layer.weight
                assert torch.allclose(found.flatten(1), 0.5 / 2 * (up @ down), atol=1e-6), key
                changed += 1
    assert changed == len(state) // 3 > 80
