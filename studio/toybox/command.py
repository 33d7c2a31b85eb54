"""``studio train-prior``: train, resume, release.

A training lives in one folder (``--work``), the prior it yields in another (``--out``):

    <work>/settings.json  log.jsonl  checkpoints/  samples/        <out>/unet/ text_encoder/ ... README.md samples.png
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from guidance.prior_folder import MissingPriorError
from studio.arguments import MaybePath
from studio.checkpoints import Checkpoints, write_atomically
from studio.cli import BAD_USAGE, FAILED, OK
from studio.codec import decode, encode
from studio.prior_options import ONE_PASS
from studio.toybox.release import History, Measured, in_memory, release, samples_picture, trainee_average
from studio.toybox.training import Trainee, TrainingProgress, TrainPrior, train
from studio.training_notes import Refused, note, noted, refuse_other

_FREE = ("images", "descent", "checkpoint_every")
"""Settings that may change when a training goes on: they say how long, not what."""
_RELEASED = {
    *("unet", "text_encoder", "tokenizer", "scheduler", "model_index.json", "dreamkiln.json"),
    *("README.md", "samples.png", "training.json"),
}
"""What a released folder holds; one that holds anything else is not replaced."""


@dataclass(frozen=True)
class TrainPriorOptions:
    """Train the bundled prior anew.

    The same command again goes on where it was. --images may change then, and the learning rate follows the new total;
    what defines the training (network, seed, batch, ...) may not.
    """

    settings: Annotated[TrainPrior, tyro.conf.arg(name="")] = field(default=TrainPrior())
    """How it is trained."""
    work: Path = Path("training")
    """Folder of the training: settings, log, checkpoints."""
    out: Path = Path("training/toybox-64")
    """Folder to write the finished prior to, replacing the prior that is there; for `studio generate --prior`."""
    begin_with: MaybePath = None
    """Folder of a released prior whose weights a new training starts from; it must be of the same network."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    samples_every: int = 0
    """Steps between pictures of what the prior draws so far, in <work>/samples; 0 for none."""
    note: str = ""
    """A sentence for the model card."""
    release_only: bool = False
    """Write the prior from the newest checkpoint, with the settings noted beside it, without training on."""


@dataclass(frozen=True)
class Resumed:
    """A training goes on from a checkpoint."""

    step: int
    images_before: int | None
    """Total of the training until now, where it differs."""


@dataclass(frozen=True)
class Sampled:
    """Pictures of the prior as of ``step`` were written."""

    step: int
    picture: Path


@dataclass(frozen=True)
class Released:
    """The prior was written."""

    folder: Path
    measured: Measured


Report = Resumed | TrainingProgress | Sampled | Released


def main(options: TrainPriorOptions) -> int:
    """Train until done, then write the prior; returns an exit status."""
    from studio.run import RunError

    console = Console(stderr=True)
    try:
        _show(train_prior(options), options, console)
        return OK
    except (Refused, RunError, MissingPriorError) as problem:
        console.print(str(problem), markup=False)
        return BAD_USAGE
    except OSError as problem:
        console.print(f"{problem.strerror or problem}: {problem.filename or options.work}", markup=False)
        return FAILED
    except KeyboardInterrupt:
        console.print(_how_to_go_on(options.work), markup=False)
        return FAILED


def train_prior(options: TrainPriorOptions) -> Iterator[Report]:
    """Train or go on, then release, reporting on the way.

    Raises:
        Refused: the settings make no sense, differ from those the folder was begun with, or --out is not ours.
        RunError: there is no such device.
        OSError: a folder cannot be written.
    """
    from studio.run import choose_device

    device = choose_device(options.device)
    refuse_foreign(options.out, options.work)
    if not options.release_only:
        refuse_nonsense(options.settings)
        refuse_other_network(options, device)
        images_before = keep_settings(options.settings, options.work)
        yield from _train(options, device, images_before)
    yield _release(options, device)


# What is refused ------------------------------------------------------------------------------------------------------


def refuse_nonsense(settings: TrainPrior) -> None:
    """Refuse settings that no training can have.

    Raises:
        Refused: which one, and what it may be.
    """
    for name in ("images", "batch", "views_per_kind", "checkpoint_every", "learning_rate", "descent"):
        if not getattr(settings, name) > 0:
            raise Refused(f"--{name.replace('_', '-')} must be above 0, not {getattr(settings, name)}")
    for name in ("text_dropout", "camera_dropout", "average", "descent", "detail_weight"):
        if not 0 <= getattr(settings, name) <= 1:
            raise Refused(f"--{name.replace('_', '-')} must be from 0 to 1, not {getattr(settings, name)}")


def refuse_other_network(options: TrainPriorOptions, device: torch.device) -> None:
    """Refuse to begin with a prior whose weights do not fit; a training that has begun does not look at it any more.

    Raises:
        Refused: what does not fit.
        MissingPriorError: there is no such prior.
    """
    if options.begin_with is None or _last_step(options.work):
        return
    try:
        Trainee(options.settings, device).begin_with(options.begin_with)
    except ValueError as problem:
        raise Refused(f"--begin-with {options.begin_with} is of another network: {problem}") from problem


def refuse_foreign(out: Path, work: Path) -> None:
    """Refuse a folder for the prior that holds something else, since a release replaces the folder whole.

    Raises:
        Refused: what is in the way.
    """
    folder = out.expanduser().resolve()
    if folder in (work.resolve(), *work.resolve().parents):
        raise Refused(f"--out {out} would replace the training in {work}; choose another folder.")
    if folder.exists() and not folder.is_dir():
        raise Refused(f"--out {out} is a file; choose another name.")
    ours = {*_RELEASED, ONE_PASS}  # an adapter of the prior that goes is of no use to the one that comes
    strangers = sorted(p.name for p in folder.iterdir() if p.name not in ours) if folder.is_dir() else []
    if strangers:
        raise Refused(f"--out {out} is replaced whole, but it holds {strangers[0]!r}, which is no part of a prior.")


def keep_settings(settings: TrainPrior, work: Path) -> int | None:
    """Note the settings of a training; refuse to go on with one that had others.

    Returns:
        The total of images it was to see before, if that changes now.

    Raises:
        Refused: the names and values that differ.
        OSError: the folder cannot be written.
    """
    before = noted_settings(work) or settings
    refuse_other(work, vars(before), vars(settings), _FREE)
    note(work, encode(settings))
    return before.images if before.images != settings.images else None


def noted_settings(work: Path) -> TrainPrior | None:
    """Settings that the training in a folder was begun with; None if it has not begun.

    Raises:
        Refused: the note cannot be read.
    """
    if (before := noted(work)) is None:
        return None
    try:
        return decode(TrainPrior, before, "settings")
    except ValueError as problem:
        raise Refused(f"the settings noted in {work} cannot be read: {problem}") from problem


# What is done ---------------------------------------------------------------------------------------------------------


def _train(options: TrainPriorOptions, device: torch.device, images_before: int | None) -> Iterator[Report]:
    done = _last_step(options.work)
    if done:
        _newest(options.settings, options.work, device)
        yield Resumed(done, images_before)
    sampled, before = done, 0.0
    for report in train(options.settings, options.work, device, begin_with=options.begin_with):
        _note(options.work, report, report.seconds - before, device)
        yield report
        before = report.seconds
        saved = _last_step(options.work)
        if options.samples_every > 0 and saved // options.samples_every > sampled // options.samples_every:
            sampled = saved
            yield _sample(options, device)


def _release(options: TrainPriorOptions, device: torch.device) -> Released:
    # A training that some other program began has no note; then the options say what it was.
    settings = noted_settings(options.work) or options.settings
    trainee = _newest(settings, options.work, device)
    measured = release(trainee, settings, options.out.expanduser().resolve(), history(options.work), options.note)
    return Released(options.out, measured)


def _sample(options: TrainPriorOptions, device: torch.device) -> Sampled:
    trainee = _newest(options.settings, options.work, device)
    picture = options.work / "samples" / f"{trainee.step:07d}.png"
    picture.parent.mkdir(exist_ok=True)
    write_atomically(picture, samples_picture(in_memory(trainee_average(trainee), options.settings)))
    return Sampled(trainee.step, picture)


def _newest(settings: TrainPrior, work: Path, device: torch.device) -> Trainee:
    """The trainee as of the newest checkpoint that reads back whole.

    Raises:
        Refused: there is none, or it is of another network.
    """
    saved, problems = Checkpoints(work / "checkpoints").newest(device)
    if saved is None:
        raise Refused("; ".join([f"{work} has no checkpoint to start from", *problems]) + ".")
    trainee = Trainee(settings, device)
    shapes = [tuple(w.shape) for w in saved["weights"]]
    if shapes != [tuple(p.shape) for p in trainee.parameters]:
        raise Refused(f"the checkpoints in {work} are of another network; choose another --work.")
    trainee.restore(saved)
    return trainee


def _last_step(work: Path) -> int:
    return max((int(path.name) for path in Checkpoints(work / "checkpoints").all()), default=0)


# The log --------------------------------------------------------------------------------------------------------------


def _note(work: Path, report: TrainingProgress, seconds: float, device: torch.device) -> None:
    line = {"step": report.step, "loss": report.loss, "seconds": round(seconds, 3), "device": str(device)}
    with (work / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def history(work: Path) -> History:
    """What the log says of a training: its last loss, and the time of all steps, those that were done twice too."""
    path = work / "log.jsonl"
    if not path.is_file():
        return History()
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue  # a line cut short when the process was killed
    if not lines:
        return History()
    return History(lines[-1]["loss"], sum(line["seconds"] for line in lines), lines[-1]["device"])


# What is shown --------------------------------------------------------------------------------------------------------


def _show(reports: Iterator[Report], options: TrainPriorOptions, console: Console) -> None:
    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=None, visible=not options.release_only)
        for report in reports:
            if isinstance(report, TrainingProgress):
                progress.update(
                    task, completed=report.step, total=report.steps, description=_pace(report, options.settings)
                )
            else:
                progress.console.print(_in_words(report, options.settings), markup=False)


def _pace(report: TrainingProgress, settings: TrainPrior) -> str:
    # Counted from this process' own pace: a bar's estimate would take a resume for a leap.
    left = (report.steps - report.step) * settings.batch / report.images_per_second
    minutes = round(left / 60)
    return f"loss {report.loss:.4f}, {report.images_per_second:.1f} images/s, {minutes // 60}:{minutes % 60:02d} h left"


def _in_words(report: Resumed | Sampled | Released, settings: TrainPrior) -> str:
    match report:
        case Resumed(step, None):
            return f"Going on from step {step}."
        case Resumed(step, before):
            return (
                f"Going on from step {step} towards {settings.images} images instead of {before}; the learning rate "
                "follows the new total."
            )
        case Sampled(step, picture):
            return f"Pictures as of step {step}: {picture}"
        case Released(folder, measured):
            errors = ", ".join(f"{value} at {name} noise" for name, value in measured.held_out.items())
            return f"{folder}: the prior after {measured.images} images; held-out error {errors}."


def _how_to_go_on(work: Path) -> str:
    step = _last_step(work)
    if not step:
        return "Stopped before the first checkpoint; nothing is kept."
    return f"Stopped. The same command goes on from step {step}; with --release-only it writes the prior as of there."
