"""Pipelines of few random weights, built with diffusers' own classes and saved as a user's checkpoint would be.

``FAMILIES`` maps each family's name to a function that writes its folder.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file

from studio.toybox.model import tokenizer

WIDTH = 32
"""Of every text encoder."""
PIXELS = 32
"""Pixels a side that these priors work at."""
FACTOR = 4
"""Pixels a side of a latent."""
_LENGTH = 16


def text_encoder(projected: bool = False) -> Any:
    """CLIP's text side."""
    config = transformers.CLIPTextConfig(
        vocab_size=262,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=_LENGTH,
        projection_dim=24,
        eos_token_id=261,
        bos_token_id=260,
        pad_token_id=261,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).eval()


def picture_encoder() -> Any:
    """CLIP's picture side."""
    config = transformers.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=24,
    )
    return transformers.CLIPVisionModelWithProjection(config).eval()


def t5() -> tuple[Any, Any]:
    """T5's encoder and tokenizer, which knows letters."""
    config = transformers.T5Config(
        vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(f"▁{c}", -3.0) for c in letters] + [(c, -3.0) for c in letters]
    words: Any = transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)  # pyright: ignore[reportArgumentType]
    return transformers.T5EncoderModel(config).eval(), words


def vae(channels: int = 4, **more: Any) -> Any:
    """An autoencoder that halves pictures twice."""
    settings: Any = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": channels,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        **more,
    }
    return diffusers.AutoencoderKL(**settings)


def unet(**more: Any) -> Any:
    """A U-Net of two levels with cross-attention."""
    settings: Any = {
        "sample_size": PIXELS // FACTOR,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        **more,
    }
    return diffusers.UNet2DConditionModel(**settings)


def schedule(prediction_type: Any = "epsilon") -> Any:
    """Stable Diffusion's."""
    return diffusers.DDPMScheduler(
        1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        steps_offset=1,
    )


_UNCHECKED: Any = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _parts(**more: Any) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "unet": unet(),
        "scheduler": schedule(),
        **_UNCHECKED,
        **more,
    }


def _save(pipeline: Any, folder: Path, **hints: Any) -> None:
    pipeline.save_pretrained(folder, safe_serialization=True)
    if hints:
        (folder / "dreamkiln.json").write_text(json.dumps({"format": 1, **hints}))


def stable_diffusion(folder: Path) -> None:
    """Stable Diffusion 1.5: predicts noise."""
    _save(diffusers.StableDiffusionPipeline(**_parts()), folder)


def stable_diffusion_v(folder: Path) -> None:
    """Stable Diffusion 2.1: predicts v."""
    _save(diffusers.StableDiffusionPipeline(**_parts(scheduler=schedule("v_prediction"))), folder)


def consistency(folder: Path) -> None:
    """A latent consistency model: told the guidance weight that it was distilled with."""
    parts = _parts(unet=unet(time_cond_proj_dim=8), scheduler=diffusers.LCMScheduler())
    _save(diffusers.LatentConsistencyModelPipeline(**parts), folder)


def _xl_parts(**more: Any) -> dict[str, Any]:
    settings: Any = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
        "cross_attention_dim": 2 * WIDTH,
    }
    parts = _parts(unet=unet(**settings), text_encoder_2=text_encoder(projected=True), tokenizer_2=tokenizer(), **more)
    return {k: v for k, v in parts.items() if k not in _UNCHECKED}


def stable_diffusion_xl(folder: Path) -> None:
    """Stable Diffusion XL."""
    _save(diffusers.StableDiffusionXLPipeline(**_xl_parts()), folder)


def deepfloyd(folder: Path) -> None:
    """DeepFloyd IF's first stage."""
    encoder, words = t5()
    network = unet(
        in_channels=3,
        out_channels=6,
        sample_size=PIXELS,
        block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        only_cross_attention=False,
    )
    noise = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    parts = {"tokenizer": words, "text_encoder": encoder, "unet": network, "scheduler": noise, "watermarker": None}
    _save(diffusers.IFPipeline(**parts, **_UNCHECKED), folder)


def stable_diffusion_3(folder: Path) -> None:
    """Stable Diffusion 3.5: a flow."""
    encoder, words = t5()
    transformer: Any = diffusers.SD3Transformer2DModel(
        sample_size=PIXELS // FACTOR,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=48,
        pos_embed_max_size=16,
    )
    # The tokens of both CLIPs, side by side, are padded to T5's width.
    config = encoder.config
    config.d_model = 2 * WIDTH
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.1, scaling_factor=1.5),
        text_encoder=text_encoder(projected=True),
        tokenizer=tokenizer(),
        text_encoder_2=text_encoder(projected=True),
        tokenizer_2=tokenizer(),
        text_encoder_3=transformers.T5EncoderModel(config).eval(),
        tokenizer_3=words,
    )
    _save(pipeline, folder)


def flux(folder: Path) -> None:
    """FLUX.1 dev: a flow, distilled with guidance."""
    encoder, words = t5()
    transformer: Any = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        text_encoder_2=encoder,
        tokenizer_2=words,
        transformer=transformer,
    )
    _save(pipeline, folder, resolution=PIXELS)


def inpainting(folder: Path) -> None:
    """Stable Diffusion for inpainting."""
    _save(diffusers.StableDiffusionInpaintPipeline(**_parts(unet=unet(in_channels=9))), folder)


def _controlnet(network: Any) -> Any:
    """A ControlNet that does something: its last layers are random too."""
    control = diffusers.ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(4, 8, 8))
    for weight in control.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return control


def controlnet_depth(folder: Path) -> None:
    """Stable Diffusion with a ControlNet of depth, as one folder."""
    parts = _parts()
    _save(diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=_controlnet(parts["unet"])), folder)


def controlnet_normal(folder: Path) -> None:
    """Stable Diffusion, and a ControlNet of normals put beside it."""
    parts = _parts()
    _save(diffusers.StableDiffusionPipeline(**parts), folder, control="normal")
    _controlnet(parts["unet"]).save_pretrained(folder / "controlnet")


def controlnet_xl(folder: Path) -> None:
    """Stable Diffusion XL with a ControlNet of depth."""
    parts = _xl_parts()
    _save(diffusers.StableDiffusionXLControlNetPipeline(**parts, controlnet=_controlnet(parts["unet"])), folder)


def multiview(folder: Path) -> None:
    """MVDream: four views are one sample."""
    network = unet(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    _save(diffusers.StableDiffusionPipeline(**_parts(unet=network)), folder, views=4, camera="matrix")


def zero123(folder: Path) -> None:
    """Zero123: of a picture. Its pipeline is no part of diffusers, so its index is written by hand."""
    entries = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "cc_projection": ["pipeline_zero1to3", "CCProjection"],
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }
    unet(in_channels=8).save_pretrained(folder / "unet")
    vae().save_pretrained(folder / "vae")
    picture_encoder().save_pretrained(folder / "image_encoder")
    schedule().save_pretrained(folder / "scheduler")
    (folder / "cc_projection").mkdir()
    layer = {"projection.weight": torch.randn(WIDTH, 24 + 4) / 5, "projection.bias": torch.randn(WIDTH)}
    save_file(layer, folder / "cc_projection" / "diffusion_pytorch_model.safetensors")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Zero1to3StableDiffusionPipeline", **entries}))


def _ip_adapter(network: Any, width: int, context: int) -> dict[str, torch.Tensor]:
    """An IP-Adapter's file for a U-Net: keys and values of pictures for each cross-attention."""
    state = {
        "image_proj.proj.weight": torch.randn(4 * context, 24) / 5,
        "image_proj.proj.bias": torch.zeros(4 * context),
        "image_proj.norm.weight": torch.ones(context),
        "image_proj.norm.bias": torch.zeros(context),
    }
    names = [name for name in network.attn_processors if ".attn2." in name]
    for i, name in enumerate(names):
        layer = network.get_submodule(name.removesuffix(".processor"))
        for part in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * i + 1}.{part}.weight"] = torch.randn(layer.inner_dim, width) / 5
    return state


def ip_adapter(folder: Path) -> None:
    """Stable Diffusion with an IP-Adapter beside it."""
    parts = _parts()
    _save(diffusers.StableDiffusionPipeline(**parts), folder)
    picture_encoder().save_pretrained(folder / "image_encoder")
    save_file(_ip_adapter(parts["unet"], WIDTH, WIDTH), folder / "ip_adapter.safetensors")


FAMILIES: dict[str, Callable[[Path], None]] = {
    write.__name__: write
    for write in (
        stable_diffusion,
        stable_diffusion_v,
        consistency,
        stable_diffusion_xl,
        deepfloyd,
        stable_diffusion_3,
        flux,
        inpainting,
        controlnet_depth,
        controlnet_normal,
        controlnet_xl,
        multiview,
        zero123,
        ip_adapter,
    )
}


def write_family(name: str, folder: Path) -> Path:
    """Write a family's folder from fixed seeds."""
    torch.manual_seed(7)
    FAMILIES[name](folder)
    return folder
