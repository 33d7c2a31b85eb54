"""The steps of an export, one at a time, on shapes that are known."""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import studio
from representations.extraction import extract_surface, sample_grid
from representations.scene import Mesh
from representations.textured_mesh import TexturedMesh
from studio.export.bake import fill_gutter
from studio.export.cleanup import clean, drop_floaters, is_watertight, smooth
from studio.export.glb import glb_bytes, load_glb, read_settings
from studio.export.pictures import Row, contact_sheet, save_png
from studio.export.projection import project
from studio.export.unwrap import unwrap
from studio.export.validate import VARIABLE, validate_glb


def balls(*spheres: tuple[float, float]) -> Mesh:
    """Balls (x, radius) as a surface, 48 samples a side."""

    def density(points: torch.Tensor) -> torch.Tensor:
        inside = [r - (points - points.new_tensor([x, 0, 0])).norm(dim=-1) for x, r in spheres]
        return 1 + torch.stack(inside).amax(0)

    return extract_surface(sample_grid(density, 1.0, 48), 1.0, 1.0)


def shell(outer: float, inner: float) -> Mesh:
    """A ball with a cavity that no one can see."""
    return extract_surface(
        sample_grid(lambda p: 1 + torch.minimum(outer - p.norm(dim=-1), p.norm(dim=-1) - inner), 1.0, 48), 1.0, 1.0
    )


def test_floaters_go_and_companions_stay():
    kept = drop_floaters(balls((-0.3, 0.5), (0.6, 0.25), (0.95, 0.05)))
    assert 0.8 < float(kept.vertices[:, 0].max()) < 0.87


def test_a_cavity_is_filled():
    hollow = shell(0.8, 0.5)
    assert float(hollow.vertices.norm(dim=-1).min()) < 0.55
    assert float(clean(hollow, 100_000).vertices.norm(dim=-1).min()) > 0.75


def test_decimation_keeps_the_surface_closed():
    ball = balls((0.0, 0.7))
    few = clean(ball, 500, smoothing=2)
    assert is_watertight(few) and len(few.faces) <= 500
    assert abs(float(few.vertices.norm(dim=-1).mean()) - 0.7) < 0.01
    assert not is_watertight(Mesh(few.vertices, few.faces[1:]))
    assert not is_watertight(Mesh(few.vertices, few.faces[:0]))


def test_smoothing_removes_noise_and_keeps_size():
    ball = balls((0.0, 0.7))
    noise = 0.01 * torch.randn(ball.vertices.shape, generator=torch.Generator().manual_seed(0))
    smoothed = smooth(Mesh(ball.vertices + noise, ball.faces), 5).vertices.norm(dim=-1)
    assert float(smoothed.std()) < 0.5 * float((ball.vertices + noise).norm(dim=-1).std())
    assert abs(float(smoothed.mean()) - 0.7) < 0.01


@pytest.mark.parametrize("timeout", [60.0, 0.01])
def test_charts_never_overlap(timeout: float):
    mesh = clean(balls((-0.3, 0.5), (0.6, 0.25)), 800)
    flat = unwrap(mesh, 256, timeout)
    assert flat.method == ("xatlas" if timeout > 1 else "projection")
    assert torch.equal(flat.vertices[flat.faces], mesh.vertices[mesh.faces])
    assert float(flat.uv.min()) >= 0 and float(flat.uv.max()) <= 1
    # Where no triangle hides another, the areas in the texture add up to what is covered.
    area, covered = texture_area(flat.uv[flat.faces]), coverage(flat)
    assert abs(area - covered) < 0.01 and covered > 0.3


def texture_area(corners: torch.Tensor) -> float:
    u, v = (corners[:, 1:] - corners[:, :1]).unbind(1)
    return float((u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).abs().sum() / 2)


def coverage(flat) -> float:
    from representations.textured_mesh import texel_geometry

    return float(texel_geometry(flat.vertices, flat.faces, flat.uv, (1024, 1024))[2].float().mean())


def test_the_projection_finishes_on_soup():
    generator = np.random.default_rng(0)
    vertices = generator.normal(size=(9000, 3)).astype(np.float32)
    faces = generator.integers(0, 9000, size=(6000, 3)).astype(np.int64)
    faces[:50] = faces[0, 0]  # without area
    source, corners, uv = project(vertices, faces, 64)
    assert np.array_equal(source[corners], faces)
    assert np.isfinite(uv).all() and uv.min() >= 0 and uv.max() <= 1


def test_unwrapping_ends_even_if_nobody_is_left_to_end_it(tmp_path: Path):
    (tmp_path / "xatlas.py").write_text("import time; Atlas = lambda: time.sleep(60)")
    given = {"vertices": np.zeros((3, 3), np.float32), "faces": np.array([[0, 1, 2]], np.uint32)}
    np.savez(tmp_path / "mesh.npz", **given, resolution=8, padding=0, seconds=0.2)
    command = [sys.executable, "-m", "studio.export.unwrap_worker", "mesh.npz", "atlas.npz"]
    path = os.pathsep.join((str(tmp_path), str(Path(studio.__file__).parents[1])))
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, timeout=30, check=False)
    assert done.returncode == -signal.SIGALRM


def test_the_gutter_repeats_the_nearest_texel():
    texture = torch.zeros(4, 4, 3)
    texture[1, 1], texture[1, 3] = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    covered = torch.zeros(4, 4, dtype=torch.bool)
    covered[1, 1] = covered[1, 3] = True
    filled = fill_gutter(texture, covered)
    assert torch.equal(filled[3, 0], texture[1, 1]) and torch.equal(filled[0, 3], texture[1, 3])


def tetrahedron(size: int = 5) -> TexturedMesh:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    uv = torch.tensor([[0.0, 0.0], [1.0, 0.25], [0.3, 1.0], [0.6, 0.7]])
    texture = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    return TexturedMesh(vertices, faces, uv, texture)


def test_a_glb_comes_back_as_it_went(tmp_path: Path):
    mesh, path = tetrahedron(), tmp_path / "a.glb"
    path.write_bytes(glb_bytes(mesh, {"a": 1}))
    back = load_glb(path)
    assert torch.equal(back.vertices, mesh.vertices) and torch.equal(back.faces, mesh.faces)
    torch.testing.assert_close(back.uv, mesh.uv)
    assert float((back.texture - mesh.texture).abs().max()) <= 0.5001 / 255
    assert validate_glb(path) in (None, {"errors": 0, "warnings": 0})


def test_the_material_is_rough_and_single_sided(tmp_path: Path):
    content = glb_bytes(tetrahedron(), {"a": 1})
    assert len(content) % 4 == 0 and struct.unpack("<I", content[8:12])[0] == len(content)
    length = struct.unpack("<I", content[12:16])[0]
    tree = json.loads(content[20 : 20 + length])
    material = tree["materials"][0]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert material["pbrMetallicRoughness"]["roughnessFactor"] == 1
    assert not material.get("doubleSided", False)
    assert tree["asset"] == {"version": "2.0", "generator": "Dreamkiln", "extras": {"a": 1}}
    assert set(tree["meshes"][0]["primitives"][0]["attributes"]) == {"POSITION", "NORMAL", "TEXCOORD_0"}
    assert tree["images"][0]["mimeType"] == "image/png"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("vertices", float("nan"), "vertices hold values that are not finite"), ("uv", 1.5, "outside")],
)
def test_a_broken_mesh_is_never_written(name: str, value: float, words: str):
    fields = {n: getattr(tetrahedron(), n).clone() for n in ("vertices", "faces", "uv", "texture")}
    fields[name][1, 0] = value
    with pytest.raises(ValueError, match=words):
        glb_bytes(TexturedMesh(**fields), {})


def test_settings_must_be_plain():
    with pytest.raises(ValueError, match="plain JSON"):
        glb_bytes(tetrahedron(), {"path": Path("x")})
    with pytest.raises(ValueError, match="JSON compliant"):
        glb_bytes(tetrahedron(), {"loss": float("nan")})


@pytest.mark.parametrize(
    "content", [b"", b"glTF", b"not a model at all, nor long", b"glTF\2\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7fJSON{"]
)
def test_files_that_are_not_ours_have_no_settings(tmp_path: Path, content: bytes):
    path = tmp_path / "a.glb"
    path.write_bytes(content)
    assert read_settings(path) is None
    with pytest.raises(ValueError, match="cannot be read as GLB"):
        load_glb(path)


def test_a_missing_validator_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert validate_glb(tmp_path / "a.glb") is None


def test_pictures(tmp_path: Path):
    from PIL import Image

    save_png(torch.full((3, 4, 6), 0.5), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (6, 4) and image.getpixel((0, 0)) == (128, 128, 128)
    sheet = contact_sheet("a very long prompt " * 40, [Row("one", torch.rand(2, 3, 16, 8))], cell=64)
    assert sheet.startswith(b"\x89PNG")
