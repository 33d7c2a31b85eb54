"""Which families' guidance can be distilled: those that words and a camera prompt learn, all others say why not."""

from pathlib import Path

import pytest
import torch

from guidance.distillation import Distillation, Sketches, Subjects, refuse_other_priors, teach
from guidance.one_pass import OnePassAdapter
from tests.priors.tiny import FAMILIES

LEARN = {"stable_diffusion", "stable_diffusion_v", "consistency", "stable_diffusion_xl"}
KNOBS = Distillation(steps=2, batch=2, rank=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_learns_or_says_why_not(family: str, prior_of, tmp_path: Path):
    prior = prior_of(family)
    try:
        refuse_other_priors(prior)
        student = OnePassAdapter(prior.network, 2, 0)
    except ValueError as refused:
        assert family not in LEARN and "one-pass guidance is" in str(refused)
        return
    assert family in LEARN

    def choose(count: int, rng: torch.Generator) -> Subjects:
        return Subjects(prior.embed(["a fox"] * count), None, torch.rand(count, 3, generator=rng))

    rng = torch.Generator().manual_seed(0)
    sketches = Sketches.begin(prior, choose, 2, KNOBS, rng)
    before = sketches.clean.clone()
    loss = teach(prior, student, sketches, KNOBS, rng)
    loss.backward()
    assert loss > 0 and torch.isfinite(sketches.clean).all() and not torch.equal(sketches.clean, before)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters())
    student.write(tmp_path / "one.safetensors", {})
