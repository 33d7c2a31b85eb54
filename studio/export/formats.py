"""The files that a scene can leave as. Sizes, units and axes are the same in all of them: +y up, front +z.

Meshes: GLB, OBJ with material and texture in a ZIP, STL (the bare surface) and PLY (a colour for each vertex). Clouds
of gaussians: the PLY of ``splat_ply``, and ``.splat``, which web viewers stream. The same input gives the same bytes.
"""

import io
import json
import struct
import zipfile
from collections.abc import Generator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from representations.scene import Mesh, Scene
from representations.splat_scene import SH_ZERO, SplatScene
from representations.textured_mesh import TexturedMesh, sample_texture
from studio.export.asset import Asset, Kept, surfaced, textured
from studio.export.glb import glb_bytes, quantised, require_valid
from studio.export.pictures import png_bytes
from studio.export.splat_ply import splat_ply_bytes

Format = Literal["glb", "obj", "stl", "ply", "splat-ply", "splat"]

ENDINGS: dict[Format, str] = {
    "glb": ".glb",
    "obj": ".zip",
    "stl": ".stl",
    "ply": ".ply",
    "splat-ply": ".splats.ply",
    "splat": ".splat",
}
"""How a file of each format ends."""
CLOUDS: tuple[Format, ...] = ("splat-ply", "splat")
"""Formats that hold gaussians, and nothing else."""
_MATERIAL = "newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nd 1\nillum 0\nmap_Kd {picture}\n"
"""Colour without light, as in a GLB."""
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The time of everything in a ZIP, so that the same content gives the same bytes."""


def encoded(
    scene: Scene,
    format: Format,
    settings: dict[str, Any],
    name: str,
    *,
    faces: int,
    texture: int,
    grid: int,
    smoothing: int = 0,
    kept: Kept | None = None,
) -> Generator[str, None, bytes]:
    """A scene as the bytes of a file; yields the name of each phase as it begins.

    Args:
        settings: plain JSON values that travel with a GLB or an OBJ.
        name: of the files inside a ZIP, letters, digits and hyphens.
        faces, texture, grid, smoothing, kept: as for ``textured``.

    Raises:
        EmptySceneError: nothing solid; the message has the numbers.
        ValueError: a format of gaussians for a scene of another kind.
    """
    if format in CLOUDS:
        if not isinstance(scene, SplatScene):
            raise ValueError(f"{format} holds gaussians, and this is a {type(scene).__name__}")
        yield "write"
        return splat_ply_bytes(scene) if format == "splat-ply" else splat_bytes(scene)
    if format == "stl":
        surface = yield from surfaced(scene, faces=faces, grid=grid, smoothing=smoothing, kept=kept)
        yield "write"
        return stl_bytes(surface)
    asset = yield from textured(scene, faces=faces, texture=texture, grid=grid, smoothing=smoothing, kept=kept)
    yield "write"
    if format == "glb":
        return glb_bytes(asset.mesh, settings)
    return obj_zip_bytes(asset.mesh, settings, name) if format == "obj" else ply_bytes(asset)


def obj_zip_bytes(mesh: TexturedMesh, settings: dict[str, Any], name: str) -> bytes:
    """A ZIP of ``name``.obj, .mtl and .png, and the settings as JSON.

    Raises:
        ValueError: the mesh cannot be a valid asset.
    """
    from PIL import Image

    require_valid(mesh)
    files = {
        f"{name}.obj": _obj_text(mesh, name).encode(),
        f"{name}.mtl": _MATERIAL.format(picture=f"{name}.png").encode(),
        f"{name}.png": png_bytes(Image.fromarray(quantised(mesh.texture))),
        "settings.json": json.dumps(settings, indent=2, allow_nan=False).encode(),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, _LONG_AGO)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def stl_bytes(surface: Mesh) -> bytes:
    """A surface as binary STL: triangles and their normals, no colour.

    Raises:
        ValueError: no faces, or vertices that are not finite.
    """
    vertices, faces = _arrays(surface)
    corners = vertices[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    table = np.zeros(len(faces), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("free", "<u2")])
    table["corners"] = corners
    table["normal"] = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-30)
    return b"Dreamkiln".ljust(80) + struct.pack("<I", len(faces)) + table.tobytes()


def ply_bytes(asset: Asset) -> bytes:
    """The welded surface as binary PLY; a vertex has the mean of the texture's colours around it.

    Raises:
        ValueError: no faces, or vertices that are not finite.
    """
    vertices, faces = _arrays(asset.surface)
    points = np.zeros(len(vertices), [("position", "<f4", 3), ("colour", "u1", 3)])
    points["position"], points["colour"] = vertices, _bytes(vertex_colours(asset))
    triangles = np.zeros(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    triangles["count"], triangles["corners"] = 3, faces
    lines = ["ply", "format binary_little_endian 1.0", "comment Dreamkiln", f"element vertex {len(points)}"]
    lines += [*(f"property float {axis}" for axis in "xyz")]
    lines += [*(f"property uchar {colour}" for colour in ("red", "green", "blue"))]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(lines).encode() + points.tobytes() + triangles.tobytes()


def vertex_colours(asset: Asset) -> Tensor:
    """sRGB in [0, 1] of the welded surface's vertices [v, 3]: the mean over the corners that meet in each."""
    shown = sample_texture(asset.mesh.texture, asset.mesh.uv)[asset.unwrapped.faces].flatten(0, 1)
    place = asset.surface.faces.flatten()
    total = shown.new_zeros(len(asset.surface.vertices), 4)
    total = total.index_add(0, place, torch.cat([shown, torch.ones_like(shown[:, :1])], 1))
    return total[:, :3] / total[:, 3:].clamp_min(1)


def splat_bytes(scene: SplatScene) -> bytes:
    """A cloud as ``.splat``: 32 bytes a gaussian, largest and most opaque first, so that a stream shows those early.

    Position and semi-axes as float32, then bytes: red, green, blue, opacity, and the quaternion's w, x, y, z as
    128 + 128 q. Colours are those of the constant harmonic; the layout has no place for others.
    """
    still = scene.detach()
    opacity = still.logit_opacities.sigmoid()
    order = (opacity.log() + still.log_scales.sum(1)).argsort(descending=True, stable=True)
    colour = 0.5 + SH_ZERO * still.sh[:, 0]
    table = np.zeros(len(still), [("position", "<f4", 3), ("size", "<f4", 3), ("colour", "u1", 4), ("turn", "u1", 4)])
    table["position"] = still.means[order].cpu().numpy()
    table["size"] = still.log_scales.exp()[order].cpu().numpy()
    table["colour"] = _bytes(torch.cat([colour, opacity[:, None]], 1)[order])
    turn = 128 + 128 * normalize(still.quaternions, dim=1)[order]
    table["turn"] = turn.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return table.tobytes()


def _obj_text(mesh: TexturedMesh, name: str) -> str:
    def rows(kind: str, values: Tensor) -> list[str]:
        return [f"{kind} " + " ".join(f"{x:.9g}" for x in row) for row in values.detach().cpu().tolist()]

    # OBJ counts v from the bottom, we from the top; and corners from 1.
    uv = torch.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], 1)
    lines = ["# Dreamkiln", f"mtllib {name}.mtl", f"o {name}", *rows("v", mesh.vertices), *rows("vt", uv)]
    lines += [*rows("vn", mesh.normals), "usemtl surface"]
    lines += ["f " + " ".join(f"{i}/{i}/{i}" for i in face) for face in (mesh.faces + 1).tolist()]
    return "\n".join([*lines, ""])


def _arrays(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces = mesh.vertices.detach().cpu().float().numpy(), mesh.faces.cpu().numpy()
    if not len(faces) or not np.isfinite(vertices).all():
        raise ValueError(f"a mesh of {len(faces)} faces whose vertices must be finite is no asset")
    return vertices, faces


def _bytes(values: Tensor) -> np.ndarray:
    return (values.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
