"""A run: one folder, one request, from the prompt to the files; resumable at any moment.

runs/<name>/  request.json  events.jsonl  checkpoints/  previews/  result.glb  report.json  turntable.webp
              contact_sheet.png  citation.bib  splats.ply (of gaussians)  source/ (of edits)
              debug/ (on request)  particles/1/ ... (of more than one particle)
"""

import functools
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from guidance.diffusers_prior import DiffusersPrior
from representations.cameras import orbit
from representations.scene import EmptySceneError
from studio.checkpoints import Checkpoints, write_atomically
from studio.debug_pictures import debug_picture
from studio.delivery import deliver
from studio.edit import check_source, own_source
from studio.events import (
    Checkpointed,
    DebugPictured,
    Event,
    Failed,
    Finished,
    Previewed,
    StageStarted,
    Started,
    Stepped,
    Stopped,
    Warned,
    Working,
)
from studio.folder import RunError, RunFolder, read_request
from studio.optimize import NonFiniteError, Run, Step, Stop, Timing, optimize
from studio.paths import resolve_prior
from studio.request import Request, check
from studio.stages import Stages


def never() -> bool:
    """A run that nobody stops."""
    return False


@functools.lru_cache(maxsize=1)
def loaded_prior(name: str, device: torch.device) -> DiffusersPrior:
    """The prior of a name or folder. The last one stays in memory for the process's next run.

    Raises:
        UnknownPrior, MissingAsset, ValueError: it cannot be loaded; in words.
    """
    return DiffusersPrior.load(resolve_prior(name), device)


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is a GPU if there is one.

    Raises:
        RunError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise RunError(f"There is no device {name!r} here; there is {', '.join(have)}, or say auto.") from problem
    return device


def run_request(
    request: Request, folder: Path, device: str = "auto", stop: Stop = never
) -> Generator[Event, None, None]:
    """Make what ``request`` asks for in a new ``folder``, saying what happens.

    Raises:
        RunError: the request or the device is refused, or the run failed; ``Failed`` was said before.
        FileExistsError: there is something in the folder already.
        OSError: the folder cannot be written.
    """
    refuse_wrong(request)
    check_source(request)
    chosen = choose_device(device)
    with RunFolder.create(folder, request) as home:
        yield from work_in(home, request, chosen, stop)


def resume_run(folder: Path, device: str = "auto", stop: Stop = never) -> Generator[Event, None, None]:
    """Go on with the run in ``folder`` from its newest whole checkpoint.

    Raises:
        RunError: the folder holds no run, or the run failed again.
        BlockingIOError: another process is working on it.
    """
    request = read_request(folder)
    refuse_wrong(request)
    chosen = choose_device(device)
    with RunFolder.open(folder) as home:
        yield from work_in(home, request, chosen, stop)


def refuse_wrong(request: Request) -> None:
    """Refuse a request that has errors.

    Raises:
        RunError: with every error in words.
    """
    errors = [problem.text for problem in check(request) if problem.severity == "error"]
    if errors:
        raise RunError("\n".join(errors))


def work_in(home: RunFolder, request: Request, device: torch.device, stop: Stop) -> Iterator[Event]:
    """Do, or go on with, the run in a folder that the caller holds, saying what happens.

    Raises:
        RunError: the run failed; ``Failed`` was said before.
    """
    yield from _recorded(_work(request, home, device, stop), home)


def _recorded(events: Iterator[Event], home: RunFolder) -> Iterator[Event]:
    """The events, each also in the run's own record; an exception becomes ``Failed`` before it travels on."""
    try:
        for event in events:
            home.record(event)
            yield event
    except (RunError, NonFiniteError, EmptySceneError, OSError, ValueError) as problem:
        failure = Failed(str(problem))
        home.record(failure)
        yield failure
        raise problem if isinstance(problem, RunError) else RunError(str(problem)) from problem


@dataclass
class _Studio:
    """What all stages of a run share."""

    request: Request
    home: RunFolder
    checkpoints: Checkpoints
    stages: Stages
    device: torch.device
    timing: Timing


def _work(request: Request, home: RunFolder, device: torch.device, stop: Stop) -> Iterator[Event]:
    began = time.perf_counter()
    yield from (Warned(p.text) for p in check(request) if p.severity == "warning")
    yield Working("loading the prior")
    prior = loaded_prior(request.prior, device)
    refuse_cut_prompt(prior, request.prompt)
    source = None if request.task is None else own_source(home.path, request.task, device)
    stages = Stages.of(request, prior, source)
    studio = _Studio(request, home, Checkpoints(home.path / "checkpoints"), stages, device, Timing())
    saved, damaged = studio.checkpoints.newest(device)
    yield from (Warned(f"A checkpoint is damaged, so the one before it is used: {text}") for text in damaged)
    done = 0 if saved is None else saved["step"]
    yield Started(request.prompt, home.path, str(device), done, request.steps)
    run = yield from _stages(studio, saved, stop)
    if run is None:
        return
    seconds = {"optimise": round(time.perf_counter() - began, 2)}
    yield from deliver(
        request, home.path, prior, stages.prompts, run.representation, stages.before, studio.timing, seconds
    )
    yield Finished(home.path, round(time.perf_counter() - began, 2))


def _stages(studio: _Studio, saved: dict[str, Any] | None, stop: Stop) -> Iterator[Event]:
    """Optimise every stage; returns the last run, or None when asked to stop."""
    request, run = studio.request, None
    first = 0 if saved is None else saved["stage"]
    for index in range(first, len(request.stages)):
        stage = request.stages[index]
        run = studio.stages.begin(index, run)
        if saved is not None and index == first:
            run.restore(saved)
        kind = type(request.representation(index)).__name__
        yield StageStarted(index, len(request.stages), kind, type(stage.guidance).__name__, stage.steps)
        yield from _optimise_stage(studio, run, stop)
        if run.step < stage.steps:
            yield _checkpoint(studio, run)
            yield Stopped(_done(request, run), studio.home.path)
            return None
    return run


def _optimise_stage(studio: _Studio, run: Run, stop: Stop) -> Iterator[Event]:
    """Steps with checkpoints and previews; goes back once to the last checkpoint when gradients break down."""
    request, stage = studio.request, studio.request.stages[run.stage]
    setting, rolled_back = studio.stages.setting(run.stage), False
    while run.step < stage.steps and not stop():
        try:
            for step in optimize(run, setting, studio.timing, stop):
                yield _counted(step.event, request)
                if request.debug_every and run.step % request.debug_every == 0:
                    yield from _debug_picture(studio, run, step)
                if request.preview_every and run.step % request.preview_every == 0:
                    yield _preview(studio, run)
                if run.step % request.checkpoint_every == 0 or run.step == stage.steps:
                    yield _checkpoint(studio, run)
        except NonFiniteError as problem:
            saved, _ = studio.checkpoints.newest(studio.device)
            if rolled_back or saved is None or saved["stage"] != run.stage:
                raise
            run.restore(saved)
            rolled_back = True
            yield Warned(f"At {problem}. Going back to the checkpoint of step {run.step} and trying once more.")


def _done(request: Request, run: Run) -> int:
    return sum(stage.steps for stage in request.stages[: run.stage]) + run.step


def _counted(step: Stepped, request: Request) -> Stepped:
    before = sum(stage.steps for stage in request.stages[: step.stage])
    return Stepped(step.stage, step.step, before + step.step, request.steps, step.loss, step.diagnostics)


def _checkpoint(studio: _Studio, run: Run) -> Checkpointed:
    done = _done(studio.request, run)
    return Checkpointed(done, studio.checkpoints.save(done, run.state()))


@torch.no_grad()
def _preview(studio: _Studio, run: Run) -> Previewed:
    from studio.export.pictures import save_png

    hints, done = studio.stages.prior.hints, _done(studio.request, run)
    cameras = orbit((0, 90, 180, 270), (15,) * 4, 96, hints["distance"], hints["field_of_view"]).to(studio.device)
    rgb = run.representation.scene().detach().render(cameras, torch.ones(4, 3, device=studio.device)).rgb
    path = studio.home.path / "previews" / f"{done:06d}.png"
    save_png(torch.cat(list(rgb.clamp(0, 1).cpu()), 2), path)
    return Previewed(done, path)


def _debug_picture(studio: _Studio, run: Run, step: Step) -> Iterator[DebugPictured]:
    request, done = studio.request, _done(studio.request, run)
    picture = debug_picture(request.stages[run.stage].guidance, studio.stages.prior, request.prompt, step)
    if picture is not None:
        path = studio.home.path / "debug" / f"{done:06d}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, picture)
        yield DebugPictured(done, path)


def refuse_cut_prompt(prior: DiffusersPrior, prompt: str) -> None:
    """Refuse a prompt that the prior would read in part only.

    Raises:
        RunError: it has more tokens than the prior reads.
    """
    tokens, most = prior.count_tokens(prompt), prior.most_tokens
    if tokens > most:
        raise RunError(f"The prompt has {tokens} tokens and this prior reads {most}; shorten it.")
