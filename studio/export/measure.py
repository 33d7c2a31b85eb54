"""How well an asset shows what its representation showed."""

import math

import torch
from torch import Tensor

from representations.cameras import Cameras
from representations.scene import RenderOutput, Scene

LARGEST_PSNR = 100.0
"""Reported for pictures that are equal: infinity has no place in a report."""
_SOLID = 0.5


def render_to_asset_psnr(representation: Scene, asset: Scene, cameras: Cameras) -> float:
    """Peak signal-to-noise ratio in dB between two scenes' pictures over white.

    In each view only the pixels inside the bounding box of the union of both silhouettes count, so empty background
    does not flatter the figure. The squared error is averaged over those pixels of all views together.
    """
    return psnr(*(_white(scene, cameras) for scene in (representation, asset)))


def silhouette_iou(representation: Scene, asset: Scene, cameras: Cameras) -> float:
    """Mean over views of intersection over union of two scenes' silhouettes (opacity above one half)."""
    return iou(*(_white(scene, cameras) for scene in (representation, asset)))


def psnr(a: RenderOutput, b: RenderOutput) -> float:
    """``render_to_asset_psnr`` of pictures that are already there."""
    total, count = 0.0, 0
    for i, union in enumerate(_solid(a) | _solid(b)):
        if not union.any():
            continue
        rows, columns = union.any(1).nonzero(), union.any(0).nonzero()
        box = (
            slice(None),
            slice(int(rows.min()), int(rows.max()) + 1),
            slice(int(columns.min()), int(columns.max()) + 1),
        )
        error = (a.rgb[i][box].double() - b.rgb[i][box].double()).square()
        total, count = total + float(error.sum()), count + error.numel()
    mean = total / max(count, 1)
    return min(-10 * math.log10(mean), LARGEST_PSNR) if mean > 0 else LARGEST_PSNR


def iou(a: RenderOutput, b: RenderOutput) -> float:
    """``silhouette_iou`` of pictures that are already there; two empty pictures agree."""
    first, second = _solid(a), _solid(b)
    union = (first | second).sum((1, 2))
    both = (first & second).sum((1, 2))
    return float(torch.where(union > 0, both / union.clamp_min(1), 1.0).mean())


def _solid(out: RenderOutput) -> Tensor:
    return out.alpha[:, 0] > _SOLID


def _white(scene: Scene, cameras: Cameras) -> RenderOutput:
    with torch.no_grad():
        return scene.render(cameras, torch.ones(len(cameras), 3, device=cameras.pose.device))
