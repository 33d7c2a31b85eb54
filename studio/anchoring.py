"""Paths in a request made whole, so that a run can be resumed, and a job be done, from any folder."""

import dataclasses
from pathlib import Path
from typing import Any

from studio.paths import holds_prior
from studio.request import Request

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
    prior = Path(request.prior)
    is_path = (prior.is_dir() and holds_prior(prior)) or (prior.is_file() and prior.suffix == ".safetensors")
    return dataclasses.replace(
        request,
        prior_options=dataclasses.replace(options, **texts),
        prior=str(prior.absolute()) if is_path else request.prior,
    )


def _whole(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_whole, value))
    named = isinstance(value, str) and value and value not in _NAMES and not value.startswith("~")
    return str(Path(value).absolute()) if named else value
