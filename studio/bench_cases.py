"""What ``studio bench`` times: the sizes of score distillation, from 64 pixels and 5,000 gaussians up."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cuda_ext import ops
from cuda_ext.backends import Backend, using
from cuda_ext.hashgrid import GridLayout
from representations.cameras import Cameras, orbit
from representations.hash_field import HashField
from representations.kinds import AnyRepresentation
from representations.splats import Splats
from studio.optimize import make_optimiser

_PAIRS = 30_000_000
"""Most (gaussian, pixel) pairs for which the plain-torch rasterizer has memory, and we have patience."""


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    group: str
    name: str
    op: str
    """The operation whose backends are compared."""
    prepare: Callable[[torch.device], Callable[[Backend], Any]]
    """Builds the inputs and returns what runs once with a given backend."""
    gate: float | None = None
    """Least ratio to the plain-torch form."""
    target: float | None = None
    """Ratio to the plain-torch form that we aim at."""
    target_ms: float | None = None
    """Milliseconds on two AVX-512 cores that we aim at."""
    why_no_reference: str = ""
    """Why the plain-torch form is left out; empty where it is not."""


# Gaussians ------------------------------------------------------------------------------------------------------------

_SPLAT_SIZES = (
    # gaussians, pixels, views, gate, target, milliseconds
    (5_000, 64, 1, 10.0, 40.0, 1.5),
    (5_000, 64, 4, 10.0, 40.0, 5.0),
    (50_000, 128, 4, None, None, None),
    (50_000, 256, 1, 40.0, 150.0, 18.0),
    (100_000, 512, 1, None, None, None),
    (500_000, 512, 1, None, None, None),
)
_LOOKS = {"opaque": 0.95, "faint": 0.1}


def gaussian_cases() -> list[Case]:
    """Forward and backward of ``rasterize_gaussians``, opaque blobs and those that distillation starts from."""
    return [
        Case(
            "rasterize_gaussians, forward + backward",
            f"{count // 1000}k @ {size} px, {views} view{'s' * (views > 1)}, {look}",
            "rasterize_gaussians",
            _gaussians(count, size, views, opacity),
            gate,
            target,
            milliseconds,
            "too many gaussian-pixel pairs" if _pairs(count, size) * views > _PAIRS else "",
        )
        for count, size, views, gate, target, milliseconds in _SPLAT_SIZES
        for look, opacity in _LOOKS.items()
    ]


def blob(count: int, opacity: float, seed: int = 0) -> dict[str, Tensor]:
    """A ball of gaussians with more of them towards its surface, as distillation has them; leaves of the graph."""
    rng = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=-1)
    radius = 0.6 * (0.5 + 0.5 * torch.rand(count, 1, generator=rng)) ** (1 / 3)
    return {
        "means": direction * radius * torch.tensor([1.0, 0.8, 1.1]),
        "log_scales": math.log(_spacing(count)) + 0.4 * torch.randn(count, 3, generator=rng),
        "quaternions": torch.randn(count, 4, generator=rng),
        "logit_opacities": torch.full((count,), math.log(opacity / (1 - opacity))),
        "sh": torch.randn(count, 1, 3, generator=rng),
    }


def _spacing(count: int) -> float:
    return 0.9 * (0.6**3 * 4 / count) ** (1 / 3)


def _pairs(count: int, size: int) -> float:
    # A gaussian is drawn to about 3 sigma; the object spans 1.2 of the 1.9 units that a view is wide.
    return count * (6 * _spacing(count) * size / 1.9 + 4) ** 2


def views_around(count: int, size: int) -> Cameras:
    """Cameras at even azimuths, a little above the horizon."""
    return orbit([360 * i / count + 20 for i in range(count)], [15.0] * count, size, 2.6, 40.0)


def _gaussians(count: int, size: int, views: int, opacity: float) -> Callable[[torch.device], Callable[[Backend], Any]]:
    def prepare(device: torch.device) -> Callable[[Backend], Any]:
        leaves: dict[str, Any] = {k: v.to(device).requires_grad_() for k, v in blob(count, opacity).items()}
        cameras = views_around(views, size).to(device)
        background = torch.ones(views, 3, device=device)
        pull = torch.randn(views, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)

        def run(backend: Backend) -> None:
            image = ops.rasterize_gaussians(
                **leaves,
                pose=cameras.pose,
                focal=cameras.focal,
                size=cameras.size,
                background=background,
                backend=backend,
            )
            torch.autograd.grad(image.rgb, list(leaves.values()), pull)

        return run

    return prepare


# Hash grids -----------------------------------------------------------------------------------------------------------

_POINTS = 262_144
_GRIDS = {
    "L12 F2 2^16": GridLayout.geometric(levels=12, base=16, finest=2048, table=2**16, features=2),
    "L16 F2 2^19": GridLayout.geometric(levels=16, base=16, finest=2048, table=2**19, features=2),
}
_PARTS = {"forward": 5.0, "backward": 6.0, "backward with input gradient": 12.0}


def hash_cases() -> list[Case]:
    """Forward and backward of ``hash_encode`` on as many points as a small render has samples."""
    return [
        Case(
            f"hash_encode, {_POINTS // 1000}k points",
            f"{name}, {part}",
            "hash_encode",
            _hash(layout, part),
            gate=20.0 if name.startswith("L12") else None,
            target=60.0 if name.startswith("L12") else None,
            target_ms=milliseconds if name.startswith("L12") else None,
        )
        for name, layout in _GRIDS.items()
        for part, milliseconds in _PARTS.items()
    ]


def _hash(layout: GridLayout, part: str) -> Callable[[torch.device], Callable[[Backend], Any]]:
    def prepare(device: torch.device) -> Callable[[Backend], Any]:
        rng = torch.Generator().manual_seed(0)
        points = torch.rand(_POINTS, 3, generator=rng).to(device).requires_grad_("input" in part)
        table = (0.1 * torch.randn(sum(layout.entries), layout.features, generator=rng)).to(device).requires_grad_()
        pull = torch.randn(_POINTS, len(layout.resolutions) * layout.features, generator=rng).to(device)
        wanted = [table, points] if "input" in part else [table]
        graphs: dict[str, Tensor] = {}

        def run(backend: Backend) -> None:
            if part == "forward":
                with torch.no_grad():
                    ops.hash_encode(points, table, layout, backend=backend)
                return
            if backend not in graphs:  # outside the median: the first call only warms up
                graphs[backend] = ops.hash_encode(points, table, layout, backend=backend)
            torch.autograd.grad(graphs[backend], wanted, pull, retain_graph=True)

        return run

    return prepare


# Whole render steps ---------------------------------------------------------------------------------------------------

_STEPS = (
    # spec, pixels, views
    (Splats(count=5_000, most=5_000), 64, 4),
    (Splats(count=50_000, most=50_000), 256, 4),
    (HashField(), 64, 4),
    (HashField(), 256, 1),
)


def step_cases() -> list[Case]:
    """What an optimiser step costs without the prior: scene, render, backward, Adam."""
    return [
        Case(
            f"render step of {type(spec).__name__}",
            f"{f'{spec.count // 1000}k, ' if isinstance(spec, Splats) else ''}{views} x {size} px",
            "rasterize_gaussians" if isinstance(spec, Splats) else "hash_encode",
            _step(spec, size, views),
        )
        for spec, size, views in _STEPS
    ]


def _step(spec: AnyRepresentation, size: int, views: int) -> Callable[[torch.device], Callable[[Backend], Any]]:
    def prepare(device: torch.device) -> Callable[[Backend], Any]:
        representation = spec.build(torch.Generator().manual_seed(0), device)
        optimiser = make_optimiser(representation)
        cameras = views_around(views, size).to(device)
        background = torch.ones(views, 3, device=device)
        pull = 1e-6 * torch.randn(views, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)

        def run(backend: Backend) -> None:
            optimiser.zero_grad(set_to_none=True)
            with using(backend):
                representation.scene().render(cameras, background).rgb.backward(pull)
            optimiser.step()

        return run

    return prepare
