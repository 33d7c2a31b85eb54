"""Where numbers do not hold, it is said whether the prior is at fault."""

from collections.abc import Callable

import pytest
import torch

from guidance.diffusers_prior import DiffusersPrior
from guidance.priors.resources import Resources
from studio.prior_trial import fault_of
from tests.priors.conftest import Copied
from tests.priors.tiny import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_prior_has_no_fault(family: str, prior_of: Callable[[str], DiffusersPrior]):
    assert fault_of(prior_of(family)) == ""


@pytest.mark.parametrize(
    ("part", "name"), [("text_encoder", "text encoder"), ("vae", "autoencoder"), ("unet", "network")]
)
def test_a_part_that_answers_no_numbers_is_named(part: str, name: str, copied: Copied):
    prior = DiffusersPrior.load(copied("ip_adapter"), "cpu", resources=Resources("float16"))
    for weight in prior.parts.modules[part].parameters():
        weight.data.fill_(torch.inf)
    said = fault_of(prior)
    assert f"its {name} answers" in said and "in float16" in said and "resources.dtype bfloat16" in said
