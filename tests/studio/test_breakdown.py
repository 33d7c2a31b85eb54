"""What breaks in the midst of a run: numbers that are not finite, wherever they come from, and a disk without room."""

import dataclasses
import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import SDS, VSD
from guidance.diffusers_prior import DiffusersPrior
from representations.field import RadianceField
from representations.hash_field import HashField
from representations.scene import RenderOutput
from representations.splats import Splats
from studio.cameras import Orbit
from studio.checkpoints import Checkpoints, read_state
from studio.delivery import deliver
from studio.engine import Engine, optimised
from studio.events import Checkpointed, Event, Failed, Finished, Stepped, Stopped, Warned, Working
from studio.folder import DiskFull, RunError, RunFolder, plain
from studio.guard import NonFiniteError, refuse_unsound
from studio.optimize import Run, Timing
from studio.request import Request, Stage
from studio.run import resume_run, run_request
from studio.stages import Stages

KINDS: dict[str, Any] = {
    "field": HashField(levels=(4, 8), occupancy_cells=4, occupancy_every=2, rate=1e-3),
    "cloud": Splats(count=60, most=60, initial_opacity=0.3),
}
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def prior(tiny_prior: Path) -> DiffusersPrior:
    return DiffusersPrior.load(tiny_prior, "cpu")


def begun(kind: str, method: Any, prior: DiffusersPrior, folder: Path, steps: int) -> Engine:
    """A run of one stage, a checkpoint every other step."""
    folder.mkdir(exist_ok=True)
    stage = Stage(KINDS[kind], method, steps, Orbit(views=2, size=16))
    request = Request("a red cube", (stage,), prior=str(folder), checkpoint_every=2, preview_every=0)
    return Engine(request, folder, Stages.of(request, prior, None), Timing())


def steps_of(engine: Engine, after: Callable[[Run, int], None] = lambda *_: None) -> Iterator[Event]:
    """The run's events; ``after`` sees the run after each of the steps that were taken, those again among them."""
    taken = 0
    for event in optimised(engine, lambda: False):
        yield event
        if isinstance(event, Stepped) and engine.run is not None:
            taken += 1
            after(engine.run, taken)


def skipped(events: list[Event]) -> list[int]:
    return [int(e.diagnostics["skipped"]) for e in events if isinstance(e, Stepped)]


def sound(folder: Path) -> bool:
    """Whether every checkpoint holds numbers alone."""

    def finite(tree: Any) -> bool:
        if isinstance(tree, torch.Tensor):
            return bool(tree.isfinite().all())
        children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
        return all(map(finite, children))

    saved = Checkpoints(folder / "checkpoints").all()
    return bool(saved) and all(finite(read_state(path)) for path in saved)


# Numbers that pass: one step comes to nothing -------------------------------------------------------------------------


def broken_render(value: float) -> Callable[[RenderOutput], RenderOutput]:
    def spoil(out: RenderOutput) -> RenderOutput:
        rgb = out.rgb.clone()
        rgb[0, 0, 3, 3] = value
        return dataclasses.replace(out, rgb=rgb)

    return spoil


def broken_opacity(value: float) -> Callable[[RenderOutput], RenderOutput]:
    return lambda out: dataclasses.replace(out, alpha=out.alpha + value)


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: set[int], spoil: Callable[[Any], Any]):
    honest, count = getattr(owner, name), [0]

    def method(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        answer = honest(*arguments, **named)
        return spoil(answer) if count[0] in calls else answer

    monkeypatch.setattr(owner, name, method)


PASSING: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "render": (RadianceField, "render", broken_render(NAN)),
    "render, infinite": (RadianceField, "render", broken_render(INF)),
    "opacity": (RadianceField, "render", broken_opacity(NAN)),
    "guidance": (DiffusersPrior, "predict_noise", lambda eps: eps * NAN),
    "guidance, infinite": (DiffusersPrior, "predict_noise", lambda eps: eps + INF),
    "latents": (DiffusersPrior, "encode", lambda latents: latents * INF),
}


@pytest.mark.parametrize("place", PASSING)
def test_what_passes_costs_one_step(place: str, prior, tmp_path: Path, monkeypatch):
    owner, name, spoil = PASSING[place]
    fail_at(monkeypatch, owner, name, {2}, spoil)
    events = list(steps_of(begun("field", SDS(scale=2.0), prior, tmp_path, 3)))
    assert skipped(events) == [0, 1, 1] and not [e for e in events if isinstance(e, Warned)] and sound(tmp_path)


def test_a_gradient_of_gaussians_costs_one_step(prior, tmp_path: Path):
    engine = begun("cloud", SDS(scale=2.0), prior, tmp_path, 3)
    poison: list[Any] = []

    def hook(run: Run, taken: int) -> None:
        if taken == 1:
            poison.append(dict(run.representation.named_parameters())["means"].register_hook(lambda g: g * NAN))
        elif taken == 2:
            poison.pop().remove()

    events = list(steps_of(engine, hook))
    assert skipped(events) == [0, 1, 1] and sound(tmp_path)


# Numbers that stay: three steps, then back ----------------------------------------------------------------------------


def spoil_parameter(run: Run) -> None:
    next(iter(run.representation.parameters())).data.view(-1)[5] = NAN


def spoil_moment(name: str, value: float) -> Callable[[Run], None]:
    def spoil(run: Run) -> None:
        parameter = next(iter(run.representation.parameters()))
        run.optimiser.state[parameter][name].view(-1)[5] = value

    return spoil


def spoil_critic(run: Run) -> None:
    next(iter(run.guidance_state.parameters())).data.view(-1)[0] = NAN


def spoil_critics_moment(run: Run) -> None:
    learner: Any = run.guidance_state.learner
    next(iter(learner.optimiser.state.values()))["exp_avg"].view(-1)[0] = INF


LASTING: dict[str, tuple[str, Any, Callable[[Run], None], str]] = {
    "parameter of a field": ("field", SDS(scale=2.0), spoil_parameter, "table"),
    "parameter of a cloud": ("cloud", SDS(scale=2.0), spoil_parameter, "means"),
    "first moment": ("field", SDS(scale=2.0), spoil_moment("exp_avg", NAN), "exp_avg of table"),
    "second moment": ("field", SDS(scale=2.0), spoil_moment("exp_avg_sq", INF), "exp_avg_sq of table"),
    "critic": ("field", VSD(), spoil_critic, "learner.module.* of the method's memory"),
    "critic's moment": ("field", VSD(), spoil_critics_moment, "exp_avg of the method's memory"),
}


@pytest.mark.parametrize("place", LASTING)
def test_what_stays_turns_the_run_back(place: str, prior, tmp_path: Path):
    kind, method, spoil, name = LASTING[place]
    engine = begun(kind, method, prior, tmp_path, 5)
    events = list(steps_of(engine, lambda run, taken: spoil(run) if taken == 3 else None))
    (said,) = [e.text for e in events if isinstance(e, Warned)]
    assert said.startswith("At step ") and "Going back to step 2" in said
    assert all(part in said for part in name.split(".*"))
    assert [e.done for e in events if isinstance(e, Stepped)][:4] == [1, 2, 3, 4]
    assert isinstance(events[-1], Checkpointed) and events[-1].step == 5 and sound(tmp_path)


def test_three_steps_in_a_row_turn_back_and_what_lasts_fails_with_step_and_name(prior, tmp_path: Path, monkeypatch):
    fail_at(monkeypatch, DiffusersPrior, "predict_noise", set(range(2, 100)), lambda eps: eps * NAN)
    events: list[Event] = []
    with pytest.raises(NonFiniteError, match=r"^step 7: 3 steps in a row were not finite, in the gradient of table$"):
        for event in steps_of(begun("field", SDS(scale=2.0), prior, tmp_path, 12)):
            events.append(event)
    assert skipped(events) == [0, 1, 2, 3, 4, 5, 6] and sound(tmp_path)
    (said,) = [e.text for e in events if isinstance(e, Warned)]
    assert said.startswith("At step 4: 3 steps in a row were not finite") and "Going back to step 4" in said


@pytest.mark.parametrize("place", ["parameter", "buffer"])
def test_nothing_is_made_of_what_is_not_finite(place: str, prior, tiny: Request, tmp_path: Path):
    made = KINDS["cloud"].build(torch.Generator().manual_seed(0), torch.device("cpu"))
    refuse_unsound(made)
    (made.means.data if place == "parameter" else made.pull)[3] = INF
    stages = Stages.of(tiny, prior, None)
    with pytest.raises(NonFiniteError, match="means" if place == "parameter" else "pull"):
        list(deliver(tiny, tmp_path, prior, stages.prompts, made, None, Timing(), {}))
    assert not list(tmp_path.iterdir())


# A full disk ----------------------------------------------------------------------------------------------------------


def no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def quick(tiny: Request) -> Request:
    return dataclasses.replace(tiny, stages=(dataclasses.replace(tiny.stages[0], steps=4),), preview_every=3)


@pytest.mark.parametrize("place", ["studio.checkpoints._write_flushed", "studio.export.pictures.save_png"])
def test_a_full_disk_ends_a_run_that_can_go_on(place: str, quick: Request, tmp_path: Path, monkeypatch):
    folder, events = tmp_path / "run", []
    with monkeypatch.context() as patch, pytest.raises(DiskFull, match=r"is full.*studio resume") as caught:
        for event in run_request(quick, folder, "cpu"):
            events.append(event)
            if isinstance(event, Stepped) and event.done == 3:
                patch.setattr(place, no_room)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert isinstance(events[-1], Failed) and [p.name for p in (folder / "checkpoints").iterdir()] == ["0000002"]
    again = list(resume_run(folder, "cpu"))
    assert isinstance(again[-1], Finished) and [e.done for e in again if isinstance(e, Stepped)] == [3, 4]


def test_a_full_disk_may_meet_the_record_of_events_too(quick: Request, tmp_path: Path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(DiskFull):
        for event in run_request(quick, folder, "cpu"):
            if isinstance(event, Checkpointed):
                patch.setattr("studio.folder._append", no_room)
    lines = (folder / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "Checkpointed"


def test_a_line_is_recorded_whole_or_not_at_all(tmp_path: Path, tiny: Request, monkeypatch):
    home = RunFolder.create(tmp_path / "run", tiny)
    home.record(Warned("first"))
    honest, path = Path.open, home.path / "events.jsonl"

    class Full:
        def __init__(self, file: Any):
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, line: bytes) -> int:
            if len(line) < 20:
                no_room()
            return self.file.write(line[:5])

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Path, "open", lambda *a, **k: Full(honest(*a, **k)))
        home.record(Warned("second"))
    home.record(Warned("third"))
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["first", "third"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a MiB, where there is the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def test_a_disk_that_is_really_full(quick: Request, small_disk: Path):
    folder, ballast = small_disk / "run", small_disk / "ballast"
    with pytest.raises(DiskFull):
        for event in run_request(quick, folder, "cpu"):
            if isinstance(event, Checkpointed):  # leave a little: too little for the next one
                fill(ballast, 4096)
    saved, damaged = Checkpoints(folder / "checkpoints").newest()
    assert saved is not None and saved["step"] == 2 and not damaged
    ballast.unlink()
    resumed = dataclasses.replace(quick)
    assert resumed == quick
    events = resume_run(folder, "cpu")
    assert [e.done for e in events if isinstance(e, Stepped)][:1] == [3]


def fill(path: Path, spare: int) -> None:
    room = os.statvfs(path.parent)
    with path.open("wb") as file:
        file.write(bytes(max(0, room.f_bavail * room.f_frsize - spare)))


# Stopping between the phases of an export -----------------------------------------------------------------------------


def test_an_export_stops_between_its_phases_and_is_made_anew(quick: Request, tmp_path: Path):
    folder, asked = tmp_path / "run", []
    events = []
    for event in run_request(quick, folder, "cpu", stop=lambda: bool(asked)):
        events.append(event)
        if isinstance(event, Working) and event.what.startswith("export"):
            asked.append(True)
    assert isinstance(events[-1], Stopped) and events[-1].step == 4 and not (folder / "result.glb").exists()
    assert sum(isinstance(e, Working) and e.what.startswith("export") for e in events) == 1
    again = list(resume_run(folder, "cpu"))
    assert isinstance(again[-1], Finished) and (folder / "result.glb").stat().st_size > 0
    assert not [e for e in again if isinstance(e, Stepped)]
    assert plain(again[-1])["event"] == "Finished"


def test_other_failures_keep_their_words(quick: Request, tmp_path: Path, monkeypatch):
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "previews")

    monkeypatch.setattr("studio.export.pictures.save_png", refuse)
    with pytest.raises(RunError, match="No right to use previews") as caught:
        list(run_request(quick, tmp_path / "run", "cpu"))
    assert not isinstance(caught.value, DiskFull)
