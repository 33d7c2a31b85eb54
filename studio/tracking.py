"""Who listens to a run and keeps its figures: curves as a picture in its folder, and TensorBoard where it is wanted.

Figures are read from the device about once a second, as for the run's own record, so no step waits for a listener.
"""

import contextlib
import importlib.util
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, final, runtime_checkable

from studio.checkpoints import write_atomically
from studio.curves import curves, history
from studio.events import Event, Previewed, Stepped
from studio.folder import RunError
from studio.request import Request

VARIABLE = "DREAMKILN_TENSORBOARD"
"""Set to 1, every run of the process is tracked for TensorBoard."""
_READ_EVERY = 1.0
"""Seconds between readings of figures: each makes the host wait for the device."""
_SHARE = 50
"""A picture of the curves is drawn no sooner than after this many times as long as the last one took."""


@runtime_checkable
class Tracker(Protocol):
    """One who keeps a run's figures."""

    def step(self, done: int, values: Mapping[str, float]) -> None:
        """What a step measured; ``done`` counts over all stages."""
        ...

    def picture(self, done: int, path: Path) -> None:
        """A picture of the scene was written."""
        ...

    def close(self) -> None:
        """The run ends, for whatever reason."""
        ...


def tracked(events: Iterator[Event], trackers: Sequence[Tracker]) -> Iterator[Event]:
    """The events, while the trackers listen."""
    read = 0.0
    try:
        for event in events:
            if isinstance(event, Stepped):
                now = time.monotonic()
                if now - read >= _READ_EVERY or event.done == event.total:
                    read = now
                    values = {name: float(value) for name, value in event.diagnostics.items()}
                    for tracker in trackers:
                        tracker.step(event.done, values)
            elif isinstance(event, Previewed):
                for tracker in trackers:
                    tracker.picture(event.step, event.path)
            yield event
    finally:
        for tracker in trackers:
            tracker.close()


def trackers_of(request: Request, folder: Path, tensorboard: bool = False) -> list[Tracker]:
    """Those who track a run in ``folder``: always its curves, and TensorBoard if that or the environment asks for it.

    Raises:
        RunError: TensorBoard is asked for and not installed.
    """
    found: list[Tracker] = [Curves(request, folder)]
    if tensorboard or os.environ.get(VARIABLE) == "1":
        refuse_missing_tensorboard()
        found.append(TensorBoard(folder / "tensorboard"))
    return found


def refuse_missing_tensorboard() -> None:
    """Refuse to track for a TensorBoard that is not there.

    Raises:
        RunError: in words.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise RunError("TensorBoard is not installed; install it with: pip install 'dreamkiln[tensorboard]'")


@final
class Curves:
    """``losses.png`` in the run's folder: drawn at the end, and with previews as long as that costs next to nothing."""

    def __init__(self, request: Request, folder: Path):
        """Go on from what the run's record holds already."""
        self._title, self._total, self._path = request.prompt, request.steps, folder / "losses.png"
        ends = [sum(stage.steps for stage in request.stages[:i]) for i in range(1, len(request.stages))]
        self._ends = ends
        self._series = {name: dict(points) for name, points in history(folder).items()}
        self._due = 0.0

    def step(self, done: int, values: Mapping[str, float]) -> None:
        """See ``Tracker.step``."""
        for name, value in values.items():
            self._series.setdefault(name, {})[done] = value

    def picture(self, done: int, path: Path) -> None:
        """See ``Tracker.picture``."""
        if time.monotonic() >= self._due:
            self._draw()

    def close(self) -> None:
        """See ``Tracker.close``."""
        with contextlib.suppress(OSError):  # whatever ended the run is what must be said
            self._draw()

    def _draw(self) -> None:
        began = time.monotonic()
        series = {name: sorted(points.items()) for name, points in self._series.items()}
        if any(len(points) > 1 for points in series.values()):
            write_atomically(self._path, curves(self._title, series, self._total, self._ends))
        took = time.monotonic() - began
        self._due = began + (1 + _SHARE) * took


@final
class TensorBoard:
    """Event files for TensorBoard in ``folder``; see them with ``tensorboard --logdir runs``."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def step(self, done: int, values: Mapping[str, float]) -> None:
        """See ``Tracker.step``."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, done)

    def picture(self, done: int, path: Path) -> None:
        """See ``Tracker.picture``."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image("preview", np.asarray(image.convert("RGB")), done, dataformats="HWC")

    def close(self) -> None:
        """See ``Tracker.close``."""
        self._writer.close()
