"""The compiled form of ``rasterize_gaussians`` as operators of torch: CPU and CUDA kernels, shapes, gradients.

``torch.ops.dreamkiln.rasterize_gaussians`` and ``..._backward`` are opaque to torch.compile and known to autograd. What
backward needs beyond the picture (gaussians on the screen, lists of tiles) is returned too, as ``PARTS`` tensors whose
meaning is the device's own: ``cpu_gaussians.Saved`` or ``cuda_gaussians.Saved``, and empty ones to make up the number.
(An operator that returns a list costs torch 40 microseconds more, forward and backward.)
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from cuda_ext import cpu_gaussians, cuda_gaussians

_LIBRARY = torch.library.Library("dreamkiln", "FRAGMENT")
_GAUSSIANS = "Tensor means, Tensor log_scales, Tensor quaternions, Tensor logit_opacities, Tensor sh, Tensor features"
_VIEWS = "Tensor pose, Tensor focal, Tensor background, int height, int width, float near"
PARTS = 9
_DRAWN = ", ".join(["Tensor"] * (2 + PARTS))  # the picture, the radii, and the parts
_LIBRARY.define(f"rasterize_gaussians({_GAUSSIANS}, Tensor probe, {_VIEWS}) -> ({_DRAWN})")
_LIBRARY.define(
    f"rasterize_gaussians_backward({_GAUSSIANS}, {_VIEWS}, Tensor image, Tensor[] saved, Tensor gradient)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_ORDER = ("means", "log_scales", "quaternions", "logit_opacities", "sh", "features", "probe", "background")
_TILE = 8


def rasterize(*arguments: Any) -> tuple[Tensor, ...]:
    """The operator; arguments as it declares them. Returns the planes of the picture, the radii, and the parts."""
    return torch.ops.dreamkiln.rasterize_gaussians.default(*arguments)


def _drawn(image: Tensor, radius: Tensor, parts: list[Tensor]) -> tuple[Tensor, ...]:
    return image, radius, *parts, *(image.new_empty(0) for _ in range(PARTS - len(parts)))


# --- CPU --------------------------------------------------------------------------------------------------------------

_CPU_PARTS = len(fields(cpu_gaussians.Saved))


def _cpu_draw(*arguments: Any) -> tuple[Tensor, ...]:
    gaussians, (_, *views, height, width, near) = arguments[:6], arguments[6:]
    image, radius, saved = cpu_gaussians.draw(_inputs(gaussians, views), (height, width), near)
    return _drawn(image, radius, list(vars(saved).values()))


def _cpu_backward(*arguments: Any) -> tuple[Tensor, ...]:
    gaussians, (*views, height, width, near, image, saved, gradient) = arguments[:6], arguments[6:]
    inputs, kept = _inputs(gaussians, views), cpu_gaussians.Saved(*saved[:_CPU_PARTS])
    pulled = cpu_gaussians.pull(inputs, image, kept, gradient.contiguous(), (height, width), near)
    return tuple(getattr(pulled, name) for name in _ORDER)


def _inputs(gaussians: tuple[Tensor, ...], views: list[Tensor]) -> cpu_gaussians.Inputs:
    return cpu_gaussians.Inputs(*(tensor.contiguous() for tensor in (*gaussians, *views)))


# --- CUDA -------------------------------------------------------------------------------------------------------------


def _cuda_draw(*arguments: Any) -> tuple[Tensor, ...]:
    gaussians, (_, *views, height, width, near) = arguments[:6], arguments[6:]
    radius, saved = cuda_gaussians.draw(_inputs(gaussians, views), cuda_gaussians.Settings((height, width), near))
    return _drawn(saved.image, radius, saved.parts())


def _cuda_backward(*arguments: Any) -> tuple[Tensor, ...]:
    gaussians, (*views, height, width, near, image, saved, gradient) = arguments[:6], arguments[6:]
    settings, before = cuda_gaussians.Settings((height, width), near), cuda_gaussians.Saved.of(saved, image)
    pulled = cuda_gaussians.replay(_inputs(gaussians, views), settings, before, gradient.contiguous())
    return tuple(getattr(pulled, name) for name in _ORDER)


# --- shapes, gradients ------------------------------------------------------------------------------------------------


def _fake_draw(*arguments: Any) -> tuple[Tensor, ...]:
    means, features, pose = arguments[0], arguments[5], arguments[7]
    height, width = arguments[10:12]
    n, b = means.shape[0], pose.shape[0]
    tiles = ((height + _TILE - 1) // _TILE) * ((width + _TILE - 1) // _TILE)
    image, radius = means.new_empty(b, 5 + features.shape[1], height, width), means.new_empty(b, n)
    transmittance, records = means.new_empty(b, height, width), means.new_empty(b, n, 12)

    def whole(*shape: Any, dtype: torch.dtype = torch.int32) -> Tensor:
        return means.new_empty(shape, dtype=dtype)

    unknown = torch.library.get_ctx().new_dynamic_size
    if means.device.type == "cuda":
        order, rectangles = whole(b, n, dtype=torch.int64), whole(b, n, 4, dtype=torch.int16)
        ends, drawn = whole(b * n, dtype=torch.int64), whole(b)
        bins = whole(unknown(), dtype=torch.int64), whole(unknown())
        parts = [records, order, rectangles, ends, drawn, *bins, transmittance, whole(b, tiles)]
        return _drawn(image, radius, parts)
    begin, tile_begin = whole(b * n + 1, dtype=torch.int64), whole(b * tiles + 1, dtype=torch.int64)
    parts = [transmittance, records, begin, tile_begin, whole(unknown(), 2), whole(b * tiles)]
    return _drawn(image, radius, parts)


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    likes = (*arguments[:6], arguments[3], arguments[8])
    return tuple(torch.empty_like(like, memory_format=torch.contiguous_format) for like in likes)


def _remember(ctx: Any, inputs: tuple, output: tuple) -> None:
    image, *rest = output
    ctx.mark_non_differentiable(*rest)
    ctx.save_for_backward(*inputs[:6], *inputs[7:10], image, *rest[1:])
    ctx.shape = inputs[10:]


def _differentiate(ctx: Any, gradient: Tensor, *_: Any) -> tuple:
    *inputs, image = ctx.saved_tensors[:10]
    saved = list(ctx.saved_tensors[10:])
    pulled = torch.ops.dreamkiln.rasterize_gaussians_backward.default(*inputs, *ctx.shape, image, saved, gradient)
    *gaussians, background = pulled
    return *gaussians, None, None, background, None, None, None


for _key, _draw, _backward in (("CPU", _cpu_draw, _cpu_backward), ("CUDA", _cuda_draw, _cuda_backward)):
    _LIBRARY.impl("rasterize_gaussians", _draw, _key)
    _LIBRARY.impl("rasterize_gaussians_backward", _backward, _key)
torch.library.register_fake("dreamkiln::rasterize_gaussians", _fake_draw, lib=_LIBRARY)
torch.library.register_fake("dreamkiln::rasterize_gaussians_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd("dreamkiln::rasterize_gaussians", _differentiate, setup_context=_remember, lib=_LIBRARY)
