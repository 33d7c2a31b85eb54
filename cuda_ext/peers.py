"""Other people's kernels behind our operations: gsplat's rasterizer and tiny-cuda-nn's hash grid.

They are the user's own installations, run on CUDA alone, and are what ours are compared with. Each function takes our
operation's arguments and keeps its semantics:

- gsplat (1.5) agrees to float32 rounding but for the order of equally deep gaussians, and where a gaussian is more
  opaque than 0.99: it holds alpha to 0.999. Gradients come from atomics and differ from run to run in the last digits.
- tiny-cuda-nn stores each level with half a cell of offset; a level of its own for each of ours, asked half a cell
  aside, puts the vertices where ours are. Values agree to float32 rounding of that shift, 1e-6 of the cube.
"""

import functools
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from cuda_ext.hashgrid import GridLayout

GSPLAT_CHUNK = 32
"""Channels that gsplat blends well at a time."""


def gsplat_rasterize(
    means: Float[Tensor, "n 3"],
    log_scales: Float[Tensor, "n 3"],
    quaternions: Float[Tensor, "n 4"],
    logit_opacities: Float[Tensor, " n"],
    sh: Float[Tensor, "n k 3"],
    pose: Float[Tensor, "b 4 4"],
    focal: Float[Tensor, " b"],
    size: tuple[int, int],
    background: Float[Tensor, "b 3"],
    features: Float[Tensor, "n f"] | None,
    probe: Float[Tensor, " n"] | None,
    near: float,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b n"]]:
    """``rasterize_gaussians`` by gsplat's ``rasterization``.

    Returns:
        The planar picture (colour over the background, alpha, axis depth, features) and the radius in pixels.
    """
    from gsplat import rasterization  # pyright: ignore[reportMissingImports]

    height, width = size
    shared: dict[str, Any] = dict(
        means=means,
        quats=quaternions,
        scales=log_scales.exp(),
        opacities=logit_opacities.sigmoid(),
        viewmats=world_to_camera(pose),
        Ks=intrinsics(focal, size),
        width=width,
        height=height,
        near_plane=near,
        packed=False,
    )
    degree = round(sh.shape[1] ** 0.5) - 1
    # The background is ours to add: gsplat would put it behind the depth channel too.
    colour, alpha, meta = rasterization(colors=sh, sh_degree=degree, render_mode="RGB+D", **shared)
    if probe is not None and probe.requires_grad:
        _fill_probe(probe, meta["means2d"], size)
    rgb = colour[..., :3] + (1 - alpha) * background[:, None, None]
    planes = [rgb, alpha, colour[..., 3:]]
    if features is not None and features.shape[1]:
        planes.append(rasterization(colors=features, sh_degree=None, channel_chunk=GSPLAT_CHUNK, **shared)[0])
    radius = meta["radii"].amax(-1).to(means.dtype)
    return torch.cat(planes, -1).permute(0, 3, 1, 2), radius


def _fill_probe(probe: Tensor, means2d: Float[Tensor, "b n 2"], size: tuple[int, int]) -> None:
    half = means2d.new_tensor([size[1] / 2, size[0] / 2])

    def note(gradient: Tensor) -> None:
        # gsplat has no input that stands for the screen: the statistic is set where autograd would have put it.
        total = (gradient * half).norm(dim=-1).sum(0)
        probe.grad = total if probe.grad is None else probe.grad + total

    if means2d.requires_grad:
        means2d.register_hook(note)


def world_to_camera(pose: Float[Tensor, "b 4 4"]) -> Float[Tensor, "b 4 4"]:
    """World-to-camera matrices with OpenCV's axes (+y down, +z forward) of camera-to-world poses with OpenGL's."""
    flip = pose.new_tensor([1.0, -1.0, -1.0])
    rotation = flip[:, None] * pose[:, :3, :3].transpose(1, 2)
    matrix = torch.eye(4, dtype=pose.dtype, device=pose.device).repeat(len(pose), 1, 1)
    matrix[:, :3, :3] = rotation
    matrix[:, :3, 3:] = -rotation @ pose[:, :3, 3:]
    return matrix


def intrinsics(focal: Float[Tensor, " b"], size: tuple[int, int]) -> Float[Tensor, "b 3 3"]:
    """Pinhole matrices with the principal point in the middle of the picture."""
    k = torch.zeros(len(focal), 3, 3, dtype=focal.dtype, device=focal.device)
    k[:, 0, 0] = k[:, 1, 1] = focal
    k[:, 0, 2], k[:, 1, 2], k[:, 2, 2] = size[1] / 2, size[0] / 2, 1.0
    return k


def tinycudann_hash_encode(
    points: Float[Tensor, "n 3"],
    table: Float[Tensor, "entries f"],
    layout: "GridLayout",
    weights: Float[Tensor, " levels"] | None,
) -> Float[Tensor, "n lf"]:
    """``hash_encode`` by one tiny-cuda-nn ``Encoding`` a level; differentiable in points and table."""
    features, start = [], 0
    for level, (cells, entries) in enumerate(zip(layout.resolutions, layout.entries, strict=True)):
        encoding = _encoding(cells, layout.table.bit_length() - 1, layout.features, points.device)
        rows = table[start : start + entries]
        start += entries
        # Its pos = x (base - 1) + 1/2, with base = cells + 1: half a cell aside it is our x * cells.
        # A hair less than half at 0, or rounding could step below the first vertex.
        shifted = (points.clamp(0, 1) - 0.5 / cells).clamp_min(-0.499999 / cells)
        flat = F.pad(rows.reshape(-1), (0, encoding.params.numel() - rows.numel()))
        value = torch.func.functional_call(encoding, {"params": flat}, (shifted,))
        features.append(value if weights is None else value * weights[level])
    return torch.cat(features, 1)


@functools.lru_cache(maxsize=64)
def _encoding(cells: int, log2_table: int, features: int, device: torch.device) -> Any:
    import tinycudann  # pyright: ignore[reportMissingImports]

    settings = {
        "otype": "HashGrid",
        "n_levels": 1,
        "n_features_per_level": features,
        "log2_hashmap_size": log2_table,
        "base_resolution": cells + 1,
        "per_level_scale": 1.0,
        "interpolation": "Linear",
    }
    return tinycudann.Encoding(3, settings, dtype=torch.float32).to(device)
