"""Options of ``studio bench``."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import tyro

from guidance.priors.resources import Resources
from studio.arguments import MaybeNumber, MaybePath, Texts

Method = Literal["SDS", "VSD"]
"""A method without a critic, and one with a critic."""


@dataclass(frozen=True)
class PriorTiming:
    """How iterations with a prior are timed; for --prior alone."""

    pixels: MaybeNumber = None
    """Pixels a side that the prior is to see; none: as it was trained."""
    views: int = 1
    """Views of an iteration."""
    at_once: MaybeNumber = None
    """Most pictures in a pass through the prior; none: all."""
    methods: tuple[Method, ...] = get_args(Method)
    """Methods to time."""
    steps: int = 3
    """Iterations that count, after one that does not; 0: that one alone, where it takes minutes."""
    resources: Resources = field(default=Resources())
    """Memory and speed."""

    def __post_init__(self) -> None:
        given = {"views": self.views, "pixels": self.pixels, "at-once": self.at_once, "methods": len(self.methods)}
        for name, value in given.items():
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be 1 or more, not {value}")
        if self.steps < 0:
            raise ValueError(f"--steps must be 0 or more, not {self.steps}")


@dataclass(frozen=True)
class Bench:
    """Time the kernels on this machine, next to their plain-torch forms and to installed peers; with --prior, priors.

    Exit status 1 if a ratio is under its gate, or a prior was left out.
    """

    json: MaybePath = None
    """File for the figures, with the machine and the date."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    only: str = ""
    """Only cases whose name holds this, e.g. "hash" or "64 px"."""
    quick: bool = False
    """Half a second for each form of a case, or one run where that takes longer: for a first look."""
    prior: Texts = ()
    """Priors in place of the kernels: sd15, sd21, sdxl, if-xl, sd35-medium, flux-schnell or flux-dev at its true size
    with random weights, which need no download and are as fast as the published ones; or folders, with their own."""
    timing: Annotated[PriorTiming, tyro.conf.arg(name="")] = field(default=PriorTiming())
    """How priors are timed."""
