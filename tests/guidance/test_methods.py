"""What holds for every method in the union."""

import dataclasses
import subprocess
import sys
import typing

import pytest
import torch

from guidance.contract import Guidance
from guidance.methods import AnyGuidance
from guidance.testing import GaussianPrior

METHODS = typing.get_args(AnyGuidance) or (AnyGuidance,)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_a_frozen_dataclass_of_knobs_that_says_what_it_does(method: type):
    assert dataclasses.is_dataclass(method)
    assert method.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    assert "arXiv" in (method.__doc__ or "")
    knobs = method()
    assert isinstance(knobs, Guidance)
    assert isinstance(knobs.requires, frozenset)
    hash(knobs)


@pytest.mark.parametrize("method", METHODS)
def test_its_state_is_a_module_that_checkpoints(method: type):
    state = method().init(GaussianPrior())
    assert isinstance(state, torch.nn.Module)
    state.load_state_dict(state.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_it_is_set_from_a_command_line(method: type):
    import tyro

    assert tyro.cli(method, args=[]) == method()
    assert tyro.cli(method, args=["--scale", "3"]).scale == 3


def test_importing_guidance_loads_no_model_library():
    check = "import guidance, guidance.diffusers_prior, guidance.prior_folder, guidance.testing, sys; "
    check += "sys.exit(any(name in sys.modules for name in ('diffusers', 'transformers', 'tyro')))"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0
