"""Recipes named after papers: every one runs, in both readings, and says which paper it follows."""

import dataclasses
from pathlib import Path

import pytest
import torch

from guidance.conditioning import Prompts
from guidance.diffusers_prior import DiffusersPrior
from studio.cameras import Orbit
from studio.optimize import Run, Setting, Timing, make_optimiser, optimize, step_rng
from studio.papers import PAPERS
from studio.recipes import RECIPES
from studio.request import check
from studio.tuning import is_bundled

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prior(tiny_prior: Path) -> DiffusersPrior:
    """The tiny prior, loaded once."""
    return DiffusersPrior.load(tiny_prior, CPU)


@pytest.mark.parametrize("recipe", PAPERS, ids=lambda r: r.__name__)
def test_it_is_offered_and_names_its_paper(recipe):
    assert RECIPES[recipe.__name__.replace("_", "-")] is recipe
    assert "arXiv" in recipe.__doc__
    for pixels in (True, False):
        problems = [p.text for p in check(recipe("a red mushroom", pixels)) if p.severity == "error"]
        assert problems == []


@pytest.mark.parametrize("recipe", PAPERS, ids=lambda r: r.__name__)
def test_the_readings_differ_in_size_and_guidance_but_not_in_method(recipe):
    small, large = recipe("a mug", True), recipe("a mug", False)
    assert small.steps < 1000 < 5000 < large.steps
    assert type(small.stages[0].guidance) is type(large.stages[0].guidance)
    assert type(small.stages[0].representation) is type(large.stages[0].representation)


@pytest.mark.parametrize("recipe", PAPERS, ids=lambda r: r.__name__)
def test_every_stage_takes_steps(recipe, prior: DiffusersPrior):
    request, representation = recipe("a red mushroom", True), None
    prompts = Prompts.embed(prior, request.prompt, view_dependent="off")
    for index, stage in enumerate(request.stages):
        stage = dataclasses.replace(stage, steps=2, cameras=Orbit(views=2, size=16))
        if stage.representation is not None:
            representation = stage.representation.build(step_rng(0, index, -1), CPU)
        assert representation is not None
        before = [parameter.clone() for parameter in representation.parameters()]
        run = Run(index, 0, representation, make_optimiser(representation), stage.guidance.init(prior, 0))
        steps = list(optimize(run, Setting(stage, prior, prompts, prior.hints, 0), Timing(), lambda: False))
        assert len(steps) == 2 and all(step.event.loss.isfinite() for step in steps)
        assert any(not torch.equal(a, b) for a, b in zip(before, representation.parameters(), strict=True))


def test_a_recipe_is_read_for_the_prior_that_is_named(tiny_prior: Path):
    from studio.options import Generate, build_request

    assert is_bundled("toybox-64") and is_bundled("toybox") and not is_bundled(str(tiny_prior))
    assert not is_bundled("no such prior")
    ours = build_request(Generate("a mug", recipe="dreamfusion"), [])
    theirs = build_request(Generate("a mug", recipe="dreamfusion", prior=str(tiny_prior)), [])
    assert (ours.stages[0].guidance.scale, theirs.stages[0].guidance.scale) == (21, 101)  # pyright: ignore[reportAttributeAccessIssue]
