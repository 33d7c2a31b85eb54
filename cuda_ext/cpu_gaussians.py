"""Host side of the splat kernels in ``csrc/cpu/gaussians.cpp``: memory, and the call."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cuda_ext import native

_TILE = 8  # pixels, as in csrc/cpu/tiles.h
_RECORD = 12  # numbers, as there
_POINTERS = (
    *("means", "log_scales", "quaternions", "logit_opacities", "sh", "features", "pose", "focal", "background"),
    *("records", "radius", "begin", "tile_begin", "pairs", "reached", "image", "transmittance"),
    *("gradient", "means_gradient", "log_scales_gradient", "quaternions_gradient", "logit_opacities_gradient"),
    *("sh_gradient", "features_gradient", "probe_gradient", "background_gradient"),
)


class _Call(ctypes.Structure):
    """``Call`` of the C++ source, field by field."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("n", "views", "harmonics", "feature_count", "width", "height", "threads")
        ),
        ("near", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


@dataclass(frozen=True)
class Inputs:
    """Contiguous tensors of one type on the CPU, checked by ``cuda_ext.ops.rasterize_gaussians``."""

    means: Float[Tensor, "n 3"]
    log_scales: Float[Tensor, "n 3"]
    quaternions: Float[Tensor, "n 4"]
    logit_opacities: Float[Tensor, " n"]
    sh: Float[Tensor, "n k 3"]
    features: Float[Tensor, "n f"]
    pose: Float[Tensor, "b 4 4"]
    focal: Float[Tensor, " b"]
    background: Float[Tensor, "b 3"]


@dataclass(frozen=True)
class Saved:
    """What gradients need of the drawing, beside the picture."""

    transmittance: Float[Tensor, "b h w"]
    records: Float[Tensor, "b n 12"]
    """Gaussians on the screen."""
    begin: Int[Tensor, " slot_ends"]
    """First slot of each gaussian in each view, and their number; a slot is a gaussian in a tile."""
    tile_begin: Int[Tensor, " bounds"]
    """First pair of each tile of each view, and their number; a pair is a gaussian in a tile, in depth order."""
    pairs: Int[Tensor, "pairs 2"]
    """The gaussian and the slot of each pair."""
    reached: Int[Tensor, " tiles"]
    """Pairs of each tile until all its pixels were finished."""


@dataclass(frozen=True)
class Gradients:
    """Of every input that has one."""

    means: Float[Tensor, "n 3"]
    log_scales: Float[Tensor, "n 3"]
    quaternions: Float[Tensor, "n 4"]
    logit_opacities: Float[Tensor, " n"]
    sh: Float[Tensor, "n k 3"]
    features: Float[Tensor, "n f"]
    probe: Float[Tensor, " n"]
    background: Float[Tensor, "b 3"]


def draw(
    inputs: Inputs, size: tuple[int, int], near: float
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b n"], Saved]:
    """Project, list and blend.

    Returns:
        The picture (red, green, blue, alpha, depth, features), the radii, and what ``pull`` needs.
    """
    n, b, (h, w) = len(inputs.means), len(inputs.pose), size
    kind, tiles = inputs.means, -(-h // _TILE) * -(-w // _TILE)
    begin = torch.empty(b * n + 1, dtype=torch.int64)
    first = {"records": kind.new_empty(b, n, _RECORD), "begin": begin}
    radius = kind.new_empty(b, n)
    call = _call(inputs, size, near)
    _point(call, first | {"radius": radius})
    pairs = _functions(kind.dtype)["project"](ctypes.byref(call))
    if pairs >= 2**31:
        raise MemoryError(
            f"{pairs} pairs of gaussians and tiles are more than can be listed: draw fewer views at a time"
        )
    second = {
        "tile_begin": torch.empty(b * tiles + 1, dtype=torch.int64),
        "pairs": torch.empty(pairs, 2, dtype=torch.int32),
        "reached": torch.empty(b * tiles, dtype=torch.int32),
        "transmittance": kind.new_empty(b, h, w),
    }
    image = kind.new_empty(b, 5 + inputs.features.shape[1], h, w)
    _point(call, second | {"image": image})
    if _functions(kind.dtype)["draw"](ctypes.byref(call)):
        raise MemoryError(f"not enough memory to draw {n} gaussians in {b} views of {w} x {h} pixels")
    return image, radius, Saved(**first, **second)


def pull(
    inputs: Inputs,
    image: Float[Tensor, "b c h w"],
    saved: Saved,
    gradient: Float[Tensor, "b c h w"],
    size: tuple[int, int],
    near: float,
) -> Gradients:
    """Gradients of the inputs, given that of the picture (contiguous)."""
    call = _call(inputs, size, near)
    _point(call, vars(saved) | {"image": image})
    probe = torch.empty_like(inputs.logit_opacities)
    sources = vars(inputs) | {"probe": probe}
    gradients = {name: torch.empty_like(sources[name]) for name in Gradients.__dataclass_fields__}
    _point(call, {"gradient": gradient} | {f"{name}_gradient": value for name, value in gradients.items()})
    if _functions(gradient.dtype)["backward"](ctypes.byref(call)):
        raise MemoryError(f"not enough memory for the gradients of {len(inputs.means)} gaussians")
    return Gradients(**gradients)


def _call(inputs: Inputs, size: tuple[int, int], near: float) -> _Call:
    n, b = len(inputs.means), len(inputs.pose)
    work = 0.1 * n * b + 0.003 * size[0] * size[1] * b  # microseconds or so
    call = _Call(n, b, inputs.sh.shape[1], inputs.features.shape[1], size[1], size[0], native.threads(work), near)
    _point(call, vars(inputs))
    return call


def _point(call: _Call, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        setattr(call, name, tensor.data_ptr())


@cache
def _functions(dtype: torch.dtype) -> dict[str, Callable]:
    library, suffix = native.library(), "f32" if dtype == torch.float32 else "f64"
    returns = {"project": ctypes.c_int64, "draw": ctypes.c_int, "backward": ctypes.c_int}
    return {
        name: library.function(f"gaussians_{name}_{suffix}", kind, ctypes.POINTER(_Call))
        for name, kind in returns.items()
    }
