"""MVDream (arXiv 2308.16512) as it is published, read into diffusers' own U-Net.

Its network is Stable Diffusion's with self-attention over all views and an embedding of the camera beside that of time,
and goes by the names and the settings of the code that Stable Diffusion came from (latent diffusion, arXiv 2112.10752):
in folders as ``ashawkey/mvdream-sd2.1-diffusers``, and in single files made of ``MVDream/MVDream``. No line of the code
beside the weights is run. diffusers' class embedding, two linear layers with a SiLU between them that are added to the
embedding of time, is what MVDream's ``camera_embed`` is; the views are joined by ``multiview.join_views``.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidance.prior_folder import about_pickles, in_short, refuse, unreadable
from guidance.priors.weights import weight_files

MULTIVIEW_UNET = "MultiViewUNetModel"
"""What MVDream's code calls its network."""
CAMERA = "camera_embed."
PREFIX = "model.diffusion_model."
"""Of the network's weights in a file that holds the autoencoder and the text encoder too."""

_WHOLE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "camera_embed.0": "class_embedding.linear_1",
    "camera_embed.2": "class_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNKNOWN = ("num_classes", "use_scale_shift_norm", "resblock_updown", "n_embed", "num_attention_blocks")
"""Settings that no published MVDream has."""


def is_multiview(settings: dict[str, Any]) -> bool:
    """Whether settings are of MVDream's own class, not of diffusers'."""
    return settings.get("_class_name") == MULTIVIEW_UNET


def unet_settings(folder: Path) -> dict[str, Any]:
    """Settings of the U-Net in a folder as diffusers knows them, whoever wrote them.

    Args:
        folder: the network's own, with its ``config.json``.

    Raises:
        ValueError: they are of a network that is not supported.
        OSError: they cannot be read.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{folder / 'config.json'} holds no settings")
    return as_diffusers(settings) if is_multiview(settings) else settings


def as_diffusers(settings: dict[str, Any], linear: bool = True) -> dict[str, Any]:
    """MVDream's settings as diffusers'.

    For instance ``model_channels`` 320 with ``channel_mult`` [1, 2, 4, 4] are ``block_out_channels`` (320, 640, 1280,
    1280), and ``num_head_channels`` 64 makes of them 5, 10, 20 and 20 heads: Stable Diffusion 2.1's.

    Args:
        settings: of ``MultiViewUNetModel``.
        linear: attention is entered and left by linear layers, as in Stable Diffusion 2; else by convolutions, as in 1.

    Raises:
        ValueError: they are ImageDream's, or of a network that is not supported.
    """
    if settings.get("ip_dim"):
        raise ValueError("not supported: ImageDream, which is told by a picture; MVDream, told by words alone, is")
    odd = [name for name in _UNKNOWN if settings.get(name)]
    if odd or not settings.get("camera_dim") or not isinstance(settings["num_res_blocks"], int):
        raise ValueError(f"not supported: a {MULTIVIEW_UNET} with {odd[0] if odd else 'these settings'}")
    widths = tuple(settings["model_channels"] * factor for factor in settings["channel_mult"])
    attends = [2**level in settings["attention_resolutions"] for level in range(len(widths))]
    per_head = settings.get("num_head_channels", -1)
    return {
        "sample_size": settings.get("image_size", 32),
        "in_channels": settings["in_channels"],
        "out_channels": settings["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": settings["num_res_blocks"],
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        # By this name diffusers' U-Nets have the number of heads.
        "attention_head_dim": tuple(w // per_head for w in widths) if per_head > 0 else settings["num_heads"],
        "transformer_layers_per_block": settings.get("transformer_depth", 1),
        "cross_attention_dim": settings["context_dim"],
        "use_linear_projection": linear,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": settings["camera_dim"],
    }


def new_name(old: str, layers: int) -> str:
    """A weight's name in diffusers.

    The blocks of latent diffusion are counted through: one before the first level, then, going down, ``layers`` and a
    downsampling for each level, going up ``layers + 1``. With 2 layers, ``input_blocks.5.1`` is the second place of
    the second level, ``down_blocks.1.attentions.1``: (5 - 1) is 1 times 3, and 1.

    Raises:
        ValueError: no such network has a weight of that name.
    """
    for start, new in _WHOLE.items():
        if old.startswith(f"{start}."):
            rest = old.removeprefix(start)[1:]
            return f"{new}.{_resnet(rest) if '.resnets.' in new else rest}"
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", old)
    if found is None:
        raise ValueError(f"a weight {old!r}, which MVDream's network has not")
    way, number, part, rest = found[1], int(found[2]), int(found[3]), found[4]
    level, place = divmod(number - 1 if way == "input" else number, layers + 1)
    block = f"{'down' if way == 'input' else 'up'}_blocks.{level}"
    if rest.startswith("op."):
        return f"{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{block}.upsamplers.0.{rest}"
    return f"{block}.resnets.{place}.{_resnet(rest)}" if part == 0 else f"{block}.attentions.{place}.{rest}"


def _resnet(rest: str) -> str:
    for old, new in _RESNET.items():
        if rest.startswith(f"{old}."):
            return f"{new}{rest.removeprefix(old)}"
    raise ValueError(f"a weight {rest!r} in a residual block, which MVDream's network has not")


def load_multiview_unet(folder: Path, dtype: torch.dtype) -> Any:
    """MVDream's U-Net from a component's folder, of safetensors alone.

    Raises:
        MissingPriorError: it cannot be read, or only as a pickle.
        ValueError: it is a network that is not supported.
    """
    from safetensors.torch import load_file

    try:
        settings = unet_settings(folder)
    except (OSError, KeyError, json.JSONDecodeError) as error:
        refuse(folder.parent, f"its {folder.name}/ has no config.json that can be read ({error})", error)
    files = weight_files(folder)
    if not files:
        refuse(folder.parent, f"its {folder.name}/ holds no *.safetensors{about_pickles(folder)}")
    try:
        weights = {name: value for file in files for name, value in load_file(file).items()}
        return unet_of(settings, weights, dtype)
    except unreadable() as error:
        refuse(folder.parent, f"its {folder.name}/ cannot be read ({in_short(error)})", error)


def unet_of(settings: dict[str, Any], weights: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """diffusers' U-Net with MVDream's weights.

    Args:
        settings: diffusers'.
        weights: under latent diffusion's names.
        dtype: what it is to compute in.

    Raises:
        ValueError: weights are missing, left over, or of another size than the settings say.
    """
    named = {new_name(old, settings["layers_per_block"]): value for old, value in weights.items()}
    unet = unet_without_weights(settings | {"use_linear_projection": _enters_linearly(weights)})
    try:
        unet.load_state_dict(named, assign=True)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return unet.to(dtype)


def unet_without_weights(settings: dict[str, Any]) -> Any:
    """diffusers' U-Net of its settings, on the meta device."""
    import diffusers

    with torch.device("meta"):
        return diffusers.UNet2DConditionModel.from_config(settings)


def _enters_linearly(weights: dict[str, Tensor]) -> bool:
    return all(value.ndim == 2 for name, value in weights.items() if name.endswith(".proj_in.weight"))


def multiview_weights(file: Path) -> dict[str, Tensor]:
    """The network's weights in a single file, if it is an MVDream; empty if it is not.

    Raises:
        SafetensorError: it cannot be read.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        names: Iterable[str] = opened.keys()
        own = [name for name in names if name.startswith(PREFIX)]
        if not any(name.startswith(PREFIX + CAMERA) for name in own):
            return {}
        return {name.removeprefix(PREFIX): opened.get_tensor(name) for name in own}
