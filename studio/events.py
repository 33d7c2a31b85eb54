"""What the engine says while it works. Every face (command line, files, later the app) listens to these.

Tensors in ``Stepped`` are read by whoever needs the number, so that a step never waits for the host.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Started:
    """A run begins or goes on; ``step`` of ``steps`` are done already."""

    prompt: str
    folder: Path
    device: str
    step: int
    steps: int


@dataclass(frozen=True)
class StageStarted:
    """Stage ``index`` of ``count`` begins or goes on."""

    index: int
    count: int
    representation: str
    guidance: str
    steps: int


@dataclass(frozen=True)
class Stepped:
    """A step is done; ``done`` of ``total`` over all stages."""

    stage: int
    step: int
    done: int
    total: int
    loss: Tensor
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Previewed:
    """A picture of the scene as it is now was written."""

    step: int
    path: Path


@dataclass(frozen=True)
class DebugPictured:
    """A picture of what prior and method asked for in this step was written."""

    step: int
    path: Path


@dataclass(frozen=True)
class Checkpointed:
    """The run can be resumed from here."""

    step: int
    path: Path


@dataclass(frozen=True)
class Working:
    """Something other than a step takes its time."""

    what: str


@dataclass(frozen=True)
class Exported:
    """The asset is written; ``report`` is the content of ``report.json``."""

    path: Path
    report: dict[str, Any]


@dataclass(frozen=True)
class Warned:
    """Something a user should know; the run goes on."""

    text: str


@dataclass(frozen=True)
class Failed:
    """The run stopped; ``text`` says why and what to do."""

    text: str


@dataclass(frozen=True)
class Stopped:
    """The run was asked to stop and can be resumed."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Finished:
    """All is done."""

    folder: Path
    seconds: float


Event = (
    Started
    | StageStarted
    | Stepped
    | Previewed
    | DebugPictured
    | Checkpointed
    | Working
    | Exported
    | Warned
    | Failed
    | Stopped
    | Finished
)
