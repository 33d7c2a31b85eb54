"""A cloud of gaussians as a value: rendered by the rasterizer, and read as a surface with colours."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from cuda_ext import ops
from representations.album import Album
from representations.cameras import Cameras, orbit
from representations.extraction import choose_threshold, extract_surface
from representations.scene import EmptySceneError, Mesh, RenderOutput, Scene
from representations.splat_density import density_grid

SH_ZERO = 0.28209479177387814
"""The constant spherical harmonic: colour is 0.5 + ``SH_ZERO`` times the first coefficient."""

_SURVEY, _SURVEY_FIELD = 128, 28.0
"""Pixels a side and field of view of the pictures that decide where the surface is. They see the middle of the cube
from close by, for at few pixels a gaussian looks larger than it is by the rasterizer's low-pass."""
_SURVEY_ANGLES = ((0, 60, 120, 200, 270, 0), (15, -15, 40, -30, 10, 80))
"""Their azimuths and elevations, in degrees: around, from above and from below."""


@final
@dataclass(frozen=True)
class SplatScene(Scene):
    """Raw parameters of gaussians; see ``cuda_ext.ops.rasterize_gaussians`` for what they mean."""

    means: Float[Tensor, "n 3"]
    """Centres, in world units."""
    log_scales: Float[Tensor, "n 3"]
    """Logarithms of the semi-axes."""
    quaternions: Float[Tensor, "n 4"]
    """Rotations from semi-axes to the world, wxyz, not normalised."""
    logit_opacities: Float[Tensor, " n"]
    sh: Float[Tensor, "n k 3"]
    """Spherical harmonics of colour, 1, 4, 9 or 16 a channel."""
    bound: float = 1.0
    """Half the side of the cube that holds the object."""
    probe: Float[Tensor, " n"] | None = None
    """Zeros whose gradient is how strongly a step pulls at each projected centre."""

    def __len__(self) -> int:
        return len(self.means)

    def render(self, cameras: Cameras, background: Float[Tensor, "b 3"]) -> RenderOutput:
        """See ``Scene.render``; ``aux`` holds ``radius`` [b, n], in pixels and 0 where not drawn, and the probe."""
        images = ops.rasterize_gaussians(
            self.means,
            self.log_scales,
            self.quaternions,
            self.logit_opacities,
            self.sh,
            cameras.pose,
            cameras.focal,
            cameras.size,
            background,
            probe=self.probe,
        )
        # The kernel adds up distances along the viewing axis; ours run along the ray.
        depth = images.depth / images.alpha.clamp_min(1e-6) * axis_to_ray(cameras)
        aux = {"radius": images.radius} | ({} if self.probe is None else {"probe": self.probe})
        return RenderOutput(
            images.rgb.clamp_max(1.0) if self.sh.shape[1] > 1 else images.rgb, images.alpha, depth, aux=aux
        )

    def to_mesh(self, resolution: int) -> Mesh:
        """See ``Scene.to_mesh``: the surface of the cloud's matter, at the density that its silhouettes choose."""
        if not len(self):
            raise EmptySceneError("nothing is solid: the cloud has 0 gaussians")
        still, white = self.detach(), self.means.new_ones(1, 3)
        shape = (still.means, still.log_scales, still.quaternions, still.logit_opacities)
        with torch.no_grad():
            grid = density_grid(*shape, self.bound, resolution)
            survey = orbit(*_SURVEY_ANGLES, _SURVEY, 4 * self.bound, _SURVEY_FIELD).to(grid.device)
            chosen = choose_threshold(
                grid, self.bound, lambda c: still.render(c, white.expand(len(c), 3)).alpha, survey
            )
            return extract_surface(grid, self.bound, chosen.value)

    def surface_colour(self, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """What renders from all sides show there, blended by how squarely each looks at the point."""
        return self._album.colour(points, normals)

    @cached_property
    def _album(self) -> Album:
        with torch.no_grad():
            return Album.of(self.detach(), self.bound, self.means.device)

    def detach(self) -> "SplatScene":
        """See ``Scene.detach``."""
        names = ("means", "log_scales", "quaternions", "logit_opacities", "sh")
        return SplatScene(**{name: getattr(self, name).detach() for name in names}, bound=self.bound)


def axis_to_ray(cameras: Cameras) -> Float[Tensor, "b 1 h w"]:
    """Distance along each pixel's ray for a distance of 1 along the viewing axis."""
    h, w = cameras.size
    device = cameras.focal.device
    y = torch.arange(h, device=device) + (0.5 - h / 2)
    x = torch.arange(w, device=device) + (0.5 - w / 2)
    return (1 + (y[:, None].square() + x.square()) / cameras.focal.square()[:, None, None, None]).sqrt()
