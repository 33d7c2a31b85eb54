"""A request of a recipe that nobody works on, an empty store, a make-believe engine, and a tiny real one."""

from pathlib import Path

import pytest

from studio.jobs import worker
from studio.jobs.store import Store
from studio.recipes import RECIPES
from studio.request import Request
from tests.jobs import engine
from tests.jobs.tiny import save_tiny_prior


@pytest.fixture
def template() -> Request:
    """A recipe's request; nothing here works on it."""
    return RECIPES["draft"]("", True)


@pytest.fixture
def store(runs: Path) -> Store:
    """An empty store in an empty home."""
    return Store(runs)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this process work with the make-believe engine."""
    engine.release.clear()
    monkeypatch.setattr(worker, "work_in", engine.pretend)
    monkeypatch.setattr(worker, "_free_memory", lambda _: None)  # there is none to free, and looking takes a while


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of few random weights."""
    return save_tiny_prior(tmp_path_factory.mktemp("priors") / "tiny")
