"""Where a step looks from, and what lies behind the object."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.prior_folder import Hints
from representations.cameras import Cameras, orbit


@dataclass(frozen=True)
class Orbit:
    """Random cameras around the object; distance and field of view are those the prior was trained with, and so is the
    elevation where nothing is said of it."""

    views: int = 4
    """Views a step, evenly spread in azimuth from a random start."""
    size: int = 64
    """Pixels a side of a render."""
    elevation: tuple[float, float] | None = None
    """Lowest and highest elevation, in degrees; none: what the prior was trained with."""

    def draw(self, hints: Hints, rng: torch.Generator) -> tuple[Cameras, Float[Tensor, "b 3"]]:
        """Cameras of a step and a background for each.

        Half of the backgrounds are white or mid-grey, the rest any grey: an object that must stand out from all of
        them cannot borrow its own colour from one.
        """
        turn = 360.0 * torch.rand(1, generator=rng)
        azimuth = turn + torch.arange(self.views) * (360.0 / self.views)
        low, high = self.elevation or hints["elevations"]
        elevation = low + (high - low) * torch.rand(self.views, generator=rng)
        if (group := hints["views"]) > 1 and self.views % group == 0:
            # What a prior sees as one stands evenly around the object, at one height.
            azimuth = azimuth.view(group, -1).T.flatten()
            elevation = elevation[::group].repeat_interleave(group)
        cameras = orbit(azimuth, elevation, self.size, hints["distance"], hints["field_of_view"])
        return cameras, _backgrounds(self.views, rng)


def _backgrounds(count: int, rng: torch.Generator) -> Float[Tensor, "b 3"]:
    kind, grey = torch.rand(count, generator=rng), torch.rand(count, generator=rng)
    grey = torch.where(kind < 0.3, torch.ones_like(grey), torch.where(kind < 0.5, torch.full_like(grey, 0.5), grey))
    return grey[:, None].expand(count, 3).contiguous()
