"""From entries to items: wildcards, seeds, duplicates, settings of single lines, and objections in words."""

from typing import Any

import pytest

from studio.batch.options import Batch
from studio.batch.planning import Draft, draft
from studio.batch.reading import parse
from studio.options import UsageError


def drawn(text: str, kind: str = ".txt", knobs: tuple[str, ...] = (), **options: Any) -> Draft:
    return draft(parse("f", kind, text.encode()), Batch("f", **options), list(knobs))


def items(text: str, kind: str = ".txt", **options: Any) -> list[tuple[str, int]]:
    return [(item.prompt, item.seed) for item in drawn(text, kind, **options).items]


def test_seeds_and_wildcards_multiply() -> None:
    assert items("a {red|blue} mug\na car", seeds=(0, 5, 5)) == [
        *(("a red mug", 0), ("a red mug", 5), ("a blue mug", 0), ("a blue mug", 5)),
        *(("a car", 0), ("a car", 5)),
    ]
    assert items("a {red|blue} mug", wildcards=False) == [("a {red|blue} mug", 0)]
    assert items("prompt,seed\na car,9\na mug,", ".csv", seeds=(0, 1)) == [("a car", 9), ("a mug", 0), ("a mug", 1)]


def test_the_same_twice_is_made_once() -> None:
    found = drawn("a red mug\na {red|blue} mug\n a  red mug ")
    assert [item.prompt for item in found.items] == ["a red mug", "a blue mug"]
    assert found.duplicates == 2


def test_lines_have_settings_of_their_own() -> None:
    text = "prompt,negative,method,steps\na mug,,,\na mug,fog,,\na mug,,VSD,40\na mug,,,\na mug,fog,,"
    found = drawn(text, ".csv", ("--stages.0.guidance.scale", "9"))
    assert [item.of for item in found.items] == [0, 1, 2]
    assert found.duplicates == 2
    plain, negative, method = (found.request(item) for item in found.items)
    assert (plain.negative, negative.negative) == ("", "fog")
    assert (type(method.stages[0].guidance).__name__, method.steps) == ("VSD", 40)
    assert {request.stages[0].guidance.scale for request in (plain, negative, method)} == {9.0}  # pyright: ignore[reportAttributeAccessIssue]
    assert {request.prompt for request in (plain, negative, method)} == {"a mug"}


def test_prompts_are_data() -> None:
    text = "a cat ${oc.env:HOME}\na {{user}} %(x)s $(id)"
    assert items(text) == [("a cat ${oc.env:HOME}", 0), ("a {{user}} %(x)s $(id)", 0)]


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("a car\na {red|blue mug", ".txt", "f, line 2: this { is never closed"),
        ("a {red|blue|}", ".txt", None),
        ("{|a mug}", ".txt", "f, line 1: one of the choices leaves an empty prompt."),
        ("a\n" + "x" * 501, ".txt", "f, line 2: The prompt has 501 characters; shorten it to 500 or fewer."),
        ("prompt,method\na,\na,SDSS", ".csv", "f, line 3: No method 'SDSS'; did you mean 'SDS'?"),
        ("prompt,recipe\na,drft", ".csv", "f, line 2: No recipe 'drft'; did you mean 'draft'?"),
        ("prompt,steps\na,0", ".csv", "f, line 2: --steps must be 1 or more"),
        ("prompt,name\na,x\nb,x", ".csv", "f, line 3: the name 'x' is given already, in f, line 2."),
        ("prompt,name\na,X\nb,x", ".csv", "f, line 3: the name 'x' is given already, in f, line 2."),
        ("prompt,seed\na,9223372036854775808", ".csv", "f, line 2: the seed 9223372036854775808 is too large"),
        ("prompt,method\na,DDS", ".csv", "f, line 2: DDS changes an object that is there already"),
    ],
)
def test_objections_name_the_line(text: str, kind: str, words: str | None) -> None:
    if words is None:
        drawn(text, kind)
        return
    with pytest.raises(UsageError) as problem:
        drawn(text, kind)
    assert str(problem.value).startswith(words)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        (("--seed", "3"), "A batch has --seeds"),
        (("--prompt", "x"), "Prompts come from the file"),
    ],
)
def test_options_of_single_runs_are_refused(knobs: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        drawn("a mug", knobs=knobs)


def test_unknown_words_are_said_once_with_their_lines() -> None:
    found = drawn("a red mug\na wombat\na blue wombat\na quokka")
    assert len(found.warnings) == 2
    assert "does not know 'wombat', 'quokka' and" in found.warnings[0]
    assert found.warnings[1] == "That concerns 3 of 4 prompts: f, line 2, f, line 3, f, line 4."


def test_too_many_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(UsageError, match="more than 200,000 items"):
        drawn("\n".join(f"{{a|b}} {'{0|1|2|3|4|5|6|7|8|9}' * 2} mug {i}" for i in range(1100)))
