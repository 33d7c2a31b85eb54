"""A prior from one safetensors file, as checkpoints are passed around: weights without their configuration.

What a network is made of is not in such a file, so a folder of its name lies beside it: ``model.safetensors`` and
``model/``, in diffusers' layout, with settings and tokenizers and no weights (but for what the file lacks, such as T5).
Any folder of the same kind of model will do, for instance Stable Diffusion 1.5's for everything made from it.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

import torch

from guidance.prior_folder import CONVERT, PICKLES, MissingPriorError, in_short, unreadable
from guidance.priors.ldm_names import CAMERA, as_diffusers, is_multiview, multiview_weights, unet_of
from guidance.priors.process import is_flow, process_like
from guidance.priors.weights import damage, refuse_wordless


def require_configuration(file: Path, config: Path) -> None:
    """Refuse a file that has no configuration beside it: diffusers would ask the hub for one.

    Raises:
        MissingPriorError: with what to put where.
    """
    if file.suffix in PICKLES:
        _refuse(
            file, f"it could run code when opened, so it is left alone. Make safetensors of it elsewhere: {CONVERT}"
        )
    if not file.is_file():
        _refuse(file, "there is no such file")
    if not (config / "model_index.json").is_file():
        _refuse(
            file,
            f"it holds weights alone, and its configuration is looked for in {config}/. Put there, of a folder of the "
            "same kind of model, all that is no weights: model_index.json, and config.json, scheduler_config.json and "
            "the tokenizers' files in the folders of their components",
        )
    if wrong := damage(file):
        _refuse(file, wrong)
    for words in sorted(config.glob("tokenizer*")):
        refuse_wordless(config, words)
    _refuse_other_noise(file, config)


def _refuse_other_noise(file: Path, config: Path) -> None:
    """Refuse a configuration of another kind of noise than the weights' own marks say.

    Such marks are empty tensors that other programs go by: ``v_pred``, ``ztsnr`` for noise without any signal at the
    end (arXiv 2305.08891), and names that begin with ``edm_``.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        marks = set(opened.keys())
    if any(name.startswith("edm_") for name in marks):
        _refuse(file, "its weights are marked as trained under EDM's noise (arXiv 2206.00364), which is not supported")
    path = config / "scheduler" / "scheduler_config.json"
    try:
        said = dict(json.loads(path.read_text(encoding="utf-8-sig"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        _refuse(file, f"{path} cannot be read ({in_short(error)})", error)
    wanted = {"v_pred": ("prediction_type", "v_prediction"), "ztsnr": ("rescale_betas_zero_snr", True)}
    for mark, (name, value) in wanted.items():
        if mark in marks and said.get(name) != value:
            _refuse(file, f"its weights are marked {mark}, so {path} is to say {json.dumps({name: value})[1:-1]}")


def read_single_file(file: Path, config: Path, pipeline: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """The components of a pipeline from one file; nothing is fetched.

    Raises:
        MissingPriorError: the file cannot be read as that pipeline's.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    if not pipeline:
        _refuse(file, f"{config} names no pipeline that single files are made for")
    kind = getattr(diffusers, pipeline)
    given: dict[str, Any] = {
        name: None for name in ("safety_checker", "feature_extractor") if name in kind.__init__.__annotations__
    }
    try:
        if weights := multiview_weights(file):
            given["unet"] = unet_of(_multiview_settings(config, weights), weights, dtype)
        loaded = kind.from_single_file(str(file), config=str(config), local_files_only=True, torch_dtype=dtype, **given)
    except (*unreadable(), SingleFileComponentError) as error:
        _refuse(file, f"it cannot be read as {pipeline} ({in_short(error)})", error)
    components = {name: part for name, part in loaded.components.items() if part is not None}
    if not is_flow(loaded.scheduler):
        components["scheduler"] = process_like(type(loaded.scheduler)).from_config(loaded.scheduler.config)
    return components


def _multiview_settings(config: Path, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Of MVDream's U-Net, from MVDream's settings or those of the Stable Diffusion that it was made of."""
    settings = json.loads((config / "unet" / "config.json").read_text(encoding="utf-8"))
    if is_multiview(settings):
        return as_diffusers(settings)
    size = weights[f"{CAMERA}0.weight"].shape[1]
    return settings | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": size}


def _refuse(file: Path, problem: str, cause: Exception | None = None) -> NoReturn:
    raise MissingPriorError(f"no prior can be loaded from {file}: {problem}.") from cause
