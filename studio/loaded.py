"""The prior of a process: the last one stays in memory for the next run, as long as the disk has it as it was."""

from pathlib import Path
from typing import Any

import torch

from guidance.diffusers_prior import DiffusersPrior
from guidance.priors.weightless import bytes_of
from studio.memory import give_back
from studio.paths import resolve_prior
from studio.prior_options import PriorOptions
from studio.prior_stamp import as_on_disk

_kept: dict[Any, DiffusersPrior] = {}
"""One prior at most, by what it was loaded from."""


def loaded_prior(
    name: str,
    device: torch.device,
    options: PriorOptions = PriorOptions(),  # noqa: B008 -- frozen
) -> DiffusersPrior:
    """The prior of a name or path. Another one's memory is given back before it is loaded.

    Raises:
        UnknownPrior, MissingAsset, ValueError: it cannot be loaded; in words.
    """
    place = resolve_prior(name)
    key = _source(place, device, options)
    if key not in _kept:
        forget_prior()
        _kept[key] = DiffusersPrior.load(
            place,
            device,
            resources=options.resources,
            resolution=options.resolution,
            extensions=options.extensions,
            one_pass=options.one_pass_file(place),
        )
    return _kept[key]


def forget_prior() -> None:
    """Let go of the prior that is kept, and of its memory."""
    devices = [prior.device for prior in _kept.values()]
    _kept.clear()
    for device in devices:
        give_back(device)


def kept_bytes() -> int:
    """Bytes of main memory that the kept prior's weights take."""
    modules = {module for prior in _kept.values() for module in prior.parts.modules.values()}
    return sum(bytes_of(module) for module in modules if next(module.parameters()).device.type == "cpu")


def _source(place: Path, device: torch.device, options: PriorOptions) -> Any:
    return place, device, options, as_on_disk(place, options)
