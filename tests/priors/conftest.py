"""Folders of every family, written once, and what a step with any of them is asked with."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from guidance.conditioning import Prompts
from guidance.contract import Views
from guidance.diffusers_prior import DiffusersPrior
from studio.toybox.views import look_from
from tests.priors.tiny import FAMILIES, write_family

torch.set_num_threads(1)
Copied = Callable[[str], Path]
"""Copies the folder of a family, to be damaged."""


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family."""
    home, written = tmp_path_factory.mktemp("families"), {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = write_family(name, home / name)
        return written[name]

    return folder


@pytest.fixture
def copied(folder_of: Callable[[str], Path], tmp_path: Path) -> Copied:
    """A family's folder that may be damaged."""
    return lambda name: Path(shutil.copytree(folder_of(name), tmp_path / name))


@pytest.fixture(scope="session")
def prior_of(folder_of: Callable[[str], Path]) -> Callable[[str], DiffusersPrior]:
    """A family's prior, loaded once."""
    loaded: dict[str, DiffusersPrior] = {}

    def prior(name: str) -> DiffusersPrior:
        if name not in loaded:
            loaded[name] = DiffusersPrior.load(folder_of(name), "cpu")
        return loaded[name]

    return prior


@pytest.fixture(params=FAMILIES)
def prior(request: pytest.FixtureRequest, prior_of: Callable[[str], DiffusersPrior]) -> DiffusersPrior:
    """The prior of every family in turn."""
    return prior_of(request.param)


def some_views(count: int, size: int = 32) -> Views:
    """Views all around that differ in everything."""
    rng = torch.Generator().manual_seed(2)
    pose = torch.stack([look_from(math.radians(360 * i / count + 10), 0.2) for i in range(count)])
    images, source = torch.rand(2, count, 3, size, size, generator=rng).unbind()
    depth = 2 + torch.rand(count, 1, size, size, generator=rng)
    depth[:, :, :4] = 0
    mask = (torch.rand(count, 1, 4, 4, generator=rng) > 0.5).float().repeat_interleave(size // 4, 2)
    background = torch.rand(count, 3, generator=rng)
    mask = mask.repeat_interleave(size // 4, 3)
    return Views(images.requires_grad_(), pose, background, depth=depth, source=source, mask=mask)


def prompts_of(prior: DiffusersPrior, view_dependent: str = "bucketed") -> Prompts:
    """A prompt, a negative one, a source's, and a picture for priors that take one."""
    picture = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(4)) if "image" in prior.takes else None
    return Prompts.embed(prior, "a red fox", "bad", view_dependent, source="a dog", image=picture)  # pyright: ignore[reportArgumentType]
