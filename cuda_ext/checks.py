"""What operations ask of their inputs before a pointer leaves Python."""

import torch
from torch import Tensor


def expect(name: str, value: Tensor, shape: tuple[int, ...], lead: str, like: Tensor) -> None:
    """Refuse an input that does not fit the leading one.

    Args:
        name: of the input, for messages.
        value: the input.
        shape: that it must have.
        lead: name of the leading input.
        like: the leading input, whose type and device all share.

    Raises:
        ValueError: type, shape or device is another.
    """
    if value.dtype not in (torch.float32, torch.float64) or value.dtype != like.dtype:
        raise ValueError(f"{name} is {value.dtype}: all inputs must be float32, or all float64 ({lead}: {like.dtype})")
    if value.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, got {list(value.shape)}")
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device}, {lead} on {like.device}: move them to one device")
