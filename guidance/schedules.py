"""Schedules: numbers that change over a run, as values.

One type serves timestep bounds, guidance scales, resolutions and loss weights alike. Its fields are plain, so a
schedule travels through JSON and the command line as it is.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Shape = Literal["constant", "linear", "square_root", "cosine", "piecewise"]


@dataclass(frozen=True)
class Schedule:
    """A number as a function of run progress in [0, 1].

    ``Schedule(0.02)`` stays as it is; ``Schedule(0.98, 0.5, until=0.8)`` goes from .98 to .50 over the first 80 % of
    the run and rests there; ``Schedule(points=((0.0, 1.0), (0.5, 1.0), (0.5, 3.0)), shape="piecewise")`` jumps from
    1 to 3 half way.

    Raises:
        ValueError: the fields do not make a schedule.
    """

    start: float = 0.0
    """Value up to ``begin``."""
    end: float | None = None
    """Value from ``until`` on; without one the schedule is constant."""
    begin: float = 0.0
    """Progress at which the change begins."""
    until: float = 1.0
    """Progress at which the change is complete."""
    shape: Shape = "linear"
    """Course from ``start`` to ``end``; ``piecewise`` follows ``points`` and nothing else."""
    points: tuple[tuple[float, float], ...] = ()
    """(progress, value) pairs joined by straight lines; two at the same progress make a jump to the later one."""

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ValueError(f"not a schedule: {problem}")

    def _problems(self) -> list[str]:
        at = [place for place, _ in self.points]
        growing = at == sorted(at) and all(0 <= place <= 1 for place in at)
        numbers = [self.start, self.begin, self.until, *(n for point in self.points for n in point)]
        numbers += [] if self.end is None else [self.end]
        checks = {
            "every number in it must be finite": all(map(math.isfinite, numbers)),
            f"begin ({self.begin}) and until ({self.until}) must obey 0 <= begin < until <= 1": (
                0 <= self.begin < self.until <= 1
            ),
            'shape "piecewise" needs points, and points need that shape': (self.shape == "piecewise") == bool(at),
            "a piecewise schedule reads its points alone, so leave start and end out": (
                self.shape != "piecewise" or (self.start == 0 and self.end is None)
            ),
            f"the points' progress must grow within [0, 1], not {at}": growing,
            f'shape "constant" has no end (it is {self.end})': self.shape != "constant" or self.end is None,
        }
        return [problem for problem, holds in checks.items() if not holds]

    def __call__(self, progress: float) -> float:
        """The value at ``progress``, which is taken as 0 below 0 and as 1 above 1."""
        progress = min(max(progress, 0.0), 1.0)
        if self.shape == "piecewise":
            return _follow(self.points, progress)
        if self.end is None:
            return self.start
        share = min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)
        return self.start + (self.end - self.start) * _eased(share, self.shape)


def _eased(share: float, shape: Shape) -> float:
    if shape == "square_root":
        return math.sqrt(share)
    if shape == "cosine":
        return (1 - math.cos(math.pi * share)) / 2
    return share


def _follow(points: tuple[tuple[float, float], ...], progress: float) -> float:
    if progress < points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if left <= progress < right:
            return low + (high - low) * (progress - left) / (right - left)
    return points[-1][1]
