"""Cameras and their rays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Cameras:
    """A batch of pinhole cameras that share a picture size.

    World axes are glTF's: +y up, the front of an object faces +z.
    """

    pose: Float[Tensor, "b 4 4"]
    """Camera-to-world, OpenGL axes: the camera looks along its -z, +y is up."""
    focal: Float[Tensor, " b"]
    """Focal length in pixels."""
    size: tuple[int, int]
    """Height and width in pixels."""
    first: int = 0
    """The place of the first of them among all cameras of a step, where others have the rest: rays are told apart by
    their number."""

    def __len__(self) -> int:
        return len(self.pose)

    def to(self, device: torch.device | str) -> "Cameras":
        """The same cameras on a device."""
        return Cameras(self.pose.to(device), self.focal.to(device), self.size, self.first)

    def rays(self) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b h w 3"]]:
        """Origins and unit directions through pixel centres."""
        h, w = self.size
        device = self.pose.device
        y, x = torch.meshgrid(
            torch.arange(h, device=device) + 0.5 - h / 2, torch.arange(w, device=device) + 0.5 - w / 2, indexing="ij"
        )
        focal = self.focal[:, None, None]
        local = torch.stack([x / focal, -y / focal, -torch.ones_like(x).expand(len(self), h, w)], -1)
        direction = torch.einsum("bij,bhwj->bhwi", self.pose[:, :3, :3], local)
        return self.pose[:, :3, 3], torch.nn.functional.normalize(direction, dim=-1)


def look_at_origin(
    azimuth: Float[Tensor, " b"], elevation: Float[Tensor, " b"], distance: float
) -> Float[Tensor, "b 4 4"]:
    """Camera-to-world poses that look at the origin; angles in radians, azimuth 0 in front (+z), growing to +x."""
    ca, sa, ce, se = azimuth.cos(), azimuth.sin(), elevation.cos(), elevation.sin()
    right = torch.stack([ca, torch.zeros_like(ca), -sa], -1)
    up = torch.stack([-se * sa, ce, -se * ca], -1)
    back = torch.stack([ce * sa, se, ce * ca], -1)
    pose = torch.eye(4, dtype=azimuth.dtype, device=azimuth.device).repeat(len(azimuth), 1, 1)
    pose[:, :3] = torch.stack([right, up, back, back * distance], -1)
    return pose


def orbit(
    azimuths: Sequence[float] | Tensor,
    elevations: Sequence[float] | Tensor,
    size: int,
    distance: float,
    field_of_view: float,
) -> Cameras:
    """Cameras that look at the origin.

    Args:
        azimuths, elevations: degrees; azimuth 0 is the front.
        size: pixels a side.
        distance: world units from the origin.
        field_of_view: vertical, in degrees.
    """
    azimuth = torch.deg2rad(torch.as_tensor(azimuths, dtype=torch.float32))
    elevation = torch.deg2rad(torch.as_tensor(elevations, dtype=torch.float32))
    focal = size / 2 / math.tan(math.radians(field_of_view) / 2)
    return Cameras(look_at_origin(azimuth, elevation, distance), torch.full((len(azimuth),), focal), (size, size))
