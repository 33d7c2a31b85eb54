"""What keeps a gradient in bounds and in place: elementwise clamps, norm clipping, masks, rescaled guidance.

Nothing here mends a number that is not finite; whoever steps the optimiser must get to see it.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def all_finite(tensors: Sequence[Tensor]) -> Bool[Tensor, ""]:
    """Whether all elements of all tensors are numbers, said on their device: nothing waits for it."""
    # The largest magnitude of them all, found in few passes over many tensors; one bad element makes it bad.
    return torch.nn.utils.get_total_norm([tensor for tensor in tensors if tensor.numel()], math.inf).isfinite()


def clamped(values: Float[Tensor, "b c i j"], limit: float) -> Float[Tensor, "b c i j"]:
    """Each finite element moved into [-limit, limit] (dynamic score clipping, arXiv 2303.15413)."""
    return torch.where(values.isfinite(), values.clamp(-limit, limit), values)


def clip_norm(gradient: Float[Tensor, "b c i j"], limit: float, group: bool = False) -> Float[Tensor, "b c i j"]:
    """Each sample shortened to norm ``limit`` where it is longer; ``group``: the batch is one sample."""
    norm = torch.linalg.vector_norm(gradient, dim=_within_a_sample(group), keepdim=True)
    return gradient * (limit / norm.clamp_min(limit))


def masked(gradient: Float[Tensor, "b c i j"], mask: Float[Tensor, "b 1 h w"] | None) -> Float[Tensor, "b c i j"]:
    """``gradient`` times ``mask``, which is averaged to the size of the latents if it comes at another."""
    if mask is None:
        return gradient
    if mask.shape[-2:] != gradient.shape[-2:]:
        mask = torch.nn.functional.interpolate(mask, gradient.shape[-2:], mode="area")
    return gradient * mask.to(gradient)


def rescaled(
    guided: Float[Tensor, "b c i j"], conditional: Float[Tensor, "b c i j"], share: float, group: bool = False
) -> Float[Tensor, "b c i j"]:
    """Guidance rescale (arXiv 2305.08891, eq. 15 and 16): a guided estimate with the spread of the conditional one.

    Args:
        guided: clean estimate under classifier-free guidance.
        conditional: clean estimate of the prompt alone.
        share: phi, how much of the rescaled estimate to mix in.
        group: the batch is one sample of a multi-view prior, and the spread is that of all its views.

    Returns:
        ``phi guided std(conditional) / std(guided) + (1 - phi) guided``, standard deviations over each sample's
        channels and pixels; ``guided`` itself where a sample is a single number, which has no spread.
    """
    per_sample = guided.numel() if group else guided[0].numel()
    if share == 0 or per_sample == 1:
        return guided
    dims = _within_a_sample(group)
    ratio = conditional.std(dims, keepdim=True) / (guided.std(dims, keepdim=True) + 1e-8)
    return share * guided * ratio + (1 - share) * guided


def _within_a_sample(group: bool) -> tuple[int, ...]:
    return (0, 1, 2, 3) if group else (1, 2, 3)
