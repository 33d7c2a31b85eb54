"""What the Edit tab asks for, as a request."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from studio.options import Edit, build_edit
from studio.request import Request

Box = tuple[float, float, float, float, float, float]
"""Lowest x, y, z and highest x, y, z, in world units."""


@dataclass(frozen=True)
class Change:
    """What is to become of a result."""

    prompt: str
    method: str = "DDS"
    steps: int = 300
    keep: tuple[str, ...] = ()
    """Groups of parameters that may not move."""
    box: Box | None = None
    """Only what lies inside changes."""


def edit_request(run: Path, change: Change) -> Request:
    """The request of an edit of a finished run.

    Raises:
        RunError, ValueError: it cannot be edited so; in words.
    """
    options = Edit(run, change.prompt.strip(), method=change.method, steps=change.steps, keep=change.keep)
    if change.box is not None:
        options = dataclasses.replace(options, box=change.box)
    return build_edit(options, [])


def groups_of(request: Request) -> list[str]:
    """Names of the groups of parameters of what a request ends with."""
    spec = request.representation(len(request.stages) - 1)
    made = spec.build(torch.Generator(), torch.device("cpu"))
    return list(dict.fromkeys(group.name for group in made.groups()))
