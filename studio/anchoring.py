"""Paths in a request made whole, so that a run can be resumed, and a job be done, from any folder."""

import dataclasses
from pathlib import Path
from typing import Any

from guidance.jsd import JSD
from studio.paths import MissingAsset, UnknownPrior, holds_prior, resolve_prior
from studio.request import Request, Stage

_NAMES = ("own",)
"""Values of these options that are no paths: one-pass guidance of the prior's own folder."""


def anchored(request: Request) -> Request:
    """The same request with whole paths: of its prior, of all files on top of it, and of an edit's source.

    Names of priors stay names, and what begins with ``~`` stays as it is.
    """
    if request.task is not None:
        request = dataclasses.replace(
            request, task=dataclasses.replace(request.task, source=request.task.source.absolute())
        )
    options = request.prior_options
    # Every other text among these options names a file.
    texts = {f.name: _whole(getattr(options, f.name)) for f in dataclasses.fields(options)}
    stages = tuple(map(_with_whole_second_prior, request.stages))
    prior = Path(request.prior)
    is_path = (prior.is_dir() and holds_prior(prior)) or (prior.is_file() and prior.suffix == ".safetensors")
    return dataclasses.replace(
        request,
        prior_options=dataclasses.replace(options, **texts),
        prior=str(prior.absolute()) if is_path else request.prior,
        stages=stages,
    )


def _with_whole_second_prior(stage: Stage) -> Stage:
    """A second prior by its path, also where it was named as a preset; what is not there stays as it is."""
    guidance = stage.guidance
    if not (isinstance(guidance, JSD) and guidance.multi_view):
        return stage
    try:
        place = resolve_prior(guidance.multi_view)
    except (UnknownPrior, MissingAsset):  # whoever checks the request says so
        return stage
    return dataclasses.replace(stage, guidance=dataclasses.replace(guidance, multi_view=str(place)))


def _whole(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_whole, value))
    named = isinstance(value, str) and value and value not in _NAMES and not value.startswith("~")
    return str(Path(value).absolute()) if named else value
