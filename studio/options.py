"""Requests from the command line: the options of ``studio generate`` and ``studio edit``, and what becomes of them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from guidance.methods import AnyGuidance
from guidance.prior_folder import read_hints
from representations.box import Box
from representations.kinds import AnyRepresentation
from studio.anchoring import anchored
from studio.arguments import Corners, Devices, File, Files, MaybeName, MaybeNumber, MaybePath, MaybeText, Texts
from studio.codec import members, nearest
from studio.paths import MissingAsset, UnknownPrior, resolve_prior
from studio.places import with_whole_values
from studio.prior_options import for_views_of
from studio.recipes import RECIPES
from studio.request import Request
from studio.tuning import is_bundled, suited, wishes


@dataclass(frozen=True)
class Generate:
    """Make a textured GLB from a prompt.

    Every knob of the recipe can be set too, e.g. --stages.0.guidance.scale 20; name a recipe and --help to see them.
    One stage's method or representation is set by name (--stages.1.guidance VSD), a schedule as text
    (--stages.0.guidance.t-max "0.98 -> 0.5 until 0.8").
    """

    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
    """What to make, e.g. "a red mushroom"."""
    recipe: str = "draft"
    """How to make it: draft, standard, fine, or a paper's name, such as dreamfusion; README has the list."""
    method: MaybeName = None
    """Guidance method instead of the recipe's."""
    representation: MaybeName = None
    """Representation instead of the recipe's."""
    prior: MaybeName = None
    """A bundled prior's or preset's name, a folder in diffusers' layout, or one safetensors file."""
    lora: Files = ()
    """LoRA files on top of the prior, each FILE or FILE:WEIGHT, as safetensors."""
    textual_inversion: Files = ()
    """Files with new words for prompts, as safetensors."""
    image: File = ""
    """Picture that prompts, for an IP-Adapter or a novel-view prior."""
    one_pass: File = ""
    """own, or a file of `studio distill-guidance`: guidance in one pass of the prior instead of two."""
    negative: MaybeText = None
    """What it should not look like."""
    seed: MaybeNumber = None
    """Another seed makes another object."""
    steps: MaybeNumber = None
    """Optimiser steps in all, shared among the stages as the recipe does."""
    debug_pictures: MaybeNumber = None
    """Steps between pictures of what prior and method ask for, in debug/ of the run; 0 for none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    devices: Devices = ()
    """Several devices that share the views of every step, e.g. cuda:0 cuda:1; --device alone without it."""
    tensorboard: bool = False
    """Write event files for TensorBoard into the run's folder."""
    out: MaybePath = None
    """Folder of the run; a new one under runs/ without it."""
    json: bool = False
    """Print events as JSON, one a line, instead of a progress bar."""


@dataclass(frozen=True)
class Edit:
    """Change the object that a finished run made until it fits another prompt.

    Knobs can be set as for generate, e.g. --stages.0.guidance.scale 20 or --task.begin 0.2.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the finished run."""
    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
    """What the object is to be, e.g. "a blue mushroom"."""
    method: str = "DDS"
    """Guidance method. DDS and PDS compare with the object as it was and change little else; any other distils anew."""
    steps: MaybeNumber = None
    """Optimiser steps; 300 without it."""
    keep: Texts = ()
    """Groups of parameters that may not move, e.g. means (the positions of gaussians)."""
    box: Corners = None
    """Corners x0 y0 z0 x1 y1 z1 of a box, the lowest values first: nothing outside it changes, nor what reaches across
    its sides, so leave a tenth around what is to change. Objects lie within 1 of the origin; +x is right as seen from
    the front, +y up, +z towards the front."""
    prior: MaybeName = None
    """Another prior than the run's, without the files that were on top of that."""
    lora: Files = ()
    """LoRA files on top of the prior, each FILE or FILE:WEIGHT, as safetensors; the run's without them."""
    textual_inversion: Files = ()
    """Files with new words for prompts, as safetensors; the run's without them."""
    image: File = ""
    """Picture that prompts, for an IP-Adapter or a novel-view prior; the run's without it."""
    one_pass: File = ""
    """own, or a file of `studio distill-guidance`: guidance in one pass of the prior; as in the run without it."""
    negative: MaybeText = None
    """What it should not look like; the run's without it."""
    seed: MaybeNumber = None
    """The run's without it."""
    debug_pictures: MaybeNumber = None
    """Steps between pictures of what prior and method ask for, in debug/ of the run; 0 for none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    devices: Devices = ()
    """Several devices that share the views of every step, e.g. cuda:0 cuda:1; --device alone without it."""
    tensorboard: bool = False
    """Write event files for TensorBoard into the run's folder."""
    out: MaybePath = None
    """Folder of the edit's own run; a new one under runs/ without it."""
    json: bool = False
    """Print events as JSON, one a line, instead of a progress bar."""


class UsageError(ValueError):
    """A command line that asks for what there is not."""


def build_request(options: Generate, knobs: list[str]) -> Request:
    """The recipe's request with what the command line changes.

    Raises:
        UsageError: no such recipe, method or representation.
        SystemExit: a knob that does not exist (tyro names the nearest), or a value that does not fit.
    """
    if options.recipe not in RECIPES:
        raise UsageError(f"No recipe {options.recipe!r}; {nearest(options.recipe, RECIPES)}")
    request = RECIPES[options.recipe](options.prompt, options.prior is None or is_bundled(options.prior))
    stages = request.stages
    if options.method is not None:
        stages = _with_method(stages, options.method, options.prior or request.prior)
    if options.representation is not None:
        kind = _member("representation", options.representation, AnyRepresentation)
        stages = tuple(
            s
            if s.representation is None or isinstance(s.representation, kind)
            else dataclasses.replace(s, representation=kind(), regularizers=wishes(kind()))
            for s in stages
        )
    if options.steps is not None:
        stages = with_steps(stages, options.steps)
    request = _with_files(dataclasses.replace(request, stages=stages, **_given(options)), options)
    return anchored(with_knobs(_fitting(request), knobs))


def build_edit(options: Edit, knobs: list[str]) -> Request:
    """The request of an edit with what the command line changes.

    Raises:
        UsageError: no such method.
        RunError: the source is no finished run, or of another shape than knobs would have it.
        SystemExit: a knob that does not exist (tyro names the nearest), or a value that does not fit.
    """
    from studio.edit import check_source, edit

    method = _member("method", options.method, AnyGuidance)
    region = None if options.box is None else Box(options.box[:3], options.box[3:])
    request = edit(options.run, options.prompt, method, options.keep, options.prior, region)
    stages = request.stages if options.steps is None else with_steps(request.stages, options.steps)
    request = _with_files(dataclasses.replace(request, stages=stages, **_given(options)), options)
    request = anchored(with_knobs(_fitting(request), knobs, "studio edit RUN PROMPT"))
    check_source(request)
    return request


def _with_files(request: Request, options: Generate | Edit) -> Request:
    """The request with the files on top of its prior that the command line names."""
    named = {name: getattr(options, name) for name in ("lora", "textual_inversion", "image", "one_pass")}
    given = {name: value for name, value in named.items() if value}
    return dataclasses.replace(request, prior_options=dataclasses.replace(request.prior_options, **given))


def _fitting(request: Request) -> Request:
    """The request with whole groups of views, if its prior sees several as one."""
    try:
        hints = read_hints(resolve_prior(request.prior))
    except (UnknownPrior, MissingAsset, ValueError):  # whoever checks the request says so
        return request
    return dataclasses.replace(request, stages=for_views_of(request.stages, hints))


def _given(options: Generate | Edit) -> dict[str, Any]:
    """What the command line sets of the fields of a request."""
    fields = {"prior": "prior", "negative": "negative", "seed": "seed", "debug_pictures": "debug_every"}
    given = {field: getattr(options, name) for name, field in fields.items()}
    return {field: value for field, value in given.items() if value is not None}


def _with_method(stages: tuple[Any, ...], name: str, prior: str) -> tuple[Any, ...]:
    method = _member("method", name, AnyGuidance)
    knobs = suited(method, prior)
    return tuple(s if isinstance(s.guidance, method) else dataclasses.replace(s, guidance=knobs) for s in stages)


def with_steps(stages: tuple[Any, ...], steps: int) -> tuple[Any, ...]:
    """The stages with ``steps`` among them, shared as they shared theirs.

    Raises:
        UsageError: fewer steps than stages.
    """
    total = sum(stage.steps for stage in stages)
    if steps < len(stages):
        raise UsageError(f"--steps must be {len(stages)} or more, one for each stage, not {steps}")
    shares = [max(1, steps * stage.steps // total) for stage in stages]
    shares[-1] += steps - sum(shares)
    return tuple(dataclasses.replace(s, steps=n) for s, n in zip(stages, shares, strict=True))


def with_knobs(request: Request, knobs: list[str], prog: str = "studio generate PROMPT") -> Request:
    """The request with every knob that ``knobs`` sets; leaves with tyro's own words if one does not exist or fit.

    Raises:
        ValueError: a class or a schedule that is set whole, and does not fit.
    """
    request, knobs = with_whole_values(request, knobs)
    if not knobs:
        return request
    return tyro.cli(
        Request,
        default=request,
        args=knobs,
        prog=prog,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
    )


def _member(what: str, name: str, union: Any) -> type:
    known = members(union)
    by_lower = {key.lower(): value for key, value in known.items()}
    if name.lower() not in by_lower:
        raise UsageError(f"No {what} {name!r}; {nearest(name, known)}")
    return by_lower[name.lower()]
