"""Requests, recipes and their JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from guidance.sds import SDS
from representations.hash_field import HashField
from representations.particles import Particles
from representations.splats import Splats
from studio.cameras import Orbit
from studio.codec import decode, encode
from studio.recipes import RECIPES
from studio.request import Edit, Request, check


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json_and_has_no_errors_of_its_own(name):
    request = RECIPES[name]("a red mushroom", True)
    assert RECIPES[name].__doc__
    assert decode(Request, json.loads(json.dumps(encode(request)))) == request
    assert [p for p in check(request) if "prior" not in p.text] == []


def test_recipes_grow():
    draft, standard, fine = (RECIPES[name]("x", True) for name in ("draft", "standard", "fine"))
    assert draft.steps < standard.steps <= fine.steps
    assert draft.export.grid < standard.export.grid < fine.export.grid
    assert draft.export.texture < standard.export.texture <= fine.export.texture


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_look_from_where_their_prior_was_trained(name):
    """The bundled prior's figures are of these elevations; of any other prior a recipe knows nothing."""
    bundled, other = (RECIPES[name]("x", pixels).stages for pixels in (True, False))
    assert {stage.cameras.elevation for stage in bundled} == {(-15.0, 60.0)}
    assert {stage.cameras.elevation for stage in other} == {None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scael": 3.0}, "no 'scael'; did you mean 'scale'"),
        ({"scale": "much"}, "guidance.scale: wanted float, got 'much'"),
        ({"form": "dirty"}, "'dirty' is none of 'noise', 'clean'"),
        ({"is": "SDD"}, "SD"),
    ],
)
def test_wrong_settings_are_refused_with_their_place(change, words):
    data = encode(RECIPES["draft"]("a mug", True))
    data["stages"][0]["guidance"] |= change
    if "is" in change:
        data["stages"][0]["representation"]["is"] = "HashFeild"
        words = "no 'HashFeild'; did you mean 'HashField'"
    with pytest.raises(ValueError, match=words):
        decode(Request, data)


def test_a_prompt_is_data():
    prompt = "a cat ${oc.env:HOME} `rm` $(ls) {a|b} \"'"
    assert decode(Request, json.loads(json.dumps(encode(RECIPES["draft"](prompt, True))))).prompt == prompt


def test_numbers_out_of_range_are_named():
    request = decode(Request, encode(RECIPES["draft"]("a mug", True)) | {"checkpoint_every": 0})
    assert any("checkpoint_every" in p.text for p in check(request))


@pytest.mark.parametrize("elevation", [(60.0, -15.0), (-100.0, 0.0), (0.0, 91.0), (float("nan"), 0.0)])
def test_elevations_that_no_camera_has_are_refused(elevation: tuple[float, float]):
    (problem,) = check(_stage(RECIPES["draft"]("a mug", True), cameras=Orbit(elevation=elevation)))
    assert problem.text.startswith("stages.0.cameras.elevation must rise, within -90 to 90, not ")
    assert check(_stage(RECIPES["draft"]("a mug", True), cameras=Orbit(elevation=(30.0, 30.0)))) == []


def _stage(request: Request, **change: Any) -> Request:
    return dataclasses.replace(request, stages=(dataclasses.replace(request.stages[0], **change),))


_HUGE: list[tuple[dict[str, Any], str]] = [
    ({"steps": 10**9}, "stages.0.steps must be 1,000,000 or less, not 1,000,000,000."),
    ({"cameras": Orbit(views=10**6)}, "stages.0.cameras.views must be 256 or less, not 1,000,000."),
    ({"cameras": Orbit(size=10**5)}, "stages.0.cameras.size must be 2,048 or less, not 100,000."),
    (
        {"cameras": Orbit(views=65, size=1024)},
        "stages.0.cameras: 65 views of 1024 pixels a side are too much for a step",
    ),
    ({"representation": Splats(most=10**12)}, "representation.most must be 10,000,000 or less, not 1,000,000,000,000."),
    ({"representation": Splats(count=10**9)}, "representation.most must be 10,000,000 or less, not 1,000,000,000."),
    ({"representation": Particles(count=10**6)}, "stages.0.representation.count must be 64 or less, not 1,000,000."),
    ({"representation": Particles(Splats(most=10**9))}, "representation.kind.most must be 10,000,000 or less"),
    ({"representation": HashField(occupancy_cells=10**4)}, "occupancy_cells must be 512 or less, not 10,000."),
    ({"representation": HashField(steps_per_cell=1e9)}, "steps_per_cell must be 64 or less, not 1,000,000,000.0."),
]


@pytest.mark.parametrize(("change", "words"), _HUGE)
def test_what_no_machine_could_hold_is_refused(change: dict[str, Any], words: str):
    request = _stage(RECIPES["draft"]("a mug", True), **change)
    (problem,) = check(request)
    assert problem.severity == "error" and words in problem.text
    # Nor is it built to look at what it consists of.
    kept = dataclasses.replace(request, task=Edit(Path("run"), ("means",)))
    assert any(words in p.text for p in check(kept))


def test_what_a_large_machine_could_hold_is_not():
    large = {"steps": 1_000_000, "cameras": Orbit(views=64, size=1024), "representation": Splats(most=10_000_000)}
    assert check(_stage(RECIPES["draft"]("a mug", True), **large)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"faces": 10**9}, "export.faces must be 5,000,000 or less, not 1,000,000,000."),
        ({"picture": 10**6}, "export.picture must be 4,096 or less, not 1,000,000."),
        ({"smoothing": 10**9}, "export.smoothing must be 1,000 or less, not 1,000,000,000."),
        ({"smoothing": -1}, "export.smoothing must be 0 or more, not -1."),
    ],
)
def test_exports_have_bounds(change: dict[str, int], words: str):
    request = RECIPES["draft"]("a mug", True)
    (problem,) = check(dataclasses.replace(request, export=dataclasses.replace(request.export, **change)))
    assert problem.text == words


def test_a_run_has_a_bounded_number_of_stages():
    request = RECIPES["draft"]("a mug", True)
    (problem,) = check(dataclasses.replace(request, stages=request.stages * 65))
    assert problem.text == "A run has at most 64 stages, not 65."


def test_knobs_keep_their_types():
    assert decode(SDS, {"scale": 7}).scale == 7.0
