"""A run: one folder, one request, from the prompt to the files; resumable at any moment.

runs/<name>/  request.json  events.jsonl  checkpoints/  previews/  result.glb  report.json  turntable.webp
              contact_sheet.png  splats.ply (of gaussians)
"""

import json
import platform
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from guidance.conditioning import Prompts
from guidance.contract import Views
from guidance.diffusers_prior import DiffusersPrior
from representations.cameras import orbit
from representations.scene import EmptySceneError, Representation, Scene
from studio.checkpoints import Checkpoints, write_atomically
from studio.codec import decode, encode
from studio.events import (
    Checkpointed,
    Event,
    Exported,
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
from studio.folder import RunFolder
from studio.optimize import NonFiniteError, Run, Stop, Timing, make_optimiser, optimize, step_rng
from studio.paths import resolve_prior
from studio.request import Request, check

_SAMPLE_SCALE = 4.0
"""Guidance scale of the prior's own pictures on the contact sheet."""


class RunError(RuntimeError):
    """A run cannot go on; the message says why and what to do."""


def never() -> bool:
    """A run that nobody stops."""
    return False


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
    chosen = choose_device(device)
    with RunFolder.create(folder, request) as home:
        yield from _recorded(_work(request, home, chosen, stop), home)


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
        yield from _recorded(_work(request, home, chosen, stop), home)


def read_request(folder: Path) -> Request:
    """The request of a run.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    try:
        return decode(Request, json.loads((folder / "request.json").read_text(encoding="utf-8")))
    except FileNotFoundError as problem:
        raise RunError(f"{folder} is not a run: it has no request.json.") from problem
    except ValueError as problem:
        raise RunError(f"{folder}/request.json cannot be read: {problem}") from problem


def refuse_wrong(request: Request) -> None:
    """Refuse a request that has errors.

    Raises:
        RunError: with every error in words.
    """
    errors = [problem.text for problem in check(request) if problem.severity == "error"]
    if errors:
        raise RunError("\n".join(errors))


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
    prior: DiffusersPrior
    prompts: Prompts
    device: torch.device
    timing: Timing


def _work(request: Request, home: RunFolder, device: torch.device, stop: Stop) -> Iterator[Event]:
    began = time.perf_counter()
    yield from (Warned(p.text) for p in check(request) if p.severity == "warning")
    yield Working("loading the prior")
    prior = DiffusersPrior.load(resolve_prior(request.prior), device)
    refuse_cut_prompt(prior, request.prompt)
    view_prompts = request.view_prompts or ("off" if "pose" in prior.takes else "bucketed")
    prompts = Prompts.embed(prior, request.prompt, request.negative, view_prompts)
    studio = _Studio(request, home, Checkpoints(home.path / "checkpoints"), prior, prompts, device, Timing())
    saved, damaged = studio.checkpoints.newest(device)
    yield from (Warned(f"A checkpoint is damaged, so the one before it is used: {text}") for text in damaged)
    done = 0 if saved is None else saved["step"]
    yield Started(request.prompt, home.path, str(device), done, request.steps)
    run = yield from _stages(studio, saved, stop)
    if run is None:
        return
    optimised = time.perf_counter()
    yield from _deliver(studio, run.representation.scene().detach(), {"optimise": round(optimised - began, 2)})
    yield Finished(home.path, round(time.perf_counter() - began, 2))


def _stages(studio: _Studio, saved: dict[str, Any] | None, stop: Stop) -> Iterator[Event]:
    """Optimise every stage; returns the last run, or None when asked to stop."""
    request, run = studio.request, None
    first = 0 if saved is None else saved["stage"]
    for index in range(first, len(request.stages)):
        stage = request.stages[index]
        run = _begin_stage(studio, index, run)
        if saved is not None and index == first:
            run.restore(saved)
        kind = type(_spec(request, index)).__name__
        yield StageStarted(index, len(request.stages), kind, type(stage.guidance).__name__, stage.steps)
        yield from _optimise_stage(studio, run, stop)
        if run.step < stage.steps:
            yield _checkpoint(studio, run)
            yield Stopped(_done(request, run), studio.home.path)
            return None
    return run


def _begin_stage(studio: _Studio, index: int, before: Run | None) -> Run:
    """A stage's run: its own representation, begun from the one before it, or that one itself."""
    stage, device = studio.request.stages[index], studio.device
    rng = step_rng(studio.request.seed, index, -1)
    spec = _spec(studio.request, index)
    if before is None:
        representation: Representation = spec.build(rng, device)
    elif stage.representation is None:
        representation = before.representation
    else:
        representation = spec.start_from(before.representation.scene().detach(), rng, device)
    state = stage.guidance.init(studio.prior)
    return Run(index, 0, representation, make_optimiser(representation), state)


def _spec(request: Request, index: int) -> Any:
    """The representation a stage works on: its own, or the last one named before it."""
    return next(s.representation for s in reversed(request.stages[: index + 1]) if s.representation is not None)


def _optimise_stage(studio: _Studio, run: Run, stop: Stop) -> Iterator[Event]:
    """Steps with checkpoints and previews; goes back once to the last checkpoint when gradients break down."""
    request, stage = studio.request, studio.request.stages[run.stage]
    rolled_back = False
    while run.step < stage.steps and not stop():
        steps = optimize(
            run, stage, studio.prior, studio.prompts, studio.prior.hints, request.seed, studio.timing, stop
        )
        try:
            for step in steps:
                yield _counted(step, request)
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

    hints, done = studio.prior.hints, _done(studio.request, run)
    cameras = orbit((0, 90, 180, 270), (15,) * 4, 96, hints["distance"], hints["field_of_view"]).to(studio.device)
    rgb = run.representation.scene().detach().render(cameras, torch.ones(4, 3, device=studio.device)).rgb
    path = studio.home.path / "previews" / f"{done:06d}.png"
    save_png(torch.cat(list(rgb.clamp(0, 1).cpu()), 2), path)
    return Previewed(done, path)


def refuse_cut_prompt(prior: DiffusersPrior, prompt: str) -> None:
    """Refuse a prompt that the prior would read in part only.

    Raises:
        RunError: it has more tokens than the prior reads.
    """
    tokens, most = prior.count_tokens(prompt), prior.most_tokens
    if tokens > most:
        raise RunError(f"The prompt has {tokens} tokens and this prior reads {most}; shorten it.")


def _deliver(studio: _Studio, scene: Scene, seconds: dict[str, float]) -> Iterator[Event]:
    """Export the asset and write the report."""
    from studio.export.asset import export_asset

    request, home, hints = studio.request, studio.home, studio.prior.hints
    yield Working("asking the prior for its own pictures")
    began = time.perf_counter()
    samples = prior_pictures(studio.prior, studio.prompts, request.seed)
    seconds = {**seconds, "samples": round(time.perf_counter() - began, 2)}
    phases = export_asset(
        scene,
        home.path,
        faces=request.export.faces,
        texture=request.export.texture,
        grid=request.export.grid,
        smoothing=request.export.smoothing,
        picture=request.export.picture,
        settings=encode(request),
        prompt=request.prompt,
        distance=hints["distance"],
        field_of_view=hints["field_of_view"],
        samples=samples,
    )
    while True:
        try:
            yield Working(f"export: {next(phases)}")
        except StopIteration as end:
            asset = end.value
            break
    timing = studio.timing
    report = asset.as_dict() | {
        "seconds": seconds | asset.seconds,
        "seconds_per_iteration": round(timing.seconds / timing.steps, 4) if timing.steps else None,
        "prior_share": round(timing.in_prior / timing.seconds, 4) if timing.steps else None,
        "peak_memory_mb": peak_memory_mb(studio.device),
        "prompt_match": None,
        "seed": request.seed,
        "versions": versions(),
    }
    write_atomically(home.path / "report.json", json.dumps(report, indent=2).encode())
    yield Exported(home.path / "result.glb", report)


@torch.no_grad()
def prior_pictures(prior: DiffusersPrior, prompts: Prompts, seed: int) -> torch.Tensor:
    """What the prior itself draws from eight sides [8, 3, h, w], to compare the object with."""
    from guidance.sampling import sample
    from studio.export.asset import AZIMUTHS, ELEVATION

    size = prior.resolution
    hints = prior.hints
    cameras = orbit(AZIMUTHS, (ELEVATION,) * len(AZIMUTHS), size, hints["distance"], hints["field_of_view"])
    blank = torch.zeros(len(cameras), 3, size, size, device=prior.device)
    white = torch.ones(len(cameras), 3, device=prior.device)
    condition = prompts.condition(Views(blank, cameras.pose.to(prior.device), white))
    return sample(prior, condition, steps=20, scale=_SAMPLE_SCALE, seed=seed).cpu()


def peak_memory_mb(device: torch.device) -> dict[str, int]:
    """Peak memory of this process, and of the device where that is another memory, in MiB."""
    import resource
    import sys

    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit}
    if device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device) // 2**20
    return peak


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    import importlib.metadata as metadata

    names = ("dreamkiln", "torch", "diffusers", "transformers")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"python": platform.python_version(), "platform": platform.platform()}
