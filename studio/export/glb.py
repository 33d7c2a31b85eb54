"""GLB files out and in: binary glTF 2.0 with one mesh, one texture and the settings that made it.

The file is built by trimesh and finished here: generator, settings in ``asset.extras`` and nothing that varies from one
run to the next, so the same mesh and settings give the same bytes. glTF's world (+y up, front +z) is ours; coordinates
are written unchanged.
"""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from representations.textured_mesh import TexturedMesh

GENERATOR = "Dreamkiln"
_HEADER, _CHUNK_HEADER = struct.Struct("<4sII"), struct.Struct("<I4s")
_LARGEST_JSON = 1 << 26
_UNLIT = "KHR_materials_unlit"


def glb_bytes(mesh: TexturedMesh, settings: dict[str, Any]) -> bytes:
    """A GLB whose material shows the mesh's texture, quantised to 8 bits, as it is: KHR_materials_unlit.

    What a prior draws is lit already, and the texture is baked from it. A viewer's own lamps would light it once more:
    gr.Model3D's made a deep blue pale and purple. Viewers that do not know the extension see a rough surface.

    Args:
        mesh: finite, at least one face, uv in [0, 1].
        settings: plain JSON values; kept in ``asset.extras``.

    Raises:
        ValueError: the mesh cannot be a valid asset, or the settings are not JSON.
    """
    from trimesh.exchange.gltf import export_glb

    require_valid(mesh)
    try:
        json.dumps(settings, allow_nan=False)
    except TypeError as problem:
        raise ValueError(f"the settings are not plain JSON: {problem}") from problem

    def finish(tree: dict[str, Any]) -> None:
        tree["asset"] = {"version": "2.0", "generator": GENERATOR, "extras": settings}
        tree["extensionsUsed"] = [_UNLIT]
        for material in tree["materials"]:
            material["extensions"] = {_UNLIT: {}}

    return export_glb(_as_trimesh(mesh), include_normals=True, tree_postprocessor=finish)


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings inside a GLB of ours; None if the file is no GLB or has another maker."""
    try:
        asset = _read_tree(path)["asset"]
        extras = asset["extras"] if asset["generator"] == GENERATOR else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return extras if isinstance(extras, dict) else None


def load_glb(path: Path) -> TexturedMesh:
    """The textured mesh in a GLB, in world coordinates.

    Raises:
        ValueError: not a GLB, or not exactly one mesh with a base colour texture.
        OSError: the file cannot be read.
    """
    import trimesh

    content = io.BytesIO(path.read_bytes())
    try:
        scene = trimesh.load_scene(content, file_type="glb", process=False)
    except Exception as problem:
        raise ValueError(f"{path} cannot be read as GLB: {problem}") from problem
    nodes = list(scene.graph.nodes_geometry)
    if len(nodes) != 1:
        raise ValueError(f"{path} holds {len(nodes)} meshes; one with a texture is expected")
    transform, name = scene.graph[nodes[0]]
    mesh = scene.geometry[name]
    uv, picture = getattr(mesh.visual, "uv", None), _base_colour(mesh)
    if uv is None or picture is None:
        raise ValueError(f"{path}: the mesh has no base colour texture")
    vertices = trimesh.transform_points(mesh.vertices, transform)
    # trimesh counts v from the bottom, glTF and we from the top.
    flipped = np.stack([uv[:, 0], 1 - uv[:, 1]], -1)
    pixels = np.array(picture.convert("RGB"), dtype=np.float32) / 255
    texture = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return TexturedMesh(
        _float(vertices), torch.from_numpy(np.array(mesh.faces, dtype=np.int64)), _float(flipped), texture
    )


def quantised(picture: Tensor) -> np.ndarray:
    """[3, h, w] in [0, 1] to 8-bit [h, w, 3]."""
    return (picture.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def _as_trimesh(mesh: TexturedMesh):
    from PIL import Image
    from trimesh import Trimesh
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    material = PBRMaterial(
        name="surface",
        baseColorTexture=Image.fromarray(quantised(mesh.texture)),
        metallicFactor=0.0,
        roughnessFactor=1.0,
        doubleSided=False,
    )
    uv = mesh.uv.detach().cpu().double().numpy()
    return Trimesh(
        mesh.vertices.detach().cpu().numpy(),
        mesh.faces.cpu().numpy(),
        vertex_normals=mesh.normals.detach().cpu().numpy(),
        visual=TextureVisuals(np.stack([uv[:, 0], 1 - uv[:, 1]], -1), material=material),
        process=False,
    )


def _base_colour(mesh):
    material = getattr(mesh.visual, "material", None)
    return getattr(material, "baseColorTexture", None) if material is not None else None


def require_valid(mesh: TexturedMesh) -> None:
    """Refuse what no format of meshes should hold.

    Raises:
        ValueError: no faces, values that are not finite, or uv outside [0, 1].
    """
    if not len(mesh.faces):
        raise ValueError("a mesh without faces is no asset")
    for name in ("vertices", "uv", "texture"):
        if not getattr(mesh, name).isfinite().all():
            raise ValueError(f"{name} hold values that are not finite")
    if float(mesh.uv.min()) < 0 or float(mesh.uv.max()) > 1:
        raise ValueError(f"uv run from {float(mesh.uv.min()):g} to {float(mesh.uv.max()):g}, outside [0, 1]")


def _read_tree(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        magic, version, _ = _HEADER.unpack(_exactly(file, _HEADER.size))
        length, kind = _CHUNK_HEADER.unpack(_exactly(file, _CHUNK_HEADER.size))
        if magic != b"glTF" or version != 2 or kind != b"JSON" or length > _LARGEST_JSON:
            raise ValueError(f"{path} is not a GLB")
        return json.loads(_exactly(file, length))


def _exactly(file, count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise ValueError("the file ends too early")
    return content


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))
