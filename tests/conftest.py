"""What every test gets: checked shapes and types, few threads, fixed seeds, no network, and the Khronos validator."""

import gc
import os

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# Annotations are checked in every call to our packages, which must therefore be imported after this line. As for a
# static checker, an int will do for a float. pytest's option --jaxtyping-packages cannot pass that setting on.
install_import_hook(
    ["studio", "representations", "guidance", "cuda_ext"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_finish() -> None:
    """What is imported stays: from here on the collector has only to look at what tests make."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Global generators start alike in every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """An empty folder for runs."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def gltf_validator() -> Path:
    """The ``node_modules`` folder with Khronos' validator; skips where it is missing, fails where it must not be."""
    modules = Path(os.environ.get("DREAMKILN_GLTF_VALIDATOR") or "node_modules").resolve()
    if (modules / "gltf-validator").is_dir() and shutil.which("node"):
        return modules
    missing = "node and npm's gltf-validator are needed: set DREAMKILN_GLTF_VALIDATOR to the node_modules folder"
    if os.environ.get("DREAMKILN_REQUIRE_VALIDATOR") == "1":
        pytest.fail(missing)
    pytest.skip(missing)
