"""Radiance fields as values: everything that follows from density and colour at a point."""

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from cuda_ext import ops
from representations.cameras import Cameras
from representations.extraction import mesh_from_density
from representations.scene import Mesh, RenderOutput, Scene

_DENSITY_GAIN = 25.0
"""World-unit density of a raw value of 1; a raw value of -7 is as good as empty."""
_COLOUR_GAIN = 1.5
"""Logits of colour for a raw value of 1: with one learning rate for both, colours move more calmly than density."""


class RadianceField(Scene):
    """Matter and colour at every point of the cube [-bound, bound]^3."""

    bound: float
    """Half the side of the cube, in world units."""
    step: float
    """Distance between samples along a ray, in world units."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it lives."""

    @abstractmethod
    def raw(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
        """Density and three colours at points in world units, before anything makes them positive or bounded."""

    @abstractmethod
    def march(
        self, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], first: int = 0
    ) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Samples along rays where there may be matter, as ``cuda_ext.ops.march_rays`` returns them.

        Args:
            origins, directions: of the rays.
            first: number of the first of them among all rays of a step.
        """

    @abstractmethod
    def occupied(self, points: Float[Tensor, "n 3"]) -> Bool[Tensor, " n"]:
        """Whether there may be matter at points in world units."""

    def render(self, cameras: Cameras, background: Float[Tensor, "b 3"]) -> RenderOutput:
        """See ``Scene.render``."""
        origins, directions = cameras.rays()
        b, (h, w) = len(cameras), cameras.size
        flat = directions.reshape(-1, 3)
        starts = origins[:, None].expand(b, h * w, 3).reshape(-1, 3)
        t, ray = self.march(starts, flat, cameras.first * h * w)
        density, colour = self.sample(along(starts, flat, t, ray))
        rgb, alpha, depth, _ = ops.composite(density, colour, t, ray, len(flat), self.step)
        alpha, depth = alpha.clamp(0, 1), depth / alpha.clamp_min(1e-6)
        rgb = rgb + (1 - alpha)[:, None] * background.repeat_interleave(h * w, 0)
        return RenderOutput(
            rgb=rgb.view(b, h, w, 3).permute(0, 3, 1, 2),
            alpha=alpha.view(b, 1, h, w),
            depth=depth.view(b, 1, h, w),
        )

    def sample(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """Density per world unit and sRGB colour at points in world units."""
        raw = self.raw(points)
        return _DENSITY_GAIN * F.softplus(raw[:, 0]), torch.sigmoid(_COLOUR_GAIN * raw[:, 1:])

    def to_mesh(self, resolution: int) -> Mesh:
        """See ``Scene.to_mesh``."""
        still = self.detach()
        white = torch.ones(1, 3, device=self.device)
        return mesh_from_density(
            lambda points: still.sample(points)[0],
            self.bound,
            resolution,
            lambda cameras: still.render(cameras, white.expand(len(cameras), 3)).alpha,
            self.device,
        )

    def surface_colour(self, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """The colour that a short ray along the normal sees: what the renders show, not what lies deep inside."""
        reach = 4 * self.step
        count = 16
        depths = torch.linspace(-reach, 2 * reach, count, device=points.device)
        places = points[:, None] - depths[:, None] * normals[:, None]
        density, colour = self.sample(places.reshape(-1, 3))
        ray = torch.arange(len(points), device=points.device).repeat_interleave(count)
        length = 3 * reach / (count - 1)
        rgb, alpha, _, _ = ops.composite(density + 1e-4, colour, depths.repeat(len(points)), ray, len(points), length)
        return rgb / alpha.clamp_min(1e-6)[:, None]

    @abstractmethod
    def detach(self) -> "RadianceField":
        """See ``Scene.detach``; samples sit in the middle of their steps."""


def along(
    origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], t: Float[Tensor, " n"], ray: Int[Tensor, " n"]
) -> Float[Tensor, "n 3"]:
    """Where samples lie."""
    return torch.addcmul(origins.index_select(0, ray), directions.index_select(0, ray), t[:, None])
