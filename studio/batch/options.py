"""The options of ``studio batch``, and the request that its items share."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from studio.arguments import MaybeName, MaybeNumber, MaybePath, MaybeSeconds, MaybeSize, MaybeText
from studio.options import Generate, UsageError, build_request
from studio.request import Request

_PROMPT = "a prompt"
"""Stands in for an item's own while the request is built."""


@dataclass(frozen=True)
class Batch:
    """Make what every line of a file asks for.

    FILE is *.txt (a prompt a line; # begins a comment), *.csv (with a header) or *.jsonl (an object a line), or - for
    lines of the standard input. Columns: prompt; seed; name (of its folder); negative, recipe, method, representation
    and steps, which mean what the options of these names mean. "a {red|blue} mug" stands for two prompts.

    Whatever stops it, Ctrl-C, a crash or a power cut: the same command goes on, makes what is missing and nothing
    twice. Results are in --out: a folder for each run, summary.csv, summary.json, contact_sheet.png and index.html.
    Every knob of the recipe can be set too, as for generate, e.g. --stages.0.guidance.scale 20.
    Exit status 0: all were made; 3: some; 1: none, or it was stopped.
    """

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File of prompts."""
    recipe: str = "draft"
    """How to make them: draft, standard, fine, or a paper's name; README has the list."""
    method: MaybeName = None
    """Guidance method instead of the recipe's."""
    representation: MaybeName = None
    """Representation instead of the recipe's."""
    prior: MaybeName = None
    """A bundled prior's name, or a folder in diffusers' layout."""
    negative: MaybeText = None
    """What they should not look like."""
    steps: MaybeNumber = None
    """Optimiser steps in all, shared among the stages as the recipe does."""
    seeds: tuple[int, ...] = (0,)
    """Every prompt is made with each of these; one with a seed of its own only with that."""
    wildcards: bool = True
    """Whether {a|b} stands for a choice, of which every one is made; otherwise braces are text."""
    out: MaybePath = None
    """Folder of the batch; runs/ and the file's name without it."""
    dry_run: bool = False
    """Print what would be made and how long it may take, and do nothing."""
    attempts: int = 3
    """Failures of an item until it is left aside, with the reason in error.txt of its folder."""
    timeout: MaybeSeconds = None
    """Seconds that an attempt may take."""
    retry_failed: bool = False
    """Make also what was left aside or cancelled earlier."""
    device: tuple[str, ...] = ("auto",)
    """auto (every GPU there is, or else the CPU), cpu, cuda, cuda:1, ...; one or several."""
    workers: MaybeNumber = None
    """Processes that work side by side; one for each device without it."""
    engine: Literal["local", "ray"] = "local"
    """local: on this machine. ray: on a Ray cluster, whose machines must all see the folder of the batch."""
    quota: MaybeSize = None
    """Disk that the folder may take, e.g. 20GB: old previews go first, a result never. The queue is held when that is
    not enough."""
    json: bool = False
    """Print events as JSON, one a line, instead of a progress bar."""


def template_of(options: Batch, own: dict[str, Any], knobs: list[str]) -> Request:
    """What items share that set ``own`` options by themselves; its prompt and seed are no item's.

    Raises:
        UsageError: there is no such recipe, method or representation; a knob that is not for batches.
        ValueError: a knob that is set whole, and does not fit.
        SystemExit: a knob that does not exist (tyro names the nearest), or a value that does not fit.
    """
    shared = ("recipe", "method", "representation", "prior", "negative", "steps")
    wanted = Generate(_PROMPT, **{name: getattr(options, name) for name in shared} | own)
    request = build_request(wanted, knobs)
    if request.prompt != _PROMPT:
        raise UsageError("Prompts come from the file; there is no option --prompt.")
    if request.seed != 0:
        raise UsageError("A batch has --seeds, of which every prompt is made with each; there is no option --seed.")
    folder = Path(request.prior).expanduser() if options.prior else Path(request.prior)
    prior = str(folder.resolve()) if folder.is_dir() else request.prior  # it may go on from elsewhere
    return dataclasses.replace(request, prompt="", prior=prior)
