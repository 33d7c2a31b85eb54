"""A toy as a scene: sphere-traced pictures, a smooth density, exact paint. What an ideal representation would be."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from representations.cameras import Cameras, orbit
from representations.extraction import mesh_from_density
from representations.scene import Mesh, RenderOutput, Scene
from studio.toybox.views import DISTANCE, FIELD_OF_VIEW, trace
from studio.toybox.world import Toy, distances

LIGHT = torch.tensor([0.35, 0.90, 0.25])


@dataclass(frozen=True)
class ToyScene(Scene):
    """Shaded as the toybox shades it, seen from its own distance and field of view only."""

    toy: Toy
    bound: float = 1.0

    def render(self, cameras: Cameras, background: Float[Tensor, "b 3"]) -> RenderOutput:
        layers = [trace(self.toy.kind, pose, cameras.size[0]) for pose in cameras.pose]
        rgb = torch.stack([one.painted(self.toy, colour) for one, colour in zip(layers, background, strict=True)])
        alpha = torch.stack([one.alpha for one in layers])[:, None]
        return RenderOutput(rgb, alpha, torch.zeros_like(alpha))

    def density(self, points: Tensor) -> Tensor:
        return 100 * torch.sigmoid(-distances(self.toy.kind, points).amin(0) / 0.01)

    def to_mesh(self, resolution: int) -> Mesh:
        return mesh_from_density(self.density, self.bound, resolution, self.silhouettes)

    def silhouettes(self, cameras: Cameras, steps: int = 160) -> Tensor:
        """Opacity of rays that come inside the toy, from any camera."""
        origin, direction = cameras.rays()
        middle = -(direction * origin[:, None, None]).sum(-1, keepdim=True)
        along = middle + torch.linspace(-1, 1, steps) * self.bound
        points = origin[:, None, None, None] + along[..., None] * direction[..., None, :]
        nearest = distances(self.toy.kind, points.view(-1, 3)).amin(0).view(along.shape).amin(-1)
        return (nearest < 0).float()[:, None]

    def surface_colour(self, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        with torch.enable_grad():
            where = points.detach().requires_grad_()
            distance = distances(self.toy.kind, where)
            (slope,) = torch.autograd.grad(distance.amin(0).sum(), where)
        normal = torch.nn.functional.normalize(slope, dim=-1)
        paint = torch.tensor([self.toy.paint(part.paint) for part in self.toy.parts])[distance.detach().argmin(0)]
        sun, sky = (normal @ (LIGHT / LIGHT.norm())).clamp_min(0), normal[:, 1] * 0.5 + 0.5
        return paint * (0.42 + 0.36 * sun + 0.14 * sky + 0.06)[:, None].clamp(0, 1)

    def detach(self) -> "ToyScene":
        return self


def toy_cameras(azimuths: Sequence[float], size: int, elevation: float = 15.0) -> Cameras:
    """Cameras as the tracer has them."""
    return orbit(azimuths, [elevation] * len(azimuths), size, DISTANCE, FIELD_OF_VIEW)
