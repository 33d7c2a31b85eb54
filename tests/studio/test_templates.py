"""Templates: all of them, in order, one by seed, and what is no template stays what it is."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.templates import LONGEST, expand, pick


@pytest.mark.parametrize(
    ("template", "prompts"),
    [
        ("a mug", ["a mug"]),
        ("", [""]),
        ("a {red|blue} mug", ["a red mug", "a blue mug"]),
        ("{a|b} {1|2}", ["a 1", "a 2", "b 1", "b 2"]),
        ("a {tiny |}mug", ["a tiny mug", "a mug"]),
        ("a {|red} mug", ["a mug", "a red mug"]),
        ("a {red {cup|mug}|bowl}", ["a red cup", "a red mug", "a bowl"]),
        ("{a|b|c}", ["a", "b", "c"]),
        ("{|}", ["", ""]),
        (r"a \{red\|blue\} mug", ["a {red|blue} mug"]),
        (r"{a\|b|c}", ["a|b", "c"]),
        ("a cat ${oc.env:HOME}", ["a cat ${oc.env:HOME}"]),
        ("a {plain}  pair", ["a {plain}  pair"]),
        ("{outer {a|b}}", ["{outer a}", "{outer b}"]),
        ("this | that", ["this | that"]),
        ("  two  spaces, no brace ", ["  two  spaces, no brace "]),
        (r"back\slash \d", [r"back\slash \d"]),
    ],
)
def test_expand(template: str, prompts: list[str]) -> None:
    assert expand(template) == prompts


@pytest.mark.parametrize(
    ("template", "place", "words"),
    [
        ("a {red|blue mug", 3, "this { is never closed"),
        ("a red} mug", 6, "this } closes no {"),
        ("{a|{b|c}", 1, "this { is never closed"),
        (r"{a|b\}", 1, "this { is never closed"),
        ("{" * 40 + "a|b" + "}" * 40, 21, "more than 20 deep"),
    ],
)
def test_what_does_not_fit_is_shown_where_it_is(template: str, place: int, words: str) -> None:
    for function in (expand, lambda text: pick(text, 0)):
        with pytest.raises(ValueError, match=f"character {place} of") as refused:
            function(template)
        assert words in str(refused.value)
        assert f">>>{template[place - 1 : place + 19]}" in str(refused.value)


def test_a_limit_is_kept_and_told() -> None:
    assert len(expand("{a|b}" * 3, limit=8)) == 8
    with pytest.raises(ValueError, match="16 prompts; at most 8"):
        expand("{a|b}" * 4, limit=8)


def test_a_huge_template_is_refused_at_once() -> None:
    began = time.perf_counter()
    with pytest.raises(ValueError, match="far too many prompts"):
        expand("{a|b}" * (LONGEST // 5))
    with pytest.raises(ValueError, match="shorten it"):
        expand("{a|b}" * LONGEST)
    assert time.perf_counter() - began < 2
    assert expand("a" * 10**7) == ["a" * 10**7]


WORD = st.text(alphabet="abcxyz ,.$:-", max_size=6)
ALTERNATIVES = st.lists(WORD, min_size=2, max_size=4)


@given(st.lists(st.tuples(WORD, ALTERNATIVES), max_size=3), WORD)
def test_all_combinations_come_once_each_in_order(pieces: list[tuple[str, list[str]]], last: str) -> None:
    template = "".join(f"{text}{{{'|'.join(choice)}}}" for text, choice in pieces) + last
    wanted = [""]
    for text, choice in pieces:
        wanted = [before + text + chosen for before in wanted for chosen in choice]
    wanted = [f"{before}{last}" for before in wanted]
    made = expand(template)
    assert len(made) == math.prod(len(choice) for _, choice in pieces)
    assert made == ([" ".join(text.split()) for text in wanted] if pieces else wanted)


@given(st.text(alphabet="ab {|}\\$", max_size=12), st.integers())
def test_a_pick_is_one_of_all(template: str, seed: int) -> None:
    try:
        made = expand(template)
    except ValueError:
        with pytest.raises(ValueError):
            pick(template, seed)
    else:
        assert pick(template, seed) in made
        assert pick(template, seed) == pick(template, seed)


@given(st.text(max_size=40) | st.text(alphabet="\\{|}a", max_size=12))
def test_any_prompt_can_be_escaped(prompt: str) -> None:
    braces = "{" in prompt or "}" in prompt
    assert expand("".join(f"\\{c}" if braces and c in "{}|" else c for c in prompt)) == [prompt]


@given(st.text(alphabet=st.characters(exclude_characters="{}"), max_size=40))
def test_a_prompt_without_braces_is_itself(prompt: str) -> None:
    assert expand(prompt) == [prompt]
    assert pick(prompt, 3) == prompt


def test_seeds_reach_every_prompt() -> None:
    template = "a {red|blue|green} {mug|car}"
    assert {pick(template, seed) for seed in range(100)} == set(expand(template))


def test_a_seed_picks_the_same_prompt_in_every_version() -> None:
    assert [pick("{a|b|c|d|e|f}", seed) for seed in (0, 1, 2, -1)] == ["c", "c", "d", "a"]
