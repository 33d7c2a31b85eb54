"""What a preset fetches of a repository, by the hub's own rules; and parts, which are no priors by themselves."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from studio import presets, prior_check
from studio.paths import UnknownPrior, resolve_prior


def fetched(name: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which files of a repository a preset would fetch."""
    monkeypatch.setenv(presets.VARIABLE, str(tmp_path))
    asked: dict[str, Any] = {}
    preset = presets.preset_of(name)
    assert preset is not None
    preset.folder.mkdir(parents=True, exist_ok=True)
    presets.download(preset, lambda **given: asked.update(given))
    patterns = {name: asked[name] for name in ("allow_patterns", "ignore_patterns")}
    return sorted(filter_repo_objects(files, **patterns))


STABLE_DIFFUSION_3 = [
    "model_index.json",
    "sd3.5_medium.safetensors",
    "text_encoder_3/config.json",
    "text_encoder_3/model-00001-of-00002.safetensors",
    "text_encoder_3/model.fp16-00001-of-00002.safetensors",
    "text_encoder_3/model.safetensors.index.json",
    "text_encoders/t5xxl_fp16.safetensors",
    "tokenizer_3/spiece.model",
    "tokenizer/merges.txt",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae copy/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "mmdit-x.png",
]


def test_weights_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The listing is that of the hub."""
    assert fetched("sd35-medium", STABLE_DIFFUSION_3, tmp_path, monkeypatch) == sorted(
        [
            "model_index.json",
            "text_encoder_3/config.json",
            "text_encoder_3/model-00001-of-00002.safetensors",
            "text_encoder_3/model.safetensors.index.json",
            "tokenizer_3/spiece.model",
            "tokenizer/merges.txt",
            "transformer/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ]
    )


def test_no_code_and_no_pickle_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/mv_unet.py",
        "v1-5-pruned.ckpt",
        "v1-5-pruned.safetensors",
        "safety_checker/model.safetensors",
    ]
    for name in ("mvdream", "sd15"):
        kept = fetched(name, files, tmp_path, monkeypatch)
        assert kept == ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]


def test_parts_fetch_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = [
        "models/ip-adapter_sd15.safetensors",
        "models/ip-adapter_sd15.bin",
        "models/image_encoder/config.json",
        "models/image_encoder/model.safetensors",
        "models/image_encoder/pytorch_model.bin",
        "sdxl_models/ip-adapter_sdxl.safetensors",
    ]
    assert fetched("ip-adapter", files, tmp_path, monkeypatch) == sorted([*files[:1], *files[2:4]])
    lora = [
        "Hyper-SD15-8steps-lora.safetensors",
        "Hyper-SD15-1step-lora.safetensors",
        "Hyper-SDXL-1step-Unet.safetensors",
    ]
    assert fetched("hyper-sd15", lora, tmp_path, monkeypatch) == lora[:1]


@pytest.mark.parametrize("name", [preset.name for preset in presets.PRESETS if not preset.whole])
def test_a_part_says_that_it_is_one_and_what_it_is_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(presets.VARIABLE, str(tmp_path))
    preset = presets.preset_of(name)
    assert preset is not None and preset.files and preset.use
    with pytest.raises(UnknownPrior) as problem:
        resolve_prior(name)
    words = str(problem.value)
    assert "is no prior, but a part of one" in words and preset.repository in words and preset.licence in words
    assert "--lora" in words or "folder as" in words
    assert "{{" not in words and "{folder}" not in words and not list(tmp_path.iterdir())


def test_a_stable_zero123_is_told_apart_by_its_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetched("stable-zero123", [], tmp_path, monkeypatch)
    assert '"picture_camera": "elevation"' in (tmp_path / "stable-zero123" / "dreamkiln.json").read_text()


def test_a_single_pickle_says_how_to_convert_it(tmp_path: Path):
    (tmp_path / "model.ckpt").write_bytes(b"PK")
    with pytest.raises(UnknownPrior, match=r"others could run code.*weights_only=True"):
        resolve_prior(tmp_path / "model.ckpt")


def test_a_part_that_was_fetched_says_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(presets.VARIABLE, str(tmp_path))
    fetched: list[str] = []
    monkeypatch.setattr(prior_check, "download", lambda preset: fetched.append(preset.name))
    (check,) = prior_check.examine_prior("lcm-lora", fetch=True)
    assert fetched == ["lcm-lora"] and check.verdict == "ok"
    assert str(tmp_path / "lcm-lora") in check.finding and "--lora" in check.finding
