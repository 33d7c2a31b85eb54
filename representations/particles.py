"""Several objects of one kind that are optimised in turn, as samples of one distribution (VSD's particles)."""

from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from representations.hash_field import HashField
from representations.scene import ParamGroup, RenderOutput, Representation, Scene
from representations.splats import Splats


@dataclass(frozen=True)
class Particles:
    """Several independent objects under one guidance (ProlificDreamer, arXiv 2305.16213, sec. 3.2).

    Each step renders one of them, in turn, and moves that one alone; what a method learns from the renders it learns
    from all. So ``count`` objects need ``count`` times the steps of one.
    """

    kind: HashField | Splats = field(default=Splats())
    """What each of them is."""
    count: int = 2
    """How many there are."""

    def build(self, rng: torch.Generator, device: torch.device) -> "ParticleCloud":
        """Objects that begin differently, as far as their kind draws its beginnings.

        Raises:
            ValueError: the knobs do not fit together.
        """
        return ParticleCloud([self.kind.build(rng, device) for _ in range(self._checked_count())])

    def start_from(self, scene: Scene, rng: torch.Generator, device: torch.device) -> "ParticleCloud":
        """Objects that all begin as ``scene``.

        Raises:
            TypeError: their kind cannot begin as a scene of this kind.
            ValueError: the knobs do not fit together.
        """
        return ParticleCloud([self.kind.start_from(scene, rng, device) for _ in range(self._checked_count())])

    def _checked_count(self) -> int:
        if self.count < 1:
            raise ValueError(f"count of particles must be 1 or more, got {self.count}")
        return self.count


@final
class ParticleCloud(Representation):
    """The trainable objects."""

    def __init__(self, particles: list[Representation]):
        super().__init__()
        self.particles = nn.ModuleList(particles)

    @property
    def variants(self) -> int:
        """See ``Representation.variants``."""
        return len(self.particles)

    def scene(self, text: Float[Tensor, " d"] | None = None, variant: int = 0) -> Scene:
        """See ``Representation.scene``."""
        return self.particle(variant).scene(text)

    def groups(self) -> list[ParamGroup]:
        """The groups of all particles; those that do the same share a name."""
        return [group for i in range(self.variants) for group in self.particle(i).groups()]

    def restructure(self, step: int, out: RenderOutput, optimiser: torch.optim.Optimizer) -> None:
        """Let the particle that ``step`` rendered restructure itself, by the count of its own steps."""
        self.particle(self.turn(step)).restructure(step // self.variants, out, optimiser)

    def particle(self, i: int) -> Representation:
        """One of them."""
        particle = self.particles[i]
        assert isinstance(particle, Representation)
        return particle
