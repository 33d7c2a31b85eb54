"""A radiance field on a multiresolution hash grid: coarse levels learn first, fine ones sharpen.

Every level stores a raw density and three raw colours at its vertices (Instant-NGP's grid, arXiv 2201.05989, without
its network: in the spirit of Plenoxels, 2112.05131); the field is the sum over the levels. Coarse levels act as a
preconditioner: one step there moves a whole region, so shape comes within tens of steps and detail later. Levels are
dense as long as their vertices fit into the table, and hashed beyond.
"""

from dataclasses import dataclass
from functools import cache
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ext import ops
from cuda_ext.hashgrid import GridLayout
from representations.field import RadianceField
from representations.scene import ParamGroup, RenderOutput, Representation, Scene


@dataclass(frozen=True)
class HashField:
    """Knobs of a multiresolution radiance field."""

    levels: tuple[int, ...] = (8, 16, 32, 64)
    """Cells a side of each level, coarse to fine."""
    table: int = 2**19
    """Most vertices that a level stores, a power of two; a level of more shares them by hashing."""
    bound: float = 1.0
    """Half the side of the cube that holds the object, in world units."""
    steps_per_cell: float = 0.6
    """Ray samples in a cell of the finest level."""
    initial_radius: float = 0.5
    """Radius of the faint ball that optimisation starts from, as a share of ``bound``."""
    rate: float = 0.08
    """Learning rate at the start of a run; a tenth of it at the end."""
    occupancy_cells: int = 32
    """Cells a side of the grid that lets rays skip what is empty."""
    occupancy_every: int = 8
    """Steps between updates of that grid."""
    exploration: float = 0.03
    """Share of empty cells that each update opens at random, so that matter can grow where there is none yet."""

    @property
    def layout(self) -> GridLayout:
        """Where each level lies in the table.

        Raises:
            ValueError: levels or table are out of range.
        """
        return GridLayout(self.levels, self.table, features=4)

    @property
    def finest_dense(self) -> int:
        """The last level whose vertices have a place each in the table.

        Raises:
            ValueError: there is none.
        """
        dense = [i for i, cells in enumerate(self.levels) if (cells + 1) ** 3 <= self.table]
        if not dense:
            raise ValueError(f"one of the levels {self.levels} must fit into a table of {self.table} vertices")
        return dense[-1]

    def build(self, rng: torch.Generator, device: torch.device) -> "FieldGrid":
        """A field that is nearly empty outside a faint ball.

        Raises:
            ValueError: the levels and the table do not fit.
        """
        return FieldGrid(self, rng).to(device)

    def start_from(self, scene: Scene, rng: torch.Generator, device: torch.device) -> "FieldGrid":
        """A field of this shape that begins as ``scene``, which must itself be a field.

        Raises:
            TypeError: the scene is of another kind.
        """
        if not isinstance(scene, RadianceField):
            raise TypeError(f"HashField can go on from a field, not from a {type(scene).__name__}")
        field = self.build(rng, device)
        field.become(scene)
        return field


@final
@dataclass(frozen=True)
class FieldScene(RadianceField):
    """A field as a value: raw features of all levels, density first."""

    table: Float[Tensor, "rows 4"]
    layout: GridLayout
    occupancy: Bool[Tensor, "m m m"]
    bound: float
    step: float
    jitter_seed: int | None = None

    @property
    def device(self) -> torch.device:
        """See ``RadianceField.device``."""
        return self.table.device

    def raw(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
        """What the levels add up to at points in world units, before anything makes density and colour of it."""
        features = ops.hash_encode((points / self.bound + 1) / 2, self.table, self.layout)
        # A product with stacked identities adds the levels up faster than a sum over a short middle axis.
        return features @ torch.eye(4, device=features.device).repeat(len(self.layout.resolutions), 1)

    def march(
        self, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], first: int = 0
    ) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """See ``RadianceField.march``."""
        return ops.march_rays(origins, directions, self.occupancy, self.bound, self.step, self.jitter_seed, first=first)

    def occupied(self, points: Float[Tensor, "n 3"]) -> Bool[Tensor, " n"]:
        """See ``RadianceField.occupied``."""
        cells = len(self.occupancy)
        x, y, z = ((points / self.bound + 1) * (cells / 2)).long().clamp(0, cells - 1).unbind(1)
        return self.occupancy[x, y, z]

    def detach(self) -> "FieldScene":
        """See ``Scene.detach``; samples sit in the middle of their steps."""
        return FieldScene(self.table.detach(), self.layout, self.occupancy, self.bound, self.step)


@final
class FieldGrid(Representation):
    """The trainable table."""

    occupancy: Tensor

    def __init__(self, knobs: HashField, rng: torch.Generator):
        super().__init__()
        self.knobs, self.layout = knobs, knobs.layout
        table = torch.zeros(self.layout.rows, 4)
        table[:, 1:] = 0.04 * torch.randn(self.layout.rows, 3, generator=rng)
        cells = knobs.levels[knobs.finest_dense]
        _level(table, self.layout, knobs.finest_dense)[:, 0] += _ball(_vertices(cells), knobs.initial_radius)
        self.table = nn.Parameter(table)
        self.register_buffer("occupancy", torch.ones((knobs.occupancy_cells,) * 3, dtype=torch.bool))
        self.jitter_seed = 0
        self._update_occupancy(step=0)

    def scene(self, text: Float[Tensor, " d"] | None = None, variant: int = 0) -> FieldScene:
        """See ``Representation.scene``."""
        step = 2 * self.knobs.bound / self.knobs.levels[-1] / self.knobs.steps_per_cell
        return FieldScene(self.table, self.layout, self.occupancy, self.knobs.bound, step, self.jitter_seed)

    def groups(self) -> list[ParamGroup]:
        """The table, slowing down tenfold over the run."""
        return [ParamGroup("table", [self.table], lambda p: self.knobs.rate * 0.1**p)]

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
    def become(self, scene: RadianceField) -> None:
        """Take over a field: the finest dense level holds it, the others start at zero."""
        level = self.knobs.finest_dense
        corners = (2 * _vertices(self.knobs.levels[level]) - 1) * self.knobs.bound
        self.table.zero_()
        _level(self.table, self.layout, level).copy_(scene.raw(corners.to(self.table.device)))
        self._update_occupancy(step=0)

    @torch.no_grad()
    def _update_occupancy(self, step: int) -> None:
        cells, bound = self.knobs.occupancy_cells, self.knobs.bound
        corners = (2 * _vertices(2 * cells) - 1).to(self.table.device) * bound
        # Axis x runs fastest among the vertices, and first in the occupancy grid.
        density = self.scene().sample(corners)[0].view(1, 1, *(2 * cells + 1,) * 3).transpose(2, 4)
        # A cell counts as full when any vertex in it or beside it is visible: one ring of margin lets surfaces move.
        visible = F.adaptive_max_pool3d(density, cells) * (2 * bound / cells) > 0.05
        full = F.max_pool3d(visible.float(), 3, 1, 1)[0, 0] > 0
        rng = torch.Generator().manual_seed(step)
        explored = torch.rand(full.shape, generator=rng) < self.knobs.exploration
        self.occupancy.copy_(full | explored.to(full.device))


def _level(table: Tensor, layout: GridLayout, level: int) -> Tensor:
    """A level's rows."""
    return table[sum(layout.entries[:level]) :][: layout.entries[level]]


@cache
def _vertices(cells: int) -> Float[Tensor, "n 3"]:
    """Vertices of a grid of ``cells`` a side in the unit cube, in the order of a dense level: x fastest."""
    axis = torch.linspace(0, 1, cells + 1)
    return torch.cartesian_prod(axis, axis, axis).flip(1)


def _ball(vertices: Float[Tensor, "n 3"], radius: float) -> Float[Tensor, " n"]:
    r = (2 * vertices - 1).norm(dim=1)
    return (5 * (1 - r / radius)).clamp(-7.0, 1.0) - 2.5
