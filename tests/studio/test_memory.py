"""Memory that does not suffice: wherever it ends, the run goes down the ladder, says so, and finishes."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import SDS, VSD
from guidance.critic import Critic
from guidance.diffusers_prior import DiffusersPrior
from guidance.piecewise import Piecewise
from representations.field import RadianceField
from representations.hash_field import FieldGrid, HashField
from representations.particles import Particles
from representations.splats import Splats
from studio.cameras import Orbit
from studio.checkpoints import Checkpoints, read_state
from studio.engine import Engine, optimised
from studio.events import Checkpointed, Event, Failed, Finished, Stepped, Warned
from studio.folder import RunError
from studio.memory import (
    Down,
    add_down,
    downs_of,
    fewer_samples,
    is_out_of_memory,
    next_change,
    smaller_batch,
    smaller_renders,
    step_down,
    thrifty,
)
from studio.optimize import Timing
from studio.request import Request, Stage
from studio.run import resume_run, run_request
from studio.stages import Stages

FIELD = HashField(levels=(4, 8), occupancy_cells=4, occupancy_every=2, rate=1e-3)
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture(scope="module")
def prior(tiny_prior: Path) -> DiffusersPrior:
    return DiffusersPrior.load(tiny_prior, "cpu")


@pytest.fixture(scope="module")
def request_(tiny_prior: Path) -> Request:
    """Two stages on one field; checkpoints every other step."""
    stage = Stage(FIELD, SDS(scale=2.0), steps=4, cameras=Orbit(views=2, size=40))
    more = dataclasses.replace(stage, representation=None, steps=2)
    return Request("a red cube", (stage, more), prior=str(tiny_prior), checkpoint_every=2, preview_every=0)


@pytest.fixture(scope="module")
def whole(request_: Request, prior: DiffusersPrior, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that run where memory suffices."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    go(request_, folder, prior)
    return folder


def go(request: Request, folder: Path, prior: DiffusersPrior, until: int = 10**6) -> list[Event]:
    """Optimise in a folder, new or not, without the export; dropped right after the step ``until``, as if killed."""
    folder.mkdir(exist_ok=True)
    stages, seen = Stages.of(request, prior, None), []
    events = optimised(Engine(request, folder, stages, Timing()), lambda: False)
    for event in events:
        seen.append(event)
        if isinstance(event, Stepped) and event.done == until:
            events.close()
    return seen


def end(folder: Path) -> dict[str, Any]:
    return read_state(Checkpoints(folder / "checkpoints").all()[-1])


def close(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-6)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, problem: Exception) -> None:
    """The ``call``-th call of a method, counted from 1, raises after it has done its work."""
    honest, calls = getattr(owner, name), []

    def method(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        answer = honest(*arguments, **named)
        if len(calls) == call:
            raise problem
        return answer

    monkeypatch.setattr(owner, name, method)


PLACES = {
    "render": (RadianceField, "render", 2, torch.OutOfMemoryError(FULL)),
    "guidance": (DiffusersPrior, "predict_noise", 4, torch.OutOfMemoryError(FULL)),
    "backward": (torch.Tensor, "backward", 3, RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    "optimiser": (torch.optim.Adam, "step", 1, torch.OutOfMemoryError(FULL)),
    "restructure": (FieldGrid, "restructure", 4, MemoryError()),
}


@pytest.mark.parametrize("place", PLACES)
def test_memory_may_end_anywhere_once(place: str, request_: Request, whole: Path, prior, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_once(patch, *PLACES[place])
        events = go(request_, tmp_path / "short", prior)
    (said,) = [e.text for e in events if isinstance(e, Warned)]
    (down,) = downs_of(tmp_path / "short")
    assert said.startswith(f"Out of memory at step {down.step + 1}: from here on 2 pictures at once through the prior")
    assert (down.stage, down.rung) == (0, "guidance batch") and down.step in range(4)
    # The rung changes nothing but rounding, so whatever was half done would show.
    assert close(end(whole), end(tmp_path / "short"))


def test_memory_may_end_while_a_critic_learns(request_: Request, prior, tmp_path: Path, monkeypatch):
    stage = dataclasses.replace(request_.stages[0], guidance=VSD(), steps=3)
    request = dataclasses.replace(request_, stages=(stage,))
    go(request, tmp_path / "whole", prior)
    fail_once(monkeypatch, Critic, "train_step", 3, RuntimeError("DefaultCPUAllocator: not enough memory"))
    events = go(request, tmp_path / "short", prior)
    assert [e.done for e in events if isinstance(e, Stepped)] == [1, 2, 3]
    assert [(down.step, down.rung) for down in downs_of(tmp_path / "short")] == [(2, "guidance batch")]
    assert close(end(tmp_path / "whole"), end(tmp_path / "short"))


def test_the_ladder_is_gone_down_as_far_as_it_takes(request_: Request, prior, tmp_path: Path, monkeypatch):
    honest, honest_render = DiffusersPrior.predict_noise, RadianceField.render
    most = {"pictures": 1, "pixels": 32}

    def predict(self, noisy, *rest, **named):
        if len(noisy) > most["pictures"]:
            raise torch.OutOfMemoryError(FULL)
        return honest(self, noisy, *rest, **named)

    def render(self, cameras, background):
        if cameras.size[0] > most["pixels"]:
            raise torch.OutOfMemoryError(FULL)
        return honest_render(self, cameras, background)

    monkeypatch.setattr(DiffusersPrior, "predict_noise", predict)
    monkeypatch.setattr(RadianceField, "render", render)
    events = go(request_, tmp_path / "run", prior)
    assert [e.done for e in events if isinstance(e, Stepped)] == [1, 2, 3, 4, 5, 6]
    rungs = [down.rung for down in downs_of(tmp_path / "run") if down.stage == 0]
    assert rungs == ["guidance batch"] * 2 + ["ray samples"] * 2 + ["resolution"]
    lowered = thrifty(request_, downs_of(tmp_path / "run"), 0, 0).stages[0]
    assert lowered.at_once == 1 and lowered.cameras.size == 32
    assert isinstance(lowered.representation, HashField) and lowered.representation.steps_per_cell == 0.15


@pytest.mark.parametrize("at", [3, 5])
def test_a_killed_run_takes_every_step_on_its_own_rung(
    at: int, request_: Request, whole: Path, prior, tmp_path: Path, monkeypatch
):
    first = dataclasses.replace(request_.stages[0], at_once=1)  # so that the next rung changes what is seen
    request = dataclasses.replace(request_, stages=(first, request_.stages[1]))
    for name in ("whole", "killed"):
        with monkeypatch.context() as patch:  # in the third step, when the scene has moved already
            fail_once(patch, FieldGrid, "restructure", 3, torch.OutOfMemoryError(FULL))
            go(request, tmp_path / name, prior, until=10**6 if name == "whole" else at)
    assert [down.rung for down in downs_of(tmp_path / "whole")] == ["ray samples"]
    again = go(request, tmp_path / "killed", prior)
    assert not [e for e in again if isinstance(e, Warned)]
    assert next(e.done for e in again if isinstance(e, Stepped)) == at // 2 * 2 + 1
    assert same(end(tmp_path / "whole"), end(tmp_path / "killed"))
    assert not same(end(whole)["representation"], end(tmp_path / "whole")["representation"])


def test_a_resumed_run_goes_down_where_the_first_did(request_: Request, prior, tmp_path: Path, monkeypatch):
    """The checkpoint to go on from may be older than the step at which the rung was taken."""
    go(request_, tmp_path / "whole", prior, until=3)
    for name in ("whole", "again"):
        (tmp_path / name).mkdir(exist_ok=True)
        add_down(tmp_path / name, Down(0, 3, "ray samples", "half as many samples along each ray"))
    go(request_, tmp_path / "whole", prior)  # from step 2, so that step 3 is taken the rich way, and step 4 the other
    go(request_, tmp_path / "again", prior)
    assert same(end(tmp_path / "whole"), end(tmp_path / "again"))


def test_the_bottom_of_the_ladder_is_said_in_words_and_can_be_resumed(tiny: Request, tmp_path: Path, monkeypatch):
    honest = RadianceField.render
    events: list[Event] = []

    def render(self, cameras, background):
        if any(isinstance(event, Checkpointed) for event in events):
            raise torch.OutOfMemoryError(FULL)
        return honest(self, cameras, background)

    with monkeypatch.context() as patch:
        patch.setattr(RadianceField, "render", render)
        with pytest.raises(RunError, match=r"step 3, and there is nothing left.*views.*studio resume"):
            for event in run_request(tiny, tmp_path / "run", "cpu"):
                events.append(event)
    assert isinstance(events[-1], Failed) and not (tmp_path / "run" / "result.glb").exists()
    assert isinstance(list(resume_run(tmp_path / "run", "cpu"))[-1], Finished)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["stepped_down"] == [down.text for down in downs_of(tmp_path / "run")] != []


def test_memory_may_end_while_pictures_are_made(tiny: Request, tmp_path: Path, monkeypatch):
    honest = DiffusersPrior.predict_noise
    one = dataclasses.replace(tiny, stages=(tiny.stages[0],), preview_every=2)

    def predict(self, noisy, *rest, **named):
        if len(noisy) > 4:  # as many as the steps need, and fewer than the prior's own eight pictures
            raise torch.OutOfMemoryError(FULL)
        return honest(self, noisy, *rest, **named)

    monkeypatch.setattr(DiffusersPrior, "predict_noise", predict)
    fail = torch.OutOfMemoryError(FULL)
    monkeypatch.setattr("studio.export.pictures.save_png", lambda *_: (_ for _ in ()).throw(fail))
    events = list(run_request(one, tmp_path / "run", "cpu"))
    assert isinstance(events[-1], Finished) and not downs_of(tmp_path / "run")
    assert sum(isinstance(e, Warned) and "left out" in e.text for e in events) == 2


# The rungs ------------------------------------------------------------------------------------------------------------


def ends(rung: Callable[[Stage], Stage | None], stage: Stage | None) -> list[Stage]:
    found = []
    while stage is not None and len(found) < 50:
        found.append(stage)
        stage = rung(stage)
    return found


def test_every_rung_ends():
    stage = Stage(HashField(), cameras=Orbit(views=8, size=256))
    assert [s.at_once for s in ends(smaller_batch, stage)] == [None, 8, 4, 2, 1]
    assert [s.cameras.size for s in ends(smaller_renders, stage)] == [256, 192, 144, 104, 72, 48, 32]
    density = [s.representation.steps_per_cell for s in ends(fewer_samples, stage)]  # pyright: ignore
    assert density == [0.6, 0.3, 0.15]
    assert len(ends(fewer_samples, dataclasses.replace(stage, representation=Particles(HashField())))) == 3
    assert len(ends(fewer_samples, dataclasses.replace(stage, representation=Splats()))) == 1


def test_a_stage_that_goes_on_thins_what_it_goes_on_with(request_: Request):
    down = Down(1, 1, "ray samples", "")
    assert thrifty(request_, (down,), 1, 0) == request_
    lowered = thrifty(request_, (down,), 1, 1)
    assert lowered.representation(1).steps_per_cell == 0.3 and lowered.stages[1].representation is None  # pyright: ignore
    assert (next_change((down,), 1, 0, 9), next_change((down,), 1, 1, 9), next_change((down,), 0, 0, 9)) == (1, 9, 9)


def test_there_is_no_rung_below_the_last():
    stage = Stage(Splats(), cameras=Orbit(size=32), at_once=1)
    assert step_down(Request("a red cube", (stage,)), 0, 5) is None


@pytest.mark.parametrize(
    ("problem", "answer"),
    [
        (torch.OutOfMemoryError(FULL), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("shapes do not match"), False),
        (OSError("not enough memory"), False),
    ],
)
def test_what_counts_as_the_end_of_memory(problem: Exception, answer: bool):
    assert is_out_of_memory(problem) == answer


def test_torch_itself_says_so():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)


def test_a_damaged_record_is_refused(tmp_path: Path):
    (tmp_path / "memory.json").write_text('[{"stage": 0}]')
    with pytest.raises(RunError, match=r"memory\.json cannot be read"):
        downs_of(tmp_path)


def test_a_prior_asked_in_pieces_says_the_same(prior: DiffusersPrior):
    pieces, rng = Piecewise(prior, 2), torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 32, 32, generator=rng)
    ways = []
    for asked in (prior, pieces):
        seen = images.clone().requires_grad_()
        latents = asked.encode(seen)
        adapter = prior.adapter(2, seed=0)
        text = prior.embed(["a red cube"] * 5)
        t = torch.arange(5) * 100 + 7
        before = prior.images
        eps = asked.predict_noise(latents, t, text, torch.eye(4).expand(5, 4, 4), None, adapter)
        assert prior.images - before == 5
        (eps * latents).sum().backward()
        gradients = [p.grad for p in adapter.parameters()]
        ways.append([latents.detach(), eps.detach(), asked.decode(latents.detach()), seen.grad, *gradients])
    for whole, parted in zip(*ways, strict=True):
        assert (whole - parted).norm() <= 1e-5 * whole.norm() + 1e-12


def test_views_that_belong_together_are_not_parted(prior: DiffusersPrior, monkeypatch):
    asked = []
    monkeypatch.setattr(DiffusersPrior, "predict_noise", lambda self, noisy, *_: asked.append(len(noisy)) or noisy)
    latents = torch.zeros(12, 4, 2, 2)
    text, t = torch.zeros(12, 1, 1), torch.zeros(12, dtype=torch.long)
    for most, pieces in ((1, [4, 4, 4]), (7, [4, 4, 4]), (8, [8, 4])):
        asked.clear()
        Piecewise(prior, most, group=4).predict_noise(latents, t, text)
        assert asked == pieces
