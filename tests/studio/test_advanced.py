"""Knobs: all there are, read back as they were shown, refused in words, and the command line that does the same."""

import dataclasses
import typing
from pathlib import Path
from typing import Any, get_args

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from guidance.schedules import Schedule, Shape
from guidance.sds import SDS
from guidance.vsd import VSD
from representations.box import Box
from representations.hash_field import HashField
from representations.splats import Splats
from studio.app.advanced import LEFT_OUT, Knob, as_arguments, field_help, knobs, with_knobs
from studio.codec import members
from studio.options import Generate, UsageError, build_request
from studio.places import places
from studio.recipes import RECIPES
from studio.request import Edit, Request
from studio.schedule_text import parse_schedule, schedule_text
from studio.tuning import suited, wishes

DRAFT, FINE = RECIPES["draft"]("a mug", True), RECIPES["fine"]("a mug", True)
REQUESTS = [recipe("a mug", pixels) for recipe in RECIPES.values() for pixels in (True, False)]


def at(request: Request, path: str) -> Knob:
    """The one knob of a path."""
    return next(knob for knob in knobs(request) if knob.path == path)


# All of them ----------------------------------------------------------------------------------------------------------


def reachable(kind: Any, seen: set[type]) -> set[type]:
    """Dataclasses that a value of a type may consist of."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if kind in seen:
            return seen
        seen.add(kind)
        for hint in typing.get_type_hints(kind).values():
            reachable(hint, seen)
    for argument in get_args(kind):
        reachable(argument, seen)
    return seen


CLASSES = sorted(reachable(Request, set()) - {Schedule}, key=lambda kind: kind.__name__)


def shown(request: Request) -> set[str]:
    """Fields, as Class.name, that are knobs of a request."""
    known = {knob.path for knob in knobs(request)}
    return {f"{place.owner.__name__}.{place.name}" for place in places(request) if place.path in known}


@pytest.fixture(scope="module")
def all_shown() -> set[str]:
    """Every field that is a knob of some request."""
    box = Box((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5))
    found = [DRAFT, dataclasses.replace(DRAFT, task=Edit(Path("runs/a-mug"), region=box))]
    for union in ("representation", "guidance"):
        path = f"stages.0.{union}"
        found += [with_knobs(DRAFT, {path: name}) for name in at(DRAFT, path).choices]
    return set().union(*map(shown, found))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_field_is_a_knob_or_deliberately_none(kind: type, all_shown: set[str]) -> None:
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        name = f"{kind.__name__}.{field.name}"
        hint = typing.get_type_hints(kind)[field.name]
        always = isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint is not Schedule
        assert (name in all_shown) + (name in LEFT_OUT) + always == 1, name


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_field_has_help(kind: type) -> None:
    assert not [f.name for f in dataclasses.fields(kind) if not field_help(kind).get(f.name)]  # pyright: ignore[reportArgumentType]


def test_a_new_field_appears_by_itself() -> None:
    @dataclasses.dataclass(frozen=True)
    class Sharper(SDS):
        """A method with one knob more."""

        edge: float = 0.5
        """How sharp
        it is."""

    stage = dataclasses.replace(DRAFT.stages[0], guidance=Sharper())
    knob = at(dataclasses.replace(DRAFT, stages=(stage,)), "stages.0.guidance.edge")
    assert knob == Knob(
        "stages.0.guidance.edge", "Stage 1: guidance", "Edge", "number", 0.5, (), False, "How sharp it is."
    )


def test_what_is_left_out_is_there() -> None:
    fields = {f"{kind.__name__}.{f.name}" for kind in CLASSES for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    assert set(LEFT_OUT) <= fields


def test_knobs_of_one_heading_follow_each_other() -> None:
    headings = [knob.heading for knob in knobs(FINE)]
    runs = [h for h, before in zip(headings, [None, *headings], strict=False) if h != before]
    assert len(runs) == len(set(runs))
    assert {"Stage 1", "Stage 2: guidance, controls", "Run", "Export"} <= set(runs)


@pytest.mark.parametrize(
    ("path", "kind", "value", "optional"),
    [
        ("stages.0.guidance.scale", "number", 7.5, False),
        ("stages.0.steps", "integer", 900, False),
        ("stages.0.guidance.controls.shared_t", "switch", False, False),
        ("stages.0.guidance.form", "choice", "clean", False),
        ("view_prompts", "choice", "none", True),
        ("stages.0.cameras.elevation", "text", "-15.0 60.0", True),
        ("stages.0.guidance.controls.random_scale", "text", "", True),
        ("stages.0.guidance.controls.max_norm", "number", None, True),
        ("stages.0.guidance.t_max", "schedule", "0.98 -> 0.5 until 0.9", False),
        ("stages.0.guidance.controls.score_clamp", "schedule", "", True),
        ("stages.0.representation", "union", "Splats", True),
        ("negative", "text", "", False),
    ],
)
def test_a_knob_is_what_a_form_needs(path: str, kind: str, value: Any, optional: bool) -> None:
    knob = at(DRAFT, path)
    assert (knob.kind, knob.value, knob.optional) == (kind, value, optional)
    assert bool(knob.choices) == (kind in ("choice", "union"))
    assert value in knob.choices or not knob.choices


def test_one_pass_guidance_is_offered_where_the_prior_has_a_file_of_its_own(tiny_prior: Path) -> None:
    path = "prior_options.one_pass"
    knob = at(DRAFT, path)
    assert (knob.kind, knob.value, knob.choices) == ("choice", "none", ("none", "own"))
    assert with_knobs(DRAFT, {path: "own"}).prior_options.one_pass == "own"
    assert with_knobs(with_knobs(DRAFT, {path: "own"}), {path: "none"}) == DRAFT
    assert as_arguments(DRAFT, with_knobs(DRAFT, {path: "own"})) == ["--prior-options.one-pass", "own"]
    for other in ("/etc/passwd", "one_pass.safetensors", ""):
        with pytest.raises(ValueError, match=r"prior_options\.one_pass: .* is none of none, own"):
            with_knobs(DRAFT, {path: other})
    without = dataclasses.replace(DRAFT, prior=str(tiny_prior))
    assert path not in {knob.path for knob in knobs(without)}
    set_before = with_knobs(without, {path: "own"})  # for the prior that was chosen before: to be taken back
    assert at(set_before, path).value == "own" and with_knobs(set_before, {path: "none"}) == without


# Reading back ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r.stages[0].guidance).__name__)
def test_what_is_shown_reads_back_as_it_was(request_: Request) -> None:
    values = {knob.path: knob.value for knob in knobs(request_)}
    assert with_knobs(request_, values) == request_
    text = {path: "" if value is None else str(value) for path, value in values.items()}
    assert with_knobs(request_, text) == request_


def test_values_of_a_form() -> None:
    changed = with_knobs(
        FINE,
        {
            "stages.1.guidance.scale": "20",
            "stages.0.steps": 12.0,
            "stages.0.guidance.controls.max_norm": 0.5,
            "stages.0.guidance.controls.final_scale": None,
            "stages.0.guidance.controls.random_scale": "5, 10",
            "stages.0.representation.levels": "8 16",
            "stages.0.guidance.t_max": "0.9 → 0.4",
            "stages.0.guidance.controls.group": True,
            "view_prompts": "perp_neg",
            "negative": "  blurry ",
        },
    )
    first, second = changed.stages
    assert isinstance(first.guidance, SDS) and isinstance(second.guidance, SDS)
    assert isinstance(first.representation, HashField)
    controls = first.guidance.controls
    assert (second.guidance.scale, first.steps, controls.max_norm, controls.final_scale) == (20.0, 12, 0.5, None)
    assert (controls.random_scale, controls.group, first.representation.levels) == ((5.0, 10.0), True, (8, 16))
    assert (first.guidance.t_max, changed.view_prompts) == (Schedule(0.9, 0.4), "perp_neg")
    assert changed.negative == "  blurry "


def test_a_member_of_a_union_can_be_switched_and_set_at_once() -> None:
    changed = with_knobs(
        DRAFT,
        {
            "stages.0.guidance.critic.rank": 8,
            "stages.0.guidance": "VSD",
            "stages.0.representation": "hashfield",
            "stages.0.regularizers.binary": "7",
        },
    )
    (stage,) = changed.stages
    known = suited(VSD)
    assert isinstance(known, VSD)
    assert stage.guidance == dataclasses.replace(known, critic=dataclasses.replace(known.critic, rank=8))
    assert stage.representation == HashField()
    assert stage.regularizers == dataclasses.replace(wishes(HashField()), binary=Schedule(7.0))


def test_particles_of_another_kind() -> None:
    changed = with_knobs(DRAFT, {"stages.0.representation": "Particles", "stages.0.representation.kind": "HashField"})
    assert at(changed, "stages.0.representation.kind").value == "HashField"
    assert "stages.0.representation.kind.levels" in {knob.path for knob in knobs(changed)}


WRONG = {
    "stages.0.guidance.scael": ("1", "did you mean 'stages.0.guidance.scale'?"),
    "stages.0.guidance.scale": ("much", "stages.0.guidance.scale: wanted float, got 'much'"),
    "stages.0.guidance.controls.clamp": (float("nan"), "nan is no number"),
    "export.faces": (10**400, "export.faces: no knob is that large"),
    "export.grid": ("9" * 30, "export.grid: no knob is that large"),
    "stages.0.cameras.views": (1e300, "1e+300 is no number to set"),
    "stages.0.steps": (1.5, "stages.0.steps: wanted int, got 1.5"),
    "stages.0.guidance.form": ("noize", "'noize' is none of 'noise', 'clean'"),
    "stages.0.guidance": ("VDS", "did you mean 'VSD'?"),
    "stages.0.guidance.t_max": ("0.9 -> 0.5 util 0.8", "did you mean 'until'?"),
    "stages.0.guidance.t_min": ("0.9 until 2", "must obey 0 <= begin < until <= 1"),
    "stages.0.cameras.elevation": ("1 2 3", "stages.0.cameras.elevation: wanted 2 values, got 3"),
    "stages.0.guidance.controls.group": ("perhaps", "wanted bool, got 'perhaps'"),
    "seed": (None, "seed: wanted int, got None"),
    "prior": ("/etc", "No knob 'prior'"),
    "prompt": ("a car", "No knob 'prompt'"),
    "task.source": ("/etc", "No knob 'task.source'"),
    "stages.7.steps": (1, "No knob 'stages.7.steps'"),
    "stages.0.__class__": ("x", "No knob"),
    "": ("x", "No knob ''"),
}


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_value_is_refused_in_words(path: str) -> None:
    value, words = WRONG[path]
    with pytest.raises(ValueError) as refused:
        with_knobs(DRAFT, {path: value})
    assert words in str(refused.value)


def test_all_wrong_values_are_reported_together() -> None:
    with pytest.raises(ValueError) as refused:
        with_knobs(DRAFT, {path: value for path, (value, _) in WRONG.items()})
    assert len(str(refused.value).splitlines()) == len(WRONG)


# Schedules as text ----------------------------------------------------------------------------------------------------


def schedules(value: Any) -> list[Schedule]:
    """Every schedule in a tree of dataclasses."""
    if isinstance(value, Schedule):
        return [value]
    if isinstance(value, tuple):
        return [found for item in value for found in schedules(item)]
    if dataclasses.is_dataclass(value):
        return [found for f in dataclasses.fields(value) for found in schedules(getattr(value, f.name))]
    return []


def test_every_schedule_of_every_recipe_survives_as_text() -> None:
    found = set(schedules(tuple(REQUESTS)))
    assert len(found) > 10 and any(s.points for s in found)
    for schedule in found:
        assert parse_schedule(schedule_text(schedule)) == schedule


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Schedule(0.02), "0.02"),
        (Schedule(500.0, 50.0, until=0.5), "500 -> 50 until 0.5"),
        (Schedule(1.0, -2.5, begin=0.25, shape="cosine"), "1 -> -2.5 from 0.25 cosine"),
        (Schedule(1.0, shape="constant"), "1 constant"),
        (Schedule(points=((0.0, 1.0), (0.5, 1.0), (0.5, 3.0)), shape="piecewise"), "0:1, 0.5:1, 0.5:3"),
    ],
)
def test_schedules_as_text(schedule: Schedule, text: str) -> None:
    assert schedule_text(schedule) == text
    assert parse_schedule(text) == schedule
    assert parse_schedule(text.replace(" -> ", "→")) == schedule


NUMBER = st.floats(allow_nan=False, allow_infinity=False)
SHARE = st.floats(0, 1)


@st.composite
def any_schedule(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of any schedule that there may be."""
    begin, until = sorted(draw(st.tuples(SHARE, SHARE).filter(lambda pair: pair[0] != pair[1])))
    if draw(st.booleans()):
        at = sorted(draw(st.lists(SHARE, min_size=1, max_size=4)))
        points = tuple((place, draw(NUMBER)) for place in at)
        return {"begin": begin, "until": until, "shape": "piecewise", "points": points}
    shape = draw(st.sampled_from([s for s in get_args(Shape) if s != "piecewise"]))
    end = None if shape == "constant" else draw(st.none() | NUMBER)
    return {"start": draw(NUMBER), "end": end, "begin": begin, "until": until, "shape": shape}


@given(any_schedule())
def test_any_schedule_survives_as_text(fields: dict[str, Any]) -> None:
    schedule = Schedule(**fields)
    assert parse_schedule(schedule_text(schedule)) == schedule


@given(st.text(alphabet="0123 .->:,efromuntilcs", max_size=20) | st.text(max_size=20))
def test_any_text_is_a_schedule_or_refused_in_words(text: str) -> None:
    try:
        schedule = parse_schedule(text)
    except ValueError as problem:
        assert "write 0.5, or" in str(problem)
    else:
        assert parse_schedule(schedule_text(schedule)) == schedule


# The command line that does the same ----------------------------------------------------------------------------------


def through_the_command_line(recipe: str, arguments: list[str]) -> Request:
    """What ``studio generate "a mug"`` with these arguments would run."""
    options, rest = tyro.cli(
        Generate, args=["a mug", "--recipe", recipe, *arguments], prog="studio", return_unknown_args=True
    )
    return build_request(options, rest)


def test_arguments_are_the_ones_that_people_would_write() -> None:
    after = with_knobs(
        DRAFT,
        {
            "stages.0.guidance.scale": 20,
            "stages.0.guidance.t_max": "0.9 -> 0.4",
            "stages.0.guidance.controls.group": True,
            "stages.0.guidance.controls.final_scale": None,
            "stages.0.cameras.elevation": "-5 30",
            "export.faces": 500,
        },
    )
    assert as_arguments(DRAFT, DRAFT) == []
    assert as_arguments(DRAFT, after) == [
        *("--stages.0.guidance.scale", "20.0", "--stages.0.guidance.t-max", "0.9 -> 0.4"),
        *("--stages.0.guidance.controls.final-scale", "None", "--stages.0.guidance.controls.group"),
        *("--stages.0.cameras.elevation", "-5.0", "30.0", "--export.faces", "500"),
    ]


CHANGES: dict[str, list[Any]] = {
    "number": [0.125, -3.0, 1e-7],
    "integer": [3, 17, 0],
    "switch": [True, False],
    "schedule": ["0.5", "1 -> 0.25 from 0.1 until 0.5 cosine", "0:1, 0.5:1, 0.5:3"],
}


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_arguments_do_the_same(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["draft", "fine", "consistent3d", "prolificdreamer"]))
    before = after = RECIPES[name]("a mug", True)
    for kinds in (("union",), ("union",), (*CHANGES, "choice", "text")):
        known = [knob for knob in knobs(after) if knob.kind in kinds]
        for knob in data.draw(st.lists(st.sampled_from(known), max_size=4, unique_by=lambda k: k.path)):
            values = [*(knob.choices or CHANGES.get(knob.kind, [knob.value])), *([""] if knob.optional else [])]
            try:
                after = with_knobs(after, {knob.path: data.draw(st.sampled_from(values))})
            except ValueError:  # it went with a switch, or is no schedule together with the rest
                continue
    assert through_the_command_line(name, as_arguments(before, after)) == after


@pytest.mark.parametrize("negative", ["--seed 3", "-x", "", "two words", "$(touch x)", "a\nb"])
def test_text_is_one_argument(negative: str) -> None:
    after = dataclasses.replace(DRAFT, negative=negative, seed=-4, view_prompts="off")
    assert through_the_command_line("draft", as_arguments(DRAFT, after)) == after


def test_every_method_and_representation_by_name() -> None:
    for union in ("guidance", "representation"):
        for name in at(FINE, f"stages.1.{union}").choices:
            after = with_knobs(FINE, {f"stages.1.{union}": name})
            assert through_the_command_line("fine", as_arguments(FINE, after)) == after


def test_another_number_of_stages_is_no_knob() -> None:
    with pytest.raises(ValueError, match="1 stages into 2"):
        as_arguments(DRAFT, FINE)


def test_a_wrong_class_on_the_command_line() -> None:
    with pytest.raises(ValueError, match="did you mean 'VSD'"):
        build_request(Generate("a mug"), ["--stages.0.guidance", "VDS"])
    with pytest.raises(ValueError, match="wants a value"):
        build_request(Generate("a mug"), ["--stages.0.guidance"])
    with pytest.raises(UsageError, match="did you mean 'draft'"):
        build_request(Generate("a mug", recipe="daft"), [])


def test_unions_have_the_classes_there_are() -> None:
    assert at(DRAFT, "stages.0.guidance").choices == tuple(
        members(typing.get_type_hints(type(DRAFT.stages[0]))["guidance"])
    )
    assert isinstance(DRAFT.stages[0].representation, Splats)
