"""A toy from scene to file: what comes out is a valid asset that shows the toy."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from representations.scene import EmptySceneError
from studio.export.glb import glb_bytes, load_glb, read_settings
from studio.export.measure import render_to_asset_psnr, silhouette_iou
from studio.export.validate import VARIABLE, validate_glb
from studio.toybox.world import Toy
from tests.export.toy_scene import SETTINGS, Export, ToyScene, export, toy_cameras


def test_the_asset_shows_the_scene(mug: Export):
    assert mug.report.render_to_asset_psnr >= 20
    assert mug.report.silhouette_iou >= 0.9
    assert mug.report.watertight and 2900 <= mug.report.faces <= 3000
    assert mug.report.uv_fill > 0.3 and mug.report.unwrap == "xatlas" and mug.report.unwrap_reason is None
    assert mug.phases == ["extract", "clean", "unwrap", "bake", "write", "measure", "pictures"]
    assert list(mug.report.seconds) == mug.phases


def test_the_file_holds_a_whole_finite_mesh(mug: Export):
    mesh = load_glb(mug.glb)
    assert len(mesh.faces) == mug.report.faces
    for values in (mesh.vertices, mesh.uv, mesh.texture, mesh.normals):
        assert values.isfinite().all()
    assert float(mesh.uv.min()) >= 0 and float(mesh.uv.max()) <= 1
    torch.testing.assert_close(mesh.normals.norm(dim=-1), torch.ones(len(mesh.vertices)))
    assert mesh.texture.shape == (3, 256, 256)


def test_the_mug_is_hollow_has_a_handle_and_is_red(mug: Export):
    mesh = load_glb(mug.glb)
    down = mesh.render(toy_cameras([0], 96, elevation=80), torch.ones(1, 3))
    # The axis of the cup (x = -0.1) lies a little left of the middle; its floor is 0.78 below the rim.
    depth = down.depth[0, 0, 48, 30:62]
    assert float(depth.max() - depth[depth > 0].min()) > 0.5
    side = mesh.render(toy_cameras([0], 96, elevation=0), torch.ones(1, 3)).alpha[0, 0, 48] > 0.5
    # Along the middle row: the body, the hole of the handle, the handle.
    assert int((side[1:] & ~side[:-1]).sum()) == 2
    assert (mesh.texture[0] > 2 * mesh.texture[1]).all()


def test_colours_survive_the_file(mug: Export):
    """The texture is nearest-surface equal to the scene's colours: within 2/255 wherever a texel asked."""
    mesh = load_glb(mug.glb)
    corners = mesh.vertices[mesh.faces]
    points = corners.mean(1)
    normals = torch.nn.functional.normalize(
        torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dim=-1
    )
    error = (mesh.surface_colour(points, normals) - mug.scene.surface_colour(points, normals)).abs()
    assert float(error.median()) < 2 / 255 and float(error.quantile(0.9)) < 6 / 255


def test_the_same_input_gives_the_same_bytes(mug: Export, tmp_path: Path):
    again = export(mug.scene, tmp_path)
    assert again.glb.read_bytes() == mug.glb.read_bytes()
    mesh = load_glb(mug.glb)
    assert glb_bytes(mesh, SETTINGS) == glb_bytes(mesh.detach(), SETTINGS)


def test_settings_travel_in_the_file(mug: Export):
    assert read_settings(mug.glb) == SETTINGS


def test_measures_of_scenes_agree_with_the_report(mug: Export):
    cameras = toy_cameras(range(0, 360, 45), 96)
    asset = load_glb(mug.glb)
    assert abs(render_to_asset_psnr(mug.scene, asset, cameras) - mug.report.render_to_asset_psnr) < 0.01
    assert abs(silhouette_iou(mug.scene, asset, cameras) - mug.report.silhouette_iou) < 0.001
    assert render_to_asset_psnr(asset, asset, cameras) == 100 and silhouette_iou(asset, asset, cameras) == 1


def test_pictures_are_written(mug: Export):
    with Image.open(mug.folder / "turntable.webp") as turning:
        assert (turning.size, getattr(turning, "n_frames", 1)) == ((96, 96), 4)
    with Image.open(mug.folder / "contact_sheet.png") as sheet:
        assert sheet.width == 8 + 8 * 136
    assert sorted(p.name for p in mug.folder.iterdir()) == ["contact_sheet.png", "result.glb", "turntable.webp"]


def test_the_texture_is_shown_as_it_was_baked(mug: Export):
    """Lit already: viewers are told not to light it again, and the fallback is as rough as can be."""
    content = mug.glb.read_bytes()
    tree = json.loads(content[20 : 20 + int.from_bytes(content[12:16], "little")])
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    (material,) = tree["materials"]
    assert material["extensions"] == {"KHR_materials_unlit": {}}
    shown = material["pbrMetallicRoughness"]
    assert (shown["metallicFactor"], shown["roughnessFactor"]) == (0, 1)


def test_khronos_finds_nothing(mug: Export, gltf_validator: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, str(gltf_validator))
    assert validate_glb(mug.glb) == {"errors": 0, "warnings": 0}


def test_a_late_xatlas_is_replaced_by_a_projection(tmp_path: Path):
    chair = export(ToyScene(Toy("chair", "blue")), tmp_path, unwrap_timeout=0.01, texture=512)
    assert chair.report.unwrap == "projection" and chair.report.unwrap_reason == "xatlas took longer than 0.01 s"
    assert chair.report.render_to_asset_psnr >= 20 and chair.report.silhouette_iou >= 0.9
    assert validate_glb(chair.glb) in (None, {"errors": 0, "warnings": 0})


class Nothing(ToyScene):
    """A toy whose density is nowhere."""

    def density(self, points: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(points))


def test_an_empty_scene_writes_nothing_and_says_why(tmp_path: Path):
    with pytest.raises(EmptySceneError, match=r"largest density 0, largest opacity 1\.000"):
        export(Nothing(Toy("mug", "red")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
