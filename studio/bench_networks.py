"""Published diffusion models at their true size, with random weights: what ``studio bench --prior`` times.

How fast a network is depends on its shape and not on what it knows, so nothing is downloaded, and no text encoder is
needed: it runs once a run. Settings are facts of the models' own configuration files; the numbers of their parameters,
which tests check, are the published ones.
"""

import dataclasses
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.prior_folder import default_hints
from guidance.priors.assembly import Plan, assemble
from guidance.priors.loading import quiet
from guidance.priors.parts import Parts
from guidance.priors.resources import Resources
from guidance.priors.words import joined


@dataclass(frozen=True)
class Published:
    """A diffusion model as it was published, but for its weights."""

    pipeline: str
    """Of diffusers."""
    network: str
    """Class of diffusers."""
    settings: dict[str, Any]
    """Of the network."""
    parameters: int
    """Of the network."""
    words: tuple[int, int, int]
    """Tokens of a prompt, numbers of each, and numbers of the vector for the whole prompt."""
    pixels: int
    """A side, as it was trained."""
    vae: dict[str, Any] | None = None
    """Settings of its autoencoder; none: it works on pixels."""
    scheduler: tuple[str, dict[str, Any]] = (
        "DDPMScheduler",
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False},
    )


_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
_VAE_16: dict[str, Any] = {
    **_VAE,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
    "force_upcast": True,
}
_SD3: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}
_FLOW = ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
_SHIFTED_FLOW = (
    "FlowMatchEulerDiscreteScheduler",
    {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
)


def _flux(distilled: bool, parameters: int, tokens: int, scheduler: tuple[str, dict[str, Any]]) -> Published:
    """FLUX.1; ``distilled``: with guidance, whose weight it is told."""
    settings, words = {"guidance_embeds": distilled}, (tokens, 4096, 768)
    vae = {**_VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    return Published("FluxPipeline", "FluxTransformer2DModel", settings, parameters, words, 1024, vae, scheduler)


PUBLISHED = {
    "sd15": Published(
        "StableDiffusionPipeline",
        "UNet2DConditionModel",
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        859_520_964,
        (77, 768, 0),
        512,
        _VAE,
    ),
    "sd21": Published(
        "StableDiffusionPipeline",
        "UNet2DConditionModel",
        {
            "sample_size": 64,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        865_910_724,
        (77, 1024, 0),
        512,
        _VAE,
    ),
    "sdxl": Published(
        "StableDiffusionXLPipeline",
        "UNet2DConditionModel",
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        2_567_463_684,
        (77, 2048, 1280),
        1024,
        {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
    ),
    "if-xl": Published(
        "IFPipeline",
        "UNet2DConditionModel",
        {
            "sample_size": 64,
            "in_channels": 3,
            "out_channels": 6,
            "block_out_channels": (704, 1408, 2112, 2816),
            "layers_per_block": 3,
            "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
            "cross_attention_dim": 2816,
            "cross_attention_norm": "group_norm",
            "attention_head_dim": 64,
            "encoder_hid_dim": 4096,
            "encoder_hid_dim_type": "text_proj",
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": 64,
            "resnet_time_scale_shift": "scale_shift",
            "act_fn": "gelu",
        },
        4_304_695_110,  # published as "4.3B"
        (77, 4096, 0),
        64,
        None,
        ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}),
    ),
    "sd35-medium": Published(
        "StableDiffusion3Pipeline",
        "SD3Transformer2DModel",
        {
            **_SD3,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
        },
        2_243_171_520,
        (333, 4096, 2048),
        1024,
        {**_VAE_16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        _FLOW,
    ),
    "flux-dev": _flux(True, 11_901_408_320, 512, _SHIFTED_FLOW),
    "flux-schnell": _flux(False, 11_891_178_560, 256, ("FlowMatchEulerDiscreteScheduler", {"shift": 1.0})),
}
"""By the names that presets have, where there is a preset."""

VAE_PARAMETERS = {4: 83_653_863, 16: 83_819_683}
"""Of the autoencoders, by channels of a latent."""


def on_meta(published: Published, dtype: torch.dtype) -> tuple[Any, Any]:
    """Network and autoencoder (or None) without memory, on the meta device."""
    import diffusers

    with quiet(), torch.device("meta"):
        network = getattr(diffusers, published.network)(**published.settings)
        vae: Any = None if published.vae is None else diffusers.AutoencoderKL(**published.vae)
        return network.to(dtype), None if vae is None else vae.to(dtype)


def random_parts(
    published: Published, device: torch.device, resources: Resources, dtype: torch.dtype, pixels: int
) -> Parts:
    """Parts of a prior of the published shape, put together as those of a folder are; its words are random too.

    Args:
        published: the model.
        device: where it is to live; on the meta device it has no weights.
        resources: how it uses memory and time.
        dtype: what its networks compute in.
        pixels: a side, to distil at.

    Raises:
        ValueError: it does not take pictures of that size.
        RuntimeError: memory does not suffice.
    """
    import diffusers

    network, vae = (None if model is None else _filled(model, device) for model in on_meta(published, dtype))
    kind, settings = published.scheduler
    words = RandomWords(*published.words)
    hidden = words.width // 2 if "XL" in published.pipeline else words.width  # there, those of two encoders are joined
    components = {
        "unet" if published.network.startswith("UNet") else "transformer": network,
        "vae": vae,
        "scheduler": getattr(diffusers, kind)(num_train_timesteps=1000, **settings),
        **{f"text_encoder{n}": _NoEncoder(hidden, words.width, words.pooled) for n in ("", "_2", "_3")},
        **{f"tokenizer{n}": _NoTokenizer() for n in ("", "_2", "_3")},
    }
    plan = Plan(device, resources, default_hints(), pixels)
    with quiet():
        parts = assemble(published.pipeline, components, {}, plan, Path(published.pipeline))
    return dataclasses.replace(parts, words=words)


@dataclass(frozen=True)
class RandomWords:
    """In place of text encoders: normal noise, the same for the same prompt."""

    tokens: int
    width: int
    pooled: int = 0

    @property
    def most_tokens(self) -> int:
        """Without the marks at a prompt's ends."""
        return self.tokens - 2

    def count_tokens(self, prompt: str) -> int:
        """One for a word."""
        return len(prompt.split())

    def encode(self, prompts: list[str]) -> Float[Tensor, "n t d"]:
        """Noise."""
        return torch.stack([self._encoded(prompt) for prompt in prompts])

    def _encoded(self, prompt: str) -> Tensor:
        rng = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        tokens = torch.randn(1, self.tokens, self.width, generator=rng)
        return (joined(tokens, torch.randn(1, self.pooled, generator=rng)) if self.pooled else tokens)[0]


class _NoEncoder(nn.Module):
    """What a pipeline asks its text encoders for, without any."""

    def __init__(self, hidden: int, width: int, pooled: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=hidden, d_model=width, projection_dim=pooled)


class _NoTokenizer:
    """What a pipeline asks its tokenizers for, without any."""

    model_max_length = 77


_BLOCK = 2**22
"""Random numbers that are drawn; they fill larger weights again and again, which is as good for a clock and faster."""


@torch.no_grad()
def _filled(model: nn.Module, device: torch.device) -> Any:
    """A model of the meta device in memory: weights that keep the size of what goes through them, as at a training's
    start, so that nothing overflows and no number is so small that it is slow."""
    if device.type == "meta":
        return model
    model.to_empty(device=device)
    noise = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).to(device)
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.dim() < 2:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        flat, size = weight.view(-1), math.sqrt(weight[0].numel())
        for first in range(0, weight.numel(), _BLOCK):
            piece = flat[first : first + _BLOCK]
            piece.copy_(noise[: len(piece)] / size)
    return model
