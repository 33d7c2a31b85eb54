"""What is wrong with a folder, or with a file on top of it, is said in words before anything is learnt from it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from guidance.diffusers_prior import DiffusersPrior
from guidance.prior_folder import MissingPriorError, read_hints
from guidance.priors.extensions import Extensions, parse_lora
from guidance.priors.loading import pipeline_of
from guidance.priors.weights import damage, variant_of, weight_files
from tests.priors.conftest import Copied
from tests.priors.one_file import write_one_file

SD = "stable_diffusion"


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def load(folder: Path, **options: Any) -> DiffusersPrior:
    return DiffusersPrior.load(folder, "cpu", **options)


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "variant", "read"),
    [
        (["model.safetensors", "model.fp16.safetensors"], None, ["model.safetensors"]),
        (["model.fp16.safetensors", "model.bf16.safetensors"], "fp16", ["model.fp16.safetensors"]),
        (["model.bf16.safetensors"], "bf16", ["model.bf16.safetensors"]),
        (["model.fp16.safetensors", "model.non_ema.safetensors"], "fp16", ["model.fp16.safetensors"]),
        (["model.fp16_ema.safetensors", "model.bf16.safetensors"], "fp16_ema", ["model.fp16_ema.safetensors"]),
        (
            [
                "diffusion_pytorch_model-00002-of-00002.safetensors",
                "diffusion_pytorch_model-00001-of-00002.safetensors",
            ],
            None,
            [
                "diffusion_pytorch_model-00001-of-00002.safetensors",
                "diffusion_pytorch_model-00002-of-00002.safetensors",
            ],
        ),
        (
            ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"],
            "fp16",
            ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"],
        ),
        (["model-00001-of-00001.safetensors", "model.safetensors"], None, ["model.safetensors"]),
        (["layer.fp16.safetensors", "layer.safetensors"], None, ["layer.safetensors"]),
    ],
)
def test_which_weights_of_several_are_read(files: list[str], variant: str | None, read: list[str], tmp_path: Path):
    for name in files:
        (tmp_path / name).touch()
    assert variant_of(tmp_path) == variant and [file.name for file in weight_files(tmp_path)] == read


def test_any_variant_is_read_and_pieces_are(copied: Copied, prior_of: Callable[[str], DiffusersPrior]):
    folder = copied(SD)
    for file in (folder / "unet").glob("*.safetensors"):
        file.rename(file.with_suffix(".bf16.safetensors"))
    shutil.rmtree(folder / "vae")
    vae = prior_of(SD).parts.modules["vae"]
    vae.save_pretrained(folder / "vae", max_shard_size="20KB")
    assert load(folder).fingerprint() == prior_of(SD).fingerprint()
    last = max((folder / "vae").glob("*.safetensors"))
    last.unlink()
    with pytest.raises(MissingPriorError, match=f"its vae/ lacks pieces, {last.name} among them"):
        load(folder)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (b"", "is no safetensors file, or cut short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of Git LFS.*git lfs pull"),
        (b"\x10" + bytes(7) + b"this is no JSON!" + bytes(9), "is no safetensors file: copy it again"),
    ],
)
def test_a_file_that_holds_no_weights_is_told_by_its_head(written: bytes, words: str, tmp_path: Path, copied: Copied):
    (tmp_path / "a.safetensors").write_bytes(written)
    with pytest.raises(ValueError, match=words):
        raise ValueError(damage(tmp_path / "a.safetensors"))
    folder = copied("ip_adapter")
    (folder / "ip_adapter.safetensors").write_bytes(written)
    with pytest.raises(MissingPriorError, match=words):
        load(folder)


def test_a_cut_file_is_found_before_anything_is_read(copied: Copied, monkeypatch: pytest.MonkeyPatch):
    folder = copied("zero123")
    (file,) = (folder / "cc_projection").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    monkeypatch.setattr("guidance.priors.loading.load_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(MissingPriorError, match=r"its cc_projection/ cannot be read: .*not as long as it says"):
        load(folder)


def test_weights_without_a_place_are_another_networks(copied: Copied):
    folder = copied(SD)
    (file,) = (folder / "unet").glob("*.safetensors")
    save_file(load_file(file) | {"brand_new.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(MissingPriorError, match=r"its unet/ has weights .*brand_new.weight .*newer diffusers"):
        load(folder)


def test_a_tokenizer_without_words_is_refused(copied: Copied):
    folder = copied("flux")
    (folder / "tokenizer_2" / "tokenizer.json").unlink()
    with pytest.raises(MissingPriorError, match=r"its tokenizer_2/ holds no words: none of tokenizer.json, vocab.json"):
        load(folder)
    (folder / "tokenizer_2" / "vocab.json").write_text("{}")
    with pytest.raises(MissingPriorError, match=r"its tokenizer_2/ has vocab.json, but not merges.txt"):
        load(folder)


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["[]", '{"norm_num_groups": 0}', '{"down_block_types": ["NewBlock"]}'])
def test_settings_of_no_network_are_refused_in_words(content: str, copied: Copied):
    folder = copied(SD)
    config = folder / "unet" / "config.json"
    said = json.loads(content)
    config.write_text(json.dumps(json.loads(config.read_text()) | said if isinstance(said, dict) else said))
    with pytest.raises(MissingPriorError, match="its unet/ cannot be read"):
        load(folder)


def test_a_size_may_be_two_numbers_and_a_file_may_begin_with_a_mark(copied: Copied):
    folder = copied(SD)
    change(folder / "unet" / "config.json", sample_size=[8, 8])
    for name, text in (("model_index.json", (folder / "model_index.json").read_text()), ("dreamkiln.json", "{}")):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load(folder).resolution == 32


def test_noise_of_another_process_is_refused(copied: Copied):
    """EDM's settings say nothing about betas, and flows need networks that know them."""
    edm = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "prediction_type": "epsilon"}
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
    steps = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}
    for family, settings, words in (
        (SD, edm, "noise as EDMEulerScheduler has it"),
        (SD, flow, "network of timesteps with a scheduler of the other kind"),
        ("stable_diffusion_3", steps, "flow with a scheduler of the other kind"),
    ):
        folder = copied(family)
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
        change(folder / "model_index.json", scheduler=["diffusers", settings["_class_name"]])
        with pytest.raises(ValueError, match=words):
            load(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("hints", "words"),
    [
        ({"resolution": "512"}, "resolution is a whole number from 1, not '512'"),
        ({"views": 0}, "views is a whole number from 1, not 0"),
        ({"elevations": 30}, "elevations is two numbers of degrees"),
        ({"elevations": [60, -10]}, "the lower one first"),
        ({"words": "fox"}, "words is a list of words"),
        ({"field_of_view": -3}, "field_of_view is a number of degrees from 1 to 170"),
        ({"distance": True}, "distance is a number"),
        ([1], "holds no hints"),
    ],
)
def test_hints_that_make_no_sense_are_refused(hints: Any, words: str, tmp_path: Path):
    (tmp_path / "dreamkiln.json").write_text(json.dumps(hints))
    with pytest.raises(ValueError, match=words):
        read_hints(tmp_path)


@pytest.mark.parametrize("family", ["flux", "stable_diffusion_xl"])
def test_a_folder_without_an_index_says_so(family: str, copied: Copied):
    folder = copied(family)
    (folder / "model_index.json").unlink()
    with pytest.raises(MissingPriorError, match=r"its model_index.json is missing"):
        load(folder)


@pytest.mark.parametrize("pixels", [0, -8, 4])
def test_a_resolution_of_nothing_is_refused(pixels: int, folder_of: Callable[[str], Path]):
    with pytest.raises(ValueError, match=r"8, 16, \.\.\. pixels a side, not"):
        load(folder_of(SD), resolution=pixels)


# Parts of other priors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "of"), [(SD, "controlnet_xl"), ("stable_diffusion_xl", "controlnet_depth")])
def test_a_controlnet_of_another_base_is_refused(family: str, of: str, copied: Copied, folder_of):
    folder = copied(family)
    shutil.copytree(folder_of(of) / "controlnet", folder / "controlnet")
    with pytest.raises(ValueError, match=r"controlnet/ is of another base than its unet/: cross_attention_dim is"):
        load(folder)


@pytest.mark.parametrize("family", ["flux", "inpainting", "zero123"])
def test_a_controlnet_that_nobody_uses_is_refused(family: str, copied: Copied):
    folder = copied(family)
    (folder / "controlnet").mkdir()
    with pytest.raises(ValueError, match=r"has a controlnet/, which .*Pipeline has no use for"):
        pipeline_of(folder)


def test_an_ip_adapter_goes_with_its_encoder_and_its_prior(copied: Copied, folder_of):
    folder = copied("ip_adapter")
    shutil.rmtree(folder / "image_encoder")
    with pytest.raises(MissingPriorError, match=r"its image_encoder/ is missing, through which ip_adapter.safetensors"):
        load(folder)
    shutil.rmtree(folder)
    for family, words in (("stable_diffusion_xl", "no IP-Adapter of this prior"), ("flux", "FluxPipeline has no use")):
        folder = copied(family)
        shutil.copy(folder_of("ip_adapter") / "ip_adapter.safetensors", folder)
        shutil.copytree(folder_of("ip_adapter") / "image_encoder", folder / "image_encoder")
        with pytest.raises(ValueError, match=words):
            load(folder)


def test_text_encoders_of_another_width_are_refused(copied: Copied):
    from tests.priors.tiny import unet

    folder = copied(SD)
    unet(cross_attention_dim=48).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="text encoders of 32 numbers a token with a network that reads 48"):
        load(folder)


# On top ---------------------------------------------------------------------------------------------------------------


def test_weights_of_a_lora_are_numbers():
    for text in ("a.safetensors:nan", "a.safetensors:inf", "a.safetensors:much"):
        with pytest.raises(ValueError, match="a number for the weight"):
            parse_lora(text)


def test_a_lora_of_which_half_fits_is_refused(folder_of, tmp_path: Path):
    """diffusers leaves out what it has no layer for, and says nothing."""
    layers = {
        f"lora_unet_down_blocks_{block}_attentions_0_transformer_blocks_0_attn1_to_q.{part}": value
        for block in (0, 3)
        for part, value in (
            ("lora_down.weight", torch.randn(2, 8)),
            ("lora_up.weight", torch.randn(8, 2)),
            ("alpha", torch.tensor(2.0)),
        )
    }
    file = tmp_path / "lora.safetensors"
    save_file(layers, file)
    with pytest.raises(ValueError, match=r"a LoRA of another base: this prior has no layer down_blocks.3"):
        load(folder_of(SD), extensions=Extensions(loras=((file, 1.0),)))
    save_file({name: value for name, value in layers.items() if "down_blocks_0" in name}, file)
    assert load(folder_of(SD), extensions=Extensions(loras=((file, 1.0),))).fingerprint()
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"lora\.safetensors is not as long as it says"):
        load(folder_of(SD), extensions=Extensions(loras=((file, 1.0),)))


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        ({"<w>": torch.zeros(48)}, "its vectors have 48 numbers, those of the text encoder 32"),
        ({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 32)}, "it is of Stable Diffusion XL"),
        ({"a": torch.zeros(32), "b": torch.zeros(32)}, "it holds 2 tensors"),
    ],
)
def test_words_of_another_prior_are_refused(vectors: dict[str, torch.Tensor], words: str, folder_of, tmp_path: Path):
    save_file(vectors, tmp_path / "word.safetensors")
    with pytest.raises(ValueError, match=f"no textual inversion of this prior: {words}"):
        load(folder_of(SD), extensions=Extensions(inversions=(tmp_path / "word.safetensors",)))


def test_a_word_of_several_vectors_is_read_whole_by_a_folder_without_an_index(copied: Copied, tmp_path: Path):
    folder, file = copied(SD), tmp_path / "word.safetensors"
    (folder / "model_index.json").unlink()
    save_file({"<w>": torch.randn(3, 32)}, file)
    assert load(folder, extensions=Extensions(inversions=(file,))).count_tokens("<w>") == 3


# One file -------------------------------------------------------------------------------------------------------------


def test_one_file_that_is_cut_or_of_another_kind_is_refused(folder_of, copied: Copied, tmp_path: Path):
    file = tmp_path / "model.safetensors"
    write_one_file(folder_of(SD), file)
    copied("flux").rename(tmp_path / "model")
    with pytest.raises(MissingPriorError, match="cannot be read as FluxPipeline"):
        load(file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(MissingPriorError, match="not as long as it says"):
        load(file)


def test_one_file_says_by_marks_which_noise_it_is_of(folder_of, copied: Copied, tmp_path: Path):
    file, settings = tmp_path / "model.safetensors", tmp_path / "model" / "scheduler" / "scheduler_config.json"
    write_one_file(folder_of(SD), file)
    weights = load_file(file)
    copied(SD).rename(tmp_path / "model")
    save_file(weights | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, file)
    with pytest.raises(MissingPriorError, match=r'marked v_pred, so .* is to say "prediction_type": "v_prediction"'):
        load(file)
    change(settings, prediction_type="v_prediction")
    with pytest.raises(MissingPriorError, match=r'marked ztsnr, so .* is to say "rescale_betas_zero_snr": true'):
        load(file)
    change(settings, rescale_betas_zero_snr=True)
    prior = load(file)
    assert prior.prediction_type == "v_prediction" and 0 < prior.alphas_cumprod[-1] < 1e-7
    save_file(weights | {"edm_mean": torch.zeros(4)}, file)
    with pytest.raises(MissingPriorError, match="marked as trained under EDM's noise"):
        load(file)
    save_file(weights, file)
    for damaged in ("{", "[1]"):
        settings.write_text(damaged)
        with pytest.raises(MissingPriorError, match=r"scheduler_config\.json cannot be read"):
            load(file)


# Numbers --------------------------------------------------------------------------------------------------------------


def test_latents_are_scaled_channel_by_channel_where_the_autoencoder_says_so(copied: Copied):
    """As diffusers' pipelines do: ``(z - mean) scale / spread``."""
    folder = copied(SD)
    mean, spread = [1.0, -1.0, 0.5, 0.0], [2.0, 1.0, 1.0, 4.0]
    change(folder / "vae" / "config.json", latents_mean=mean, latents_std=spread, scaling_factor=0.5)
    prior, picture = load(folder), torch.rand(1, 3, 32, 32)
    mode = prior.parts.modules["vae"].encode(picture * 2 - 1).latent_dist.mode()
    expected = torch.stack([(mode[0, c] - mean[c]) * 0.5 / spread[c] for c in range(4)])
    torch.testing.assert_close(prior.encode(picture)[0], expected)
    decoded = (prior.parts.modules["vae"].decode(mode).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(prior.decode(prior.encode(picture)), decoded)


def test_schnell_is_told_256_tokens(copied: Copied, prior_of: Callable[[str], DiffusersPrior]):
    from tests.priors.tiny import WIDTH

    folder = copied("flux")
    settings = json.loads((folder / "transformer" / "config.json").read_text()) | {"guidance_embeds": False}
    network: Any = diffusers.FluxTransformer2DModel.from_config(settings)
    network.save_pretrained(folder / "transformer")
    schnell, dev = load(folder), prior_of("flux")
    assert schnell.embed(["a fox"]).shape == (1, 256 + 1, WIDTH) and schnell.most_tokens == 255
    assert dev.embed(["a fox"]).shape == (1, 512 + 1, WIDTH) and dev.most_tokens == 511
