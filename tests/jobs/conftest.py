"""A request of a recipe that nobody works on, and an empty store."""

from pathlib import Path

import pytest

from studio.jobs.store import Store
from studio.recipes import RECIPES
from studio.request import Request


@pytest.fixture
def template() -> Request:
    """A recipe's request; nothing here works on it."""
    return RECIPES["draft"]("", True)


@pytest.fixture
def store(runs: Path) -> Store:
    """An empty store in an empty home."""
    return Store(runs)
