"""Every method on every kind of representation: killed and resumed, it ends bit-equal. New ones join by existing."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import BSD
from guidance.diffusers_prior import DiffusersPrior
from guidance.methods import AnyGuidance
from representations.hash_field import HashField
from representations.kinds import AnyRepresentation
from representations.particles import Particles
from representations.splats import Densify, Splats
from studio.cameras import Orbit
from studio.checkpoints import Checkpoints, read_state
from studio.codec import members
from studio.edit import edit
from studio.events import Checkpointed, Stepped
from studio.request import Request, Stage
from studio.run import resume_run, run_request

STEPS = 4
_DENSIFY = Densify(begin=1, every=1, until=4, growth=0.2, faint=0.02)
_CLOUD = Splats(count=60, most=80, initial_opacity=0.3, opacity_rate=0.02, position_rate=1e-3, densify=_DENSIFY)
SMALL: dict[str, Any] = {
    "HashField": HashField(levels=(4, 8), occupancy_cells=4, occupancy_every=2, rate=1e-3),
    "Splats": _CLOUD,
    "Particles": Particles(_CLOUD),
    "BSD": BSD(cycle=2, tuning_steps=1, refresh=1, album=3),  # prior and scene take turns
}
"""Quick knobs, of which every turn comes within the steps; what is missing here is tested with its defaults."""
METHODS = [SMALL.get(name, method()) for name, method in members(AnyGuidance).items()]
KINDS = [SMALL.get(name, kind()) for name, kind in members(AnyRepresentation).items()]


@pytest.fixture(scope="module", autouse=True)
def one_prior(tiny_prior: Path):
    """The tiny prior is loaded once; that nothing changes it is part of what is tested."""
    prior = DiffusersPrior.load(tiny_prior, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusersPrior, "load", lambda *_, **__: prior)
        yield


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: type(kind).__name__)
def made(request: pytest.FixtureRequest, tiny_prior: Path, tmp_path_factory: pytest.TempPathFactory):
    """A representation and the folder of a run that made something of it."""
    stage = Stage(request.param, steps=2, cameras=Orbit(views=2, size=12))
    wanted = Request("a red cube", (stage,), prior=str(tiny_prior), checkpoint_every=2, preview_every=0)
    folder = tmp_path_factory.mktemp("runs") / "source"
    follow(run_request(wanted, folder, "cpu"), 2)
    return request.param, folder


def follow(events: Any, steps: int, kill_at: int = 0) -> list[Stepped]:
    """Go along until the checkpoint of the last step, or drop everything right after a step."""
    seen = []
    for event in events:
        if isinstance(event, Stepped):
            seen.append(event)
        done = isinstance(event, Checkpointed) and event.step == steps
        if done or (isinstance(event, Stepped) and event.done == kill_at):
            events.close()
    return seen


def wanted(method: Any, kind: Any, source: Path) -> Request:
    """A run of ``method`` on ``kind``: an edit, if the method needs something to edit."""
    request = edit(source, "a blue cube", method)
    stage = dataclasses.replace(request.stages[0], representation=kind, steps=STEPS)
    task = request.task if "source" in method.requires else None
    return dataclasses.replace(request, stages=(stage,), task=task)


def end(folder: Path) -> dict[str, Any]:
    return read_state(Checkpoints(folder / "checkpoints").all()[-1])


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_killed_run_resumes_bit_equal(method: Any, made: tuple[Any, Path], tmp_path: Path):
    request = wanted(method, *made)
    whole = follow(run_request(request, tmp_path / "whole", "cpu"), STEPS)
    assert len(whole) == STEPS and int(whole[-1].diagnostics["skipped"]) == 0
    follow(run_request(request, tmp_path / "killed", "cpu"), STEPS, kill_at=3)
    assert [path.name for path in Checkpoints(tmp_path / "killed" / "checkpoints").all()] == ["0000002"]
    again = follow(resume_run(tmp_path / "killed", "cpu"), STEPS)
    assert [event.done for event in again] == [3, 4]
    expected, found = end(tmp_path / "whole"), end(tmp_path / "killed")
    assert same(expected, found)
    assert [float(e.loss) for e in whole[2:]] == [float(e.loss) for e in again]
