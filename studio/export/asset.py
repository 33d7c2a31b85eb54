"""The way from a scene to files: extract, clean, unwrap, bake, write, read back, measure.

What is measured is the file: the GLB is loaded again and its pictures are compared with the representation's own.
"""

import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from representations.box import Box
from representations.cameras import Cameras, orbit
from representations.scene import Mesh, RenderOutput, Scene
from representations.splat_scene import SplatScene
from representations.textured_mesh import TexturedMesh
from studio.checkpoints import write_atomically
from studio.export.bake import Baked, bake
from studio.export.cleanup import clean, is_watertight, spliced
from studio.export.glb import glb_bytes, load_glb
from studio.export.measure import iou, psnr
from studio.export.pictures import Row, contact_sheet, turntable
from studio.export.splat_ply import splat_ply_bytes
from studio.export.unwrap import Unwrapped, unwrap
from studio.export.validate import validate_glb

AZIMUTHS = tuple(range(0, 360, 45))
"""Degrees of the views that are compared and shown."""
ELEVATION = 15.0
"""Degrees of those views and of the turntable."""


@dataclass(frozen=True)
class AssetReport:
    """What came out, as far as it can be measured here."""

    faces: int
    vertices: int
    """Of the welded surface; the file has more, for seams."""
    watertight: bool
    texture_size: int
    uv_fill: float
    """Share of the texture that lies on the surface."""
    unwrap: str
    """``xatlas`` or ``projection``."""
    unwrap_reason: str | None
    """Why it was not xatlas."""
    validator: dict[str, int] | None
    """Numbers of ``errors`` and ``warnings`` from Khronos' validator; None where it is not installed."""
    seconds: dict[str, float]
    """Of each phase."""
    render_to_asset_psnr: float
    silhouette_iou: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return asdict(self)


@dataclass(frozen=True)
class Asset:
    """A scene as a textured mesh, and the way there: what the formats of meshes are made of."""

    surface: Mesh
    """Welded: one vertex for each position."""
    unwrapped: Unwrapped
    """The same faces, in the same order, over vertices that are split along seams."""
    baked: Baked

    @property
    def mesh(self) -> TexturedMesh:
        """The unwrapped surface under its texture."""
        return self.baked.mesh


@dataclass(frozen=True)
class Kept:
    """What an edit inside a box leaves as it was: outside of ``region`` the surface is that of ``scene``.

    The two scenes look the same there, but each has its own threshold of density between matter and air.
    """

    scene: Scene
    region: Box


def surfaced(
    scene: Scene, *, faces: int, grid: int, smoothing: int = 0, kept: Kept | None = None
) -> Generator[str, None, Mesh]:
    """The clean surface of a scene; yields the name of each phase as it begins.

    Args:
        faces: the most triangles, about.
        grid: cells a side of the bounding cube for surface extraction.
        smoothing: rounds of Taubin smoothing.
        kept: what the surface is elsewhere than in a box.

    Raises:
        EmptySceneError: nothing solid; the message has the numbers.
    """
    yield "extract"
    with torch.no_grad():
        raw = scene.to_mesh(grid)
        if kept is not None:
            raw = spliced(kept.scene.to_mesh(grid), raw, kept.region)
    yield "clean"
    return clean(raw, faces, smoothing)


def textured(
    scene: Scene,
    *,
    faces: int,
    texture: int,
    grid: int,
    unwrap_timeout: float = 60.0,
    smoothing: int = 0,
    kept: Kept | None = None,
) -> Generator[str, None, Asset]:
    """Make a textured mesh of a scene; yields the name of each phase as it begins.

    Args:
        faces, grid, smoothing, kept: as for ``surfaced``.
        texture: texels a side.
        unwrap_timeout: seconds for xatlas before a projection takes its place.

    Raises:
        EmptySceneError: nothing solid; the message has the numbers.
    """
    surface = yield from surfaced(scene, faces=faces, grid=grid, smoothing=smoothing, kept=kept)
    yield "unwrap"
    unwrapped = unwrap(surface, texture, unwrap_timeout)
    yield "bake"
    return Asset(surface, unwrapped, bake(scene, unwrapped, texture))


def export_asset(
    scene: Scene,
    folder: Path,
    *,
    faces: int,
    texture: int,
    grid: int,
    settings: dict[str, Any],
    prompt: str,
    distance: float,
    field_of_view: float,
    samples: Float[Tensor, "n 3 h w"] | None = None,
    before: Scene | None = None,
    region: Box | None = None,
    picture: int = 256,
    frames: int = 30,
    unwrap_timeout: float = 60.0,
    smoothing: int = 0,
) -> Generator[str, None, AssetReport]:
    """Write ``result.glb``, ``turntable.webp`` and ``contact_sheet.png`` into ``folder``, each whole or not at all.

    A cloud of gaussians also leaves ``splats.ply``, before anything is made of it that could fail.

    Yields the name of each phase as it begins (extract, clean, unwrap, bake, write, measure, pictures) and returns the
    report: ``report = yield from export_asset(...)``.

    Args:
        faces, texture, grid, unwrap_timeout, smoothing: as for ``textured``.
        settings: plain JSON values that travel in the file.
        prompt: the title of the contact sheet.
        distance, field_of_view: of the cameras that look back at the result, in world units and degrees.
        samples: the prior's own pictures, for the contact sheet.
        before: what an edit began with, for the contact sheet.
        region: the box outside of which the surface stays that of ``before``.
        picture: pixels a side of compared pictures and of the turntable.
        frames: of the turntable.

    Raises:
        EmptySceneError: nothing solid; the message has the numbers.
        OSError: the folder cannot be written.
    """
    clock = _Clock()
    if isinstance(scene, SplatScene):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "splats.ply", splat_ply_bytes(scene))
    kept = None if before is None or region is None else Kept(before, region)
    phases = textured(
        scene, faces=faces, texture=texture, grid=grid, unwrap_timeout=unwrap_timeout, smoothing=smoothing, kept=kept
    )
    made = yield from clock.timed(phases)
    path = folder / "result.glb"

    yield clock.start("write")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, glb_bytes(made.mesh, settings))

    yield clock.start("measure")
    asset, validator = load_glb(path), validate_glb(path)
    cameras = orbit(AZIMUTHS, [ELEVATION] * len(AZIMUTHS), picture, distance, field_of_view)
    there = cameras.to(made.mesh.vertices.device)
    shown, exported = _views(scene, there), _views(asset, cameras)

    yield clock.start("pictures")
    rows = [] if samples is None else [Row("prior samples", samples[: len(AZIMUTHS)])]
    rows += [] if before is None else [Row("before", _views(before, there).rgb)]
    rows += [Row("representation", shown.rgb), Row("result.glb, read back", exported.rgb)]
    write_atomically(folder / "contact_sheet.png", contact_sheet(prompt, rows))
    write_atomically(folder / "turntable.webp", turntable(asset, distance, field_of_view, frames, picture, ELEVATION))
    clock.stop()
    return _report(made, validator, clock.seconds, shown, exported)


def _report(
    made: Asset,
    validator: dict[str, int] | None,
    seconds: dict[str, float],
    shown: RenderOutput,
    exported: RenderOutput,
) -> AssetReport:
    """What can be said of an asset; ``shown`` and ``exported`` are pictures of the scene and of the file."""
    return AssetReport(
        faces=len(made.surface.faces),
        vertices=len(made.surface.vertices),
        watertight=is_watertight(made.surface),
        texture_size=made.mesh.texture.shape[-1],
        uv_fill=round(made.baked.uv_fill, 4),
        unwrap=made.unwrapped.method,
        unwrap_reason=made.unwrapped.reason,
        validator=validator,
        seconds=seconds,
        render_to_asset_psnr=round(psnr(shown, exported), 3),
        silhouette_iou=round(iou(shown, exported), 4),
    )


def _views(scene: Scene, cameras: Cameras) -> RenderOutput:
    """Pictures over white, one camera at a time, on the CPU."""
    pictures = []
    with torch.no_grad():
        for i in range(len(cameras)):
            camera = Cameras(cameras.pose[i : i + 1], cameras.focal[i : i + 1], cameras.size)
            pictures.append(scene.render(camera, torch.ones(1, 3, device=cameras.pose.device)))
    rgb, alpha, depth = (torch.cat([getattr(p, name) for p in pictures]).cpu() for name in ("rgb", "alpha", "depth"))
    return RenderOutput(rgb.clamp(0, 1), alpha, depth)


class _Clock:
    """Seconds of each phase, by the names in which phases announce themselves."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._since = 0.0

    def start(self, phase: str) -> str:
        self.stop()
        self._phase, self._since = phase, time.perf_counter()
        return phase

    def stop(self) -> None:
        if self._phase is not None:
            self.seconds[self._phase] = round(time.perf_counter() - self._since, 3)
        self._phase = None

    def timed(self, phases: Generator[str, None, Asset]) -> Generator[str, None, Asset]:
        while True:
            try:
                phase = next(phases)
            except StopIteration as end:
                return end.value
            yield self.start(phase)
