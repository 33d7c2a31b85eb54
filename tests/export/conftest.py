"""One toy exported once, for every test that looks at the result."""

import pytest
import torch

from studio.toybox.world import Toy
from tests.export.toy_scene import Export, ToyScene, export

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mug(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A red mug, small."""
    return export(ToyScene(Toy("mug", "red")), tmp_path_factory.mktemp("mug"))
