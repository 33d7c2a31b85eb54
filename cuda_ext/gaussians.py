"""Gaussian splats: the typed, differentiable operation over its reference and its kernels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cuda_ext import backends, gaussians_native, gaussians_reference, peers
from cuda_ext.backends import Backend
from cuda_ext.checks import expect


@dataclass(frozen=True)
class GaussianImages:
    """What the cameras see."""

    rgb: Float[Tensor, "b 3 h w"]
    """Colour, over the background."""
    alpha: Float[Tensor, "b 1 h w"]
    """How much of the background is hidden, 0 to 1."""
    depth: Float[Tensor, "b 1 h w"]
    """Sum of weight times distance along the camera's axis, in world units; not divided by alpha."""
    features: Float[Tensor, "b f h w"] | None
    """Sum of weight times features; nothing for the background. None where none were given."""
    radius: Float[Tensor, "b n"]
    """Half the larger side of each gaussian's rectangle in pixels; 0 where it is not drawn. Not differentiable."""


def rasterize_gaussians(
    means: Float[Tensor, "n 3"],
    log_scales: Float[Tensor, "n 3"],
    quaternions: Float[Tensor, "n 4"],
    logit_opacities: Float[Tensor, " n"],
    sh: Float[Tensor, "n k 3"],
    pose: Float[Tensor, "b 4 4"],
    focal: Float[Tensor, " b"],
    size: tuple[int, int],
    background: Float[Tensor, "b 3"],
    features: Float[Tensor, "n f"] | None = None,
    probe: Float[Tensor, " n"] | None = None,
    near: float = 0.01,
    backend: Backend = "auto",
) -> GaussianImages:
    """Draw 3D gaussians (Kerbl et al. 2023, arXiv 2308.04079) with the semantics of gsplat (arXiv 2409.06765).

    Projection is EWA splatting with a low-pass of 0.3 square pixels; alpha below 1/255 is skipped, alpha is held to
    0.99, and a pixel is finished before the gaussian that would leave no more than 1e-4 of the light behind it. The
    order is by distance along the camera's axis, then by index. Differentiable in the gaussians, ``features`` and
    ``background``.

    A gaussian is not drawn, and gets zero gradients, where it is nearer than ``near`` or off the picture, where a value
    of it is not finite or overflows on the way to the screen, or where its quaternion is shorter than 1e-12.

    Args:
        means: centres, world units.
        log_scales: logarithms of the standard deviations along the gaussian's own axes.
        quaternions: orientations wxyz, of any length.
        logit_opacities: opacity before the sigmoid.
        sh: spherical harmonics, 1, 4, 9 or 16 a colour; colour = max(0, harmonics towards the gaussian + 0.5).
        pose: camera-to-world, OpenGL axes, the rotation orthonormal; not differentiable.
        focal: pixels; the principal point is the middle of the picture; not differentiable.
        size: height and width in pixels.
        background: red, green and blue behind everything, for each view.
        features: further values to blend like colours.
        probe: zeros whose gradient tells where detail is missing: summed over the views, the norm of the gradient
            with respect to the mean on the screen, in units of half the picture's width and height (as in 3DGS).
        near: gaussians nearer than this along the camera's axis are not drawn.

    Raises:
        ValueError: shapes, types or devices do not fit, or the backend cannot run.
    """
    inputs = (means, log_scales, quaternions, logit_opacities, sh, pose, focal, background)
    _check(*inputs, size=size, features=features, probe=probe, near=near)
    chosen = backends.choose("rasterize_gaussians", backend, means.device)
    gaussians = (means, log_scales, quaternions, logit_opacities, sh)
    if chosen == "gsplat":
        views = (pose, focal, size, background, features, probe, near)
        return _images(*peers.gsplat_rasterize(*gaussians, *views), features)
    blended = means.new_empty(len(means), 0) if features is None else features
    probed = torch.empty_like(logit_opacities) if probe is None else probe  # its values are of no matter
    if chosen == "native":
        if means.device.type == "cuda" and means.dtype != torch.float32:
            raise ValueError(f"the CUDA kernels of rasterize_gaussians are float32, the inputs are {means.dtype}")
        views = (pose, focal, background, *size, near)
        image, radius, *_ = gaussians_native.rasterize(*gaussians, blended, probed, *views)
        return _images(image, radius, features)
    views = (pose, focal, size, background, blended, probed, near)
    return _images(*gaussians_reference.rasterize(*gaussians, *views), features)


def _images(image: Tensor, radius: Tensor, features: Tensor | None) -> GaussianImages:
    rest = None if features is None else image[:, 5:]
    return GaussianImages(image[:, :3], image[:, 3:4], image[:, 4:5], rest, radius)


def _check(
    means: Tensor,
    log_scales: Tensor,
    quaternions: Tensor,
    logit_opacities: Tensor,
    sh: Tensor,
    pose: Tensor,
    focal: Tensor,
    background: Tensor,
    *,
    size: tuple[int, int],
    features: Tensor | None,
    probe: Tensor | None,
    near: float,
) -> None:
    n, b = means.shape[0] if means.ndim else 0, pose.shape[0] if pose.ndim else 0
    expect("means", means, (n, 3), "means", means)
    expect("log_scales", log_scales, (n, 3), "means", means)
    expect("quaternions", quaternions, (n, 4), "means", means)
    expect("logit_opacities", logit_opacities, (n,), "means", means)
    harmonics = sh.shape[1] if sh.ndim == 3 else 1
    if harmonics not in (1, 4, 9, 16):
        raise ValueError(f"sh must have 1, 4, 9 or 16 harmonics a colour, got {harmonics}")
    expect("sh", sh, (n, harmonics, 3), "means", means)
    expect("pose", pose, (b, 4, 4), "means", means)
    expect("focal", focal, (b,), "means", means)
    expect("background", background, (b, 3), "means", means)
    if features is not None:
        expect("features", features, (n, features.shape[-1] if features.ndim else 0), "means", means)
    if probe is not None:
        expect("probe", probe, (n,), "means", means)
    if len(size) != 2 or min(size) < 1 or max(size) > 32768:
        raise ValueError(f"size is height and width in pixels, 1 to 32768 each, got {size}")
    if not near > 0:
        raise ValueError(f"near must be positive, got {near}")
