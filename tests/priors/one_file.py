"""Stable Diffusion as one file with the names that its authors gave the weights: what most checkpoints look like."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Names = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in.": "input_blocks.0.0.",
    "down_blocks.0.resnets.0.": "input_blocks.1.0.",
    "down_blocks.0.attentions.0.": "input_blocks.1.1.",
    "down_blocks.0.downsamplers.0.conv.": "input_blocks.2.0.op.",
    "down_blocks.1.resnets.0.": "input_blocks.3.0.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
    "up_blocks.0.resnets.0.": "output_blocks.0.0.",
    "up_blocks.0.resnets.1.": "output_blocks.1.0.",
    "up_blocks.0.upsamplers.0.conv.": "output_blocks.1.1.conv.",
    "up_blocks.1.resnets.0.": "output_blocks.2.0.",
    "up_blocks.1.attentions.0.": "output_blocks.2.1.",
    "up_blocks.1.resnets.1.": "output_blocks.3.0.",
    "up_blocks.1.attentions.1.": "output_blocks.3.1.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}


def stable_diffusion_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tiny Stable Diffusion's U-Net under its authors' names."""
    return {_unet(name): value for name, value in weights.items()}


def write_one_file(folder: Path, file: Path, names: Names = stable_diffusion_names) -> None:
    """Write the weights in ``folder`` as one file; ``names`` gives those of the U-Net their old names."""
    weights = {f"model.diffusion_model.{n}": v for n, v in names(_weights(folder / "unet")).items()}
    for name, value in _weights(folder / "vae").items():
        old = _vae(name)
        conv = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", old) is not None
        weights[f"first_stage_model.{old}"] = value[:, :, None, None].contiguous() if conv else value
    for name, value in _weights(folder / "text_encoder").items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file(weights, file, metadata={"format": "pt"})


def _weights(component: Path) -> dict[str, torch.Tensor]:
    (file,) = component.glob("*.safetensors")
    return load_file(file)


def _unet(name: str) -> str:
    new = next(n for n in _UNET if name.startswith(n))
    rest = name.removeprefix(new)
    if ".resnets." in new:
        for part, old in _RESNET.items():
            rest = re.sub(rf"^{part}\.", f"{old}.", rest)
    return _UNET[new] + rest


def _vae(name: str) -> str:
    name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{2 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{2 - int(m[1])}.upsample", name)
    for new, old in (
        ("conv_shortcut", "nin_shortcut"),
        ("group_norm", "norm"),
        ("to_q.", "q."),
        ("to_k.", "k."),
        ("to_v.", "v."),
        ("to_out.0.", "proj_out."),
    ):
        name = name.replace(new, old)
    return name
