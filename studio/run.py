"""A run: one folder, one request, from the prompt to the files; resumable at any moment.

runs/<name>/  request.json  events.jsonl  checkpoints/  previews/  result.glb  report.json  turntable.webp
              contact_sheet.png  citation.bib  losses.png  splats.ply (of gaussians)  source/ (of edits)
              memory.json (where memory was short)  debug/ and tensorboard/ (on request)
              particles/1/ ... (of more than one particle)
"""

import contextlib
import errno
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from studio.delivery import deliver
from studio.edit import check_source, own_source
from studio.engine import Engine, optimised
from studio.events import Event, Failed, Finished, Stopped, Warned, Working
from studio.folder import DiskFull, RunError, RunFolder, in_words, read_request
from studio.guard import NonFiniteError
from studio.loaded import loaded_prior
from studio.memory import downs_of, is_out_of_memory, thrifty
from studio.optimize import Stop, Timing
from studio.parallel import together
from studio.paths import resolve_prior
from studio.prior_check import memory_warnings, refuse_cut, refuse_long_prompt
from studio.prior_options import PriorOptions
from studio.prior_stamp import record, stamp
from studio.prior_trial import fault_of
from studio.request import Request, check
from studio.second_prior import second_prior_of
from studio.stages import Stages
from studio.team import ALONE, Team
from studio.tracking import refuse_missing_tensorboard, tracked, trackers_of


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
    request: Request,
    folder: Path,
    device: str = "auto",
    stop: Stop = never,
    devices: Sequence[str] = (),
    tensorboard: bool = False,
) -> Generator[Event, None, None]:
    """Make what ``request`` asks for in a new ``folder``, saying what happens.

    Args:
        device: auto, cpu, cuda, cuda:1, ...
        stop: asked at every step.
        devices: several that share the views of every step; ``device`` alone without them.
        tensorboard: write event files for TensorBoard too.

    Raises:
        RunError: the request or the device is refused, or the run failed; ``Failed`` was said before.
        FileExistsError: there is something in the folder already.
        OSError: the folder cannot be written.
    """
    refuse_wrong(request)
    check_source(request)
    chosen = _choose(device, devices)
    refuse_long_prompt(request, chosen[0])
    if tensorboard:
        refuse_missing_tensorboard()
    with RunFolder.create(folder, request) as home:
        yield from _follow(home, request, chosen, stop, tensorboard)


def resume_run(
    folder: Path,
    device: str = "auto",
    stop: Stop = never,
    devices: Sequence[str] = (),
    tensorboard: bool = False,
) -> Generator[Event, None, None]:
    """Go on with the run in ``folder`` from its newest whole checkpoint; arguments as for ``run_request``.

    Raises:
        RunError: the folder holds no run, or the run failed again.
        BlockingIOError: another process is working on it.
    """
    request = read_request(folder)
    refuse_wrong(request)
    chosen = _choose(device, devices)
    if tensorboard:
        refuse_missing_tensorboard()
    with RunFolder.open(folder) as home:
        yield from _follow(home, request, chosen, stop, tensorboard)


def _choose(device: str, devices: Sequence[str]) -> list[torch.device]:
    chosen = [choose_device(name) for name in devices or (device,)]
    cards = [device for device in chosen if device.type != "cpu"]
    if len(set(cards)) < len(cards):
        raise RunError(f"A device can be named once only, not as in {' '.join(devices)}.")
    return chosen


def _follow(
    home: RunFolder, request: Request, devices: list[torch.device], stop: Stop, tensorboard: bool
) -> Iterator[Event]:
    if len(devices) == 1:
        return work_in(home, request, devices[0], stop, tensorboard)
    events = together(home, request, [str(device) for device in devices], stop)
    return _recorded(_tracked(events, home, request, tensorboard), home)


def refuse_wrong(request: Request) -> None:
    """Refuse a request that has errors.

    Raises:
        RunError: with every error in words.
    """
    errors = [problem.text for problem in check(request) if problem.severity == "error"]
    if errors:
        raise RunError("\n".join(errors))


def work_in(
    home: RunFolder, request: Request, device: torch.device, stop: Stop, tensorboard: bool = False
) -> Iterator[Event]:
    """Do, or go on with, the run in a folder that the caller holds, saying what happens.

    Raises:
        RunError: the run failed; ``Failed`` was said before.
    """
    yield from _recorded(_tracked(carry_out(request, home, device, stop), home, request, tensorboard), home)


def _tracked(events: Iterator[Event], home: RunFolder, request: Request, tensorboard: bool) -> Iterator[Event]:
    yield from tracked(events, trackers_of(request, home.path, tensorboard))


def _recorded(events: Iterator[Event], home: RunFolder) -> Iterator[Event]:
    """The events, each also in the run's own record; an exception becomes ``Failed`` before it travels on."""
    try:
        for event in events:
            home.record(event)
            yield event
    except (NonFiniteError, OSError, ValueError, RuntimeError, MemoryError) as problem:
        failure = _in_words(problem, home.path)
        if failure is None:
            raise
        with contextlib.suppress(OSError):  # a full disk must not hide why
            home.record(Failed(str(failure)))
        yield Failed(str(failure))
        if failure is problem:
            raise
        raise failure from problem


def _in_words(problem: Exception, folder: Path) -> RunError | None:
    """What a run fails with, for people; None for what nobody expects."""
    if isinstance(problem, RunError):
        return problem
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"The disk of {folder} is full. The last checkpoint is whole: make room, then go on with: "
            f"studio resume {folder}"
        )
    if is_out_of_memory(problem):
        return RunError(
            f"Out of memory ({str(problem).splitlines()[0]}). What helps: a smaller prior, another device, smaller "
            f"--export numbers, or ending other programs. Go on with: studio resume {folder}"
        )
    if isinstance(problem, OSError):
        return RunError(in_words(problem))
    return RunError(str(problem)) if isinstance(problem, NonFiniteError | ValueError) else None


def carry_out(
    request: Request, home: RunFolder, device: torch.device, stop: Stop, team: Team = ALONE
) -> Iterator[Event]:
    """The run itself, without its record; all processes of a ``team`` do this, and the one that leads makes the files.

    Raises:
        RunError, NonFiniteError, OSError, ValueError: it failed.
        OutOfMemory: on one of several processes, which all have to go on otherwise.
    """
    began = time.perf_counter()
    yield from (Warned(p.text) for p in check(request) if p.severity == "warning")
    yield Working("loading the prior")
    refuse_long_prompt(request, device)
    lowered = thrifty(request, downs_of(home.path), len(request.stages), 0)  # as it is at its thriftiest so far
    yield from (Warned(text) for text in memory_warnings(lowered, device))
    prior = loaded_prior(request.prior, device, request.prior_options)
    if team.leads:
        yield from (Warned(text) for text in record(home.path, _stamp(request)))
    refuse_cut(prior.parts.words, request.prompt)  # once more: inversions may have words of several tokens
    source = None if request.task is None else own_source(home.path, request.task, device)
    stages = Stages.of(request, prior, source, team)
    timing = Timing()
    try:
        made = yield from optimised(Engine(request, home.path, stages, timing), team.agreed(stop))
    except NonFiniteError as problem:
        if fault := fault_of(prior):
            raise RunError(f"{problem}. {fault}") from problem
        raise
    if made is None or not team.leads:
        return
    seconds = {"optimise": round(time.perf_counter() - began, 2)}
    for event in deliver(request, home.path, prior, stages.prompts, made, stages.before, timing, seconds):
        yield event
        if isinstance(event, Working) and stop():  # between phases; the next run begins with the first of them
            yield Stopped(request.steps, home.path)
            return
    yield Finished(home.path, round(time.perf_counter() - began, 2))


def _stamp(request: Request) -> dict[str, Any]:
    """Which weights the run is made with."""
    found = stamp(request.prior, resolve_prior(request.prior), request.prior_options)
    seconds = dict.fromkeys(second for stage in request.stages if (second := second_prior_of(stage)))
    if seconds:
        found["second"] = [stamp(str(second), second, PriorOptions()) for second in seconds]
    return found
