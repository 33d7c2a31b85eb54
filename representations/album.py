"""Pictures of a scene from all sides, to look surface points up in: how a renderer's colours get onto a mesh."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from representations.cameras import Cameras, look_at_origin
from representations.scene import Scene

_VIEWS, _SIZE, _DISTANCE = 32, 320, 4.0
"""Pictures, pixels a side of each, and the distance they are taken from as a multiple of the bound."""


@dataclass(frozen=True)
class Album:
    """Pictures of a scene from points all around it."""

    cameras: Cameras
    pictures: Float[Tensor, "b 5 h w"]
    """Colour over black, opacity, and opacity times distance along the ray."""
    tolerance: float
    """A point is visible when it lies no deeper than this behind what a picture shows."""

    @classmethod
    def of(cls, scene: Scene, bound: float, device: torch.device) -> "Album":
        """Take the pictures; the cameras see the ball around the cube [-bound, bound]^3."""
        cameras = _all_around(bound).to(device)
        views = []
        for i in range(len(cameras)):
            camera = Cameras(cameras.pose[i : i + 1], cameras.focal[i : i + 1], cameras.size)
            out = scene.render(camera, torch.zeros(1, 3, device=device))
            views.append(torch.cat([out.rgb, out.alpha, out.alpha * out.depth], 1))
        return cls(cameras, torch.cat(views), 0.05 * bound)

    def colour(self, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Mean colour [0, 1] over the views that see a point, squarest views first in weight.

        Where none does, every view that at least looks at the right side counts, and failing that, all do.
        """
        total = points.new_zeros(3, len(points), 4)
        for i in range(len(self.cameras)):
            colour, alpha, depth, eye = self._look_up(i, points)
            distance = (eye - points).norm(dim=1)
            square = ((eye - points) * normals).sum(1) / distance
            visible = (depth > distance - self.tolerance) & (square > 0)
            weights = (square.clamp_min(0) ** 4 * visible, square.clamp_min(0), torch.ones_like(square))
            for level, weight in enumerate(weights):
                # Colours are multiplied by opacity already.
                total[level] += weight[:, None] * torch.cat([colour, alpha[:, None]], 1)
        best = torch.where(total[0, :, 3:] > 1e-3, total[0], torch.where(total[1, :, 3:] > 1e-3, total[1], total[2]))
        return (best[:, :3] / best[:, 3:].clamp_min(1e-6)).clamp(0, 1)

    def _look_up(self, i: int, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What view ``i`` shows where it sees each point: colour times opacity, opacity, distance; and its eye."""
        pose, focal, (h, w) = self.cameras.pose[i], self.cameras.focal[i], self.cameras.size
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        place = focal * local[:, :2] / -local[:, 2:].clamp_max(-1e-6)
        grid = torch.stack([place[:, 0] / (w / 2), -place[:, 1] / (h / 2)], 1)
        seen = grid_sample(self.pictures[i : i + 1], grid[None, None], align_corners=False)[0, :, 0].T
        return seen[:, :3], seen[:, 3], seen[:, 4] / seen[:, 3].clamp_min(1e-6), pose[:3, 3]


def _all_around(bound: float) -> Cameras:
    """Cameras at the points of a spiral that covers the sphere evenly."""
    step = torch.arange(_VIEWS) + 0.5
    elevation = torch.asin(1 - 2 * step / _VIEWS)
    azimuth = torch.pi * (1 + 5**0.5) * step
    pose = look_at_origin(azimuth, elevation, _DISTANCE * bound)
    reach = 3**0.5 * bound
    focal = _SIZE / 2 * ((_DISTANCE * bound) ** 2 - reach**2) ** 0.5 / reach
    return Cameras(pose, torch.full((_VIEWS,), focal), (_SIZE, _SIZE))
