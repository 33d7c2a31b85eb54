"""Tiny priors: a camera-conditioned pixel one and Stable Diffusion's layout, random but deterministic."""

import math
from pathlib import Path
from typing import Literal

import pytest
import torch

from guidance.contract import Views
from guidance.diffusers_prior import DiffusersPrior
from guidance.prior_folder import save_prior
from studio.toybox.model import Network, noise_schedule, tokenizer
from studio.toybox.views import look_from

torch.set_num_threads(1)

TOY_HINTS = {"pixel_shuffle": 2, "camera": "harmonics", "field_of_view": 40.0, "distance": 2.6, "words": ["red"]}


def toy_parts():
    """Network, text encoder, tokenizer and schedule of a toy prior."""
    torch.manual_seed(0)
    network = Network(channels=(16, 16), text_layers=1)
    return network.unet(), network.text_encoder(), tokenizer(), noise_schedule()


def write_stable_diffusion(folder: Path, prediction_type: Literal["epsilon", "v_prediction", "sample"]) -> None:
    """A folder as Stable Diffusion's are laid out, of 64 pixels a side."""
    import diffusers

    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel(  # pyright: ignore[reportPrivateImportUsage]
        sample_size=16,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(  # pyright: ignore[reportPrivateImportUsage]
        block_out_channels=(8, 8, 8),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        latent_channels=4,
        norm_num_groups=4,
    )
    schedule = diffusers.DDPMScheduler(  # pyright: ignore[reportPrivateImportUsage]
        1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )
    _, text_encoder, words, _ = toy_parts()
    save_prior(folder, unet, text_encoder, words, schedule, {}, vae=vae, half=False)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved toy prior, in 16 bits."""
    folder = tmp_path_factory.mktemp("toy") / "prior"
    save_prior(folder, *toy_parts(), TOY_HINTS)
    return folder


@pytest.fixture(scope="session")
def toy_prior(toy_folder: Path) -> DiffusersPrior:
    """The toy prior, loaded."""
    return DiffusersPrior.load(toy_folder, torch.device("cpu"))


@pytest.fixture(scope="session")
def diffusion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved latent prior that predicts noise."""
    folder = tmp_path_factory.mktemp("diffusion") / "prior"
    write_stable_diffusion(folder, "epsilon")
    return folder


@pytest.fixture
def views() -> Views:
    """Three views of 64 pixels a side, from the front, the right and the back."""
    pose = torch.stack([look_from(math.radians(azimuth), 0.2) for azimuth in (0.0, 90.0, 180.0)])
    rng = torch.Generator().manual_seed(2)
    return Views(torch.rand(3, 3, 64, 64, generator=rng), pose, torch.rand(3, 3, generator=rng))
