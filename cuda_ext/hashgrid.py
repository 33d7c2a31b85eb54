"""Multiresolution hash grid: its layout, and the typed, differentiable operation over its reference and its kernels.

The kernels are the torch operations ``dreamkiln::hash_encode`` and ``dreamkiln::hash_encode_backward``: opaque to
autograd and to compilers, one call each way.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cuda_ext import backends, hashgrid_reference, native
from cuda_ext.backends import Backend
from cuda_ext.checks import expect

_MOST_CELLS, _MOST_ROWS = 2**20, 2**28


@dataclass(frozen=True)
class GridLayout:
    """Which levels a grid has and how they lie in its table, one after the other.

    A level of ``cells`` cells a side has (cells + 1)^3 vertices. Where they fit in ``table`` rows each has a row of its
    own; a level of more shares ``table`` rows by the spatial hash of Instant-NGP (arXiv 2201.05989).

    Raises:
        ValueError: a number is out of its range.
    """

    resolutions: tuple[int, ...]
    """Cells a side of each level."""
    table: int = 2**19
    """Most rows a level; a power of two."""
    features: int = 2
    """Numbers a row: 1, 2, 4 or 8."""

    def __post_init__(self) -> None:
        if not self.resolutions or not all(1 <= r <= _MOST_CELLS for r in self.resolutions):
            raise ValueError(f"resolutions must be 1 to {_MOST_CELLS} cells a side, got {self.resolutions}")
        if self.features not in (1, 2, 4, 8):
            raise ValueError(f"features must be 1, 2, 4 or 8 a level, got {self.features}")
        if not 2 <= self.table <= _MOST_ROWS or self.table & (self.table - 1):
            raise ValueError(f"table must be a power of two from 2 to {_MOST_ROWS}, got {self.table}")
        if self.rows >= 2**31:
            raise ValueError(f"the levels need {self.rows} rows together, more than 2^31: choose a smaller table")

    @staticmethod
    def geometric(levels: int, base: int, finest: int, table: int, features: int) -> "GridLayout":
        """Levels from ``base`` to ``finest`` cells a side, each finer than the one before by the same factor."""
        growth = (finest / base) ** (1 / max(levels - 1, 1))
        return GridLayout(tuple(round(base * growth**level) for level in range(levels)), table, features)

    @cached_property
    def entries(self) -> tuple[int, ...]:
        """Rows of each level."""
        return tuple(min((r + 1) ** 3, self.table) for r in self.resolutions)

    @property
    def rows(self) -> int:
        """Rows of the whole table."""
        return sum(self.entries)

    @property
    def width(self) -> int:
        """Numbers that a point is encoded as."""
        return len(self.resolutions) * self.features

    @cached_property
    def packed(self) -> np.ndarray:
        """The levels as kernels take them: ``GridLevel`` of csrc/include/hashgrid.h, uint32 [levels, 5]."""
        levels, first = [], 0
        for cells, rows in zip(self.resolutions, self.entries, strict=True):
            dense = (cells + 1) ** 3 <= self.table
            factors = (cells + 1, (cells + 1) ** 2, 0) if dense else (*hashgrid_reference.PRIMES[1:], rows - 1)
            levels.append((cells, *factors, first))
            first += rows
        return np.array(levels, dtype=np.uint32)


def hash_encode(
    points: Float[Tensor, "n 3"],
    table: Float[Tensor, "entries f"],
    layout: GridLayout,
    weights: Float[Tensor, " levels"] | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "n lf"]:
    """Features of points, interpolated trilinearly on every level of a grid (Instant-NGP, arXiv 2201.05989).

    Vertices of a level of r cells a side lie at multiples of 1/r, from 0 to 1, so that levels whose sizes are multiples
    of each other nest. Differentiable in ``points`` and ``table``; on a face between cells the gradient is that of the
    cell above. Gradients on a CPU are the same bits in every run and for every number of threads.

    Args:
        points: positions in the unit cube. Those outside are moved to its surface, with a gradient of zero along the
            axes in which they were moved; those that are not finite give zeros and get none.
        table: rows of all levels, ``layout.rows`` of them.
        layout: which levels there are.
        weights: what each level's features are multiplied by, for showing fine levels late; a level of weight 0 costs
            nothing and gets no gradient. Not differentiable.

    Returns:
        ``layout.width`` numbers a point, the features of the first level first.

    Raises:
        ValueError: shapes, types or devices do not fit, or the backend cannot run.
    """
    _check(points, table, layout, weights)
    chosen = backends.choose("hash_encode", backend, table.device)
    if chosen == "reference":
        return hashgrid_reference.hash_encode(points, table, layout.resolutions, layout.entries, weights)
    if chosen == "tinycudann":
        from cuda_ext import peers

        return peers.tinycudann_hash_encode(points, table, layout, weights)
    return torch.ops.dreamkiln.hash_encode(points, table, weights, layout.resolutions, layout.table)


def _check(points: Tensor, table: Tensor, layout: GridLayout, weights: Tensor | None) -> None:
    expect("table", table, (layout.rows, layout.features), "table", table)
    expect("points", points, (points.shape[0] if points.ndim else 0, 3), "table", table)
    if weights is not None:
        expect("weights", weights, (len(layout.resolutions),), "table", table)


# The torch operations ---------------------------------------------------------------------------------------------

_library = torch.library.Library("dreamkiln", "FRAGMENT")
_GRID = "Tensor points, Tensor table, Tensor? weights, int[] resolutions, int size"
_library.define(f"hash_encode({_GRID}) -> Tensor")
_library.define(f"hash_encode_backward(Tensor pull, {_GRID}, bool for_table, bool for_points) -> (Tensor, Tensor)")


@cache
def _layout(resolutions: tuple[int, ...], size: int, features: int) -> GridLayout:
    return GridLayout(resolutions, size, features)


@cache
def _kernel(name: str, dtype: torch.dtype) -> Callable[..., int]:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    pointers = {"hash_encode": 5, "hash_encode_backward": 7}[name]
    suffix = {torch.float32: "f32", torch.float64: "f64"}[dtype]
    return native.library().function(f"{name}_{suffix}", ctypes.c_int, *[pointer] * pointers, *[number] * 4)


def _run(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    if _kernel(name, dtype)(*arguments):
        raise MemoryError(f"{name}: no memory for its working space, a few MB a thread")


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _sizes(points: Tensor, layout: GridLayout) -> tuple[int, int, int, int]:
    """Points, levels, features, threads."""
    levels = len(layout.resolutions)
    threads = native.threads(len(points) * levels * 0.004)
    return len(points), levels, layout.features, threads


def _encode_cpu(points: Tensor, table: Tensor, weights: Tensor | None, resolutions: list[int], size: int) -> Tensor:
    layout = _layout(tuple(resolutions), size, table.shape[1])
    out = points.new_empty(len(points), layout.width)
    inputs = [None if t is None else t.contiguous() for t in (points, table, weights)]
    levels = layout.packed.ctypes.data
    _run("hash_encode", points.dtype, *map(_pointer, inputs), levels, _pointer(out), *_sizes(points, layout))
    return out


def _encode_backward_cpu(
    pull: Tensor,
    points: Tensor,
    table: Tensor,
    weights: Tensor | None,
    resolutions: list[int],
    size: int,
    for_table: bool,
    for_points: bool,
) -> tuple[Tensor, Tensor]:
    layout = _layout(tuple(resolutions), size, table.shape[1])
    inputs = [None if t is None else t.contiguous() for t in (pull, points, table, weights)]
    table_pull, points_pull = _gradients(points, table, for_table, for_points)
    _run(
        "hash_encode_backward",
        points.dtype,
        *map(_pointer, inputs),
        layout.packed.ctypes.data,
        _pointer(table_pull) if for_table else None,
        _pointer(points_pull) if for_points else None,
        *_sizes(points, layout),
    )
    return table_pull, points_pull


def _gradients(points: Tensor, table: Tensor, for_table: bool, for_points: bool) -> tuple[Tensor, Tensor]:
    """Room for the gradients; nothing for those that are not wanted."""
    return table.new_empty(table.shape if for_table else 0), points.new_empty(points.shape if for_points else 0)


def _encode_cuda(points: Tensor, table: Tensor, weights: Tensor | None, resolutions: list[int], size: int) -> Tensor:
    from cuda_ext import cuda_hashgrid

    return cuda_hashgrid.forward(points, table, weights, _layout(tuple(resolutions), size, table.shape[1]))


def _encode_backward_cuda(
    pull: Tensor,
    points: Tensor,
    table: Tensor,
    weights: Tensor | None,
    resolutions: list[int],
    size: int,
    for_table: bool,
    for_points: bool,
) -> tuple[Tensor, Tensor]:
    from cuda_ext import cuda_hashgrid

    layout = _layout(tuple(resolutions), size, table.shape[1])
    found = cuda_hashgrid.backward(pull, points, table, weights, layout, for_table, for_points)
    nothing = _gradients(points, table, False, False)
    return tuple(none if one is None else one for one, none in zip(found, nothing, strict=True))  # pyright: ignore


_library.impl("hash_encode", _encode_cpu, "CPU")
_library.impl("hash_encode_backward", _encode_backward_cpu, "CPU")
_library.impl("hash_encode", _encode_cuda, "CUDA")
_library.impl("hash_encode_backward", _encode_backward_cuda, "CUDA")


@torch.library.register_fake("dreamkiln::hash_encode", lib=_library)
def _(points: Tensor, table: Tensor, weights: Tensor | None, resolutions: list[int], size: int) -> Tensor:
    return points.new_empty(points.shape[0], len(resolutions) * table.shape[1])


@torch.library.register_fake("dreamkiln::hash_encode_backward", lib=_library)
def _(
    pull: Tensor,
    points: Tensor,
    table: Tensor,
    weights: Tensor | None,
    resolutions: list[int],
    size: int,
    for_table: bool,
    for_points: bool,
) -> tuple[Tensor, Tensor]:
    return _gradients(points, table, for_table, for_points)


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    points, table, weights, ctx.resolutions, ctx.size = inputs
    ctx.save_for_backward(points, table, weights)


def _differentiate(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
    points, table, weights = ctx.saved_tensors
    for_points, for_table = ctx.needs_input_grad[:2]
    table_pull, points_pull = torch.ops.dreamkiln.hash_encode_backward(
        pull, points, table, weights, ctx.resolutions, ctx.size, for_table, for_points
    )
    return points_pull if for_points else None, table_pull if for_table else None, None, None, None


torch.library.register_autograd("dreamkiln::hash_encode", _differentiate, setup_context=_remember, lib=_library)
