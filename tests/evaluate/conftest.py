"""A tiny random prior in a folder, and what is compared on it."""

from pathlib import Path

import pytest
import torch

from guidance.prior_folder import save_prior
from studio.toybox.language import WORDS
from studio.toybox.model import Network, noise_schedule, tokenizer


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the bundled prior's, of a network of few random weights."""
    torch.manual_seed(0)
    network = Network(channels=(16, 16), text_layers=1)
    folder = tmp_path_factory.mktemp("priors") / "tiny"
    hints = {"pixel_shuffle": 2, "camera": "harmonics", "words": WORDS}
    save_prior(folder, network.unet(), network.text_encoder(), tokenizer(), noise_schedule(), hints)
    return folder
