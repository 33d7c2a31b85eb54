"""Folders as Stable Diffusion, MVDream and Zero123 are published: old names and settings, and classes of their own,
which no code of theirs is run for; and LoRAs as they are passed around.

The names are written out by hand, block by block, so that they are right whatever the reader does.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file

from studio.toybox.model import tokenizer
from tests.priors.one_file import write_one_file
from tests.priors.tiny import WIDTH, schedule, text_encoder, vae

MVDREAM = {
    "_class_name": "MultiViewUNetModel",
    "_diffusers_version": "0.25.0",
    "attention_resolutions": [2, 1],
    "camera_dim": 16,
    "channel_mult": [1, 1, 2],
    "context_dim": WIDTH,
    "image_size": 8,
    "in_channels": 4,
    "model_channels": 32,
    "num_head_channels": 16,
    "num_res_blocks": 2,
    "out_channels": 4,
    "transformer_depth": 1,
}
"""Settings as in ``ashawkey/mvdream-sd2.1-diffusers``, of a small network of three levels."""
_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.resnets.1": "input_blocks.2.0",
    "down_blocks.0.attentions.1": "input_blocks.2.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0": "input_blocks.4.0",
    "down_blocks.1.attentions.0": "input_blocks.4.1",
    "down_blocks.1.resnets.1": "input_blocks.5.0",
    "down_blocks.1.attentions.1": "input_blocks.5.1",
    "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
    "down_blocks.2.resnets.0": "input_blocks.7.0",
    "down_blocks.2.resnets.1": "input_blocks.8.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.resnets.2": "output_blocks.2.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.3.0",
    "up_blocks.1.attentions.0": "output_blocks.3.1",
    "up_blocks.1.resnets.1": "output_blocks.4.0",
    "up_blocks.1.attentions.1": "output_blocks.4.1",
    "up_blocks.1.resnets.2": "output_blocks.5.0",
    "up_blocks.1.attentions.2": "output_blocks.5.1",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.2.resnets.0": "output_blocks.6.0",
    "up_blocks.2.attentions.0": "output_blocks.6.1",
    "up_blocks.2.resnets.1": "output_blocks.7.0",
    "up_blocks.2.attentions.1": "output_blocks.7.1",
    "up_blocks.2.resnets.2": "output_blocks.8.0",
    "up_blocks.2.attentions.2": "output_blocks.8.1",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "camera_embed.0",
    "class_embedding.linear_2": "camera_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def published_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A U-Net's weights under the names that MVDream's authors gave them."""
    named = {}
    for name, value in weights.items():
        block = next(b for b in _BLOCKS if name.startswith(f"{b}."))
        layer, dot, rest = name.removeprefix(f"{block}.").partition(".")
        old = _LAYERS.get(layer, layer) if ".resnets." in block else layer
        named[f"{_BLOCKS[block]}.{old}{dot}{rest}"] = value
    return named


def write_mvdream(plain: Path, folder: Path) -> None:
    """One network twice: as Stable Diffusion with hints, and as MVDream is published."""
    network: Any = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 2, 4),  # pyright: ignore[reportArgumentType]
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=16,
    )
    parts = {"vae": vae(), "text_encoder": text_encoder(), "tokenizer": tokenizer(), "scheduler": schedule()}
    unchecked: Any = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    diffusers.StableDiffusionPipeline(unet=network, **parts, **unchecked).save_pretrained(plain)
    (plain / "dreamkiln.json").write_text(json.dumps({"format": 1, "views": 4, "camera": "matrix"}))

    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(plain / name, folder / name)
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps(MVDREAM))
    (folder / "unet" / "mv_unet.py").write_text("raise SystemExit('code ran')")
    weights = load_file(plain / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(published_names(weights), folder / "unet" / "diffusion_pytorch_model.safetensors")
    index = {
        "_class_name": "MVDreamPipeline",
        "_diffusers_version": "0.25.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["mv_unet", "MultiViewUNetModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def as_of_2022(plain: Path, folder: Path) -> None:
    """A folder of Stable Diffusion with the names and settings that 1.5 was published with."""
    shutil.copytree(plain, folder)
    _rename(folder / "text_encoder", lambda name: f"text_model.{name}")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    _rename(
        folder / "vae",
        lambda name: next((name.replace(new, was) for new, was in old.items() if f".{new}." in name), name),
    )
    positions = torch.arange(_settings(folder / "text_encoder")["max_position_embeddings"])[None]
    file = folder / "text_encoder" / "model.safetensors"
    save_file({**load_file(file), "text_model.embeddings.position_ids": positions}, file)
    _keep(folder / "text_encoder", _TEXT, torch_dtype="float32", eos_token_id=2, transformers_version="4.22.0.dev0")
    _keep(folder / "vae", _VAE, _diffusers_version="0.6.0.dev0")
    _keep(folder / "unet", _UNET, _diffusers_version="0.10.0")
    noise = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "skip_prk_steps": True, "steps_offset": 1}
    noise |= {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False}
    noise |= {"num_train_timesteps": 1000, "trained_betas": None, "clip_sample": False}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(noise))
    _old_tokenizer(folder / "tokenizer")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_diffusers_version": "0.6.0", "scheduler": ["diffusers", "PNDMScheduler"]}
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index |= {"feature_extractor": ["transformers", "CLIPFeatureExtractor"]}
    (folder / "model_index.json").write_text(json.dumps(index))


_TEXT = {"architectures", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings", "model_type"}
_TEXT |= {"num_attention_heads", "num_hidden_layers", "projection_dim", "vocab_size", "layer_norm_eps"}
_VAE = {"_class_name", "act_fn", "block_out_channels", "down_block_types", "in_channels", "latent_channels"}
_VAE |= {"layers_per_block", "norm_num_groups", "out_channels", "sample_size", "up_block_types"}
_UNET = {"_class_name", "act_fn", "attention_head_dim", "block_out_channels", "center_input_sample"}
_UNET |= {"cross_attention_dim", "down_block_types", "downsample_padding", "flip_sin_to_cos", "freq_shift"}
_UNET |= {"in_channels", "layers_per_block", "mid_block_scale_factor", "norm_eps", "norm_num_groups", "out_channels"}
_UNET |= {"sample_size", "up_block_types"}


def _settings(part: Path) -> dict[str, Any]:
    return json.loads((part / "config.json").read_text())


def _keep(part: Path, names: set[str], **more: Any) -> None:
    """Leave a part's settings as few as they were, and set others."""
    kept = {name: value for name, value in _settings(part).items() if name in names}
    (part / "config.json").write_text(json.dumps({**kept, **more}))


def _rename(part: Path, name_of: Callable[[str], str]) -> None:
    (file,) = part.glob("*.safetensors")
    save_file({name_of(name): value for name, value in load_file(file).items()}, file)


def _old_tokenizer(part: Path) -> None:
    """Words and merges in files of their own, and marks as objects."""
    model = json.loads((part / "tokenizer.json").read_text())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (part / "vocab.json").write_text(json.dumps(model["vocab"]))
    (part / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (part / "tokenizer.json").unlink()
    said = json.loads((part / "tokenizer_config.json").read_text())
    marks = {
        name: {"content": said[name], "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name in ("bos_token", "eos_token", "unk_token")
    }
    typed = {name: {"__type": "AddedToken", **mark} for name, mark in marks.items()}
    kept = {name: said[name] for name in ("model_max_length", "pad_token", "tokenizer_class")}
    more = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace"}
    (part / "tokenizer_config.json").write_text(json.dumps({**kept, **typed, **more}))
    (part / "special_tokens_map.json").write_text(json.dumps({**marks, "pad_token": said["pad_token"]}))


def kohya_name(prefix: str, layer: str) -> str:
    """A layer's name in such a LoRA; those of text encoders hold ``text_model`` in what they begin with."""
    return f"{prefix}_{layer.removeprefix('text_model.')}".replace(".", "_")


def kohya_lora(parts: dict[str, torch.nn.Module], rank: int = 2) -> dict[str, torch.Tensor]:
    """A LoRA as most are passed around: of every linear layer and convolution within blocks.

    Args:
        parts: networks by what their layers' names begin with.
    """
    state = {}
    for prefix, part in parts.items():
        for name, layer in part.named_modules():
            if any(word in name for word in ("embedding", "conv_in", "text_projection")):
                continue
            if isinstance(layer, torch.nn.Conv2d):
                down, up = (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)
            elif isinstance(layer, torch.nn.Linear):
                down, up = (rank, layer.in_features), (layer.out_features, rank)
            else:
                continue
            key = kohya_name(prefix, name)
            state[f"{key}.lora_down.weight"] = torch.randn(down) / 10
            state[f"{key}.lora_up.weight"] = torch.randn(up) / 10
            state[f"{key}.alpha"] = torch.tensor(1.0)
    return state


def as_zero123_xl(plain: Path, folder: Path) -> None:
    """A Zero123 folder as ``bennyguo/zero123-xl-diffusers`` and ``ashawkey/zero123-xl-diffusers`` are laid out."""
    shutil.copytree(plain, folder)
    (folder / "cc_projection").rename(folder / "clip_camera_projection")
    old = folder / "clip_camera_projection" / "diffusion_pytorch_model.safetensors"
    layer = {name.replace("projection.", "proj."): value for name, value in load_file(old).items()}
    old.unlink()
    save_file(layer, old.with_suffix(".fp16.safetensors"))
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(unet, unet.with_suffix(".fp16.safetensors"))
    unet.rename(unet.with_suffix(".fp16_ema.safetensors"))
    index = json.loads((folder / "model_index.json").read_text())
    del index["cc_projection"]
    index |= {"_class_name": "Zero123Pipeline", "clip_camera_projection": ["zero123", "CLIPCameraProjection"]}
    (folder / "model_index.json").write_text(json.dumps(index))


def write_authors_file(plain: Path, file: Path) -> None:
    """The network as one file as made of ``MVDream/MVDream``, whose text encoder is OpenCLIP's, with a layer unused."""
    write_one_file(plain, file, published_names)
    whole = {name: value for name, value in load_file(file).items() if not name.startswith("cond_stage_model.")}
    text = load_file(plain / "text_encoder" / "model.safetensors")
    text = {name.removeprefix("text_model."): value for name, value in text.items()}
    whole |= {f"cond_stage_model.model.{name}": value for name, value in _open_clip(text).items()}
    save_file(whole, file, metadata={"format": "pt"})


def _open_clip(text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "ln_final.weight": text["final_layer_norm.weight"],
        "ln_final.bias": text["final_layer_norm.bias"],
        "text_projection": torch.eye(WIDTH),
    }
    for layer in range(2):
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for part in ("weight", "bias"):
            three = [text[f"{old}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            named[f"{new}.attn.in_proj_{part}"] = torch.cat(three)
            named[f"{new}.attn.out_proj.{part}"] = text[f"{old}.self_attn.out_proj.{part}"]
            named[f"{new}.ln_1.{part}"] = text[f"{old}.layer_norm1.{part}"]
            named[f"{new}.ln_2.{part}"] = text[f"{old}.layer_norm2.{part}"]
            named[f"{new}.mlp.c_fc.{part}"] = text[f"{old}.mlp.fc1.{part}"]
            named[f"{new}.mlp.c_proj.{part}"] = text[f"{old}.mlp.fc2.{part}"]
    named["transformer.resblocks.23.ln_1.weight"] = torch.ones(WIDTH)  # of the layer that nobody asks
    return {name: value.contiguous().clone() for name, value in named.items()}
