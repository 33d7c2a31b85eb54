"""A tiny prior, a request that it does in a second, and worker processes that start at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.jobs.store import Item, Store
from studio.request import Request
from tests.jobs.tiny import save_tiny_prior, tiny_request
from tests.reliability.nursery import Nursery


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of few random weights."""
    return save_tiny_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_prior: Path) -> Request:
    """A few steps, with a checkpoint after every second."""
    return tiny_request(tiny_prior)


JOBS = 2
"""Jobs of the undisturbed home, of seeds 0 and 1."""


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Worker processes that start at once."""
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="session")
def undisturbed(nursery: Nursery, tiny: Request, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A home in which a worker did a few jobs that nothing interrupted."""
    store = Store(tmp_path_factory.mktemp("undisturbed") / "runs")
    store.submit(tiny, [Item("a red cube", seed) for seed in range(JOBS)])
    assert nursery.wait(nursery.begin("worker", store.home, "--until-empty")) == 0
    return store
