"""A tiny prior of random weights, and a request that it does in a second: for tests in which pictures do not matter."""

from pathlib import Path

import torch

from guidance.controls import Controls
from guidance.prior_folder import save_prior
from guidance.sds import SDS
from representations.hash_field import HashField
from studio.cameras import Orbit
from studio.request import Export, Request, Stage
from studio.toybox.language import WORDS
from studio.toybox.model import Network, noise_schedule, tokenizer


def save_tiny_prior(folder: Path) -> Path:
    """A folder like the bundled prior's, of a network of few random weights."""
    torch.manual_seed(0)
    network = Network(channels=(16, 16), text_layers=1)
    hints = {"pixel_shuffle": 2, "camera": "harmonics", "words": WORDS}
    save_prior(folder, network.unet(), network.text_encoder(), tokenizer(), noise_schedule(), hints)
    return folder


def tiny_request(prior: Path, steps: int = 6) -> Request:
    """Steps at small size, with a checkpoint after every second; its ball stays a ball."""
    field = HashField(levels=(4, 8), occupancy_cells=8, rate=1e-3)
    sds = SDS(scale=2.0, form="clean", controls=Controls(clamp=1.0))
    stage = Stage(field, sds, steps=steps, cameras=Orbit(views=1, size=16))
    export = Export(faces=60, texture=16, grid=12, smoothing=0, picture=16)
    return Request("", (stage,), prior=str(prior), export=export, checkpoint_every=2, preview_every=0)
