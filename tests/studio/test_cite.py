"""Whom to cite: every paper that a docstring names has an entry, and a run's file holds what it used."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from guidance import ASD, SDS
from guidance.citations import BIBTEX, arxiv_numbers
from guidance.controls import Controls
from guidance.methods import AnyGuidance
from guidance.schedules import Schedule
from representations.hash_field import HashField
from representations.kinds import AnyRepresentation
from representations.particles import Particles
from representations.splats import Splats
from studio.cite import bibliography, cited
from studio.cli import BAD_USAGE, OK, run
from studio.codec import encode, members
from studio.events import Exported, Stepped
from studio.prior_options import PriorOptions
from studio.request import Regularizers, Request, Stage
from studio.run import run_request

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for package in ("guidance", "representations", "studio") for path in (ROOT / package).rglob("*.py")]


def parsed(text: str) -> dict[str, dict[str, str]]:
    """Entries of a BibTeX file by key, read by its own rules: braces must balance, keys must be unique."""
    entries: dict[str, dict[str, str]] = {}
    for start in (match.start() for match in re.finditer("@", text)):
        end, depth = text.index("{", start), 0
        while depth or text[end] == "{":
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        head, *lines, last = text[start:end].split("\n")
        kind, key = head.removeprefix("@").removesuffix(",").split("{")
        fields = dict(line.strip().removesuffix("},").split(" = {", 1) for line in lines)
        assert kind in ("misc", "software") and last == "}" and key not in entries
        assert all(_balanced(value) for value in fields.values())
        entries[key] = fields
    return entries


def _balanced(value: str) -> bool:
    depths = [value[:i].count("{") - value[:i].count("}") for i in range(len(value) + 1)]
    return min(depths) == 0 == depths[-1]


def test_every_entry_is_whole():
    entries = parsed("\n".join(BIBTEX.values()))
    assert len(entries) == len(BIBTEX)
    for number, fields in zip(BIBTEX, entries.values(), strict=True):
        assert fields.keys() == {"title", "author", "year", "eprint", "archivePrefix"}
        assert (fields["eprint"], fields["archivePrefix"]) == (number, "arXiv")
        assert fields["year"] == f"20{number[:2]}"
        assert all(", " in name or name.startswith("{") for name in fields["author"].split(" and "))
    assert len({fields["title"] for fields in entries.values()}) == len(entries)


@pytest.mark.parametrize("name", members(AnyGuidance) | members(AnyRepresentation))
def test_every_method_and_kind_names_papers_that_have_an_entry(name: str):
    kind = (members(AnyGuidance) | members(AnyRepresentation))[name]
    numbers = arxiv_numbers(kind.__doc__) + arxiv_numbers(getattr(inspect.getmodule(kind), "__doc__", ""))
    assert numbers and set(numbers) <= BIBTEX.keys()


def test_every_number_in_the_sources_has_an_entry():
    named = {number: path.name for path in SOURCES for number in arxiv_numbers(path.read_text(encoding="utf-8"))}
    assert named and not {number: place for number, place in named.items() if number not in BIBTEX}


def test_numbers_are_found_as_they_are_written():
    text = "Of one (arXiv 2209.14988, eq. 3), of another, 2112.05131; 2209.14988 again; not 12345.678901 nor 0.00085."
    assert arxiv_numbers(text) == ["2209.14988", "2112.05131"]
    assert arxiv_numbers(None) == []


def plain(guidance: Any, representation: Any = HashField(), **fields: Any) -> Request:  # noqa: B008
    quiet = Regularizers(opacity=Schedule(0.0))
    return Request("a mug", (Stage(representation, guidance, regularizers=quiet),), **fields)


CFG, FIELD, CLOUD = {"2207.12598"}, {"2201.05989", "2112.05131"}, {"2308.04079", "2404.06109"}


@pytest.mark.parametrize(
    ("request_", "numbers"),
    [
        (plain(ASD()), {"2407.02040"} | CFG | FIELD),
        (plain(ASD(), Splats()), {"2407.02040"} | CFG | CLOUD),
        (plain(ASD(), Particles()), {"2407.02040", "2305.16213"} | CFG | CLOUD),
        (plain(ASD(controls=Controls(random_scale=(1, 2)))), {"2407.02040", "2412.02687"} | CFG | FIELD),
        (plain(ASD(controls=Controls(rescale=0.5))), {"2407.02040", "2305.08891"} | CFG | FIELD),
        (plain(ASD(controls=Controls(score_clamp=Schedule(1.0)))), {"2407.02040", "2303.15413"} | CFG | FIELD),
        (plain(ASD(weighting="dmd")), {"2407.02040", "2311.18828", "2405.14867"} | CFG | FIELD),
        (plain(ASD(), view_prompts="perp_neg"), {"2407.02040", "2304.04968"} | CFG | FIELD),
        (plain(ASD(), debug_every=3), {"2407.02040", "2312.02189"} | CFG | FIELD),
        (plain(ASD(), prior_options=PriorOptions(one_pass="own")), {"2407.02040", "2503.07274"} | CFG | FIELD),
    ],
)
def test_a_run_cites_what_it_used_and_nothing_else(request_: Request, numbers: set[str]):
    assert set(cited(request_)) == numbers and len(cited(request_)) == len(numbers)


def test_later_stages_and_the_opacity_penalty_count():
    request = Request("a mug", (Stage(HashField(), ASD()), Stage(None, SDS())))
    assert {"2407.02040", "2209.14988", "2308.16512"} <= set(cited(request))
    assert "2209.14988" in cited(Request("a mug", (Stage(HashField(), ASD()),)))


def test_the_studio_itself_and_the_prior_are_named(tmp_path: Path):
    text = bibliography(plain(ASD()))
    entries = parsed(text)
    assert "Dreamkiln" in entries["dreamkiln"]["title"] and "ma2024scaledreamer" in entries
    assert text.startswith("% The prior, toybox-64, is Dreamkiln's own.\n")
    other = bibliography(plain(ASD(), prior=f"{tmp_path}/me@work\n@misc{{x"))
    assert "me(at)work (at)misc{x" in other.splitlines()[0] and parsed(other).keys() == entries.keys()


def test_a_run_leaves_its_citations(tiny: Request, tmp_path: Path, capsys):
    one = dataclasses.replace(tiny, stages=(tiny.stages[0],))
    assert any(isinstance(event, Exported) for event in run_request(one, tmp_path / "run", "cpu"))
    written = (tmp_path / "run" / "citation.bib").read_text()
    assert {"dreamkiln", "poole2022dreamfusion", "mueller2022instantngp"} <= parsed(written).keys()
    assert run(["cite", str(tmp_path / "run")]) == OK
    assert capsys.readouterr().out == written


def test_cite_works_on_whatever_has_a_request(tiny: Request, tmp_path: Path, capsys):
    events = run_request(tiny, tmp_path / "run", "cpu")
    assert any(isinstance(event, Stepped) for event in events)
    events.close()
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "request.json").write_text(json.dumps(encode(tiny)))
    for folder in (tmp_path / "run", alone):
        assert run(["cite", str(folder)]) == OK
        assert "poole2022dreamfusion" in parsed(capsys.readouterr().out)


def test_cite_refuses_in_words(tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "request.json").write_text('{"prompt": 3}')
    (tmp_path / "folder" / "request.json").mkdir(parents=True)
    cases = {"nowhere": "not a run", "file": "not a run", "broken": "cannot be read", "folder": "request.json"}
    for name, words in cases.items():
        assert run(["cite", str(tmp_path / name)]) == BAD_USAGE
        assert words in capsys.readouterr().err
    assert run(["cite"]) == BAD_USAGE
