"""A tiny prior, and an engine that only pretends to work."""

from pathlib import Path

import pytest

from studio.jobs import worker
from tests.batch.tiny import save_tiny_prior
from tests.jobs import engine


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of few random weights for pictures of 16 pixels."""
    return save_tiny_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of this process work with the make-believe engine."""
    monkeypatch.setattr(worker, "work_in", engine.pretend)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
