"""The network of the bundled prior: a small pixel-space U-Net, and a small text encoder trained along with it.

Pixels are rearranged 2x2 into 12 channels at 32x32, a quarter of the convolution work at full size. The prompt enters
twice: pooled into every residual block, which learns kind and colour early, and through cross-attention at the lowest
level, which binds two colours to two places.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from guidance.camera_features import FEATURES
from studio.toybox.language import END, MAX_TOKENS, START, tokenizer_files

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

RESOLUTION = 64
TEXT_WIDTH = 128


@dataclass(frozen=True)
class Network:
    """Size of the prior's network; the defaults are those of the bundled one."""

    channels: tuple[int, ...] = (32, 64, 128)
    """Width of each level, finest first."""
    pixel_shuffle: int = 2
    """Pixels a side that are folded into channels."""
    text_layers: int = 2
    """Transformer layers of the text encoder."""

    def unet(self) -> "UNet2DConditionModel":
        """A freshly initialised U-Net."""
        from diffusers import UNet2DConditionModel

        levels = len(self.channels)
        folded = 3 * self.pixel_shuffle**2
        return UNet2DConditionModel(
            sample_size=RESOLUTION // self.pixel_shuffle,
            in_channels=folded,
            out_channels=folded,
            block_out_channels=self.channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            mid_block_type="UNetMidBlock2DCrossAttn",
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,  # diffusers reads this as the number of heads
            norm_num_groups=16,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=FEATURES,
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
            resnet_time_scale_shift="scale_shift",
        )

    def text_encoder(self) -> "CLIPTextModel":
        """A freshly initialised text encoder."""
        from transformers import CLIPTextConfig, CLIPTextModel

        vocabulary, _ = tokenizer_files()
        config = CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=self.text_layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[END],
        )
        encoder = CLIPTextModel(config)
        # CLIP's own scale of 0.02 drowns in the residual stream when the table is trained from nothing.
        torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)  # pyright: ignore[reportArgumentType]
        return encoder


def tokenizer() -> "CLIPTokenizer":
    """The tokenizer over the toybox's words."""
    from transformers import CLIPTokenizer

    vocabulary, merges = tokenizer_files()
    pairs = [tuple(merge.split()) for merge in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=MAX_TOKENS)  # pyright: ignore[reportArgumentType]


def noise_schedule() -> "DDPMScheduler":
    """Cosine schedule, v-prediction, 1000 steps."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)
