"""All stages of a run, from its newest checkpoint to the end, and the ways back where memory or numbers do not hold."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from representations.cameras import orbit
from representations.scene import Representation
from studio.checkpoints import Checkpoints, write_atomically
from studio.debug_pictures import debug_picture
from studio.events import Checkpointed, DebugPictured, Event, Previewed, StageStarted, Started, Stepped, Stopped, Warned
from studio.folder import RunError
from studio.guard import NonFiniteError, unsound
from studio.memory import (
    Down,
    OutOfMemory,
    add_down,
    downs_of,
    give_back,
    is_out_of_memory,
    next_change,
    step_down,
    thrifty,
)
from studio.optimize import Run, Setting, Step, Stop, Timing, optimize
from studio.request import Request
from studio.stages import Stages

_STEP = "{step}"
"""Stands for the step that a run goes back to."""


@dataclass
class Engine:
    """What all stages of a run share."""

    request: Request
    folder: Path
    """Of the run; the caller holds it."""
    stages: Stages
    timing: Timing
    downs: tuple[Down, ...] = ()
    """Steps down the ladder of memory so far."""
    saved: dict[str, Any] | None = None
    """The checkpoint to go on from, until that is done."""
    stage: int = 0
    """The stage that is at work."""
    run: Run | None = None
    """Its state, once it has begun."""
    turned_back: set[int] = field(default_factory=set)
    """Stages that have gone back to a checkpoint because of numbers that were not finite."""

    @property
    def device(self) -> torch.device:
        """Where all of it happens."""
        return self.stages.prior.device

    @property
    def checkpoints(self) -> Checkpoints:
        """Of the run."""
        return Checkpoints(self.folder / "checkpoints")


def optimised(engine: Engine, stop: Stop) -> Generator[Event, None, Representation | None]:
    """All stages; goes back to the last checkpoint, and on from there, where memory or numbers do not hold.

    Returns what was made, or None when asked to stop.

    Raises:
        NonFiniteError: numbers did not hold a second time in the same stage.
        RunError: memory does not suffice, whatever is saved on.
        OutOfMemory: it does not suffice on one of several processes.
        OSError: the folder cannot be written.
    """
    request, engine.downs = engine.request, downs_of(engine.folder)
    yield from _look_for_checkpoint(engine)
    done = 0 if engine.saved is None else engine.saved["step"]
    yield Started(request.prompt, engine.folder, str(engine.device), done, request.steps)
    while True:
        try:
            return (yield from _stages(engine, stop))
        except NonFiniteError as problem:
            if engine.stage in engine.turned_back:
                raise
            broken = str(problem)
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            if engine.stages.team.world > 1:  # the others wait for this step
                raise OutOfMemory(engine.stage, _steps_done(engine)) from problem
            broken = None
        # Only here has the exception let go of what the step had in memory.
        text = _go_down(engine) if broken is None else _turn_back(engine, broken)
        yield from _look_for_checkpoint(engine)
        yield Warned(text.replace(_STEP, str(0 if engine.saved is None else engine.saved["step"])))


def _look_for_checkpoint(engine: Engine) -> Iterator[Event]:
    """Find the newest checkpoint that is whole; says what is wrong with newer ones."""
    engine.stages.team.meet()  # what one of several processes writes is there before another reads
    engine.saved, damaged = engine.checkpoints.newest(engine.device)
    yield from (Warned(f"A checkpoint is damaged, so the one before it is used: {text}") for text in damaged)


def _turn_back(engine: Engine, broken: str) -> str:
    """Drop a run whose numbers do not hold; returns what to say."""
    engine.turned_back.add(engine.stage)
    engine.run = None
    return f"At {broken}. Going back to step {_STEP} and trying once more."


def _go_down(engine: Engine) -> str:
    """Go down a rung, from a checkpoint of right now if there is no half-done step; returns what to say.

    Raises:
        RunError: there is no further rung.
    """
    run, index, step = engine.run, engine.stage, _steps_done(engine)
    if run is not None and run.whole and step:
        with contextlib.suppress(NonFiniteError):
            _checkpoint(engine, run)
    run = engine.run = None
    give_back(engine.device)
    down = step_down(thrifty(engine.request, engine.downs, index, step), index, step, engine.device.type)
    done = sum(stage.steps for stage in engine.request.stages[:index]) + step
    if down is None:
        raise RunError(
            f"Out of memory at step {done + 1}, and there is nothing left to save on. What helps: fewer views "
            f"(--stages.{index}.cameras.views), a smaller prior, another device, or ending other programs that use "
            f"this one. Go on with: studio resume {engine.folder}"
        )
    engine.downs = add_down(engine.folder, down)
    return f"Out of memory at step {done + 1}: from here on {down.text}. Going on from step {_STEP}."


def _stages(engine: Engine, stop: Stop) -> Generator[Event, None, Representation | None]:
    """Optimise every stage from the checkpoint on; returns what was made, or None when asked to stop."""
    request, run = engine.request, None
    saved, engine.saved = engine.saved, None
    first, step = (0, 0) if saved is None else (saved["stage"], saved["stage_step"])
    for index in range(first, len(request.stages)):
        stage, engine.stage = request.stages[index], index
        run = engine.run = engine.stages.thrifty(engine.downs, index, step).begin(index, run)
        if saved is not None:
            run.restore(saved)
            saved = None
        kind = type(request.representation(index)).__name__
        yield StageStarted(index, len(request.stages), kind, type(stage.guidance).__name__, stage.steps)
        while run.step < stage.steps and not stop():
            stages = engine.stages.thrifty(engine.downs, index, run.step)
            run = engine.run = stages.retold(run)
            yield from _steps(engine, stages.setting(index), run, stop)
        if run.step < stage.steps:
            yield _checkpoint(engine, run)
            yield Stopped(_done(request, run), engine.folder)
            return None
        step = 0
    assert run is not None, "a request has stages"
    return run.representation


def _steps(engine: Engine, setting: Setting, run: Run, stop: Stop) -> Iterator[Event]:
    """Steps with checkpoints and previews, as far as they go in this setting."""
    request, leads = engine.request, engine.stages.team.leads
    end = next_change(engine.downs, run.stage, run.step, setting.stage.steps)
    for step in optimize(run, setting, engine.timing, stop):
        yield _counted(step.event, request)
        if leads and request.debug_every and run.step % request.debug_every == 0:
            yield from _if_memory_allows(lambda step=step: _debug_picture(engine, run, step))
        if leads and request.preview_every and run.step % request.preview_every == 0:
            yield from _if_memory_allows(lambda: _preview(engine, run))
        if run.step % request.checkpoint_every == 0 or run.step == setting.stage.steps:
            yield _checkpoint(engine, run)
        if run.step == end:
            return


def _if_memory_allows(picture: Callable[[], Event | None]) -> Iterator[Event]:
    """The event of a picture, which is done without where memory does not suffice for it."""
    try:
        said = picture()
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        said = Warned("Out of memory for a picture on the way: it is left out.")
    if said is not None:
        yield said


def _steps_done(engine: Engine) -> int:
    """Steps of the stage at work."""
    return engine.run.step if engine.run is not None and engine.run.stage == engine.stage else 0


def _done(request: Request, run: Run) -> int:
    return sum(stage.steps for stage in request.stages[: run.stage]) + run.step


def _counted(step: Stepped, request: Request) -> Stepped:
    before = sum(stage.steps for stage in request.stages[: step.stage])
    return Stepped(step.stage, step.step, before + step.step, request.steps, step.loss, step.diagnostics)


def _checkpoint(engine: Engine, run: Run) -> Checkpointed:
    """Save the run, unless something in it is not finite: then there is the checkpoint before."""
    done = _done(engine.request, run)
    if wrong := unsound(run.representation, run.optimiser, run.guidance_state, gradients=False):
        raise NonFiniteError(f"step {run.step}: there are numbers that are not finite in {', '.join(wrong)}")
    if not engine.stages.team.leads:
        return Checkpointed(done, engine.folder)
    return Checkpointed(done, engine.checkpoints.save(done, run.state()))


@torch.no_grad()
def _preview(engine: Engine, run: Run) -> Previewed:
    from studio.export.pictures import save_png

    hints, done = engine.stages.prior.hints, _done(engine.request, run)
    cameras = orbit((0, 90, 180, 270), (15,) * 4, 96, hints["distance"], hints["field_of_view"]).to(engine.device)
    rgb = run.representation.scene().detach().render(cameras, torch.ones(4, 3, device=engine.device)).rgb
    path = engine.folder / "previews" / f"{done:06d}.png"
    save_png(torch.cat(list(rgb.clamp(0, 1).cpu()), 2), path)
    return Previewed(done, path)


def _debug_picture(engine: Engine, run: Run, step: Step) -> DebugPictured | None:
    request, done = engine.request, _done(engine.request, run)
    picture = debug_picture(request.stages[run.stage].guidance, engine.stages.prior, request.prompt, step)
    if picture is None:
        return None
    path = engine.folder / "debug" / f"{done:06d}.png"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, picture)
    return DebugPictured(done, path)
