"""What the page's form says, and the requests it stands for. Everything in a form is data from a stranger.

A form names listed things alone: recipes, methods and priors; never a path. Where it was filled from an earlier result,
it carries those settings whole, as ``studio.codec`` writes them.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from studio.app.advanced import Value, with_knobs
from studio.codec import decode, encode, nearest
from studio.options import Generate, UsageError, build_request, with_steps
from studio.paths import BUNDLED_PRIOR, holds_prior
from studio.recipes import RECIPES
from studio.request import Problem, Request, check
from studio.restore import require_modest, without_paths
from studio.templates import expand

MOST_JOBS = 64
"""Jobs out of one press of the button; more are a matter for ``studio batch``."""
RESTORED = "restored"
"""In place of a recipe's name: the settings that the form carries."""
_LONGEST_SETTINGS = 200_000


@dataclass(frozen=True)
class Form:
    """What was filled in."""

    prompt: str
    """A template: ``{a|b}`` is a choice."""
    recipe: str = "draft"
    method: str = ""
    """Empty: the recipe's own."""
    prior: str = BUNDLED_PRIOR
    """Name of a listed prior."""
    negative: str = ""
    seed: int = 0
    steps: str = ""
    """A number; empty: as many as the recipe takes."""
    copies: int = 1
    """Jobs of each prompt, with seeds that follow each other."""
    knobs: Mapping[str, Value] = field(default_factory=dict)
    """Advanced settings that differ from what recipe and method say, by their paths."""
    settings: str = ""
    """Encoded request of an earlier result, for the recipe ``RESTORED``."""


@dataclass(frozen=True)
class Wanted:
    """One job that a form stands for."""

    prompt: str
    seed: int


def listed_priors(roots: tuple[Path, ...] = ()) -> dict[str, str]:
    """Priors to choose from, by name: the bundled one and every folder right below a root that holds one."""
    found = {BUNDLED_PRIOR: BUNDLED_PRIOR}
    for root in roots:
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if folder.is_dir() and holds_prior(folder):
                name = folder.name if folder.name not in found else f"{root.name}/{folder.name}"
                found[name] = str(folder.resolve())
    return found


def require_priors(root: Path) -> None:
    """Refuse a folder in which there is no prior to choose.

    Raises:
        ValueError: what to name in its place.
    """
    if holds_prior(root):
        raise ValueError(f"{root} is a prior; name the folder that it lies in: --priors {root.absolute().parent}")
    if len(listed_priors((root,))) == 1:
        raise ValueError(f"{root} holds no folder that is a prior, in diffusers' layout, to choose from")


def prior_name(prior: str, priors: Mapping[str, str]) -> str | None:
    """The listed name of a request's prior; None if it is not listed."""
    by_path = {path: name for name, path in priors.items()}
    return prior if prior in priors else by_path.get(prior)


def wanted(form: Form) -> list[Wanted]:
    """The jobs of a form: every prompt of its template, each with as many seeds as it asks for.

    Raises:
        ValueError: the template is malformed, or there are more than ``MOST_JOBS``.
    """
    copies = max(1, form.copies)
    if copies > MOST_JOBS:
        raise ValueError(f"At most {MOST_JOBS} jobs are begun at once; {copies:,} variations are more.")
    prompts = expand(form.prompt.strip(), limit=MOST_JOBS // copies)
    return [Wanted(prompt, form.seed + i) for prompt in prompts for i in range(copies)]


def base_request(form: Form, priors: Mapping[str, str]) -> Request:
    """What recipe, method, prior and steps say, before any advanced setting.

    Raises:
        ValueError: something is not listed, or does not fit; in words.
    """
    if form.prior not in priors:
        raise UsageError(f"No prior {form.prior!r}; {nearest(form.prior, priors)}")
    prior = priors[form.prior]
    if form.recipe == RESTORED:
        request = _restored(form, prior)
    else:
        options = Generate(form.prompt, recipe=form.recipe, method=form.method or None, prior=prior, steps=_steps(form))
        request = build_request(options, [])
    return dataclasses.replace(request, negative=form.negative.strip(), seed=form.seed)


def request_of(form: Form, priors: Mapping[str, str]) -> Request:
    """The request of a form, its prompt still a template.

    Raises:
        ValueError: something is not listed, or does not fit; in words.
    """
    return with_knobs(base_request(form, priors), form.knobs)


def objections(form: Form, request: Request) -> list[Problem]:
    """Every objection to the jobs of a form, each said once."""
    prompts = dict.fromkeys(job.prompt for job in wanted(form))
    found = (problem for prompt in prompts for problem in check(dataclasses.replace(request, prompt=prompt)))
    return list(dict.fromkeys(found))


def settings_text(request: Request) -> str:
    """A request as a form carries it. What it was an edit of stays behind: that is a folder's path."""
    return json.dumps(encode(dataclasses.replace(request, task=None)))


def form_of(request: Request, priors: Mapping[str, str]) -> Form:
    """The form that makes the same again: a recipe's name where one says it all, else the settings themselves."""
    prior = prior_name(request.prior, priors) or BUNDLED_PRIOR
    plain = Form(request.prompt, prior=prior, negative=request.negative, seed=request.seed)
    plain = dataclasses.replace(plain, prompt=_literal(request.prompt))
    for recipe in RECIPES:
        form = dataclasses.replace(plain, recipe=recipe)
        if dataclasses.replace(request_of(form, priors), prompt=request.prompt) == request:
            return form
    return dataclasses.replace(plain, recipe=RESTORED, settings=settings_text(request))


def _literal(prompt: str) -> str:
    """A prompt as a template that stands for nothing else."""
    if not set(prompt) & set("{}"):
        return prompt
    return "".join(f"\\{c}" if c in "{}|" else c for c in prompt)


def _restored(form: Form, prior: str) -> Request:
    if len(form.settings) > _LONGEST_SETTINGS:
        raise UsageError("These settings are longer than any request; drop the file again.")
    try:
        settings = json.loads(form.settings)
        require_modest(settings)
        request = decode(Request, settings)
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"The restored settings cannot be read: {problem}") from problem
    request = without_paths(dataclasses.replace(request, prompt=form.prompt, prior=prior), [prior]).request
    if form.method:
        options = Generate(form.prompt, method=form.method, prior=prior)
        guidance = build_request(options, []).stages[0].guidance
        stages = tuple(dataclasses.replace(stage, guidance=guidance) for stage in request.stages)
        request = dataclasses.replace(request, stages=stages)
    if (steps := _steps(form)) is not None:
        request = dataclasses.replace(request, stages=with_steps(request.stages, steps))
    return request


def _steps(form: Form) -> int | None:
    if form.steps and not (form.steps.isdecimal() and len(form.steps) < 10):
        raise UsageError(f"Steps must be a whole number, not {form.steps!r}.")
    return int(form.steps) if form.steps else None
