"""``studio export``: every format from a finished run, anew or copied, and refusals in words."""

import json
from collections.abc import Generator
from pathlib import Path

import pytest
import trimesh

from studio.cli import BAD_USAGE, OK, run
from studio.export.command import export_run
from studio.export.glb import load_glb, read_settings
from studio.folder import RunError
from studio.request import Request
from studio.run import run_request


@pytest.fixture(scope="module")
def finished(tiny: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a field."""
    folder = tmp_path_factory.mktemp("runs") / "a-red-cube"
    list(run_request(tiny, folder, "cpu"))
    return folder


def exported(phases: Generator[str, None, Path]) -> tuple[list[str], Path]:
    said: list[str] = []
    while True:
        try:
            said.append(next(phases))
        except StopIteration as end:
            return said, end.value


def test_a_glb_of_the_runs_own_size_is_copied(finished: Path):
    before = (finished / "result.glb").read_bytes()
    said, path = exported(export_run(finished, "glb"))
    assert (said, path) == (["read"], finished / "exports" / "a-red-cube.glb")
    assert path.read_bytes() == before


def test_another_size_is_made_anew_and_says_so_in_the_file(finished: Path, tmp_path: Path):
    before = (finished / "result.glb").read_bytes()
    said, path = exported(export_run(finished, "glb", faces=80, texture=32, out=tmp_path / "few.glb"))
    assert said == ["read", "extract", "clean", "unwrap", "bake", "write"]
    mesh = load_glb(path)
    assert 12 <= len(mesh.faces) <= 80 and mesh.texture.shape == (3, 32, 32)
    settings = read_settings(path)
    assert settings is not None and (settings["export"]["faces"], settings["export"]["texture"]) == (80, 32)
    assert (finished / "result.glb").read_bytes() == before


def test_the_same_numbers_made_anew_are_the_runs_own_bytes(finished: Path, tmp_path: Path):
    """The run exports through the same path, so leaving out the copy changes nothing."""
    own = (finished / "result.glb").read_bytes()
    hidden = finished / "hidden.glb"
    (finished / "result.glb").rename(hidden)
    try:
        said, path = exported(export_run(finished, "glb", out=tmp_path / "again.glb"))
    finally:
        hidden.rename(finished / "result.glb")
    assert "bake" in said and path.read_bytes() == own


@pytest.mark.parametrize(
    ("format", "name"), [("obj", "a-red-cube.zip"), ("stl", "a-red-cube.stl"), ("ply", "a-red-cube.ply")]
)
def test_the_command_line_writes_every_mesh(finished: Path, format: str, name: str, capsys):
    assert run(["export", str(finished), "--format", format, "--json"]) == OK
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    path = Path(events[-1]["path"])
    assert path == finished / "exports" / name and path.stat().st_size == events[-1]["report"]["bytes"]
    assert {event["event"] for event in events[:-1]} == {"Working"}
    assert len(trimesh.load_scene(path).to_mesh().faces) > 12


def test_refusals_in_words(finished: Path, tmp_path: Path, capsys):
    cases = [
        (["--format", "gbl"], "did you mean 'glb'"),
        (["--format", "splat"], "this run made a field"),
        (["--faces", "3"], "export.faces must be 12 or more, not 3."),
        (["--texture", "100000"], "export.texture must be between 16 and 8192"),
        (["--particle", "2"], "one object, particle 0"),
        (["--format", "obj", "--out", str(tmp_path / "a.obj")], "must end in .zip"),
        (["--format", "stl", "--out", str(tmp_path / "a.glb")], "must end in .stl"),
    ]
    for options, words in cases:
        assert run(["export", str(finished), *options]) == BAD_USAGE
        assert words in capsys.readouterr().err
    assert run(["export", str(tmp_path)]) == BAD_USAGE
    assert "not a run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunError, match="is not finished"):
        (tmp_path / "half").mkdir()
        (tmp_path / "half" / "request.json").write_text((finished / "request.json").read_text())
        list(export_run(tmp_path / "half", "glb"))
