"""A tiny random prior in a folder, and a request that takes a second."""

from pathlib import Path

import pytest
import torch

from guidance.controls import Controls
from guidance.prior_folder import save_prior
from guidance.sds import SDS
from representations.hash_field import HashField
from studio.cameras import Orbit
from studio.request import Export, Request, Stage
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


@pytest.fixture(scope="session")
def tiny(tiny_prior: Path) -> Request:
    """Two stages of a few steps at small size; its ball stays a ball."""
    field = HashField(levels=(4, 8, 16), occupancy_cells=8, rate=1e-3)
    stage = Stage(
        field, SDS(scale=2.0, form="clean", controls=Controls(clamp=1.0)), steps=5, cameras=Orbit(views=2, size=24)
    )
    more = Stage(None, SDS(scale=2.0), steps=4, cameras=Orbit(views=2, size=24))
    export = Export(faces=200, texture=64, grid=24, picture=32)
    return Request(
        "a red cube", (stage, more), prior=str(tiny_prior), export=export, checkpoint_every=2, preview_every=4
    )
