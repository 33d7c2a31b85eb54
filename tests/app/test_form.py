"""What a form stands for, and that it names nothing but what is listed."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import tyro

from studio.app.form import (
    MOST_JOBS,
    RESTORED,
    Form,
    Wanted,
    form_of,
    listed_priors,
    objections,
    request_of,
    require_priors,
    settings_text,
    wanted,
)
from studio.app.shell import edit_command, export_command, generate_command
from studio.options import Generate, build_request
from studio.recipes import RECIPES
from studio.request import Edit, Request


def test_a_template_is_a_job_for_each_prompt_and_seed() -> None:
    jobs = wanted(Form("a {red|blue} mug", seed=5, copies=2))
    assert jobs == [Wanted(f"a {colour} mug", seed) for colour in ("red", "blue") for seed in (5, 6)]


def test_more_jobs_than_a_page_makes_are_refused() -> None:
    many = "{" + "|".join("abcdefghi") + "}"
    with pytest.raises(ValueError, match="81 prompts"):
        wanted(Form(many + many))
    assert len(wanted(Form("a mug", copies=64))) == 64


def test_the_form_changes_what_it_says_and_nothing_else(priors: dict[str, str]) -> None:
    plain = RECIPES["draft"]("a mug", True)
    assert request_of(Form("a mug"), priors) == plain
    form = Form("a mug", negative=" fog ", seed=3, steps="40", knobs={"export.faces": 500})
    asked = request_of(form, priors)
    assert (asked.negative, asked.seed, asked.steps, asked.export.faces) == ("fog", 3, 40, 500)
    export = dataclasses.replace(plain.export, faces=500)
    stages = (dataclasses.replace(plain.stages[0], steps=40),)
    assert asked == dataclasses.replace(plain, negative="fog", seed=3, stages=stages, export=export)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (Form("a mug", prior="/etc"), "No prior '/etc'"),
        (Form("a mug", recipe="drafft"), "did you mean 'draft'"),
        (Form("a mug", method="SDSS"), "did you mean 'SDS'"),
        (Form("a mug", steps="many"), "whole number"),
        (Form("a mug", steps="9" * 12), "whole number"),
        (Form("a mug", knobs={"stages.0.guidance.scael": 3}), "did you mean 'stages.0.guidance.scale'"),
        (Form("a mug", recipe=RESTORED, settings='{"is": "Request"'), "cannot be read"),
        (Form("a mug", recipe=RESTORED, settings="[" * 100_000), "cannot be read"),
        (Form("a mug", recipe=RESTORED, settings=" " * 300_000), "longer"),
    ],
)
def test_what_is_not_listed_is_refused_in_words(form: Form, words: str, priors: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=words):
        request_of(form, priors)


def test_restored_settings_name_neither_a_prior_nor_a_source(priors: dict[str, str], small: Request) -> None:
    edit = dataclasses.replace(small, prompt="a cube", task=Edit(Path("/etc")))
    text = json.dumps({**json.loads(settings_text(edit)), "prior": "/somewhere/else"})
    restored = request_of(Form("a ball", recipe=RESTORED, settings=text, prior="tiny"), priors)
    assert restored.task is None and restored.prior == priors["tiny"] and "/etc" not in text
    assert restored == dataclasses.replace(small, prompt="a ball", prior=priors["tiny"])


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_recipes_request_is_named_again(recipe: str, priors: dict[str, str]) -> None:
    request = dataclasses.replace(RECIPES[recipe]("a {mug", True), seed=4, negative="fog")
    form = form_of(request, priors)
    assert form.recipe == recipe and form.seed == 4
    assert dataclasses.replace(request_of(form, priors), prompt=wanted(form)[0].prompt) == request


def test_other_settings_travel_whole(small: Request, priors: dict[str, str]) -> None:
    request = dataclasses.replace(small, prompt="a \\ {x|y} cube", seed=9)
    form = form_of(request, priors)
    assert form.recipe == RESTORED and form.prior == "tiny"
    assert dataclasses.replace(request_of(form, priors), prompt=wanted(form)[0].prompt) == request


def test_objections_are_said_once(priors: dict[str, str]) -> None:
    form = Form("a {red|blue} zork", copies=3)
    problems = objections(form, request_of(form, priors))
    assert [p.severity for p in problems] == ["warning"] and "'zork'" in problems[0].text


def test_priors_are_folders_right_below_a_root(tiny_prior: Path, tmp_path: Path) -> None:
    (tmp_path / "no prior").mkdir()
    (tmp_path / "linked").symlink_to(tiny_prior)
    assert listed_priors((tmp_path, tmp_path / "missing")) == {
        "toybox-64": "toybox-64",
        "linked": str(tiny_prior.resolve()),
    }


def test_a_root_without_priors_is_refused(tiny_prior: Path, tmp_path: Path) -> None:
    require_priors(tiny_prior.parent)
    with pytest.raises(ValueError, match=f"--priors {tiny_prior.parent}$"):
        require_priors(tiny_prior)
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="holds no folder that is a prior"):
            require_priors(root)


# Shell commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize("prompt", ["a mug", 'it\'s "one" $HOME `id`; {a|b}'])
def test_the_command_makes_the_same_request(recipe: str, prompt: str, priors: dict[str, str]) -> None:
    knobs = {"export.faces": 777, "stages.0.steps": 12, "preview_every": 5}
    form = Form(prompt, recipe=recipe, seed=3, negative="fog", knobs=knobs)
    request = request_of(form, priors)
    words = shlex.split(generate_command(request))
    assert words[:3] == ["studio", "generate", prompt]
    assert parsed(words) == request


def test_the_command_of_another_method_and_prior(priors: dict[str, str]) -> None:
    form = Form("a mug", method="VSD", prior="tiny", knobs={"stages.0.guidance.scale": 9.5})
    request = request_of(form, priors)
    assert parsed(shlex.split(generate_command(request))) == request


def parsed(words: list[str]) -> Request:
    """The request of a command line, by the command line's own means."""
    options, knobs = tyro.cli(Generate, args=words[2:], return_unknown_args=True)
    return build_request(options, knobs)


@pytest.mark.parametrize("prompt", ["a mug", "a {red|blue} mug"])
def test_variations_have_the_same_limit_as_choices(prompt: str) -> None:
    assert len(wanted(Form("a mug", copies=MOST_JOBS))) == MOST_JOBS
    for copies in (MOST_JOBS + 1, 10**9):
        with pytest.raises(ValueError, match=f"At most {MOST_JOBS} jobs"):
            wanted(Form(prompt, copies=copies))


def test_commands_of_edits_and_exports_are_quoted(small: Request, tmp_path: Path) -> None:
    run = tmp_path / "it's here"
    request = dataclasses.replace(small, prompt="a 'b' $c", task=Edit(run, keep=("means", "sh")))
    words = shlex.split(edit_command(run, request, (0, 0, 0, 0.5, 1, 1)))
    assert words[:4] == ["studio", "edit", str(run), "a 'b' $c"]
    assert words[words.index("--keep") + 1 :][:2] == ["means", "sh"]
    assert words[-7:] == ["--box", "0", "0", "0", "0.5", "1", "1"]
    words = shlex.split(export_command(run, "glb", 500, None))
    assert words == ["studio", "export", str(run), "--format", "glb", "--faces", "500"]
