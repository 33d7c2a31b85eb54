"""Runs on gaussians: bit-equal resume while their number changes, and the cloud as a file beside the asset."""

import dataclasses
from pathlib import Path

import pytest
import torch

from representations.splats import Densify, Splats
from studio.checkpoints import Checkpoints, read_state
from studio.events import Finished, Stepped
from studio.export.splat_ply import load_splat_ply
from studio.recipes import RECIPES
from studio.request import Request
from studio.run import resume_run, run_request


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.fixture(scope="module")
def cloudy(tiny: Request) -> Request:
    """Two stages on one cloud whose size changes in steps 2, 4 and 6 of each."""
    densify = Densify(begin=2, every=2, until=6, growth=0.2, faint=0.02)
    cloud = Splats(count=300, most=400, initial_opacity=0.3, opacity_rate=0.02, position_rate=1e-3, densify=densify)
    first = dataclasses.replace(tiny.stages[0], representation=cloud)
    return dataclasses.replace(tiny, stages=(first, tiny.stages[1]))


@pytest.fixture(scope="module")
def whole(cloudy: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    list(run_request(cloudy, folder, "cpu"))
    return folder


def newest(folder: Path) -> dict[str, torch.Tensor]:
    return read_state(Checkpoints(folder / "checkpoints").all()[-1])["representation"]


def test_the_cloud_lies_beside_the_asset(whole: Path):
    scene, end = load_splat_ply(whole / "splats.ply"), newest(whole)
    assert len(scene) != 300 and torch.equal(scene.means, end["means"]) and torch.equal(scene.sh, end["sh"])
    assert (whole / "result.glb").stat().st_size > 0


@pytest.mark.parametrize("done", [1, 3, 4, 6, 8])
def test_a_killed_run_resumes_bit_equal(cloudy: Request, whole: Path, tmp_path: Path, done: int):
    folder = tmp_path / "killed"
    events = run_request(cloudy, folder, "cpu")
    with pytest.raises(Killed):
        for event in events:
            if isinstance(event, Stepped) and event.done == done:
                events.throw(Killed())
    assert isinstance(list(resume_run(folder, "cpu"))[-1], Finished)
    expected, found = newest(whole), newest(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (folder / "result.glb").read_bytes() == (whole / "result.glb").read_bytes()
    assert (folder / "splats.ply").read_bytes() == (whole / "splats.ply").read_bytes()


def test_a_field_can_become_a_cloud(tiny: Request, tmp_path: Path):
    second = dataclasses.replace(tiny.stages[1], representation=Splats(count=300, most=300, opacity_rate=0.02))
    request = dataclasses.replace(tiny, stages=(tiny.stages[0], second))
    assert isinstance(list(run_request(request, tmp_path / "run", "cpu"))[-1], Finished)
    assert len(load_splat_ply(tmp_path / "run" / "splats.ply")) == 300


def test_the_demo_runs_on_gaussians():
    assert isinstance(RECIPES["draft"]("a mug", True).stages[0].representation, Splats)
