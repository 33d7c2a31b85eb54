"""A toy as a scene, and a small export of it: traced pictures, a smooth density, exact paint."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from representations.cameras import Cameras, orbit
from representations.extraction import mesh_from_density
from representations.scene import Mesh, RenderOutput, Scene
from studio.export.asset import AssetReport, export_asset
from studio.toybox.views import DISTANCE, FIELD_OF_VIEW, Layers, trace
from studio.toybox.world import Toy, distances

LIGHT = torch.tensor([0.35, 0.90, 0.25])


@dataclass(frozen=True)
class ToyScene(Scene):
    """Shaded as the toybox shades it, seen from its own distance and field of view only."""

    toy: Toy
    bound: float = 1.0

    def render(self, cameras: Cameras, background: Float[Tensor, "b 3"]) -> RenderOutput:
        layers = [traced(self.toy.kind, tuple(pose.flatten().tolist()), cameras.size[0]) for pose in cameras.pose]
        rgb = torch.stack([one.painted(self.toy, colour) for one, colour in zip(layers, background, strict=True)])
        alpha = torch.stack([one.alpha for one in layers])[:, None]
        return RenderOutput(rgb, alpha, torch.zeros_like(alpha))

    def density(self, points: Tensor) -> Tensor:
        return 100 * torch.sigmoid(-distances(self.toy.kind, points).amin(0) / 0.01)

    def to_mesh(self, resolution: int) -> Mesh:
        return mesh_from_density(self.density, self.bound, resolution, self.silhouettes)

    def silhouettes(self, cameras: Cameras, steps: int = 96) -> Tensor:
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


@lru_cache(maxsize=64)
def traced(kind: str, pose: tuple[float, ...], size: int) -> Layers:
    """A view, traced once for all tests."""
    return trace(kind, torch.tensor(pose).view(4, 4), size)


def toy_cameras(azimuths: Sequence[float], size: int, elevation: float = 15.0) -> Cameras:
    """Cameras as the tracer has them."""
    return orbit(azimuths, [elevation] * len(azimuths), size, DISTANCE, FIELD_OF_VIEW)


SETTINGS = {"prompt": "a red mug", "seed": 7, "nested": {"scale": 7.5, "words": ["é", "猫"]}}


@dataclass(frozen=True)
class Export:
    """An exported scene and what was said on the way."""

    scene: Scene
    folder: Path
    report: AssetReport
    phases: list[str]

    @property
    def glb(self) -> Path:
        return self.folder / "result.glb"


def export(scene: Scene, folder: Path, **knobs) -> Export:
    """Export at a small size."""
    phases: list[str] = []
    small: dict[str, Any] = {"faces": 3000, "texture": 256, "grid": 72, "picture": 96, "frames": 4} | knobs
    steps = export_asset(
        scene,
        folder,
        settings=SETTINGS,
        prompt="a red mug",
        distance=DISTANCE,
        field_of_view=FIELD_OF_VIEW,
        **small,
    )
    while True:
        try:
            phases.append(next(steps))
        except StopIteration as end:
            return Export(scene, folder, end.value, phases)
