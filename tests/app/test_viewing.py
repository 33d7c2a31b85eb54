"""What a page is told: all of it at first, then only what changed, and no file twice."""

import io
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trimesh import Trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from guidance.prior_folder import default_hints
from representations.cameras import orbit
from representations.splat_scene import SplatScene
from studio.app import panels
from studio.app import shelf as shelf_module
from studio.app.exported import exported
from studio.app.form import Form
from studio.app.maps import textures, write_maps
from studio.app.pictures import boxed_views, corners, newest_previews, preview_uri, project, thumbnail
from studio.app.service import Run, Service
from studio.app.settings_panel import settings_panel
from studio.app.shelf import Shelf, fitted_splats
from studio.app.viewing import FILES, LIVE, MESH, REPORT, files, frame
from studio.export.splat_ply import load_splat_ply, splat_ply_bytes
from studio.jobs.progress import Progress
from studio.recipes import RECIPES

HOSTILE = "<img src=x onerror=alert(1)> \" ' & {{x}} ${y}"


def test_an_empty_page_welcomes(service: Service) -> None:
    new = frame(service, "", "", {})
    assert new is not None and new.view == "" and new.flags == {"any": False, "splats": False, "done": False}
    assert "Say what to make" in new.pieces["welcome"] and "Nothing waits" in new.pieces["queue"]
    assert frame(service, "", new.view, new.seen) is None


def test_a_submitted_job_shows_itself_and_its_place(service: Service) -> None:
    ids = service.submit(Form("a {red|blue} mug", prior="tiny"))
    new = frame(service, ids[1], "", {})
    assert new is not None and new.view == LIVE and new.turned and new.wanted == f"{ids[1]} - -"
    assert "2nd in the queue" in new.pieces["strip"] and f'data-job="{ids[1]}"' in new.pieces["strip"]
    assert new.pieces["queue"].count("dk-row") == 2 and "No preview" in new.pieces[LIVE]
    assert frame(service, ids[1], new.view, new.seen) is None
    service.act("pause", ids[0])
    later = frame(service, ids[1], new.view, new.seen)
    assert later is not None and set(later.pieces) == {"queue", "strip"} and later.flags == {}


def test_a_finished_run_shows_its_mesh_once(studio: Service, shelf: Shelf) -> None:
    (run,) = studio.finished()
    new = frame(studio, run.ref, "", {})
    assert new is not None and new.view == MESH and new.flags == {"any": True, "splats": False, "done": True}
    changes, have = files(studio, shelf, new.wanted, {})
    path = changes[MESH]
    assert path is not None and Path(path).read_bytes() == (run.folder / "result.glb").read_bytes()
    assert Path(path).name == "a-red-cube.glb" and Path(path).is_relative_to(shelf.folder)
    assert files(studio, shelf, new.wanted, have) == ({}, have)  # the camera stays where it is
    report = frame(studio, run.ref, REPORT, new.seen)
    assert report is not None and report.view == REPORT and "Like what was optimised" in report.pieces[REPORT]
    assert files(studio, shelf, report.wanted, have)[0] == {}
    back = frame(studio, run.ref, MESH, report.seen)
    assert back is not None and files(studio, shelf, back.wanted, have)[0] == {}


def test_every_file_of_a_finished_run_is_shown(studio: Service, shelf: Shelf) -> None:
    (run,) = studio.finished()
    for view in set(FILES) - {"splats"}:
        new = frame(studio, run.ref, view, {"ref": run.ref, "flags": {"done": True}})
        assert new is not None and new.view == view
        path = files(studio, shelf, new.wanted, {})[0][view]
        assert path is not None and Path(path).stat().st_size > 100
    assert frame(studio, run.ref, "splats", {}).view == MESH  # type: ignore[union-attr]  # it has none


def test_another_run_takes_the_viewers_over(studio: Service, service: Service, shelf: Shelf) -> None:
    (run,) = studio.finished()
    wanted = frame(studio, run.ref, "", {})
    assert wanted is not None
    _, have = files(studio, shelf, wanted.wanted, {})
    changes, have = files(studio, shelf, "another - -", have)
    assert changes == {MESH: None} and have == {"ref": "another"}


def test_a_page_that_watched_turns_to_the_mesh_when_it_is_there(studio: Service) -> None:
    (run,) = studio.finished()
    seen = {"ref": run.ref, "flags": {"any": True, "splats": False, "done": False}}
    new = frame(studio, run.ref, LIVE, seen)
    assert new is not None and new.view == MESH and new.turned
    again = frame(studio, run.ref, LIVE, new.seen)  # who then looks at the making stays there
    assert again is not None and again.view == LIVE


def test_live_shows_the_newest_preview_and_the_way_there(studio: Service) -> None:
    (run,) = studio.finished()
    shown = panels.live(run, studio.progress(run))
    steps = [int(path.stem) for path in newest_previews(run.folder, 99)]
    assert f'data-step="{steps[-1]}"' in shown and shown.count("<figure>") == len(steps) - 1
    assert shown.count("data:image/webp;base64,") == len(steps)


def test_strangers_text_is_escaped(service: Service) -> None:
    (id,) = service.submit(Form(HOSTILE, prior="tiny"))
    run = service.find(id)
    assert isinstance(run, Run)
    new = frame(service, id, "", {})
    assert new is not None
    progress = Progress(phase=HOSTILE, stage=HOSTILE, device=HOSTILE, warnings=[HOSTILE], error=HOSTILE)
    plan = service.plan(Form(HOSTILE + " {a|b}", prior="tiny"))
    pieces = [
        *new.pieces.values(),
        panels.strip(run, HOSTILE, progress, 1, True, HOSTILE),
        panels.history([(run, HOSTILE, 0)], ""),
        panels.history([], HOSTILE),
        panels.planned(plan),
        settings_panel(RECIPES["draft"](HOSTILE, True), [HOSTILE], 0),
    ]
    for piece in pieces:
        assert "<img src=x" not in piece
    assert "&lt;img src=x" in pieces[0]


def test_the_settings_panel_shows_every_knob_with_its_help() -> None:
    panel = settings_panel(RECIPES["fine"]("a mug", True), ["export.faces"], 1)
    assert ('data-knob="stages.1.guidance.scale"' in panel and "About how many" in panel) or "Most triangles" in panel
    assert panel.count("dk-changed") == 1 and panel.count("<details") == panel.count("</details>")
    assert 'data-revision="1"' in panel


# Pictures and files ---------------------------------------------------------------------------------------------------


def test_thumbnails_are_small_and_follow_the_file(studio: Service, tmp_path: Path) -> None:
    (run,) = studio.finished()
    assert thumbnail(run.folder, 64).startswith("data:image/webp;base64,") and len(thumbnail(run.folder, 64)) < 4000
    assert thumbnail(tmp_path) == "" and preview_uri(tmp_path / "none.png") == ""
    (tmp_path / "previews").mkdir()
    shown = []
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 16), colour).save(tmp_path / "previews" / "000001.png")
        shown.append(thumbnail(tmp_path))
    assert shown[0] != shown[1]
    (tmp_path / "previews" / "000001.png").write_bytes(b"half a")
    assert thumbnail(tmp_path) == ""


def test_a_box_is_drawn_where_the_cameras_see_it(studio: Service) -> None:
    low, high, hints = (-0.4, -0.3, -0.2), (0.4, 0.3, 0.2), default_hints()
    distance, view = hints["distance"], hints["field_of_view"]
    box = corners(low, high)
    assert len(set(box)) == 8 and box[0] == low and box[7] == high
    for azimuth in (0, 90, 200):
        camera = orbit([azimuth], [15], 64, distance, view)
        origins, directions = camera.rays()
        for corner, (x, y, before) in zip(box, project(box, azimuth, 64, distance, view), strict=True):
            assert before
            towards = torch.nn.functional.normalize(torch.tensor(corner) - origins[0], dim=0)
            row, column = int(y), int(x)
            assert float(directions[0, row, column] @ towards) > 0.9998  # the ray of that very pixel
    sheet = boxed_views(studio.finished()[0].folder, low, high, distance, view)
    assert sheet is not None and sheet.size == (64, 64)
    ink = (np.abs(np.asarray(sheet).astype(int) - (234, 88, 12)).sum(-1) < 60).reshape(2, 32, 2, 32).sum((1, 3))
    assert (ink > 20).all()  # in each of the four views
    assert boxed_views(Path("/nowhere"), low, high, distance, view) is None


def test_the_shelf_copies_once_for_each_state(tmp_path: Path, shelf: Shelf) -> None:
    source = tmp_path / "a.glb"
    assert shelf.copy(source, "a.glb") is None
    source.write_bytes(b"one")
    first = shelf.copy(source, "a.glb")
    assert first is not None and shelf.copy(source, "a.glb") == first
    source.unlink()
    source.write_bytes(b"three")
    second = shelf.copy(source, "a.glb")
    assert second is not None and second != first and Path(second).read_bytes() == b"three"
    assert Path(first).read_bytes() == b"one" and not list(shelf.folder.rglob(".*"))


def test_the_texture_of_a_result(studio: Service, tmp_path: Path) -> None:
    (run,) = studio.finished()
    write_maps(run.folder / "result.glb", tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert image.size == (64, 64) and image.format == "PNG"
    found = textures(run.folder / "result.glb")
    assert list(found) == ["Base colour"] and (tmp_path / "map.png").read_bytes() == found["Base colour"]


def test_all_textures_of_a_surface_are_side_by_side(tmp_path: Path) -> None:
    colours = {"baseColorTexture": (200, 40, 90), "metallicRoughnessTexture": (0, 250, 10), "normalTexture": (128,) * 3}
    pictures: dict[str, Any] = {name: Image.new("RGB", (32, 32), colour) for name, colour in colours.items()}
    corners, faces = [[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]
    visual = TextureVisuals(np.array(corners)[:, :2], material=PBRMaterial(**pictures))
    content = Trimesh(corners, faces, visual=visual, process=False).export(file_type="glb")
    assert isinstance(content, bytes)
    (tmp_path / "a.glb").write_bytes(content)
    assert [name.split(" ")[0] for name in textures(tmp_path / "a.glb")] == ["Base", "Roughness", "Normals"]
    write_maps(tmp_path / "a.glb", tmp_path / "maps.png")
    with Image.open(tmp_path / "maps.png") as sheet:
        width, height = sheet.size
        shown = [sheet.getpixel((x + 16, height - 16)) for x in (0, 48, 96)]
    assert width == 3 * 32 + 2 * 16 and shown == list(colours.values())
    bare = Trimesh(corners, faces, process=False).export(file_type="glb")
    assert isinstance(bare, bytes)
    (tmp_path / "bare.glb").write_bytes(bare)
    with pytest.raises(ValueError, match="no texture"):
        write_maps(tmp_path / "bare.glb", tmp_path / "none.png")


def test_the_shelf_is_swept(tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "_EVERY", 0.0)
    runs = [tmp_path / name for name in ("kept", "gone", "cleared")]
    rooms = []
    for run in runs:
        run.mkdir()
        (run / "result.glb").write_bytes(run.name.encode())
        rooms.append(shelf.room(run))
        (rooms[-1] / "a.zip").write_bytes(b"exported")
    copies = [Path(str(shelf.copy(run / "result.glb", "a.glb"))) for run in runs]
    shelf.sweep()
    assert all(room.is_dir() for room in rooms) and all(copy.is_file() for copy in copies)
    shutil.rmtree(runs[1])
    shelf.sweep()
    assert [room.is_dir() for room in rooms] == [copy.is_file() for copy in copies] == [True, False, True]
    shelf.forget(runs[2])
    assert [room.is_dir() for room in rooms] == [copy.is_file() for copy in copies] == [True, False, False]
    for folder in (rooms[0], copies[0].parent):
        os.utime(folder, (time.time() - 3700, time.time() - 3700))
    shelf.sweep()
    assert (rooms[0].is_dir(), copies[0].is_file()) == (False, True), "an export stays an hour, a copy a day"
    os.utime(copies[0].parent, (time.time() - 80_000, time.time() - 80_000))
    assert shelf.copy(runs[0] / "result.glb", "a.glb") == str(copies[0])  # so it is younger now
    os.utime(copies[0].parent, (time.time() - 90_000, time.time() - 90_000))
    shelf.sweep()
    assert not list(shelf.folder.iterdir())


def test_an_export_says_what_it_does_and_where_it_is(studio: Service, shelf: Shelf) -> None:
    (run,) = studio.finished()
    *phases, end = exported(run.folder, shelf, "glb", "100", 32)
    assert [phase.words for phase in phases][:2] == ["Beginning", "Read"] and not any(phase.over for phase in phases)
    assert end.over and end.path is not None and end.path.is_relative_to(shelf.folder) and end.path.name in end.words
    again = list(exported(run.folder, shelf, "stl", 0, 0))[-1]
    assert again.path is not None and again.path.suffix == ".stl" and end.path.is_file()


@pytest.mark.parametrize(
    ("kind", "faces", "words"),
    [("glb", "many", "a whole number, not 'many'"), ("stl", "9" * 5000, "a whole number"), ("splat-ply", 0, "a field")],
)
def test_an_export_that_cannot_be_says_why_and_is_over(
    kind: str, faces: object, words: str, studio: Service, shelf: Shelf
) -> None:
    (run,) = studio.finished()
    end = list(exported(run.folder, shelf, kind, faces, 0))[-1]
    assert end.over and end.path is None and words in end.words


def test_the_viewers_cloud_is_turned_and_fits(tmp_path: Path) -> None:
    n = 50
    rng = torch.Generator().manual_seed(0)
    quaternions = torch.nn.functional.normalize(torch.randn(n, 4, generator=rng), dim=-1)
    means = torch.rand(n, 3, generator=rng) * torch.tensor([0.2, 0.4, 0.1]) + 0.1
    cloud = SplatScene(means, torch.full((n, 3), -3.0), quaternions, torch.full((n,), 2.0), torch.zeros(n, 1, 3), 1.0)
    (tmp_path / "a.ply").write_bytes(splat_ply_bytes(cloud))
    fitted_splats(tmp_path / "a.ply", tmp_path / "b.ply")
    turned = load_splat_ply(tmp_path / "b.ply")
    extent = turned.means.amax(0) - turned.means.amin(0)
    assert (
        abs(float(extent.max()) - 1.6) < 1e-4
        and float(turned.means.amin(0).add(turned.means.amax(0)).abs().max()) < 1e-5
    )
    scale = 1.6 / float((means.amax(0) - means.amin(0)).max())
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    want = scale**2 * flip @ covariances(cloud) @ flip
    assert torch.allclose(covariances(turned), want, atol=1e-6)


def covariances(cloud: SplatScene) -> torch.Tensor:
    """[n, 3, 3], by the definition."""
    w, x, y, z = torch.nn.functional.normalize(cloud.quaternions, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    turn = torch.stack(rows, -2)
    return turn @ torch.diag_embed((2 * cloud.log_scales).exp()) @ turn.transpose(-1, -2)


def test_a_preview_keeps_its_colours(tmp_path: Path) -> None:
    import base64

    path = tmp_path / "000001.png"
    Image.new("RGB", (96, 24), (200, 40, 90)).save(path)
    content = base64.b64decode(preview_uri(path).split(",", 1)[1])
    with Image.open(io.BytesIO(content)) as image:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - (200, 40, 90)).max() <= 4
