"""Every format read back by another library: whole, finite, of the size asked for, in the colours that were baked."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from trimesh.visual.color import uv_to_interpolated_color

from representations.box import Box
from representations.scene import Mesh
from representations.splat_scene import SplatScene
from representations.textured_mesh import sample_texture
from studio.export.asset import Asset, Kept, surfaced, textured
from studio.export.formats import ENDINGS, Format, encoded, obj_zip_bytes, ply_bytes, stl_bytes, vertex_colours
from studio.export.glb import glb_bytes, load_glb, quantised, read_settings
from studio.export.measure import psnr
from studio.export.splat_ply import load_splat_ply
from studio.export.validate import VARIABLE, validate_glb
from studio.toybox.world import Toy
from tests.export.toy_scene import SETTINGS, ToyScene, toy_cameras

FACES, TEXELS = 1500, 128
SIZE: dict[str, Any] = {"faces": FACES, "texture": TEXELS, "grid": 48}


def result(phases):
    """What a generator returns, and what it said."""
    said = []
    while True:
        try:
            said.append(next(phases))
        except StopIteration as end:
            return end.value, said


@pytest.fixture(scope="module")
def asset() -> Asset:
    """A red mug, made once."""
    return result(textured(ToyScene(Toy("mug", "red")), **SIZE))[0]


WRITERS: dict[str, Callable[[Asset], bytes]] = {
    "glb": lambda asset: glb_bytes(asset.mesh, SETTINGS),
    "obj": lambda asset: obj_zip_bytes(asset.mesh, SETTINGS, "a-red-mug"),
    "stl": lambda asset: stl_bytes(asset.surface),
    "ply": ply_bytes,
}
"""Every format of meshes."""


def written(asset: Asset, format: str, folder: Path) -> Path:
    path = folder / f"mug{ENDINGS[format]}"  # pyright: ignore[reportArgumentType]
    path.write_bytes(WRITERS[format](asset))
    return path


def read(path: Path) -> Any:
    scene = trimesh.load_scene(path, process=False)
    (mesh,) = scene.geometry.values()
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh


def triangles(mesh: Any) -> np.ndarray:
    """Corners [f, 3, 3] of all faces."""
    return np.asarray(mesh.vertices, dtype=np.float32)[np.asarray(mesh.faces)]


@pytest.mark.parametrize("format", WRITERS)
def test_every_mesh_reads_back_whole_and_of_one_size(asset: Asset, format: str, tmp_path: Path):
    mesh = read(written(asset, format, tmp_path))
    assert 12 <= len(mesh.faces) <= FACES
    assert np.isfinite(mesh.vertices).all() and np.isfinite(mesh.vertex_normals).all()
    # The same triangles at the same places, in the same order: units and axes are those of the GLB.
    np.testing.assert_allclose(triangles(mesh), triangles(asset.surface), atol=1e-6)
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight and mesh.volume > 0


@pytest.mark.parametrize("format", WRITERS)
def test_the_same_asset_gives_the_same_bytes(asset: Asset, format: str):
    assert WRITERS[format](asset) == WRITERS[format](asset)


@pytest.mark.parametrize("format", ["glb", "obj"])
def test_textured_formats_show_the_baked_texture(asset: Asset, format: str, tmp_path: Path):
    mesh = read(written(asset, format, tmp_path))
    uv = np.asarray(mesh.visual.uv)
    assert uv.min() >= 0 and uv.max() <= 1
    material = mesh.visual.material
    picture = material.baseColorTexture if format == "glb" else material.image
    assert np.array_equal(np.asarray(picture.convert("RGB")), quantised(asset.mesh.texture))
    # Where a face looks into the picture is where it looked before, by another library's own lookup.
    shown = uv_to_interpolated_color(uv[mesh.faces].mean(1), picture)[:, :3] / 255
    baked = sample_texture(asset.mesh.texture, asset.mesh.uv[asset.mesh.faces].mean(1)).numpy()
    error = np.abs(shown - baked)
    assert np.quantile(error, 0.9) <= 2 / 255  # its lookup places texels half a texel elsewhere: edges of paint differ


def test_a_ply_has_the_colours_of_the_texture(asset: Asset, tmp_path: Path):
    mesh = read(written(asset, "ply", tmp_path))
    assert len(mesh.vertices) == len(asset.surface.vertices)  # welded
    colours = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255
    assert np.abs(colours - vertex_colours(asset).numpy()).max() <= 1 / 255
    assert (colours[:, 0] > 2 * colours[:, 1]).all()  # a red mug
    once = sample_texture(asset.mesh.texture, asset.mesh.uv)  # a vertex without a seam shows what lies at its uv
    first = torch.zeros(len(colours), 3).index_put((asset.surface.faces.flatten(),), once[asset.mesh.faces.flatten()])
    assert np.quantile(np.abs(colours - first.numpy()).max(1), 0.5) <= 1 / 255


def test_an_obj_comes_whole_with_its_settings(asset: Asset, tmp_path: Path):
    with zipfile.ZipFile(written(asset, "obj", tmp_path)) as archive:
        names = ["a-red-mug.obj", "a-red-mug.mtl", "a-red-mug.png", "settings.json"]
        assert archive.namelist() == names and archive.testzip() is None
        assert "mtllib a-red-mug.mtl" in archive.read(names[0]).decode()
        assert "map_Kd a-red-mug.png" in archive.read(names[1]).decode()
        assert json.loads(archive.read("settings.json")) == SETTINGS


def test_khronos_finds_nothing_in_any_size(gltf_validator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, str(gltf_validator))
    for faces, texels in ((60, 16), (700, 100)):
        content, _ = result(
            encoded(ToyScene(Toy("chair", "blue")), "glb", SETTINGS, "chair", faces=faces, texture=texels, grid=32)
        )
        path = tmp_path / f"{faces}.glb"
        path.write_bytes(content)
        assert validate_glb(path) == {"errors": 0, "warnings": 0} and read_settings(path) == SETTINGS
        mesh = load_glb(path)
        assert 12 <= len(mesh.faces) <= faces and mesh.texture.shape == (3, texels, texels)


def test_read_back_it_looks_like_the_scene(asset: Asset, tmp_path: Path):
    scene, cameras = ToyScene(Toy("mug", "red")), toy_cameras(range(0, 360, 90), 64)
    white = torch.ones(4, 3)
    shown = load_glb(written(asset, "glb", tmp_path)).render(cameras, white)
    assert psnr(scene.render(cameras, white), shown) > 20


def test_a_bare_surface_needs_no_texture():
    content, said = result(encoded(ToyScene(Toy("mug", "red")), "stl", {}, "mug", **SIZE))
    assert said == ["extract", "clean", "write"] and len(content) > 84


def test_a_mesh_without_faces_is_no_file():
    nothing = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="0 faces"):
        stl_bytes(nothing)


# Clouds ---------------------------------------------------------------------------------------------------------------


def cloud(count: int = 50) -> SplatScene:
    rng = torch.Generator().manual_seed(0)
    return SplatScene(
        means=torch.randn(count, 3, generator=rng) * 0.3,
        log_scales=torch.randn(count, 3, generator=rng) * 0.3 - 3,
        quaternions=torch.randn(count, 4, generator=rng),
        logit_opacities=torch.randn(count, generator=rng),
        sh=torch.randn(count, 4, 3, generator=rng) * 0.3,
    )


def test_a_splat_file_is_the_layout_that_viewers_read():
    scene = cloud()
    content, said = result(encoded(scene, "splat", {}, "cloud", **SIZE))
    assert said == ["write"] and len(content) == 32 * len(scene)
    found = {}
    for i in range(len(scene)):  # as a viewer unpacks it
        record = content[32 * i : 32 * i + 32]
        position, size = np.frombuffer(record[:12], "<f4"), np.frombuffer(record[12:24], "<f4")
        found[tuple(position)] = (size, np.frombuffer(record[24:28], "u1"), np.frombuffer(record[28:], "u1"))
    for i in range(len(scene)):
        size, colour, turn = found[tuple(scene.means[i].numpy())]
        np.testing.assert_allclose(size, scene.log_scales[i].exp(), rtol=1e-6)
        rgb = (0.5 + 0.28209479 * scene.sh[i, 0]).clamp(0, 1)
        np.testing.assert_allclose(colour[:3] / 255, rgb, atol=1 / 255)
        np.testing.assert_allclose(colour[3] / 255, scene.logit_opacities[i].sigmoid(), atol=1 / 255)
        quaternion = torch.nn.functional.normalize(scene.quaternions[i], dim=0)
        np.testing.assert_allclose((turn.astype(float) - 128) / 128, quaternion, atol=1.01 / 128)
    importance = [float(np.prod(size)) * colour[3] for size, colour, _ in found.values()]
    assert importance[0] == max(importance) and importance[-1] < np.median(importance)


def test_a_splat_ply_reads_back(tmp_path: Path):
    scene, path = cloud(), tmp_path / "cloud.ply"
    path.write_bytes(result(encoded(scene, "splat-ply", {}, "cloud", **SIZE))[0])
    assert torch.equal(load_splat_ply(path).means, scene.means)


@pytest.mark.parametrize("format", ["splat", "splat-ply"])
def test_a_scene_without_gaussians_is_no_cloud(format: Format):
    with pytest.raises(ValueError, match="holds gaussians"):
        result(encoded(ToyScene(Toy("mug", "red")), format, {}, "mug", **SIZE))


# What an edit inside a box leaves -------------------------------------------------------------------------------------


def test_outside_a_box_the_surface_is_that_of_what_was_edited():
    """A chair whose upper half is a mug's: below the cut the chair, above it the mug, and one closed solid."""
    chair, mug = ToyScene(Toy("chair", "blue")), ToyScene(Toy("mug", "red"))
    box = Box((-1.0, 0.05, -1.0), (1.0, 1.0, 1.0))
    knobs: dict[str, Any] = {"faces": 100_000, "grid": 32}
    mixed, _ = result(surfaced(mug, kept=Kept(chair, box), **knobs))
    own = {name: result(surfaced(scene, **knobs))[0] for name, scene in (("chair", chair), ("mug", mug))}
    below, above = (mixed.vertices[:, 1] < 0.05 - 1e-4), (mixed.vertices[:, 1] > 0.05 + 1e-4)
    assert below.any() and above.any()
    for part, name in ((below, "chair"), (above, "mug")):
        distance = torch.cdist(mixed.vertices[part], own[name].vertices).amin(1)
        assert float(distance.max()) < 1e-3  # a cell is 0.06
    assert trimesh.Trimesh(mixed.vertices.numpy(), mixed.faces.numpy(), process=False).is_watertight
