"""How far a run is, read from its ``events.jsonl`` as it grows: only what is new is read."""

import contextlib
import dataclasses
import json
import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_WINDOW = 12
"""Recorded steps, about a second apart, that the pace is measured over."""
_POINTS = 400
"""Most points of the loss that are kept; beyond, every other one goes."""
_MOST_AT_ONCE = 1 << 22
"""Bytes read in one go: a longer record is caught up with in the calls that follow."""


@dataclass
class Progress:
    """What is known of a run."""

    phase: str = ""
    """Words for what is being done."""
    stage: str = ""
    """Words for the stage: its place, what is optimised and by which method."""
    device: str = ""
    step: int = 0
    steps: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss) over all stages."""
    opacity: float | None = None
    """Mean opacity of the newest renders."""
    skipped: int = 0
    """Steps whose update was not finite."""
    finite: bool = True
    """Whether the newest loss is a number."""
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    seconds: float | None = None
    """Of the whole run, once it is finished."""
    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    """(time, step) of the newest recorded steps since the work began or went on."""

    @property
    def rate(self) -> float | None:
        """Steps a second, lately."""
        if len(self.marks) < 2:
            return None
        (began, first), (ended, last) = self.marks[0], self.marks[-1]
        return (last - first) / (ended - began) if ended > began and last > first else None

    @property
    def left(self) -> float | None:
        """Seconds until the last step, at the present pace; what follows the steps is not in it."""
        return (self.steps - self.step) / self.rate if self.rate and self.steps else None

    @property
    def share(self) -> float:
        """Of the steps, in [0, 1]."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0

    def health(self) -> list[tuple[bool, str]]:
        """Words about how it goes, each with whether that is well."""
        if not self.losses and self.finite:
            return []
        words = [(self.finite, "loss is finite" if self.finite else "loss is not finite")]
        if self.skipped:
            words.append((False, f"{self.skipped} step{'s' * (self.skipped > 1)} skipped"))
        if self.opacity is not None:
            empty, full = self.opacity < 0.005, self.opacity > 0.95
            note = ", nearly empty" if empty else ", fills the picture" if full else ""
            words.append((not (empty or full), f"opacity {self.opacity:.0%}{note}"))
        return words


class Tail:
    """Follows the record of one run."""

    def __init__(self, folder: Path):
        self._path = folder / "events.jsonl"
        self._read = 0
        self._progress = Progress()

    def progress(self) -> Progress:
        """How far the run is now; a copy, which later reading does not change."""
        with contextlib.suppress(OSError):
            self._catch_up(self._path.stat().st_size)
        now = self._progress
        copies = {"losses": list(now.losses), "warnings": list(now.warnings), "marks": now.marks.copy()}
        return dataclasses.replace(now, **copies)

    def _catch_up(self, size: int) -> None:
        if size < self._read:  # another run in the same folder
            self._read, self._progress = 0, Progress()
        if size > self._read:
            with self._path.open("rb") as file:
                file.seek(self._read)
                content = file.read(_MOST_AT_ONCE)
            whole = content.rfind(b"\n") + 1  # the rest of a line may still be on its way
            self._read += whole
            for line in content[:whole].splitlines():
                _take(self._progress, line)


def _take(progress: Progress, line: bytes) -> None:
    try:
        event = json.loads(line)
        _follow(progress, event["event"], event)
    except (ValueError, KeyError, TypeError):  # a line that a crash left half written says nothing
        return


def _follow(progress: Progress, kind: str, event: dict[str, Any]) -> None:
    if kind == "Stepped":
        _step(progress, event)
    elif kind == "Started":
        progress.device, progress.step, progress.steps = event["device"], event["step"], event["steps"]
        progress.error, progress.seconds, progress.phase = "", None, ""
        progress.losses = [point for point in progress.losses if point[0] <= event["step"]]
        progress.marks.clear()
    elif kind == "StageStarted":
        place = f"stage {event['index'] + 1} of {event['count']}: " if event["count"] > 1 else ""
        progress.stage = f"{place}{event['representation']} under {event['guidance']}"
    elif kind == "Working":
        progress.phase = event["what"]
        progress.marks.clear()
    elif kind == "Checkpointed":  # steps are recorded once a second, so the last of them may be known from here alone
        progress.step = max(progress.step, event["step"])
    elif kind == "Warned":
        if event["text"] not in progress.warnings:
            progress.warnings.append(event["text"])
    elif kind == "Failed":
        progress.error, progress.phase = event["text"], ""
    elif kind == "Stopped":
        progress.step, progress.phase = event["step"], ""
    elif kind == "Finished":
        progress.seconds, progress.phase = event["seconds"], ""


def _step(progress: Progress, event: dict[str, Any]) -> None:
    measured = event["diagnostics"]
    loss = measured.get("value", event["loss"])
    progress.step, progress.steps, progress.phase = event["done"], event["total"], ""
    progress.finite = math.isfinite(loss)
    progress.skipped = int(measured.get("skipped", 0))
    progress.opacity = measured.get("opacity")
    progress.marks.append((event["time"], event["done"]))
    if progress.finite:
        progress.losses.append((event["done"], loss))
    if len(progress.losses) > _POINTS:
        progress.losses = progress.losses[::2]
