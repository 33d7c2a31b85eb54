"""A scene is a value one can look at; a representation is what we optimise to make scenes."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from representations.cameras import Cameras


@dataclass(frozen=True)
class RenderOutput:
    """Pictures of a scene, on the autograd graph where the scene is."""

    rgb: Float[Tensor, "b 3 h w"]
    """sRGB in [0, 1] over the background asked for."""
    alpha: Float[Tensor, "b 1 h w"]
    depth: Float[Tensor, "b 1 h w"]
    """Expected distance along the ray, in world units; 0 where nothing is."""
    normal: Float[Tensor, "b 3 h w"] | None = None
    aux: dict[str, Tensor] = field(default_factory=dict)
    """What a kind measures about itself while it renders: tensors on the graph, which gather their gradient from all
    views, and others with a row for each view."""


@dataclass(frozen=True)
class Mesh:
    """Bare geometry; faces wind counter-clockwise seen from outside."""

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning rate; ``rate`` maps run progress in [0, 1] to it."""

    name: str
    parameters: list[nn.Parameter]
    rate: Callable[[float], float]


class EmptySceneError(ValueError):
    """There is no surface to extract; the message carries the numbers that explain why."""


class Scene(ABC):
    """An immutable value that can be rendered."""

    @abstractmethod
    def render(self, cameras: Cameras, background: Float[Tensor, "b 3"]) -> RenderOutput:
        """Pictures from ``cameras`` over ``background`` (sRGB in [0, 1])."""

    @abstractmethod
    def to_mesh(self, resolution: int) -> Mesh:
        """The surface, at ``resolution`` cells a side of the bounding cube.

        Raises:
            EmptySceneError: nothing solid enough to be a surface.
        """

    @abstractmethod
    def surface_colour(self, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """sRGB in [0, 1] that the scene shows at surface points, seen against their outward normals."""

    @abstractmethod
    def detach(self) -> "Scene":
        """The same scene off the autograd graph."""


class Representation(nn.Module, ABC):
    """What is optimised; it makes scenes."""

    @property
    def variants(self) -> int:
        """How many scenes it makes: 1, unless it holds particles."""
        return 1

    def turn(self, step: int) -> int:
        """The variant that a step renders and restructures: each in turn."""
        return step % self.variants

    @abstractmethod
    def scene(self, text: Float[Tensor, " d"] | None = None, variant: int = 0) -> Scene:
        """The scene of ``text`` (ignored by single objects) and of particle ``variant``."""

    @abstractmethod
    def groups(self) -> list[ParamGroup]:
        """Every trainable parameter, once, with its learning rate."""

    def restructure(self, step: int, out: RenderOutput, optimiser: torch.optim.Optimizer) -> None:
        """Change our own structure after a step (occupancy, densify, prune); most steps change nothing."""
