"""What is loaded is what diffusers would have loaded, and what could harm is left alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from guidance.diffusers_prior import DiffusersPrior
from guidance.prior_folder import MissingPriorError
from guidance.priors.extensions import Extensions, parse_lora
from guidance.priors.resources import Resources
from guidance.priors.words import joined, parted
from tests.priors.conftest import Copied, prompts_of, some_views
from tests.priors.one_file import write_one_file
from tests.priors.tiny import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of pipelines that diffusers builds itself
PROMPTS = ("a red fox, front view", "", "something altogether unlike it")
SD = "stable_diffusion"


def answer(prior: DiffusersPrior) -> torch.Tensor:
    views = some_views(2)
    condition = prompts_of(prior).condition(views)
    noisy = prior.encode(views.images).detach()
    return prior.predict_noise(noisy, torch.tensor([100, 700]), condition.text, extra=condition.extra)


# The same as diffusers ------------------------------------------------------------------------------------------------


def independent(folder: Path) -> diffusers.DiffusionPipeline:
    return diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)


@pytest.mark.parametrize("family", [SD, "inpainting", "controlnet_depth"])
def test_embeddings_are_those_of_stable_diffusion(family: str, folder_of, prior_of):
    pipe, prior = independent(folder_of(family)), prior_of(family)
    for prompt, found in zip(PROMPTS, prior.embed(PROMPTS), strict=True):
        assert torch.equal(found, pipe.encode_prompt(prompt, "cpu", 1, False)[0][0])


def test_embeddings_are_those_of_xl_with_its_empty_prompt_of_zeros(folder_of, prior_of):
    pipe, prior = independent(folder_of("stable_diffusion_xl")), prior_of("stable_diffusion_xl")
    text, null, pooled, null_pooled = pipe.encode_prompt(PROMPTS[0], negative_prompt=None)
    found, found_null = (parted(row[None], prior.parts.words.pooled) for row in prior.embed(PROMPTS[:2]))
    for (tokens, vector), (own, own_vector) in ((found, (text, pooled)), (found_null, (null, null_pooled))):
        assert vector is not None and torch.equal(tokens, own) and torch.equal(vector, own_vector)
    assert not null.any()


def test_words_are_read_as_deepfloyd_was_published(copied: Copied, tmp_path: Path):
    """A sentencepiece model, and no ``tokenizer.json``."""
    import sentencepiece

    folder, lines = copied("deepfloyd"), tmp_path / "lines.txt"
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    lines.write_text("\n".join(f"a {c} {o}" for c in ("red", "blue", "green") for o in ("fox", "mug", "old chair")))
    words = folder / "tokenizer" / "spiece"
    ends = "--pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1"
    sentencepiece.SentencePieceTrainer.Train(
        f"--input={lines} --model_prefix={words} --vocab_size=20 --minloglevel=2 {ends}"
    )
    said = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    said |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(said))
    own = sentencepiece.SentencePieceProcessor()
    own.Load(f"{words}.model")
    prior = DiffusersPrior.load(folder, "cpu")
    read = prior.parts.words.pipeline.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    for prompt in ("a red fox", "an old blue mug", "a  green, unknown chair"):
        assert read(prompt).input_ids == [*own.EncodeAsIds(prompt), 1] and prior.count_tokens(prompt) == len(
            own.EncodeAsIds(prompt)
        )
    prior.embed(PROMPTS)


@pytest.mark.parametrize("family", [SD, "stable_diffusion_3", "deepfloyd"])
def test_a_long_prompt_is_counted_without_a_warning(family: str, prior_of, monkeypatch: pytest.MonkeyPatch):
    said = []
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", lambda *words: said.append(words))
    assert prior_of(family).count_tokens("fox " * 600) > 600 and not said


def test_embeddings_are_those_of_deepfloyd(folder_of, prior_of):
    pipe = independent(folder_of("deepfloyd"))
    for prompt, found in zip(PROMPTS, prior_of("deepfloyd").embed(PROMPTS), strict=True):
        assert torch.equal(found, pipe.encode_prompt(prompt, False)[0][0])


def test_embeddings_are_those_of_the_flows(folder_of, prior_of):
    pipe, prior = independent(folder_of("stable_diffusion_3")), prior_of("stable_diffusion_3")
    with torch.no_grad():
        text, _, pooled, _ = pipe.encode_prompt(PROMPTS[0], None, None, do_classifier_free_guidance=False)
    assert torch.equal(prior.embed(PROMPTS[:1]), joined(text, pooled))
    pipe, prior = independent(folder_of("flux")), prior_of("flux")
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt(PROMPTS[0], None)
    assert torch.equal(prior.embed(PROMPTS[:1]), joined(text, pooled))


def test_a_flow_answers_as_its_pipeline_would(folder_of, prior_of):
    pipe, prior = independent(folder_of("flux")), prior_of("flux")
    z_sigma, t = torch.randn(1, 4, 8, 8), torch.tensor([700])
    a, s = prior.alphas_cumprod[t].sqrt(), (1 - prior.alphas_cumprod[t]).sqrt()
    sigma = (s / (a + s)).item()
    text, pooled, ids = pipe.encode_prompt(PROMPTS[0], None)
    velocity = pipe.transformer(
        hidden_states=pipe._pack_latents(z_sigma, 1, 4, 8, 8),
        timestep=torch.tensor([sigma]),
        guidance=torch.tensor([3.5]),
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=ids,
        img_ids=pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
    ).sample
    velocity = pipe._unpack_latents(velocity, 8 * 4, 8 * 4, pipe.vae_scale_factor)
    found = prior.predict_noise(z_sigma * (a + s).float(), t, prior.embed(PROMPTS[:1]))
    torch.testing.assert_close(found, z_sigma + (1 - sigma) * velocity, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["stable_diffusion_3", "flux"])
def test_a_flow_keeps_the_levels_of_its_scheduler(family: str, folder_of, prior_of):
    scheduler = independent(folder_of(family)).scheduler
    if family == "flux":  # which shifts by the picture's size, here of four by four squares
        mu = 0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256)
        scheduler.set_timesteps(sigmas=[i / 1000 for i in range(1000, 0, -1)], mu=mu)
    sigma = scheduler.sigmas[:1000].double().flip(0)
    abar = prior_of(family).alphas_cumprod
    torch.testing.assert_close(
        (1 - abar).sqrt() / (abar.sqrt() + (1 - abar).sqrt()), sigma.clamp(max=0.999), atol=1e-6, rtol=0
    )


def test_xl_answers_as_its_pipeline_would(folder_of, prior_of):
    pipe, prior = independent(folder_of("stable_diffusion_xl")), prior_of("stable_diffusion_xl")
    text, _, pooled, _ = pipe.encode_prompt(PROMPTS[0])
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([400])
    ids = pipe._get_add_time_ids((32, 32), (0, 0), (32, 32), torch.float32, pipe.text_encoder_2.config.projection_dim)
    expected = pipe.unet(z, t, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample
    torch.testing.assert_close(prior.predict_noise(z, t, prior.embed(PROMPTS[:1])), expected)


def test_a_picture_prompts_as_in_its_pipeline(folder_of, prior_of):
    pipe, prior = independent(folder_of("ip_adapter")), prior_of("ip_adapter")
    pipe.load_ip_adapter(str(folder_of("ip_adapter")), subfolder="", weight_name="ip_adapter.safetensors",
                         image_encoder_folder=None, local_files_only=True)  # fmt: skip
    picture = torch.rand(1, 3, 16, 16)
    mean, spread = (torch.tensor(v)[None, :, None, None] for v in (
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))  # fmt: skip
    seen = prior.parts.modules["image_encoder"]((picture - mean) / spread).image_embeds
    z, t, text = torch.randn(1, 4, 8, 8), torch.tensor([400]), prior.embed(PROMPTS[:1])
    expected = pipe.unet(z, t, text, added_cond_kwargs={"image_embeds": [seen[:, None]]}).sample
    torch.testing.assert_close(prior.predict_noise(z, t, text, extra=prior.see(picture)), expected)
    nothing = pipe.unet(z, t, text, added_cond_kwargs={"image_embeds": [0 * seen[:, None]]}).sample
    torch.testing.assert_close(prior.predict_noise(z, t, text), nothing)


# One file -------------------------------------------------------------------------------------------------------------


def test_one_file_is_the_same_prior(folder_of, prior_of, copied, tmp_path: Path):
    config = copied(SD).rename(tmp_path / "model")
    for weights in config.rglob("*.safetensors"):
        weights.unlink()
    write_one_file(folder_of(SD), tmp_path / "model.safetensors")
    prior = DiffusersPrior.load(tmp_path / "model.safetensors", "cpu")
    torch.testing.assert_close(answer(prior), answer(prior_of(SD)))
    assert torch.equal(prior.embed(PROMPTS), prior_of(SD).embed(PROMPTS))


def test_one_file_says_what_it_needs(folder_of, tmp_path: Path):
    write_one_file(folder_of(SD), tmp_path / "model.safetensors")
    with pytest.raises(MissingPriorError, match=r"weights alone.*model/\. Put there.*model_index\.json"):
        DiffusersPrior.load(tmp_path / "model.safetensors", "cpu")
    shutil.copytree(folder_of("stable_diffusion_xl"), tmp_path / "model")
    with pytest.raises(MissingPriorError, match="cannot be read as StableDiffusionXLPipeline"):
        DiffusersPrior.load(tmp_path / "model.safetensors", "cpu")


# On top ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lora(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A LoRA as diffusers' scripts write it."""
    from peft import LoraConfig, get_peft_model_state_dict

    pipe = independent(folder_of(SD))
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    state = get_peft_model_state_dict(pipe.unet)
    pipe.save_lora_weights(tmp_path, unet_lora_layers=state, weight_name="style.safetensors")
    return tmp_path / "style.safetensors"


def test_a_lora_changes_the_prior_as_in_its_pipeline(lora: Path, folder_of, prior_of):
    plain, half = (
        DiffusersPrior.load(folder_of(SD), "cpu", extensions=Extensions(loras=((lora, w),))) for w in (1, 0.5)
    )
    pipe = independent(folder_of(SD))
    pipe.load_lora_weights(lora.parent, weight_name=lora.name)
    z, t, text = torch.randn(1, 4, 8, 8), torch.tensor([400]), plain.embed(PROMPTS[:1])
    torch.testing.assert_close(plain.predict_noise(z, t, text), pipe.unet(z, t, text).sample, atol=1e-5, rtol=1e-4)
    without = prior_of(SD).predict_noise(z, t, text)
    assert (plain.predict_noise(z, t, text) - without).abs().max() > 1e-3
    assert (half.predict_noise(z, t, text) - without).abs().max() > 1e-4
    assert plain.fingerprint() != half.fingerprint() != prior_of(SD).fingerprint()
    adapter = plain.adapter(2, 0)  # a critic still finds plain layers
    assert torch.equal(plain.predict_noise(z, t, text, adapter=adapter), plain.predict_noise(z, t, text))


def test_a_textual_inversion_is_a_new_word(folder_of, prior_of, tmp_path: Path):
    file = tmp_path / "cat-toy.safetensors"
    save_file({"emb_params": torch.randn(2, 32)}, file)
    prior = DiffusersPrior.load(folder_of(SD), "cpu", extensions=Extensions(inversions=(file,)))
    assert not torch.equal(prior.embed(["a cat-toy"]), prior_of(SD).embed(["a cat-toy"]))
    torch.testing.assert_close(prior.embed(["a red fox"]), prior_of(SD).embed(["a red fox"]))
    assert prior.count_tokens("cat-toy") == 2


def test_what_goes_on_top_is_refused_in_words(folder_of, lora: Path, tmp_path: Path):
    (tmp_path / "style.ckpt").write_bytes(b"")
    save_file({"unet.nothing.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    for extensions, words in [
        (Extensions(loras=((tmp_path / "style.ckpt", 1.0),)), "no safetensors file"),
        (Extensions(loras=((tmp_path / "nowhere.safetensors", 1.0),)), "there is no file"),
        (Extensions(loras=((tmp_path / "other.safetensors", 1.0),)), "LoRA of this prior"),
        (Extensions(inversions=(lora,)), "no textual inversion of this prior"),
    ]:
        with pytest.raises(ValueError, match=words):
            DiffusersPrior.load(folder_of(SD), "cpu", extensions=extensions)
    assert parse_lora("a:b.safetensors:0.5") == (Path("a:b.safetensors"), 0.5)
    assert parse_lora("a:b.safetensors") == (Path("a:b.safetensors"), 1.0)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_pickles_are_left_alone(family: str, copied):
    folder = copied(family)
    for weights in folder.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(MissingPriorError, match=r"holds no \*\.safetensors: .*\.bin could run code|as \*\.safetensors"):
        DiffusersPrior.load(folder, "cpu")


def test_code_and_strange_pipelines_are_refused(copied):
    folder = copied(SD)
    index = json.loads((folder / "model_index.json").read_text())
    for changes, words in [
        ({"_class_name": "StableVideoDiffusionPipeline"}, "not supported; supported are StableDiffusionPipeline"),
        ({"_class_name": ["my_pipeline", "MyPipeline"]}, "not supported"),
        ({"unet": ["my_unet", "MyUNet"]}, "only diffusers' and transformers' are read"),
        ({"unet": ["diffusers", "no_such_class"]}, "only diffusers' and transformers' are read"),
        ({"unet": ["transformers", "AutoModel"]}, "only diffusers' and transformers' are read"),
    ]:
        (folder / "model_index.json").write_text(json.dumps(index | changes))
        (folder / "my_unet.py").write_text("raise SystemExit('code ran')")
        with pytest.raises(ValueError, match=words):
            DiffusersPrior.load(folder, "cpu")
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        DiffusersPrior.load(folder, "cpu")


@pytest.mark.parametrize(
    ("family", "component"), [(SD, "vae"), ("flux", "text_encoder_2"), ("zero123", "image_encoder")]
)
def test_a_missing_component_is_named(family: str, component: str, copied):
    folder = copied(family)
    shutil.rmtree(folder / component)
    with pytest.raises(MissingPriorError, match=f"its {component}/ is missing"):
        DiffusersPrior.load(folder, "cpu")


# Memory and speed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "resources",
    [
        Resources(offload="text"),
        Resources(offload="layers"),
        Resources(attention_slicing=True),
        Resources(vae_slicing=True),
        Resources(vae_checkpointing=True),
        Resources(channels_last=False),
    ],
)
@pytest.mark.parametrize("family", [SD, "stable_diffusion_3"])
def test_options_change_no_answer_and_no_gradient(resources: Resources, family: str, folder_of, prior_of):
    prior, plain = DiffusersPrior.load(folder_of(family), "cpu", resources=resources), prior_of(family)
    torch.testing.assert_close(answer(prior), answer(plain), atol=1e-5, rtol=1e-4)
    gradients = []
    for one in (prior, plain):
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        gradients += torch.autograd.grad(one.encode(images).square().sum(), images)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_checkpointing_keeps_less(folder_of, prior_of):
    def kept(prior: DiffusersPrior) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
            prior.encode(torch.rand(1, 3, 32, 32).requires_grad_())
        return sum(sizes)

    thrifty = DiffusersPrior.load(folder_of(SD), "cpu", resources=Resources(vae_checkpointing=True))
    assert kept(thrifty) < 0.5 * kept(prior_of(SD))


def test_a_critic_and_offloaded_layers_do_not_go_together(folder_of):
    prior = DiffusersPrior.load(folder_of(SD), "cpu", resources=Resources(offload="layers"))
    with pytest.raises(ValueError, match="needs the network in memory"):
        prior.adapter(2, 0)


def test_types(folder_of):
    brief = DiffusersPrior.load(folder_of(SD), "cpu", resources=Resources("bfloat16"))
    assert brief.network.dtype == torch.bfloat16 and answer(brief).dtype == torch.float32
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert Resources().type_for(cpu, True) == torch.float32 == Resources().type_for(gpu, False, small=True)
    assert Resources().type_for(gpu, False) == torch.float16 and Resources().type_for(gpu, True) == torch.bfloat16


def test_another_resolution(folder_of):
    prior = DiffusersPrior.load(folder_of(SD), "cpu", resolution=64)
    assert prior.encode(torch.rand(1, 3, 32, 32)).shape == (1, 4, 16, 16) and answer(prior).isfinite().all()
    with pytest.raises(ValueError, match=r"8, 16, \.\.\. pixels a side, not 30"):
        DiffusersPrior.load(folder_of(SD), "cpu", resolution=30)
