"""Sizes beyond which no machine could hold a step or finish a run; what a stranger sends may ask for anything."""

from typing import Any

from representations.kinds import AnyRepresentation
from representations.particles import Particles
from representations.splats import Splats

MOST_STAGES, MOST_STEPS = 64, 1_000_000
MOST_VIEWS, LARGEST_VIEW = 256, 2048
MOST_PIXELS = 2**26
"""Of a step's renders together: 64 views of 1024 pixels a side, or a gigabyte of floats in a render's outputs alone."""
LARGEST_PICTURE, MOST_FACES, MOST_ROUNDS = 4096, 5_000_000, 1000
MOST_GAUSSIANS, MOST_PARTICLES, MOST_CELLS, MOST_PER_CELL = 10_000_000, 64, 512, 64


def too_large(stage: Any, where: str) -> list[str]:
    """What is too large in a stage, in words without a full stop.

    Args:
        stage: of a request.
        where: its place, such as ``stages.0``.
    """
    views, size = stage.cameras.views, stage.cameras.size
    wrong = [
        *_above(f"{where}.steps", stage.steps, MOST_STEPS),
        *_above(f"{where}.cameras.views", views, MOST_VIEWS),
        *_above(f"{where}.cameras.size", size, LARGEST_VIEW),
    ]
    if not wrong and views * size * size > MOST_PIXELS:
        wrong.append(
            f"{where}.cameras: {views} views of {size} pixels a side are too much for a step; at most {MOST_PIXELS:,} "
            "pixels fit"
        )
    named = stage.representation
    return wrong if named is None else [*wrong, *too_large_kind(named, f"{where}.representation")]


def too_large_kind(kind: AnyRepresentation, where: str) -> list[str]:
    """What is too large in a representation's knobs; its other faults it names itself when it is built."""
    if isinstance(kind, Particles):
        return [*_above(f"{where}.count", kind.count, MOST_PARTICLES), *too_large_kind(kind.kind, f"{where}.kind")]
    if isinstance(kind, Splats):
        return _above(f"{where}.most", max(kind.most, kind.count), MOST_GAUSSIANS)
    return [
        *_above(f"{where}.occupancy_cells", kind.occupancy_cells, MOST_CELLS),
        *_above(f"{where}.steps_per_cell", kind.steps_per_cell, MOST_PER_CELL),
    ]


def too_large_export(export: Any) -> list[str]:
    """What is too large in the numbers of an export that have no bound of their own."""
    return [
        *_above("export.faces", export.faces, MOST_FACES),
        *_above("export.picture", export.picture, LARGEST_PICTURE),
        *_above("export.smoothing", export.smoothing, MOST_ROUNDS),
    ]


def _above(name: str, value: float, most: int) -> list[str]:
    return [f"{name} must be {most:,} or less, not {value:,}"] if value > most else []
