"""Host side of the hash-grid kernels (``csrc/cuda/hashgrid.cu``): which levels go through which kernel, and launches.

The kernels are compiled once for each number of features a level, in float32. Gradients of the table are sums by
atomics, whose last digits change from run to run; all else is the same in every run. Nothing here waits for the GPU.
"""

import functools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cuda_ext import cuda
from cuda_ext.cuda import Launcher, Program
from cuda_ext.hashgrid import GridLayout

PROGRAMS = tuple(Program("hashgrid", (("FEATURES", features),)) for features in (1, 2, 4, 8))

_BLOCK = (256, 1, 1)
_SECTOR = 8  # floats of the output that a thread writes
_SHARED = 10240  # floats that a coarse level may have: kShared in hashgrid.cu
_COARSE_BLOCKS = 128
"""Blocks that share the points of a coarse level: each clears, fills and adds a whole level of its own."""


def forward(
    points: Float[Tensor, "n 3"],
    table: Float[Tensor, "entries f"],
    weights: Float[Tensor, " levels"] | None,
    layout: GridLayout,
    launch: Launcher = cuda.launch,
) -> Float[Tensor, "n lf"]:
    """See ``cuda_ext.ops.hash_encode``, which has checked the inputs.

    Raises:
        ValueError: the inputs are not float32.
    """
    points, table = _ready(points), _ready(table)
    n, levels = len(points), len(layout.resolutions)
    out = points.new_empty(n, layout.width)
    if n:
        blocks = (math.ceil(n / _BLOCK[0]), math.ceil(layout.width / _SECTOR), 1)
        tensors = (_levels(layout, points.device), _masks(weights), points, table, out)
        launch(_program(layout), "hash_forward", blocks, _BLOCK, n, levels, *tensors)
    return out


def backward(
    pull: Float[Tensor, "n lf"],
    points: Float[Tensor, "n 3"],
    table: Float[Tensor, "entries f"],
    weights: Float[Tensor, " levels"] | None,
    layout: GridLayout,
    for_table: bool,
    for_points: bool,
    launch: Launcher = cuda.launch,
) -> tuple[Float[Tensor, "entries f"] | None, Float[Tensor, "n 3"] | None]:
    """Gradients of the table and of the points, if they are wanted, given that of the features."""
    inputs = (_levels(layout, points.device), _masks(weights), _ready(points))
    pull, table = _ready(pull), _ready(table)
    table_pull = torch.zeros_like(table) if for_table else None
    points_pull = torch.empty_like(inputs[2]) if for_points else None
    if len(points) and table_pull is not None:
        _pull_table(layout, len(points), (*inputs, pull, table_pull), launch)
    if len(points) and points_pull is not None:
        sizes = (len(points), len(layout.resolutions))
        blocks = (math.ceil(len(points) / _BLOCK[0]), 1, 1)
        launch(_program(layout), "hash_pull_points", blocks, _BLOCK, *sizes, *inputs, table, pull, points_pull)
    return table_pull, points_pull


def _pull_table(layout: GridLayout, n: int, tensors: tuple[Tensor | None, ...], launch: Launcher) -> None:
    levels, coarse, blocks = len(layout.resolutions), coarse_levels(layout), math.ceil(n / _BLOCK[0])
    if coarse:
        few = (min(blocks, _COARSE_BLOCKS), coarse, 1)
        launch(_program(layout), "hash_pull_coarse", few, _BLOCK, n, levels, *tensors)
    if coarse < levels:
        many = (blocks, math.ceil((levels - coarse) * layout.features / _SECTOR), 1)
        launch(_program(layout), "hash_pull_table", many, _BLOCK, n, levels, coarse, *tensors)


def coarse_levels(layout: GridLayout) -> int:
    """How many of the first levels are dense and fit in a block's shared memory."""
    most = min(layout.table, _SHARED // layout.features)
    fits = [(cells + 1) ** 3 <= most for cells in layout.resolutions]
    return fits.index(False) if False in fits else len(fits)


def _program(layout: GridLayout) -> Program:
    return Program("hashgrid", (("FEATURES", layout.features),))


@functools.cache
def _levels(layout: GridLayout, device: torch.device) -> Int[Tensor, "levels 5"]:
    """``GridLevel`` of csrc/include/hashgrid.h, on the device; sent once, without waiting."""
    levels = torch.from_numpy(layout.packed.view("int32"))
    return levels.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else levels


def _masks(weights: Tensor | None) -> Tensor | None:
    return None if weights is None else _ready(weights)


def _ready(tensor: Tensor) -> Tensor:
    """Contiguous, and where vectors of 16 bytes can be read."""
    if tensor.dtype != torch.float32:
        raise ValueError(f"the CUDA kernels of hash_encode compute in float32, got {tensor.dtype}: backend='reference'")
    tensor = tensor.detach().contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor
