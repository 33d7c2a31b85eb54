"""A prior so small that a run of a few steps takes a fraction of a second, and the options that make such a run."""

from pathlib import Path

import torch

from guidance.prior_folder import save_prior
from studio.toybox.language import WORDS
from studio.toybox.model import Network, noise_schedule, tokenizer


def save_tiny_prior(folder: Path) -> Path:
    """A folder like the bundled prior's, of a network of few random weights for pictures of 16 pixels."""
    torch.manual_seed(0)
    network = Network(channels=(16,), text_layers=1)
    unet = network.unet()
    unet.register_to_config(sample_size=8)
    hints = {"pixel_shuffle": 2, "camera": "harmonics", "words": WORDS}
    save_prior(folder, unet, network.text_encoder(), tokenizer(), noise_schedule(), hints)
    return folder


def tiny_options(prior: Path, steps: int = 4) -> list[str]:
    """Options for ``studio batch``: steps at small size, with a checkpoint after every second."""
    knobs = {
        "--prior": prior,
        "--representation": "HashField",
        "--steps": steps,
        "--stages.0.representation.levels": "4 8",
        "--stages.0.representation.occupancy-cells": 8,
        "--stages.0.representation.rate": 1e-3,
        "--stages.0.cameras.views": 1,
        "--stages.0.cameras.size": 16,
        "--export.faces": 60,
        "--export.texture": 16,
        "--export.grid": 12,
        "--export.smoothing": 0,
        "--export.picture": 16,
        "--checkpoint-every": 2,
        "--preview-every": 2,
    }
    return [word for name, value in knobs.items() for word in (name, *str(value).split())]
