"""Views that a prior sees as one: attention joined over a group of them, and the camera that tells them apart.

MVDream (arXiv 2308.16512, sec. 3.1): self-attention runs over the tokens of all views of a group, cross-attention and
convolutions over each view. A group is consecutive samples of a batch, so several branches of classifier-free guidance
batched one after the other stay whole groups.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_FRONT_IS_X_UP_IS_Z = ((0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))


class JoinedViews:
    """An attention processor that joins the views of a group wherever a layer attends to its own input."""

    def __init__(self, views: int, inner: Any) -> None:
        """``inner`` does the attention, over groups of ``views``."""
        self.views, self.inner = views, inner

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **more: Any):
        """Attention as ``inner`` does it, in groups."""
        count, tokens, width = hidden_states.shape
        wide = hidden_states.reshape(count // self.views, self.views * tokens, width)
        return self.inner(attn, wide, encoder_hidden_states, **more).reshape(count, tokens, width)


def join_views(unet: Any, views: int) -> None:
    """Make the self-attention of a U-Net see groups of views; the network is changed in place."""
    unet.set_attn_processor(
        {
            name: JoinedViews(views, processor) if ".attn1." in name else processor
            for name, processor in unet.attn_processors.items()
        }
    )


def refuse_part_of_group(samples: int, views: int) -> None:
    """Refuse a batch that is not whole groups.

    Raises:
        ValueError: in words.
    """
    if samples % views:
        raise ValueError(
            f"this prior sees {views} views as one, so it takes {views}, {2 * views}, ... views a step, not {samples}; "
            f"set cameras.views"
        )


def camera_matrix(pose: Float[Tensor, "b 4 4"] | None, like: Tensor) -> Float[Tensor, "b 16"]:
    """Camera-to-world as MVDream was trained with: +z up, at distance 1, flattened by rows; zeros for no camera.

    Axes are those of ``get_camera`` and ``normalize_camera`` in ``bytedance/MVDream`` and of its 3D code in
    threestudio, whose azimuth 0 is +x and grows towards +y. What the network makes faces that way more often than not:
    its authors say so of their data (MV-Dream/MVDream issue 15), and DreamGaussian takes its second view, which is at
    +x, for the front. Ours faces +z with +y up and azimuth growing towards +x, so (x, y, z) becomes (z, x, y): a turn,
    no mirror. A camera in front, at (0, 0, 2.6), is told as 0 0 1 1, 1 0 0 0, 0 1 0 0, 0 0 0 1: it stands at (1, 0, 0),
    and its right is +y. In MVDream's 3D code the null branch is told the camera too.
    """
    if pose is None:
        return like.new_zeros(len(like), 16)
    turned = torch.tensor(_FRONT_IS_X_UP_IS_Z, device=pose.device, dtype=pose.dtype) @ pose
    distance = turned[:, :3, 3].norm(dim=1, keepdim=True).clamp_min(1e-8)
    place = torch.cat([turned[:, :3, 3] / distance, turned[:, 3:, 3]], 1)
    return torch.cat([turned[:, :, :3], place[:, :, None]], 2).flatten(1).to(like)
