"""How a camera-conditioned pixel prior is told where the camera stands and what lies behind the object."""

import torch
from jaxtyping import Float
from torch import Tensor

FEATURES = 19
"""Length of the vector that ``camera_features`` returns."""


def camera_features(pose: Float[Tensor, "b 4 4"] | None, background: Float[Tensor, "b 3"]) -> Float[Tensor, "b 19"]:
    """Camera and background as one vector for a projected class embedding.

    Args:
        pose: camera-to-world matrices (OpenGL axes); only the direction from the origin to the camera counts.
            A pose of zeros leaves the camera out for that sample, ``None`` for all of them, as the null branch of
            classifier-free guidance does.
        background: sRGB in [0, 1] behind the object.

    Returns:
        15 real spherical harmonics of degree 1 to 3 of the viewing direction, a flag that says whether the camera is
        given, and the background scaled to [-1, 1]. Harmonics are smooth on the whole sphere, poles included, where
        azimuth and elevation are not.
    """
    colour = background * 2 - 1
    if pose is None:
        return torch.cat([colour.new_zeros(len(colour), 16), colour], 1)
    given = (pose[:, :3, 3].norm(dim=1, keepdim=True) > 0).to(colour)
    direction = torch.nn.functional.normalize(pose[:, :3, 3].to(colour), dim=1)
    return torch.cat([_harmonics(direction) * given, given, colour], 1)


def _harmonics(d: Float[Tensor, "b 3"]) -> Float[Tensor, "b 15"]:
    x, y, z = d.unbind(1)
    return torch.stack(
        [
            x,
            y,
            z,
            2 * x * z,
            z * z - x * x,
            2 * x * y,
            2 * y * z,
            (3 * y * y - 1) / 2,
            x * (3 * z * z - x * x),
            z * (z * z - 3 * x * x),
            4 * x * y * z,
            2 * y * (z * z - x * x),
            x * (5 * y * y - 1) / 2,
            z * (5 * y * y - 1) / 2,
            y * (5 * y * y - 3) / 2,
        ],
        1,
    )
