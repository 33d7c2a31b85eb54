"""ControlNet (arXiv 2302.05543): a prior that is also shown the depth or the normals of what it looks at.

Depth is what such models were trained on, estimates as MiDaS makes them: inverse depth, brightest where nearest, 0 to 1
over each picture; what is farther than everything is 0. Normals are taken from the depth, so that every representation
has them. Their colours are those of ControlNet 1.1 (``control_v11p_sd15_normalbae``), whose page says that it reads
normals of rendering engines where "blue is front, red is left, green is top"; where there is nothing, they see a wall
that faces them, since estimates of normals have no background. ControlNet 1.0's normals (``sd-controlnet-normal``) have
the same sides, but are slopes of MiDaS's numbers, far steeper than surfaces: the page of 1.1 says that it does not read
true ones.

Renders of gaussians and of fields have faint halos: a few percent of a pixel, at the depth of the object. Whoever
estimated depth from such a picture would see the background there, so halos fade into nothing.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from guidance.priors.network import Asked
from guidance.priors.unet import UNet
from guidance.priors.unet_xl import UNetXL

_NOTHING = 1e-3
"""Depth of a pixel in which there is nothing at all, at most."""
_FAINTEST = 0.1
"""Coverage of the most solid pixel of a picture, below which the whole picture fades."""
_SOLID = 0.5
"""Solidity from which on a pixel belongs to the surface."""


@dataclass(frozen=True)
class Controlled:
    """A U-Net whose inner activations a ControlNet corrects, as the render's own geometry says."""

    unet: UNet | UNetXL
    controlnet: Any
    shown: Literal["depth", "normal"]
    resolution: int
    field_of_view: float
    """Vertical field of view of the renders, in degrees; for normals of depth."""
    strength: float = 1.0
    """Factor of the corrections."""

    @property
    def model(self) -> Any:
        """The U-Net; adapters leave the ControlNet alone."""
        return self.unet.model

    @property
    def takes(self) -> frozenset[str]:
        """Names of the conditions beyond text."""
        return self.unet.takes | {"depth", "alpha"}

    def answer(self, model: Any, asked: Asked) -> Float[Tensor, "b c i j"]:
        """The raw answer."""
        down, middle = self.controlnet(
            asked.z.contiguous(memory_format=torch.channels_last),
            asked.time,
            asked.tokens,
            controlnet_cond=self._picture(asked).to(asked.z),
            conditioning_scale=self.strength,
            added_cond_kwargs=self.unet.conditions(asked) if isinstance(self.unet, UNetXL) else None,
            return_dict=False,
        )
        return self.unet.answer(
            model, asked, down_block_additional_residuals=down, mid_block_additional_residual=middle
        )

    @torch.no_grad()
    def _picture(self, asked: Asked) -> Float[Tensor, "b 3 h w"]:
        depth, alpha = asked.extra.get("depth"), asked.extra.get("alpha")
        if depth is None:
            depth, alpha = asked.z.new_zeros(len(asked.z), 1, self.resolution, self.resolution), None
        depth, solid = depth.detach().float(), solidity(depth, alpha)
        if self.shown == "depth":
            picture = nearness(depth, solid).expand(-1, 3, -1, -1)
        else:
            there = solid >= _SOLID
            picture = normal_colours(normals_of_depth(depth * there, self.field_of_view), there)
        return F.interpolate(picture, (self.resolution, self.resolution), mode="bilinear", antialias=True)


def solidity(depth: Float[Tensor, "b 1 h w"], alpha: Float[Tensor, "b 1 h w"] | None) -> Float[Tensor, "b 1 h w"]:
    """How much there is in each pixel, as a share of what there is where a picture is most solid.

    A share, since an object that is translucent all over, as at the start of a run, is still what there is to see. A
    picture that is covered by less than a tenth everywhere has nothing solid in it. None: all that has depth is solid.
    """
    there = depth > _NOTHING
    if alpha is None:
        return there.float()
    most = alpha.detach().float().amax((1, 2, 3), keepdim=True).clamp_min(_FAINTEST)
    return torch.where(there, (alpha.detach().float() / most).clamp(0, 1), torch.zeros_like(most))


def nearness(depth: Float[Tensor, "b 1 h w"], solid: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Inverse depth of each picture by itself: 1 where it is nearest, 0.1 where farthest, 0 where there is nothing.

    Near and far are those of the surface, and each pixel is as bright as its solidity lets it be, as one that a surface
    covers in part: a threshold would make halos flicker in and out between steps.

    Of surfaces 1, 2 and 4 away, whose inverses are 1, 1/2 and 1/4, the middle one is 0.1 + 0.9 (1/4) / (3/4) = 0.4. A
    halo 8 away, or right before the camera, changes none of that; of solidity 0.04 it is 0.004 or 0.04 itself.
    """
    surface = solid >= _SOLID
    inverse = torch.where(solid > 0, 1 / depth.clamp_min(_NOTHING), torch.zeros_like(depth))
    nearest = torch.where(surface, inverse, torch.zeros_like(depth)).amax((1, 2, 3), keepdim=True)
    farthest = torch.where(surface, inverse, nearest).amin((1, 2, 3), keepdim=True)
    # The farthest surface must not look like nothing at all.
    share = 0.1 + 0.9 * (inverse - farthest) / (nearest - farthest).clamp_min(1e-6)
    return share.clamp(0.1, 1) * solid


def normals_of_depth(depth: Float[Tensor, "b 1 h w"], field_of_view: float) -> Float[Tensor, "b 3 h w"]:
    """Unit normals in the camera's space (+x right, +y up, +z towards the viewer), of distances along rays.

    Slopes are taken between neighbours, but not across the border of what is there.
    """
    height, width = depth.shape[-2:]
    focal = height / 2 / math.tan(math.radians(field_of_view) / 2)
    y, x = torch.meshgrid(
        torch.arange(height, device=depth.device), torch.arange(width, device=depth.device), indexing="ij"
    )
    ray = torch.stack([(x + 0.5 - width / 2) / focal, (height / 2 - y - 0.5) / focal, -torch.ones_like(x).float()])
    points = depth * F.normalize(ray, dim=0)
    there = depth > _NOTHING
    right, left = (_neighbour(points, there, 3, way) for way in (1, -1))
    below, above = (_neighbour(points, there, 2, way) for way in (1, -1))
    return F.normalize(torch.cross(right - left, above - below, dim=1), dim=1)


def _neighbour(points: Tensor, there: Tensor, dim: int, way: int) -> Tensor:
    """The point of the next pixel along ``dim``; its own where that is beyond the picture, or nothing is."""
    size = points.shape[dim]
    place = (torch.arange(size, device=points.device) + way).clamp(0, size - 1)
    return torch.where(there.index_select(dim, place), points.index_select(dim, place), points)


def normal_colours(normal: Float[Tensor, "b 3 h w"], there: Tensor) -> Float[Tensor, "b 3 h w"]:
    """Normals of the camera's space as colours: red to the left, green up, blue towards the viewer, 0.5 for across.

    A wall that faces the viewer is (0.5, 0.5, 1), and so is whatever is not ``there``. One turned by 60 degrees to the
    left has the normal (-0.866, 0, 0.5), and is (0.933, 0.5, 0.75).
    """
    facing = normal.new_tensor([0.0, 0.0, 1.0])[:, None, None]
    seen = torch.where(there, normal, facing)
    return (torch.stack([-seen[:, 0], seen[:, 1], seen[:, 2]], 1) + 1) / 2
