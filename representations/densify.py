"""Which gaussians a cloud drops, doubles and splits: adaptive density control.

After 3D Gaussian Splatting (Kerbl et al., arXiv 2308.04079, sec. 5.2) with two changes. Score distillation's gradients
have no scale of their own, so what grows is a share of the cloud, the one whose projected centres are pulled most, and
not what passes a fixed threshold. And the two halves of a doubled gaussian share its opacity, so that together they
look as it did (Bulo et al., arXiv 2404.06109, eq. 9).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

_SHRINK = math.log(1.6)
"""A split gaussian's children are smaller by this, in logarithms, as in the paper."""


@dataclass(frozen=True)
class Densify:
    """Knobs of density control."""

    begin: int = 50
    """Step of the first round."""
    every: int = 50
    """Steps between rounds."""
    until: int = 600
    """No round after this step."""
    growth: float = 0.2
    """Share of the gaussians that a round doubles or splits: those whose projected centres are pulled most."""
    split_above: float = 0.03
    """A growing gaussian whose longest semi-axis is above this share of the bound is split, a shorter one doubled."""
    faint: float = 0.05
    """A gaussian less opaque than this is dropped."""
    largest: float = 0.2
    """A gaussian whose longest semi-axis is above this share of the bound is dropped."""
    reset_every: int = 0
    """Rounds between resets of opacity; 0 for none."""
    reset_to: float = 0.1
    """No gaussian is more opaque than this after a reset."""

    def round(self, step: int) -> int | None:
        """The number of the round that follows ``step`` (both counted from 1), or None."""
        due = self.begin <= step <= self.until and (step - self.begin) % self.every == 0
        return (step - self.begin) // self.every + 1 if due else None


def worth_keeping(
    means: Float[Tensor, "n 3"],
    log_scales: Float[Tensor, "n 3"],
    logit_opacities: Float[Tensor, " n"],
    knobs: Densify,
    bound: float,
) -> Bool[Tensor, " n"]:
    """Gaussians that are opaque enough, small enough and inside the cube; the most opaque one always is."""
    inside = (means.abs() <= bound).all(1)
    keep = (logit_opacities.sigmoid() >= knobs.faint) & inside & (log_scales.amax(1).exp() <= knobs.largest * bound)
    if not keep.any() and len(keep):
        keep[logit_opacities.argmax()] = True  # a cloud of nothing could never grow again
    return keep


def to_grow(pull: Float[Tensor, " n"], keep: Bool[Tensor, " n"], knobs: Densify, most: int) -> Int[Tensor, " k"]:
    """Of the gaussians to keep, those with the largest ``pull``: as many as the knobs and the cap ``most`` allow."""
    count = int(keep.sum())
    room = max(0, min(round(knobs.growth * count), most - count))
    pull = torch.where(keep & pull.isfinite(), pull, -1.0)
    # A stable sort, so that equal pulls make the same choice on every device.
    chosen = pull.argsort(descending=True, stable=True)[:room]
    return chosen[pull[chosen] > 0]


def children(parents: dict[str, Tensor], knobs: Densify, bound: float, rng: torch.Generator) -> dict[str, Tensor]:
    """Two gaussians [2 n] in the place of each parent [n].

    Large parents are split: both children lie where the parent's own distribution throws them, and are smaller. Small
    ones are doubled: one child stays in place, and each takes its share of the opacity.

    Args:
        parents: rows of ``means``, ``log_scales``, ``quaternions``, ``logit_opacities`` and any other parameters.
        rng: on the CPU, so that rounds are the same on every device.
    """
    scales = parents["log_scales"].exp()
    large = scales.amax(1, keepdim=True) > knobs.split_above * bound
    throw = torch.randn(2, *scales.shape, generator=rng).to(scales)
    throw[0] = torch.where(large, throw[0], 0.0)
    offset = torch.einsum("nij,snj->sni", rotations(parents["quaternions"]), throw * scales)
    shared = torch.logit(1 - (1 - parents["logit_opacities"].sigmoid()).sqrt(), 1e-6)
    both = {name: torch.cat([rows, rows]) for name, rows in parents.items()}
    return both | {
        "means": (parents["means"] + offset).flatten(0, 1),
        "log_scales": (parents["log_scales"] - torch.where(large, _SHRINK, 0.0)).repeat(2, 1),
        "logit_opacities": torch.where(large[:, 0], parents["logit_opacities"], shared).repeat(2),
    }


def rotations(quaternions: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 3"]:
    """Rotation matrices of quaternions, wxyz, which need not be normalised."""
    w, x, y, z = normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))
