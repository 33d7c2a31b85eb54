"""Requests, recipes and their JSON."""

import json

import pytest

from guidance.sds import SDS
from studio.codec import decode, encode
from studio.recipes import RECIPES
from studio.request import Request, check


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


def test_knobs_keep_their_types():
    assert decode(SDS, {"scale": 7}).scale == 7.0
