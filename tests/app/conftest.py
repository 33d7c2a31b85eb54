"""A tiny prior, a home with one finished run, and the studio behind a page over it."""

from pathlib import Path

import pytest

from representations.hash_field import HashField
from studio.app.service import Service
from studio.app.shelf import Shelf
from studio.cameras import Orbit
from studio.jobs.store import Item, Store
from studio.jobs.worker import work
from studio.request import Export, Request, Stage
from tests.jobs.tiny import save_tiny_prior


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of few random weights."""
    return save_tiny_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture(scope="session")
def small(tiny_prior: Path) -> Request:
    """A run of about a second; its ball stays a ball."""
    field = HashField(levels=(4, 8, 16), occupancy_cells=8, rate=1e-3)
    stage = Stage(field, steps=6, cameras=Orbit(views=2, size=24))
    export = Export(faces=200, texture=64, grid=24, picture=32)
    return Request("", (stage,), prior=str(tiny_prior), export=export, checkpoint_every=2, preview_every=2)


@pytest.fixture(scope="session")
def made(small: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finished job."""
    home = tmp_path_factory.mktemp("made")
    Store(home).submit(small, [Item("a red cube", 7)], folders=True)
    for _ in work(home, "cpu", until_empty=True):
        pass
    return home


@pytest.fixture
def priors(tiny_prior: Path) -> dict[str, str]:
    """What may be named."""
    return {"toybox-64": "toybox-64", "tiny": str(tiny_prior)}


@pytest.fixture
def service(runs: Path, priors: dict[str, str]) -> Service:
    """The studio over an empty home."""
    return Service(runs, priors)


@pytest.fixture
def studio(made: Path, priors: dict[str, str]) -> Service:
    """The studio over the home with a finished job; only to be read."""
    return Service(made, priors)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """An empty one."""
    return Shelf(tmp_path / "shelf")
