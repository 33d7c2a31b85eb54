"""What each verb of the command line does."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from studio.arguments import Devices, MaybeName, MaybeNames, MaybeNumber, MaybeNumbers, MaybePath
from studio.bench_options import Bench
from studio.cli import BAD_USAGE, FAILED, OK
from studio.events import Event
from studio.folder import FolderTaken, RunError, free_name, in_words, read_request
from studio.options import Edit, Generate, UsageError, build_edit, build_request, with_knobs
from studio.recipes import RECIPES
from studio.request import Request, check


@dataclass(frozen=True)
class Cite:
    """Print BibTeX of what a run used."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, finished or not."""


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped or killed."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    devices: Devices = ()
    """Several devices that share the views of every step, e.g. cuda:0 cuda:1; --device alone without it."""
    tensorboard: bool = False
    """Write event files for TensorBoard into the run's folder."""
    json: bool = False
    """Print events as JSON, one a line, instead of a progress bar."""


@dataclass(frozen=True)
class Evaluate:
    """Compare guidance methods at equal evaluations of the prior, or recipes as they are, with the true objects.

    The bundled prior's prompts have a truth: the object that its training pictures were made of. Runs that are in the
    folder already are not made again, so a comparison that was stopped goes on where it was. Exit status 3 if some of
    what was compared failed.
    """

    methods: MaybeNames = None
    """Methods on the recipe draft; NAME or NAME:KNOB=VALUE, e.g. SDS:form=clean or
    SDS:one_pass=own. Without it: all of them."""
    recipes: MaybeNames = None
    """Recipes to compare, each at its own number of steps; without --methods they alone are."""
    prompts: MaybePath = None
    """File of prompts, one a line; without it four that the bundled prior knows."""
    seeds: MaybeNumbers = None
    """Runs for each prompt; 0 without it."""
    evaluations: MaybeNumber = None
    """Evaluations of the prior that a method may spend on a run; 800 without it."""
    full: bool = False
    """Ten prompts, seeds 0, 1 and 2, and 3200 evaluations, where nothing else is said."""
    out: Path = Path("runs/evaluate")
    """Folder of the results."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class Doctor:
    """Examine the installation and say what is missing."""

    prior: MaybeName = None
    """Examine this prior too: what kind it is, and the memory it needs at each resolution."""
    download: bool = False
    """Fetch the preset that --prior names from the Hugging Face hub first. Nothing else ever fetches anything."""


def generate(arguments: list[str]) -> int:
    """``studio generate``."""
    if {"-h", "--help"} & set(arguments) and _named_recipe(arguments) in RECIPES:
        return _show_knobs(arguments)
    options, knobs = tyro.cli(Generate, args=arguments, prog="studio generate", return_unknown_args=True)
    try:
        request = build_request(options, knobs)
    except (UsageError, ValueError) as problem:
        return complain(str(problem), BAD_USAGE)
    return _start(request, options)


def edit(arguments: list[str]) -> int:
    """``studio edit``."""
    options, knobs = tyro.cli(Edit, args=arguments, prog="studio edit", return_unknown_args=True)
    try:
        request = build_edit(options, knobs)
    except (UsageError, RunError, ValueError) as problem:
        return complain(str(problem), BAD_USAGE)
    return _start(request, options)


def _start(request: Request, options: Generate | Edit) -> int:
    """Run a request that was just made, unless there are objections to it."""
    errors = [p.text for p in check(request) if p.severity == "error"]
    if errors:
        return complain("\n".join(errors), BAD_USAGE)
    return _follow(lambda stop: _run(request, options, stop), options.json)


def _run(request: Request, options: Generate | Edit, stop: Callable[[], bool]) -> Iterator[Event]:
    """The run in its folder; without one, under the first name that no other process takes meanwhile."""
    from studio.run import run_request

    o = options
    while True:
        folder = o.out or free_name(Path("runs"), request.prompt)
        try:
            yield from run_request(request, folder, o.device, stop, o.devices, o.tensorboard)
            return
        except FolderTaken:
            if o.out is not None:
                raise


def cite(arguments: list[str]) -> int:
    """``studio cite``."""
    options = tyro.cli(Cite, args=arguments, prog="studio cite")
    from studio.cite import bibliography

    try:
        sys.stdout.write(bibliography(read_request(options.run)))
    except (RunError, OSError) as problem:
        return complain(in_words(problem) if isinstance(problem, OSError) else str(problem), BAD_USAGE)
    return OK


def resume(arguments: list[str]) -> int:
    """``studio resume``."""
    options = tyro.cli(Resume, args=arguments, prog="studio resume")
    from studio.run import resume_run

    o = options
    return _follow(lambda stop: resume_run(o.run, o.device, stop, o.devices, o.tensorboard), o.json)


def bench(arguments: list[str]) -> int:
    """``studio bench``."""
    try:
        options = tyro.cli(Bench, args=arguments, prog="studio bench")
        from studio.run import choose_device

        device = choose_device(options.device)
    except (RunError, ValueError) as problem:
        return complain(str(problem), BAD_USAGE)
    try:
        if options.prior:
            from studio.bench_prior import show as show_priors

            return show_priors(options.prior, options.timing, device, options.json)
        from studio.bench import show

        return show(device, options.only, options.quick, options.json)
    except ValueError as problem:
        return complain(str(problem), BAD_USAGE)
    except OSError as problem:
        return complain(in_words(problem), FAILED)


def evaluate(arguments: list[str]) -> int:
    """``studio evaluate``."""
    options = tyro.cli(Evaluate, args=arguments, prog="studio evaluate")
    from studio.evaluate.command import make_plan, show
    from studio.run import choose_device

    o = options
    try:
        plan = make_plan(o.methods, o.recipes, o.prompts, o.seeds, o.evaluations, o.full, o.out)
        device = choose_device(options.device)
    except (UsageError, RunError, ValueError) as problem:
        return complain(str(problem), BAD_USAGE)
    try:
        return show(plan, device)
    except OSError as problem:
        return complain(in_words(problem), FAILED)


def doctor(arguments: list[str]) -> int:
    """``studio doctor``."""
    options = tyro.cli(Doctor, args=arguments, prog="studio doctor")
    if options.download and options.prior is None:
        return complain("--download needs a preset to fetch: name it with --prior.", BAD_USAGE)
    from studio.doctor import examine, report
    from studio.prior_check import examine_prior

    try:
        further = [] if options.prior is None else examine_prior(options.prior, options.download)
    except ValueError as problem:
        return complain(str(problem), BAD_USAGE)
    return report([*examine(Path("runs")), *further])


def train_prior(arguments: list[str]) -> int:
    """``studio train-prior``."""
    from studio.toybox import command

    options = tyro.cli(command.TrainPriorOptions, args=arguments, prog="studio train-prior")
    return command.main(options)


def distill_guidance(arguments: list[str]) -> int:
    """``studio distill-guidance``."""
    from studio.distillation import command

    try:
        options = tyro.cli(command.DistillGuidanceOptions, args=arguments, prog="studio distill-guidance")
    except ValueError as problem:
        return complain(str(problem), BAD_USAGE)
    return command.main(options)


def _named_recipe(arguments: list[str]) -> str | None:
    for i, argument in enumerate(arguments):
        if argument.startswith("--recipe="):
            return argument.removeprefix("--recipe=")
        if argument == "--recipe" and i + 1 < len(arguments):
            return arguments[i + 1]
    return None


def _show_knobs(arguments: list[str]) -> int:
    recipe = _named_recipe(arguments)
    assert recipe is not None
    with_knobs(RECIPES[recipe]("a prompt", True), ["--help"])
    return OK


def _follow(events: Any, as_json: bool) -> int:
    """Show events until they end. Ctrl-C and SIGTERM ask the run to stop; a second Ctrl-C stops it at once."""
    from studio.console import show, show_json
    from studio.jobs.terminal import asked_to_stop

    try:
        with asked_to_stop("Stopping after this step or phase; Ctrl-C again ends at once.\n") as asked:
            stream: Iterator[Event] = events(asked)
            return (show_json if as_json else show)(stream)
    except RunError as problem:
        return complain(str(problem), FAILED)
    except OSError as problem:
        return complain(in_words(problem), FAILED)


def complain(text: str, status: int) -> int:
    """Say what is wrong; returns the exit status that says so too."""
    sys.stderr.write(text + "\n")
    return status
