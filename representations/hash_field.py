"""A radiance field on a pyramid of grids: density and colour, coarse levels first to learn, fine ones to sharpen.

Every level stores a raw density and three raw colours at its vertices; the field is their sum. Coarse levels act as a
preconditioner: one step there moves a whole region, so shape comes within tens of steps and detail later. Level sizes
are nested (each a multiple of the one before), so adding a coarse level to a finer one by trilinear upsampling is
exact, and a ray sample costs one lookup whatever the number of levels (in the spirit of Instant-NGP, arXiv 2201.05989,
and Plenoxels, 2112.05131).
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ext import ops
from representations.cameras import Cameras
from representations.extraction import mesh_from_density
from representations.scene import Mesh, ParamGroup, RenderOutput, Representation, Scene

_DENSITY_GAIN = 25.0
"""World-unit density of a raw value of 1; a raw value of -7 is as good as empty."""
_COLOUR_GAIN = 3.0


@dataclass(frozen=True)
class HashField:
    """Knobs of a multiresolution radiance field."""

    levels: tuple[int, ...] = (8, 16, 32, 64)
    """Cells a side of each level, coarse to fine; each a multiple of the one before."""
    bound: float = 1.0
    """Half the side of the cube that holds the object, in world units."""
    steps_per_cell: float = 0.6
    """Ray samples in a cell of the finest level."""
    initial_radius: float = 0.5
    """Radius of the faint ball that optimisation starts from, as a share of ``bound``."""
    density_rate: float = 0.08
    """Learning rate of densities at the start of a run; a tenth of it at the end."""
    colour_rate: float = 0.04
    """Learning rate of colours at the start of a run; a tenth of it at the end."""
    occupancy_cells: int = 32
    """Cells a side of the grid that lets rays skip what is empty."""
    occupancy_every: int = 8
    """Steps between updates of that grid."""
    exploration: float = 0.03
    """Share of empty cells that each update opens at random, so that matter can grow where there is none yet."""

    def build(self, rng: torch.Generator, device: torch.device) -> "FieldGrids":
        """A field that is nearly empty outside a faint ball.

        Raises:
            ValueError: the levels do not nest.
        """
        if any(fine % coarse for coarse, fine in zip(self.levels, self.levels[1:], strict=False)) or not self.levels:
            raise ValueError(f"levels must each be a multiple of the one before, got {self.levels}")
        return FieldGrids(self, rng).to(device)

    def start_from(self, scene: Scene, rng: torch.Generator, device: torch.device) -> "FieldGrids":
        """A field of this shape that begins as ``scene``, which must itself be a field.

        Raises:
            TypeError: the scene is of another kind.
        """
        if not isinstance(scene, FieldScene):
            raise TypeError(f"HashField can go on from a field, not from a {type(scene).__name__}")
        field = self.build(rng, device)
        field.become(scene)
        return field


@final
@dataclass(frozen=True)
class FieldScene(Scene):
    """A field as a value: raw features at the vertices of one grid, x y z order, density first."""

    raw: Float[Tensor, "x y z 4"]
    occupancy: Bool[Tensor, "m m m"]
    bound: float
    step: float
    jitter_seed: int | None = None

    def render(self, cameras: Cameras, background: Float[Tensor, "b 3"]) -> RenderOutput:
        """See ``Scene.render``."""
        origins, directions = cameras.rays()
        b, (h, w) = len(cameras), cameras.size
        flat = directions.reshape(-1, 3)
        starts = origins[:, None].expand(b, h * w, 3).reshape(-1, 3)
        t, ray = ops.march_rays(starts, flat, self.occupancy, self.bound, self.step, self.jitter_seed)
        points = torch.addcmul(starts.index_select(0, ray), flat.index_select(0, ray), t[:, None])
        density, colour = self.sample(points)
        rgb, alpha, depth, _ = ops.composite(density, colour, t, ray, len(flat), self.step)
        alpha, depth = alpha.clamp(0, 1), depth / alpha.clamp_min(1e-6)
        rgb = rgb + (1 - alpha)[:, None] * background.repeat_interleave(h * w, 0)
        return RenderOutput(
            rgb=rgb.view(b, h, w, 3).permute(0, 3, 1, 2),
            alpha=alpha.view(b, 1, h, w),
            depth=depth.view(b, 1, h, w),
        )

    def sample(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """Density per world unit and sRGB colour at points in world units."""
        raw = ops.trilinear(self.raw, (points / self.bound + 1) / 2)
        return _density(raw[:, 0]), torch.sigmoid(_COLOUR_GAIN * raw[:, 1:])

    def to_mesh(self, resolution: int) -> Mesh:
        """See ``Scene.to_mesh``."""
        still = self.detach()
        white = torch.ones(1, 3, device=self.raw.device)
        return mesh_from_density(
            lambda points: still.sample(points)[0],
            self.bound,
            resolution,
            lambda cameras: still.render(cameras, white.expand(len(cameras), 3)).alpha,
            self.raw.device,
        )

    def surface_colour(self, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """The colour that a short ray along the normal sees: what the renders show, not what lies deep inside."""
        reach = 4 * self.step
        count = 16
        along = torch.linspace(-reach, 2 * reach, count, device=points.device)
        places = points[:, None] - along[:, None] * normals[:, None]
        density, colour = self.sample(places.reshape(-1, 3))
        ray = torch.arange(len(points), device=points.device).repeat_interleave(count)
        length = 3 * reach / (count - 1)
        rgb, alpha, _, _ = ops.composite(density + 1e-4, colour, along.repeat(len(points)), ray, len(points), length)
        return rgb / alpha.clamp_min(1e-6)[:, None]

    def detach(self) -> "FieldScene":
        """See ``Scene.detach``; samples sit in the middle of their steps."""
        return FieldScene(self.raw.detach(), self.occupancy, self.bound, self.step)


@final
class FieldGrids(Representation):
    """The trainable pyramid."""

    occupancy: Tensor

    def __init__(self, knobs: HashField, rng: torch.Generator):
        super().__init__()
        self.knobs = knobs
        self.density = nn.ParameterList()
        self.colour = nn.ParameterList()
        for cells in knobs.levels:
            size = (cells + 1,) * 3
            self.density.append(nn.Parameter(torch.zeros(1, 1, *size)))
            self.colour.append(nn.Parameter(0.02 * torch.randn(1, 3, *size, generator=rng)))
        self.density[-1].data += _ball(knobs.levels[-1], knobs.initial_radius)
        self.register_buffer("occupancy", torch.ones((knobs.occupancy_cells,) * 3, dtype=torch.bool))
        self.jitter_seed = 0
        self._update_occupancy(step=0)

    def scene(self, text: Float[Tensor, " d"] | None = None, variant: int = 0) -> FieldScene:
        """See ``Representation.scene``."""
        raw = torch.cat([_collapse(self.density), _collapse(self.colour)], 1)[0].permute(1, 2, 3, 0).contiguous()
        step = 2 * self.knobs.bound / self.knobs.levels[-1] / self.knobs.steps_per_cell
        return FieldScene(raw, self.occupancy, self.knobs.bound, step, self.jitter_seed)

    def groups(self) -> list[ParamGroup]:
        """Densities and colours, both slowing down tenfold over the run."""
        return [
            ParamGroup("density", list(self.density), lambda p: self.knobs.density_rate * 0.1**p),
            ParamGroup("colour", list(self.colour), lambda p: self.knobs.colour_rate * 0.1**p),
        ]

    def restructure(self, step: int, out: RenderOutput, optimiser: torch.optim.Optimizer) -> None:
        """Refresh the occupancy grid now and then; jitter is a new one every step."""
        self.jitter_seed = step + 1
        if (step + 1) % self.knobs.occupancy_every == 0:
            self._update_occupancy(step + 1)

    def get_extra_state(self) -> Tensor:
        """The jitter's seed, so that a resumed run places its samples where the first would have."""
        return torch.tensor(self.jitter_seed)

    def set_extra_state(self, state: Tensor) -> None:
        """See ``get_extra_state``."""
        self.jitter_seed = int(state)

    @torch.no_grad()
    def become(self, scene: FieldScene) -> None:
        """Take over a field: the finest level holds it, the coarser ones start at zero."""
        size = (self.knobs.levels[-1] + 1,) * 3
        raw = F.interpolate(scene.raw.permute(3, 0, 1, 2)[None], size, mode="trilinear", align_corners=True)
        for level in (*self.density, *self.colour):
            level.zero_()
        self.density[-1].copy_(raw[:, :1])
        self.colour[-1].copy_(raw[:, 1:])
        self._update_occupancy(step=0)

    @torch.no_grad()
    def _update_occupancy(self, step: int) -> None:
        cells = self.knobs.occupancy_cells
        density = _density(_collapse(self.density))
        # A cell counts as full when any vertex in it or beside it is visible: one ring of margin lets surfaces move.
        visible = F.adaptive_max_pool3d(density, cells) * (2 * self.knobs.bound / cells) > 0.05
        full = F.max_pool3d(visible.float(), 3, 1, 1)[0, 0] > 0
        rng = torch.Generator().manual_seed(step)
        explored = torch.rand(full.shape, generator=rng) < self.knobs.exploration
        self.occupancy.copy_(full | explored.to(full.device))


def _density(raw: Tensor) -> Tensor:
    return _DENSITY_GAIN * F.softplus(raw)


def _ball(cells: int, radius: float) -> Tensor:
    axis = torch.linspace(-1, 1, cells + 1)
    r = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    return (5 * (1 - r / radius)).clamp(-7.0, 1.0) - 2.5


def _collapse(levels: nn.ParameterList) -> Tensor:
    """All levels as one grid of the finest size: coarse ones are upsampled into the next and added."""
    total = levels[0]
    for level in list(levels)[1:]:
        total = level + F.interpolate(total, level.shape[2:], mode="trilinear", align_corners=True)
    return total
