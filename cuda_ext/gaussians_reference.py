"""Gaussian splats in plain torch: the specification of ``rasterize_gaussians``, and the oracle of its kernels.

EWA splatting (Zwicker et al. 2001) as 3D Gaussian Splatting (Kerbl et al. 2023) and gsplat (arXiv 2409.06765) do it.
Each view is drawn by itself: project the gaussians that can be seen, list every (pixel, gaussian) pair whose alpha
counts, sort the pairs by pixel and depth, and blend along each pixel's run of pairs. Autograd gives the gradients.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

ALPHA_MIN = 1 / 255
"""A gaussian is skipped at pixels where its alpha is below this."""
ALPHA_MAX = 0.99
"""Alpha is held to at most this; no gradient passes where it is."""
TRANSMITTANCE_MIN = 1e-4
"""A pixel is finished before the gaussian that would leave no more than this of what lies behind."""
LOW_PASS = 0.3
"""Added to the variances on the screen, in square pixels: no gaussian is smaller than about a pixel."""
EXTENT_MAX = 3.33
"""No gaussian reaches further than this many standard deviations."""
FRUSTUM = 1.3
"""The projection is linearised no further outside than this many half fields of view."""
QUATERNION_MIN = 1e-12
"""Quaternions shorter than this have no direction; their gaussians are not drawn."""

SH_0 = 0.28209479177387814  # sqrt(1 / (4 pi)); the others follow likewise, normalised over the sphere
SH_1 = 0.48860251190291992
SH_2 = (1.0925484305920792, 0.31539156525252005, 0.54627421529603959)
SH_3 = (0.59004358992664352, 2.8906114426405538, 0.45704579946446572, 0.37317633259011540, 1.4453057213202769)


@dataclass(frozen=True)
class Camera:
    """One view, with the axes that projection uses: x right, y down, z forward."""

    rotation: Float[Tensor, "3 3"]  # world to camera
    eye: Float[Tensor, " 3"]
    focal: Float[Tensor, ""]
    height: int
    width: int


@dataclass(frozen=True)
class Projected:
    """Gaussians on the screen."""

    mean: Float[Tensor, "m 2"]  # pixels
    conic: Float[Tensor, "m 3"]  # inverse covariance: xx, xy, yy
    opacity: Float[Tensor, " m"]
    colour: Float[Tensor, "m 3"]
    depth: Float[Tensor, " m"]
    extent: Float[Tensor, "m 2"]  # half sides of the rectangle within which alpha reaches ALPHA_MIN


def rasterize(
    means: Float[Tensor, "n 3"],
    log_scales: Float[Tensor, "n 3"],
    quaternions: Float[Tensor, "n 4"],
    logit_opacities: Float[Tensor, " n"],
    sh: Float[Tensor, "n k 3"],
    pose: Float[Tensor, "b 4 4"],
    focal: Float[Tensor, " b"],
    size: tuple[int, int],
    background: Float[Tensor, "b 3"],
    features: Float[Tensor, "n f"],
    probe: Float[Tensor, " n"],
    near: float,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b n"]]:
    """See ``cuda_ext.ops.rasterize_gaussians``.

    Returns:
        Planes of red, green, blue, alpha, depth and the features; and the radii.
    """
    gaussians = (means, log_scales, quaternions, logit_opacities, sh)
    flip = pose.new_tensor([[1.0], [-1.0], [-1.0]])
    pictures, radii = [], []
    for i in range(len(pose)):
        camera = Camera(flip * pose[i, :3, :3].T, pose[i, :3, 3], focal[i], *size)
        drawn, radius = _drawn(gaussians, features, camera, near)
        seen = project(*[part.index_select(0, drawn) for part in gaussians], camera=camera)
        mean = _Probe.apply(seen.mean, probe, drawn, camera)
        channels = torch.cat([seen.colour, seen.depth[:, None], features.index_select(0, drawn)], 1)
        record = torch.cat([mean, seen.conic, seen.opacity[:, None], channels], 1)
        pictures.append(_blend(record, seen.extent.detach(), background[i], camera))
        radii.append(radius)
    if not pictures:  # yet on the graph of every input
        nothing = torch.stack([part.sum() for part in (*gaussians, background, features, probe)]).sum()
        return nothing.expand(0, 5 + features.shape[1], *size), means.new_zeros(0, len(means))
    return torch.stack(pictures), torch.stack(radii)


# --- projection -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _drawn(
    gaussians: tuple[Tensor, ...], features: Tensor, camera: Camera, near: float
) -> tuple[Int[Tensor, " m"], Float[Tensor, " n"]]:
    """The gaussians to draw, near to far, and the radius of every gaussian."""
    means, _, quaternions, _, _ = gaussians
    fine = torch.stack(
        [part.isfinite().flatten(1).all(1) for part in (*(g[:, None] for g in gaussians), features)]
    ).all(0)
    fine &= quaternions.norm(dim=-1) >= QUATERNION_MIN
    fine &= ((means - camera.eye) @ camera.rotation[2]) >= near
    index = fine.nonzero()[:, 0]
    seen = project(*[part[index] for part in gaussians], camera=camera)
    finite = torch.cat([seen.mean, seen.conic, seen.colour, seen.extent], 1).isfinite().all(1)
    low, high = seen.mean - seen.extent, seen.mean + seen.extent
    inside = (high > 0).all(1) & (low[:, 0] < camera.width) & (low[:, 1] < camera.height)
    keep = finite & inside & (seen.opacity > ALPHA_MIN)
    radius = means.new_zeros(len(means))
    radius[index[keep]] = seen.extent[keep].amax(1)
    order = seen.depth[keep].argsort(stable=True)
    return index[keep][order], radius


def project(
    means: Tensor, log_scales: Tensor, quaternions: Tensor, logits: Tensor, sh: Tensor, camera: Camera
) -> Projected:
    offset = means - camera.eye
    x, y, z = (offset @ camera.rotation.T).unbind(-1)
    focal, limit = camera.focal, torch.stack([0 * camera.focal + camera.width, 0 * camera.focal + camera.height])
    limit = FRUSTUM * limit / (2 * focal)
    u, v = (x / z).clamp(-limit[0], limit[0]), (y / z).clamp(-limit[1], limit[1])
    zero = torch.zeros_like(z)
    jacobian = (focal / z)[:, None, None] * torch.stack([zero + 1, zero, -u, zero, zero + 1, -v], -1).view(-1, 2, 3)
    axes = jacobian @ camera.rotation @ (_rotation(quaternions) * log_scales.exp()[:, None, :])
    first, second = axes.unbind(1)
    xx, xy, yy = (first * first).sum(-1), (first * second).sum(-1), (second * second).sum(-1)
    # The determinant of axes axes^T is the squared area that the axes span (Cauchy-Binet): no cancellation for needles.
    area = torch.linalg.cross(first, second)
    determinant = (area * area).sum(-1) + LOW_PASS * (xx + yy) + LOW_PASS**2
    xx, yy = xx + LOW_PASS, yy + LOW_PASS
    opacity = logits.sigmoid()
    sigmas = (2 * (opacity / ALPHA_MIN).log()).clamp_min(0).sqrt().clamp_max(EXTENT_MAX)
    return Projected(
        mean=focal * torch.stack([x / z, y / z], -1)
        + torch.stack([x.new_tensor(camera.width), x.new_tensor(camera.height)]) / 2,
        conic=torch.stack([yy, -xy, xx], -1) / determinant[:, None],
        opacity=opacity,
        colour=_colour(sh, offset),
        depth=z,
        extent=sigmas.detach()[:, None] * torch.stack([xx, yy], -1).detach().sqrt(),
    )


def _rotation(quaternions: Float[Tensor, "m 4"]) -> Float[Tensor, "m 3 3"]:
    w, x, y, z = (quaternions / quaternions.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    ]
    return torch.stack(rows, -1).view(-1, 3, 3)


def _colour(sh: Float[Tensor, "m k 3"], offset: Float[Tensor, "m 3"]) -> Float[Tensor, "m 3"]:
    """Colour in the direction from the eye to the gaussian."""
    direction = offset / offset.norm(dim=-1, keepdim=True)
    basis = harmonics(direction, sh.shape[1])
    return ((basis[:, :, None] * sh).sum(1) + 0.5).clamp_min(0)


def harmonics(direction: Float[Tensor, "m 3"], count: int) -> Float[Tensor, "m k"]:
    """Real spherical harmonics of unit directions, in the order and with the signs of 3D Gaussian Splatting."""
    x, y, z = direction.unbind(-1)
    basis = [torch.full_like(x, SH_0)]
    if count > 1:
        basis += [-SH_1 * y, SH_1 * z, -SH_1 * x]
    if count > 4:
        a, b, c = SH_2
        basis += [a * x * y, -a * y * z, b * (3 * z * z - 1), -a * x * z, c * (x * x - y * y)]
    if count > 9:
        a, b, c, d, e = SH_3
        basis += [-a * y * (3 * x * x - y * y), b * x * y * z, -c * y * (5 * z * z - 1), d * z * (5 * z * z - 3)]
        basis += [-c * x * (5 * z * z - 1), e * z * (x * x - y * y), -a * x * (x * x - 3 * y * y)]
    return torch.stack(basis, -1)


class _Probe(torch.autograd.Function):
    """The identity on means on the screen; ``probe`` receives the norm of their gradient in a half picture's units."""

    @staticmethod
    def forward(ctx, mean: Tensor, probe: Tensor, drawn: Tensor, camera: Camera) -> Tensor:
        ctx.save_for_backward(drawn)
        ctx.half, ctx.count = (camera.width / 2, camera.height / 2), len(probe)
        return mean.view_as(mean)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,), (drawn,) = gradients, ctx.saved_tensors
        norm = (gradient * gradient.new_tensor(ctx.half)).norm(dim=-1)
        return gradient, norm.new_zeros(ctx.count).index_copy(0, drawn, norm), None, None


# --- blending ---------------------------------------------------------------------------------------------------------


def _blend(record: Float[Tensor, "m r"], extent: Tensor, background: Tensor, camera: Camera) -> Float[Tensor, "c h w"]:
    """Front to back over ``record``: mean, conic, opacity, and the channels; nearest first."""
    pixels, channels = camera.height * camera.width, record.shape[1] - 6
    gaussian, pixel = _pairs(record[:, :6].detach(), extent, camera)
    own = record.index_select(0, gaussian)
    alpha = _alpha(own, pixel, camera.width).clamp_max(ALPHA_MAX)
    # Transmittance before and after each pair: running sums of logarithms, in double, less the sum where it began.
    passes = torch.log1p(-alpha.double())
    after = passes.cumsum(0)
    first = torch.ones_like(pixel, dtype=torch.bool)
    first[1:] = pixel[1:] != pixel[:-1]
    start = (after - passes)[first][first.cumsum(0) - 1]
    live = (after - start).exp() > TRANSMITTANCE_MIN
    weight = torch.where(live, alpha.double() * (after - passes - start).exp(), 0).to(record.dtype)
    summed = record.new_zeros(pixels, channels).index_add(0, pixel, weight[:, None] * own[:, 6:])
    left = passes.new_zeros(pixels).index_add(0, pixel, torch.where(live, passes, 0)).exp()[:, None].to(record.dtype)
    image = torch.cat([summed[:, :3] + left * background, 1 - left, summed[:, 3:]], 1)
    return image.T.reshape(-1, camera.height, camera.width)


def _alpha(own: Float[Tensor, "p r"], pixel: Int[Tensor, " p"], width: int) -> Float[Tensor, " p"]:
    dx = own[:, 0] - (pixel % width + 0.5)
    dy = own[:, 1] - (torch.div(pixel, width, rounding_mode="floor") + 0.5)
    falloff = 0.5 * (own[:, 2] * dx * dx + own[:, 4] * dy * dy) + own[:, 3] * dx * dy
    return own[:, 5] * torch.exp(-falloff)


@torch.no_grad()
def _pairs(
    record: Float[Tensor, "m 6"], extent: Float[Tensor, "m 2"], camera: Camera
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Rows of ``record`` and pixels that count, sorted by pixel, then by row."""
    slack = 0.01  # alpha decides, not the rounding of the rectangle
    last = torch.tensor([camera.width - 1, camera.height - 1], device=record.device)
    low = (record[:, :2] - extent - 0.5 - slack).ceil().long().clamp_min(0)
    high = torch.minimum((record[:, :2] + extent - 0.5 + slack).floor().long(), last)
    side = (high - low + 1).clamp_min(0)
    count = side[:, 0] * side[:, 1]
    gaussian = torch.arange(len(record), device=record.device).repeat_interleave(count)
    place = torch.arange(len(gaussian), device=record.device) - (count.cumsum(0) - count)[gaussian]
    columns = side[gaussian, 0]
    row = torch.div(place, columns, rounding_mode="floor")
    pixel = (low[gaussian, 1] + row) * camera.width + low[gaussian, 0] + place - row * columns
    counts = (_alpha(record.index_select(0, gaussian), pixel, camera.width) >= ALPHA_MIN).nonzero()[:, 0]
    pixel, order = pixel.index_select(0, counts).sort(stable=True)
    return gaussian.index_select(0, counts).index_select(0, order), pixel
