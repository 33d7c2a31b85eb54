"""Whom to cite for a run: BibTeX of the methods, options and representations it used.

What a class owes to whom stands in its docstring and its module's; options are looked up below.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import studio
from guidance.citations import BIBTEX, arxiv_numbers
from studio.paths import BUNDLED_PRIOR, UnknownPrior, bundled_prior, resolve_prior
from studio.request import Request, Stage


def cited(request: Request) -> list[str]:
    """arXiv numbers of what a run used, each once."""
    found = [number for stage in request.stages for number in _of_stage(stage)]
    if request.view_prompts == "perp_neg":
        found.append("2304.04968")
    if request.prior_options.one_pass:
        found.append("2503.07274")
    if request.debug_every:
        found.append("2312.02189")
    return list(dict.fromkeys(found))


def bibliography(request: Request) -> str:
    """A BibTeX file."""
    ours = (
        "@software{dreamkiln,\n  title = {{Dreamkiln: a text-to-3D score distillation studio}},\n"
        f"  author = {{{{The Dreamkiln authors}}}},\n  version = {{{studio.__version__}}},\n}}\n"
    )
    return "\n".join([_about_prior(request.prior), ours, *(BIBTEX[number] for number in cited(request))])


def _of_stage(stage: Stage) -> Iterator[str]:
    for part in _parts(stage):
        yield from arxiv_numbers(type(part).__doc__)
        yield from arxiv_numbers(getattr(inspect.getmodule(type(part)), "__doc__", ""))
    method: Any = stage.guidance
    options = {
        "2207.12598": hasattr(method, "scale"),
        "2412.02687": method.controls.random_scale is not None,
        "2305.08891": method.controls.rescale > 0,
        "2303.15413": method.controls.score_clamp is not None,
        "2311.18828": getattr(method, "weighting", "") == "dmd",
        "2405.14867": getattr(method, "weighting", "") == "dmd",
        "2209.14988": stage.regularizers.opacity(0.0) > 0,  # the opacity penalty is DreamFusion's
    }
    yield from (number for number, used in options.items() if used)


def _parts(value: Any) -> Iterator[Any]:
    """A dataclass and all that it is made of."""
    yield value
    for field in dataclasses.fields(value):
        if dataclasses.is_dataclass(part := getattr(value, field.name)):
            yield from _parts(part)


def _about_prior(name: str) -> str:
    try:
        own = resolve_prior(name) == bundled_prior()
    except (UnknownPrior, FileNotFoundError):  # a run may outlive its prior
        own = False
    if own:
        return f"% The prior, {BUNDLED_PRIOR}, is Dreamkiln's own.\n"
    # BibTeX takes an @ for the beginning of an entry even here.
    shown = " ".join(name.replace("@", "(at)").split())
    return f"% The prior is the folder {shown}; cite what its model card asks for.\n"
