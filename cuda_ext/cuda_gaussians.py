"""Host side of the splat kernels (gaussians.cu, tiles.cu): scratch from torch, launches, and what the replay needs.

Nothing here waits for the GPU. Two pieces of scratch have a size that only the GPU knows: the lists of the bins and the
slots of the gradients. They get what the last steps needed and a quarter more; the kernels do without what does not
fit (a tile looks at every gaussian, a gradient is added by atomics), which is right, only slower and, for gradients,
not bitwise repeatable. The numbers come back through pinned memory and are read when they have arrived.
"""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from cuda_ext import cuda
from cuda_ext.cpu_gaussians import Gradients, Inputs
from cuda_ext.cuda import Launcher, Program

_GAUSSIANS, _TILES = Program("gaussians"), Program("tiles")
PROGRAMS = (_GAUSSIANS, _TILES)

_BLOCK, _PULL = (256, 1, 1), 128  # threads
_TILE, _BIN, _WARPS = 8, 64, 4  # pixels, pixels, tiles a block: as in tiles.cuh
_WARP_BLOCK = (_WARPS * 32, 1, 1)
_MOMENTS, _CHANNELS = 6, 4
_RECORD = 12  # floats
_BINS_FROM = 2048
"""Gaussians from which a picture of more than one bin is binned; below, a tile's scan of all should be cheaper (an
estimate from instruction counts, not measured)."""


@dataclass(frozen=True)
class Settings:
    """What is not a tensor; all of a rendering's shape."""

    size: tuple[int, int]
    near: float
    bins: bool | None = None
    """Whether tiles look at their bin's gaussians alone; ``None`` decides by size."""


class Room:
    """How much scratch a device needed lately, in multiples of what is known beforehand; learnt without waiting."""

    def __init__(self, first: dict[str, float], least: int = 1 << 14, most: int = 1 << 25) -> None:
        """Begin with these multiples; never give fewer rows than ``least`` or more than ``most``."""
        self.first, self.least, self.most = first, least, most
        self.needed: dict[tuple, float] = {}
        self._coming: dict[tuple, _Coming] = {}

    def rows(self, kind: str, where: tuple, unit: int, bound: int) -> int:
        """Rows to set aside: for ``unit`` gaussians in views, ``bound`` rows at the very most."""
        key = (kind, *where)
        coming = None if _capturing(where[0]) else self._coming.get(key)
        if coming and coming.arrived():
            self.needed[key] = int(coming.host[0]) / coming.unit
            del self._coming[key]
        wanted = 1.25 * self.needed[key] if key in self.needed else self.first[kind]
        return max(1, min(bound, self.most, max(self.least, math.ceil(wanted * unit))))

    def watch(self, kind: str, where: tuple, unit: int, total: Tensor) -> None:
        """Have a number that is being computed on the device read at a later step."""
        key = (kind, *where)
        if key not in self._coming and unit and not _capturing(total.device):
            self._coming[key] = _Coming.of(total, unit)


def _capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being made, which may contain neither queries of events nor copies that we read."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True)
class _Coming:
    """A number on its way to the host."""

    host: Tensor
    event: torch.cuda.Event | None
    unit: int

    @classmethod
    def of(cls, total: Tensor, unit: int) -> "_Coming":
        if not total.is_cuda:
            return cls(total.reshape(1).clone(), None, unit)
        host = torch.empty(1, dtype=total.dtype, pin_memory=True)
        host.copy_(total.reshape(1), non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(total.device))
        return cls(host, event, unit)

    def arrived(self) -> bool:
        return self.event is None or self.event.query()


ROOM = Room({"slots": 8.0, "bins": 1.5})
"""What the renders of this process needed."""


@dataclass(frozen=True)
class Saved:
    """What the replay needs of the drawing."""

    records: Float[Tensor, "b n 12"]
    order: Tensor  # [b, n] gaussian of each rank
    rectangles: Tensor  # [b, n, 4] int16, tiles, by rank
    ends: Tensor  # [b * n] running total of the tiles, by rank
    drawn: Tensor  # [b] int32, ranks that are drawn
    bin_ends: Tensor  # [bins of all views], empty where there are none
    bin_ranks: Tensor
    transmittance: Float[Tensor, "b h w"]
    reached: Tensor  # [b, tiles] int32, ranks that a tile went through
    image: Float[Tensor, "b c h w"]

    def parts(self) -> list[Tensor]:
        """All but the picture, which an autograd context keeps as an output."""
        return [value for name, value in vars(self).items() if name != "image"]

    @classmethod
    def of(cls, parts: list[Tensor], image: Tensor) -> "Saved":
        """From what ``parts`` gave."""
        names = [field.name for field in fields(cls) if field.name != "image"]
        return cls(**dict(zip(names, parts, strict=True)), image=image)


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw(
    inputs: Inputs,
    settings: Settings,
    launch: Launcher = cuda.launch,
    room: Room = ROOM,
) -> tuple[Float[Tensor, "b n"], Saved]:
    """Draw.

    Returns:
        The radii, and what ``replay`` needs; the picture is ``image`` in it: red, green, blue, alpha, depth, features.
    """
    means, (n, f), b, (height, width) = inputs.means, inputs.features.shape, len(inputs.pose), settings.size
    tiles = math.ceil(width / _TILE) * math.ceil(height / _TILE)
    records = means.new_empty(b, n, _RECORD)
    keys, radius = means.new_empty(b, n), means.new_empty(b, n)
    image, transmittance = means.new_empty(b, 5 + f, height, width), means.new_empty(b, height, width)
    reached = torch.empty(b, tiles, dtype=torch.int32, device=means.device)
    if n and b:
        sizes = (n, inputs.sh.shape[1], f, width, height, float(settings.near))
        views = (inputs.pose, inputs.focal, records, keys, radius)
        launch(_GAUSSIANS, "project_gaussians", _blocks(n, b), _BLOCK, *sizes, *_gaussians(inputs), *views)
    order = keys.sort(dim=1, stable=True).indices
    placed = _place(records, order, settings, launch, room)
    saved = Saved(records, order, *placed, transmittance, reached, image)
    if b:
        grid = (math.ceil(tiles / _WARPS), 1 + math.ceil(f / _CHANNELS), b)
        drawing = (inputs.features, inputs.background, image, transmittance, reached)
        launch(_TILES, "draw_tiles", grid, _WARP_BLOCK, n, width, height, f, *_scene(saved), *drawing)
    return radius, saved


def _place(
    records: Tensor, order: Tensor, settings: Settings, launch: Launcher, room: Room
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rectangles in depth order, running totals of their tiles, how many are drawn, and the bins."""
    b, n, (height, width) = len(records), records.shape[1], settings.size
    device, where = records.device, (records.device, settings.size)
    bins = math.ceil(width / _BIN) * math.ceil(height / _BIN)
    binned = settings.bins if settings.bins is not None else bins > 1 and n >= _BINS_FROM
    rectangles = torch.empty(b, n, 4, dtype=torch.int16, device=device)
    tiles = torch.empty(b * n, dtype=torch.int32, device=device)
    drawn = torch.zeros(b, dtype=torch.int32, device=device)
    in_bins = torch.zeros(b * bins if binned else 0, dtype=torch.int32, device=device)
    if n and b:
        places = (records, order, rectangles, tiles, drawn, in_bins if binned else None)
        launch(_GAUSSIANS, "place_gaussians", _blocks(n, b), _BLOCK, n, width, height, *places)
    ends, bin_ends = tiles.cumsum(0), in_bins.cumsum(0)
    room_in_bins = room.rows("bins", where, b * n, b * n * bins) if binned else 0
    bin_ranks = torch.empty(room_in_bins, dtype=torch.int32, device=device)
    if binned and n and b:
        room.watch("bins", where, b * n, bin_ends[-1])
        lists = (rectangles, drawn, bin_ends, bin_ranks, room_in_bins)
        launch(_GAUSSIANS, "list_bins", (bins, b, 1), _BLOCK, n, width, height, *lists)
    return rectangles, ends, drawn, bin_ends, bin_ranks


def _blocks(count: int, views: int, block: int = 256) -> cuda.Shape:
    """Blocks that give every one of ``count`` a thread, for each view."""
    return math.ceil(count / block), views, 1


def _gaussians(inputs: Inputs) -> tuple[Tensor, ...]:
    """What there is one of per gaussian."""
    return (
        *(inputs.means, inputs.log_scales, inputs.quaternions, inputs.logit_opacities),
        *(inputs.sh, inputs.features),
    )


def _scene(saved: Saved) -> tuple[cuda.Argument, ...]:
    """The arguments that drawing and replay share."""
    bins = (saved.bin_ends, saved.bin_ranks, len(saved.bin_ranks)) if len(saved.bin_ends) else (None, None, 0)
    return saved.records, saved.order, saved.rectangles, saved.drawn, *bins


# --- gradients --------------------------------------------------------------------------------------------------------


def replay(
    inputs: Inputs,
    settings: Settings,
    saved: Saved,
    image_gradient: Float[Tensor, "b c h w"],
    launch: Launcher = cuda.launch,
    room: Room = ROOM,
) -> Gradients:
    """Gradients of the inputs of ``draw``, given those of its picture; inputs as they were there."""
    (n, f), b, (height, width) = inputs.features.shape, len(inputs.pose), settings.size
    into = [torch.empty_like(part) for part in (*_gaussians(inputs), inputs.logit_opacities)]  # the last for the probe
    if n:
        totals = _totals(saved, inputs.features, settings, image_gradient, launch, room)
        sizes = (n, b, inputs.sh.shape[1], f, width, height)
        views = (inputs.pose, inputs.focal, saved.records, totals)
        launch(
            _GAUSSIANS,
            "pull_gaussians",
            _blocks(n, 1, _PULL),
            (_PULL, 1, 1),
            *sizes,
            *_gaussians(inputs),
            *views,
            *into,
        )
    behind = (image_gradient[:, :3] * saved.transmittance[:, None]).sum((2, 3))
    return Gradients(*into, background=behind)


def _totals(
    saved: Saved,
    features: Tensor,
    settings: Settings,
    image_gradient: Tensor,
    launch: Launcher,
    room: Room,
) -> Float[Tensor, "b n r"]:
    """For each gaussian on the screen: moments of the gradient of its exponent, and gradients of its channels."""
    b, n, (height, width), f = len(saved.records), saved.records.shape[1], settings.size, features.shape[1]
    chunks = 1 + math.ceil(f / _CHANNELS)
    row = _MOMENTS + _CHANNELS * chunks
    totals = image_gradient.new_zeros(b, n, row)
    if not b:
        return totals
    tiles, where = saved.reached.shape[1], (saved.records.device, settings.size)
    capacity = room.rows("slots", where, b * n, b * n * tiles)
    room.watch("slots", where, b * n, saved.ends[-1])
    slots = image_gradient.new_empty(capacity, row)
    grid = (math.ceil(tiles / _WARPS), 1, b)
    drawn = (features, saved.image, saved.transmittance, saved.reached, saved.ends, image_gradient)
    for chunk in range(chunks):
        into = (chunk, slots, capacity, totals)
        launch(_TILES, "replay_tiles", grid, _WARP_BLOCK, n, width, height, f, *_scene(saved), *drawn, *into)
    placed = (saved.order, saved.rectangles, saved.drawn, saved.ends, saved.reached)
    launch(_TILES, "reduce_slots", _blocks(8 * n, b), _BLOCK, n, width, height, row, *placed, slots, capacity, totals)
    return totals
