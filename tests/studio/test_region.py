"""Edits inside a box: what a run with one changes and what it leaves, on every way that such a run may take."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import DDS, SDS
from guidance.methods import AnyGuidance
from representations.box import Box
from representations.cameras import orbit
from representations.hash_field import HashField
from representations.kinds import AnyRepresentation
from representations.scene import Scene
from representations.splats import Densify, Splats
from studio.checkpoints import Checkpoints, read_state
from studio.cli import BAD_USAGE, OK, run
from studio.codec import decode, encode, members
from studio.edit import edit, finished
from studio.events import Checkpointed, Finished, Stepped
from studio.export.command import export_run
from studio.folder import RunError, read_request
from studio.region import pixels_of
from studio.request import Edit, Request, check
from studio.run import resume_run, run_request

UPPER = Box((-1.0, 0.1, -1.0), (1.0, 1.0, 1.0))
CPU = torch.device("cpu")


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def small(request: Request, steps: int = 4, **stage: Any) -> Request:
    """A few steps of an edit."""
    return dataclasses.replace(request, stages=(dataclasses.replace(request.stages[0], steps=steps, **stage),))


def to_the_last_checkpoint(request: Request, folder: Path) -> Path:
    """A run without its export."""
    events = run_request(request, folder, "cpu")
    for event in events:
        if isinstance(event, Checkpointed) and event.step == request.steps:
            events.close()
    return folder


def scene(folder: Path) -> Scene:
    return finished(folder).representation(CPU).scene().detach()


def views(made: Scene) -> torch.Tensor:
    cameras = orbit([0, 70, 200], [0, 5, 0], 48, 2.6, 40.0)
    with torch.no_grad():
        out = made.render(cameras, torch.ones(3, 3))
    return torch.cat([out.rgb, out.alpha], 1)


def outside(box: Box) -> torch.Tensor:
    """Pixels [b, h, w] whose rays miss the box by two pixels: no gaussian is drawn smaller than about one."""
    mask = pixels_of(box, orbit([0, 70, 200], [0, 5, 0], 48, 2.6, 40.0))
    assert mask is not None
    return torch.nn.functional.max_pool2d(mask, 5, 1, 2)[:, 0] == 0


KINDS: dict[str, AnyRepresentation] = {  # rates at which a few steps show; density control never rests
    "field": HashField(levels=(4, 8, 16), occupancy_cells=8, rate=0.05),
    "cloud": Splats(count=200, most=300, initial_opacity=0.5, opacity_rate=0.02, densify=Densify(begin=1, every=1)),
}


def make(kind: str, tiny: Request, runs: Path) -> Path:
    """A finished run without its export."""
    stage = dataclasses.replace(tiny.stages[0], steps=1, representation=KINDS[kind])
    return to_the_last_checkpoint(dataclasses.replace(tiny, stages=(stage,)), runs / kind)


@pytest.fixture(scope="module")
def cloud(tiny: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("cloud", tiny, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module", params=KINDS)
def source(request: pytest.FixtureRequest, tiny: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(request.param, tiny, tmp_path_factory.mktemp("runs"))


def test_it_travels_as_json_and_older_requests_still_read(source: Path):
    request = edit(source, "a blue cube", region=UPPER)
    assert request.task == Edit(source, region=UPPER) and not check(request)
    data = json.loads(json.dumps(encode(request)))
    assert decode(Request, data) == request
    del data["task"]["region"]
    assert decode(Request, data) == edit(source, "a blue cube")


@pytest.mark.parametrize("method", [DDS(), SDS(scale=20.0)], ids=["DDS", "SDS"])
def test_outside_no_pixel_changes_and_inside_they_do(source: Path, tmp_path: Path, method: AnyGuidance):
    request = small(edit(source, "a blue cube", method, region=UPPER))
    folder = to_the_last_checkpoint(request, tmp_path / "run")
    miss = outside(UPPER)
    before, after = views(scene(source)), views(scene(folder))
    change = (before - after).abs().amax(1)
    assert float((before[:, 3] * miss).max()) > 0.1 and 0.2 < float(miss.float().mean()) < 0.8
    assert float(change[miss].max()) <= 1e-6
    assert float(change[~miss].max()) > 0.005


def test_killed_and_without_its_source_it_ends_bit_equal(source: Path, tmp_path: Path):
    movable = tmp_path / "source"
    shutil.copytree(source, movable)
    request = small(edit(movable, "a blue cube", region=UPPER))
    whole = to_the_last_checkpoint(request, tmp_path / "whole")
    interrupted = run_request(request, tmp_path / "killed", "cpu")
    with pytest.raises(Killed):
        for event in interrupted:
            if isinstance(event, Stepped) and event.done == 3:
                interrupted.throw(Killed())
    shutil.rmtree(movable)
    assert isinstance(list(resume_run(tmp_path / "killed", "cpu"))[-1], Finished)
    expected, found = (
        read_state(Checkpoints(f / "checkpoints").all()[-1])["representation"] for f in (whole, tmp_path / "killed")
    )
    assert expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in expected)
    stl = tmp_path / "killed.stl"
    list(export_run(tmp_path / "killed", "stl", out=stl))  # needs what the run began with, which it kept
    assert stl.stat().st_size > 84
    again = edit(tmp_path / "killed", "a green cube", region=Box((-1, -1, -1), (1, 0, 1)))
    assert isinstance(again.task, Edit) and not check(again)
    second = to_the_last_checkpoint(small(again), tmp_path / "second")
    change = (views(scene(tmp_path / "killed")) - views(scene(second))).abs().amax(1)
    assert float(change[outside(Box((-1, -1, -1), (1, 0, 1)))].max()) <= 1e-6


@pytest.mark.parametrize("name", members(AnyGuidance))
def test_every_method_edits_inside_a_box(name: str, cloud: Path, tmp_path: Path):
    request = small(edit(cloud, "a blue cube", members(AnyGuidance)[name](), region=UPPER), 1)
    folder = to_the_last_checkpoint(request, tmp_path / "run")
    change = (views(scene(cloud)) - views(scene(folder))).abs().amax(1)
    assert float(change[outside(UPPER)].max()) <= 1e-6


def test_the_methods_gradient_stays_on_the_boxes_pixels(source: Path, tmp_path: Path, monkeypatch):
    seen, honest = [], DDS.gradient

    def gradient(self, state, prior, latents, condition, draw, progress):
        made = honest(self, state, prior, latents, condition, draw, progress)
        seen.append((made, condition.mask))
        return made

    monkeypatch.setattr(DDS, "gradient", gradient)
    to_the_last_checkpoint(small(edit(source, "a blue cube", region=UPPER), 2), tmp_path / "run")
    made, mask = seen[-1]
    assert mask.shape[1:] == (1, 24, 24) and set(mask.unique().tolist()) == {0.0, 1.0}
    share = torch.nn.functional.interpolate(mask, made.shape[-2:], mode="area")
    away = (share == 0).expand_as(made)
    assert made[away].abs().max() == 0 and made[~away].abs().max() > 0
    seen.clear()
    to_the_last_checkpoint(small(edit(source, "a blue cube"), 2), tmp_path / "whole")
    assert seen[-1][1] is None


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((0, 0, 0, 0.5, 0, 0.5), "task.region: it is empty: y runs from 0 to 0."),
        ((0, 0.5, 0, 0.5, 0.2, 0.5), "it is upside down: y runs from 0.5 to 0.2"),
        ((2, 2, 2, 3, 3, 3), "it misses the object: x runs from 2 to 3"),
        ((0.9, 0.9, 0.9, 0.99, 0.99, 0.99), "No gaussian lies wholly inside"),
    ],
)
def test_boxes_are_refused_in_words(
    source: Path, tmp_path: Path, box: tuple[float, ...], words: str, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if "gaussian" in words and source.name == "field":
        return  # a field may grow matter in an empty box
    assert run(["edit", str(source), "a blue cube", "--box", *map(str, box)]) == BAD_USAGE
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_run_is_refused_too_where_nothing_lies_inside(cloud: Path, tmp_path: Path):
    request = edit(cloud, "a blue cube", region=Box((0.9, 0.9, 0.9), (0.99, 0.99, 0.99)))
    with pytest.raises(RunError, match="No gaussian"):
        next(run_request(request, tmp_path / "run", "cpu"))
    assert not (tmp_path / "run").exists()


def test_resumed_in_a_later_stage_it_is_confined_still(source: Path, tmp_path: Path):
    request = small(edit(source, "a blue cube", DDS, region=UPPER), 2)
    stages = (request.stages[0], dataclasses.replace(request.stages[0], representation=None, steps=4))
    request = dataclasses.replace(request, stages=stages, checkpoint_every=1)
    events = run_request(request, tmp_path / "run", "cpu")
    for event in events:
        if isinstance(event, Checkpointed) and event.step == 4:
            events.close()
    for _ in resume_run(tmp_path / "run", "cpu"):
        pass
    same = (views(scene(tmp_path / "run")) - views(scene(source))).abs().amax(1)
    assert same[outside(UPPER)].max() < 1e-6 and same.max() > 1e-4


def test_a_later_stage_may_not_begin_anew(source: Path):
    request = edit(source, "a blue cube", region=UPPER)
    twice = dataclasses.replace(request, stages=(request.stages[0], request.stages[0]))
    assert any("stages.1.representation must be left out" in problem.text for problem in check(twice))
    going_on = dataclasses.replace(request.stages[0], representation=None)
    assert not check(dataclasses.replace(request, stages=(request.stages[0], going_on)))


def test_the_command_line_edits_inside_a_box(source: Path, tmp_path: Path):
    folder = tmp_path / "run"
    box = ["--box", "-1", "0.1", "-1", "1", "1", "1.0"]
    assert run(["edit", str(source), "a blue cube", *box, "--steps", "2", "--out", str(folder), "--json"]) == OK
    task = read_request(folder).task
    assert task is not None and task.region == UPPER
    assert (folder / "result.glb").is_file()
