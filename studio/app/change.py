"""What the Edit tab asks for, as a request."""

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
    words = change.prompt.strip()
    return build_edit(Edit(run, words, change.method, change.steps, change.keep, box=change.box), [])


def groups_of(request: Request) -> list[str]:
    """Names of the groups of parameters of what a request ends with."""
    spec = request.representation(len(request.stages) - 1)
    made = spec.build(torch.Generator(), torch.device("cpu"))
    return list(dict.fromkeys(group.name for group in made.groups()))
