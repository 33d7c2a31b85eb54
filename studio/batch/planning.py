"""What a file and the options come to: the items, each once, the settings they have, and what is to be said of them."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from guidance.prior_folder import read_hints
from studio.batch.options import Batch, template_of
from studio.batch.reading import Entry
from studio.codec import encode
from studio.options import UsageError
from studio.paths import MissingAsset, UnknownPrior, resolve_prior
from studio.request import LONGEST_PROMPT, Request, check, strange_words
from studio.templates import expand

MOST_ITEMS = 200_000
_MOST_NAMED = 5
"""Lines that a message names."""


@dataclass(frozen=True)
class Wanted:
    """One thing to make."""

    prompt: str
    """What to make, without wildcards."""
    seed: int
    """Seed of everything that is drawn."""
    of: int
    """Which of the batch's requests it has: 0 the template, n the n-th of the others."""
    name: str
    """What its folder is to be called; "": made of the prompt."""
    varied: bool
    """Whether its line stands for several, of other seeds."""
    where: str
    """File and line."""


@dataclass(frozen=True)
class Draft:
    """A batch as the file and the options have it."""

    template: Request
    """What items without settings of their own share."""
    others: tuple[Request, ...]
    """What others have instead."""
    items: tuple[Wanted, ...]
    """In the order of the file."""
    duplicates: int
    """Of prompt, seed and settings, which are made once."""
    warnings: tuple[str, ...]
    """What a user should know before it begins."""

    def request(self, item: Wanted) -> Request:
        """The whole request of an item."""
        return replace((self.template, *self.others)[item.of], prompt=item.prompt, seed=item.seed)


def draft(entries: Sequence[Entry], options: Batch, knobs: list[str]) -> Draft:
    """What is to be made of the entries.

    Raises:
        UsageError: in words, with the lines at fault.
        ValueError: a knob that is set whole, and does not fit.
        SystemExit: a knob that does not exist, or a value that does not fit.
    """
    template = template_of(options, {}, knobs)
    kinds, requests = _settings(entries, template, options, knobs)
    each = (item for entry in entries for item in _items(entry, options, kinds[entry.settings]))
    wanted = list(itertools.islice(each, MOST_ITEMS + 1))
    if len(wanted) > MOST_ITEMS:
        raise UsageError(f"This comes to more than {MOST_ITEMS:,} items, the most of a batch; split the file.")
    once: dict[tuple[str, int, int], Wanted] = {}
    for item in wanted:
        once.setdefault((item.prompt, item.seed, item.of), item)
    items = tuple(once.values())
    _refuse_long(items, template)
    _refuse_names(items)
    warnings = [*_objections(requests, items), *_strange(items, template)]
    return Draft(template, tuple(requests[1:]), items, len(wanted) - len(items), tuple(warnings))


def _settings(
    entries: Sequence[Entry], template: Request, options: Batch, knobs: list[str]
) -> tuple[dict[tuple[tuple[str, str | int], ...], int], list[Request]]:
    """For each choice of settings that lines make, which request it is; and those, the template first."""
    kinds: dict[tuple[tuple[str, str | int], ...], int] = {(): 0}
    requests, places = [template], {content_key(template): 0}
    built: dict[tuple[Any, ...], Request] = {}
    for entry in entries:
        if entry.settings in kinds:
            continue
        own = dict(entry.settings)
        negative = own.pop("negative", None)  # there may be many, and knobs take a while to read
        key = tuple(own.items())
        try:
            built[key] = built[key] if key in built else template_of(options, own, knobs)
        except UsageError as problem:
            raise UsageError(f"{entry.where}: {problem}") from problem
        request = built[key] if negative is None else replace(built[key], negative=str(negative))
        kinds[entry.settings] = places.setdefault(content_key(request), len(requests))
        if kinds[entry.settings] == len(requests):
            requests.append(request)
    return kinds, requests


def content_key(request: Request) -> str:
    """The same for requests that make the same; 7 and 7.0 are one number."""
    return json.dumps(_plain(encode(request)), sort_keys=True)


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _plain(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_plain(value) for value in tree]
    return float(tree) if isinstance(tree, int) and not isinstance(tree, bool) else tree


def _items(entry: Entry, options: Batch, kind: int) -> Iterator[Wanted]:
    try:
        prompts = expand(entry.prompt) if options.wildcards else [entry.prompt]
    except ValueError as problem:
        raise UsageError(f"{entry.where}: {problem}") from problem
    seeds = dict.fromkeys(options.seeds) if entry.seed is None else [entry.seed]
    for prompt in prompts:
        if not prompt:
            raise UsageError(f"{entry.where}: one of the choices leaves an empty prompt.")
        for seed in seeds:
            yield Wanted(prompt, seed, kind, entry.name, len(seeds) > 1, entry.where)


# Objections -----------------------------------------------------------------------------------------------------------


def _refuse_long(items: Sequence[Wanted], template: Request) -> None:
    wrong = []
    for item in items:
        if len(item.prompt) > LONGEST_PROMPT:
            errors = [p.text for p in check(replace(template, prompt=item.prompt)) if p.severity == "error"]
            wrong += [f"{item.where}: {text}" for text in errors]
        if not -(2**63) <= item.seed < 2**63:
            wrong.append(f"{item.where}: the seed {item.seed} is too large; take one of 64 bits.")
    if wrong:
        more = f"\n... and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise UsageError("\n".join(wrong[:_MOST_NAMED]) + more)


def _refuse_names(items: Sequence[Wanted]) -> None:
    """Two lines may not ask for the same name, which some disks take ``A`` and ``a`` for; one line that stands for
    several has them numbered.
    """
    lines: dict[str, str] = {}
    for item in items:
        if item.name and lines.setdefault(item.name.lower(), item.where) != item.where:
            first = lines[item.name.lower()]
            raise UsageError(f"{item.where}: the name {item.name!r} is given already, in {first}.")


def _objections(requests: Sequence[Request], items: Sequence[Wanted]) -> Iterator[str]:
    """What there is to say of settings, whatever the prompt: errors are raised, warnings returned."""
    first: dict[int, str] = {}
    for item in items:
        first.setdefault(item.of, item.where)
    for i, request in enumerate(requests):
        for problem in check(replace(request, prompt="-")) if i in first else ():
            if problem.severity == "error":
                raise UsageError(problem.text if i == 0 else f"{first[i]}: {problem.text}")
            yield problem.text if i == 0 else f"{first[i]}: {problem.text}"


def _strange(items: Sequence[Wanted], template: Request) -> Iterator[str]:
    """One warning about all words of prompts that the prior does not know, in the words of ``check``."""
    try:
        known = read_hints(resolve_prior(template.prior))["words"]
    except (UnknownPrior, MissingAsset, ValueError):  # said already
        return
    first: dict[str, str] = {}
    for item in items:
        first.setdefault(item.prompt, item.where)
    strange = {prompt: words for prompt in first if (words := strange_words(prompt, known))}
    if not strange:
        return
    text = " ".join(dict.fromkeys(itertools.chain(*strange.values())))[:LONGEST_PROMPT]
    yield from (p.text for p in check(replace(template, prompt=text, negative="")) if p.severity == "warning")
    named = ", ".join(first[prompt] for prompt in list(strange)[:_MOST_NAMED])
    more = f" and {len(strange) - _MOST_NAMED} more" if len(strange) > _MOST_NAMED else ""
    yield f"That concerns {len(strange)} of {len(first)} prompts: {named}{more}."
