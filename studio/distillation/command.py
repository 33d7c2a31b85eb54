"""``studio distill-guidance``: train, resume, measure, write the file.

<work>/settings.json  checkpoints/        <out>: safetensors, what was measured in its head
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from guidance.classifier_free import Ask, predict
from guidance.contract import Condition
from guidance.diffusers_prior import DiffusersPrior
from guidance.distillation import Distillation, measure, refuse_other_priors
from guidance.one_pass import one_pass_notes
from guidance.prior_folder import MissingPriorError
from guidance.priors.resources import Kind, Resources
from studio.arguments import MaybeNumber, MaybePath
from studio.bench import wait
from studio.cameras import Orbit
from studio.cli import BAD_USAGE, FAILED, OK
from studio.codec import encode
from studio.distillation.training import Phrase, Student, any_of, chooser, toys, train
from studio.evaluate.command import read_prompts
from studio.paths import BUNDLED_PRIOR, resolve_prior
from studio.training_notes import note, noted, refuse_other
from studio.tuning import PIXEL_ORBIT, is_bundled


@dataclass(frozen=True)
class DistillGuidanceOptions:
    """Teach a prior to answer with the prompt and without it in one pass, which halves the price of guidance.

    What is written is a small file for `studio generate --one-pass FILE`. The prior is its own teacher;
    prompts are all that it needs. The same command again goes on where it was.
    """

    settings: Annotated[Distillation, tyro.conf.arg(name="")] = field(default=Distillation())
    """How it is trained."""
    prior: str = BUNDLED_PRIOR
    """Name, folder or file of the prior: a U-Net that words, and perhaps a camera, prompt."""
    prompts: MaybePath = None
    """File of prompts, one a line: hundreds, of the kind that will be asked for. The bundled prior needs none."""
    work: Path = Path("distillation")
    """Folder of the training: settings and checkpoints."""
    out: Path = Path("distillation/one_pass.safetensors")
    """File to write."""
    begin_with: MaybePath = None
    """File of an adapter of the same rank whose weights a new training starts from."""
    resolution: MaybeNumber = None
    """Pixels a side; none: as the prior was trained."""
    dtype: Kind = "auto"
    """What the network computes in."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""


def main(options: DistillGuidanceOptions) -> int:
    """Train until done, then measure and write; returns an exit status."""
    from studio.folder import RunError

    console = Console(stderr=True)
    try:
        _carry_out(options, console)
        return OK
    except (ValueError, RunError, MissingPriorError) as problem:
        console.print(str(problem), markup=False)
        return BAD_USAGE
    except OSError as problem:
        console.print(f"{problem.strerror or problem}: {problem.filename or options.work}", markup=False)
        return FAILED
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on from the last checkpoint.", markup=False)
        return FAILED


def _carry_out(options: DistillGuidanceOptions, console: Console) -> None:
    from studio.run import choose_device

    phrase = _phrase(options)
    refuse_other_settings(options)
    prior = _loaded(options, choose_device(options.device))
    choose = chooser(prior, phrase, PIXEL_ORBIT if is_bundled(options.prior) else Orbit())
    student = Student(prior, choose, options.settings, options.begin_with)
    note(options.work, _lasting(options))  # only now: a training that could not begin binds nobody
    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=options.settings.steps)
        for report in train(student, options.work):
            left = round((options.settings.steps - report.step) * report.seconds_a_step / 60)
            told = f"loss {report.loss:.4f}, {report.seconds_a_step:.2f} s a step, {left} min left"
            progress.update(task, completed=report.step, description=told)
    console.print("Measuring.", markup=False)
    adapter = student.averaged()
    found = about(options, prior, adapter, measure(prior, adapter, choose, options.settings))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_name(f".{options.out.name}.part")
    adapter.write(partial, found)
    partial.replace(options.out)
    faster = speed(_loaded(options, prior.device, options.out))
    errors = ", ".join(f"{value:.0%} at {name} noise" for name, value in found["error"].items())
    console.print(
        f"{options.out}: off by {errors} of the difference that the prompt makes; {faster:.2f} times as fast.",
        markup=False,
    )


def _loaded(options: DistillGuidanceOptions, device: torch.device, one_pass: Path | None = None) -> DiffusersPrior:
    resources, pixels = Resources(dtype=options.dtype), options.resolution
    place = resolve_prior(options.prior)
    prior = DiffusersPrior.load(place, device, resources=resources, resolution=pixels, one_pass=one_pass)
    if one_pass is None:
        refuse_other_priors(prior)
    return prior


def _phrase(options: DistillGuidanceOptions) -> Phrase:
    if options.prompts is not None:
        return any_of(read_prompts(options.prompts))
    if not is_bundled(options.prior):
        raise ValueError("name a file of prompts, one a line, with --prompts: the more, the better it will know yours")
    return toys


def refuse_other_settings(options: DistillGuidanceOptions) -> None:
    """Refuse to go on with another training.

    Raises:
        ValueError: the names and values that differ.
    """
    if (before := noted(options.work)) is not None:
        refuse_other(options.work, before, _lasting(options))


def _lasting(options: DistillGuidanceOptions) -> dict[str, Any]:
    files = {"prompts": options.prompts, "begin_with": options.begin_with}
    named = {"prior": options.prior, **{name: None if file is None else str(file) for name, file in files.items()}}
    lasting = {**named, "resolution": options.resolution, "dtype": options.dtype, **encode(options.settings)}
    return json.loads(json.dumps(lasting))  # tuples become lists, as when they are read back


# What is measured -----------------------------------------------------------------------------------------------------


def about(
    options: DistillGuidanceOptions, prior: DiffusersPrior, adapter: Any, error: dict[str, float]
) -> dict[str, Any]:
    """What is written into the file's head."""
    return {
        "prior": options.prior,
        "fingerprint": prior.fingerprint(),
        "settings": asdict(options.settings),
        "begun_with": None if options.begin_with is None else one_pass_notes(options.begin_with),
        "parameters": sum(p.numel() for p in adapter.parameters()),
        "of": sum(p.numel() for p in prior.network.parameters()),
        "error": error,
        "device": str(prior.device),
        "date": date.today().isoformat(),
    }


@torch.no_grad()
def speed(prior: DiffusersPrior, views: int = 4, rounds: int = 9) -> float:
    """How many times as fast guidance is in one pass of ``views`` than in a pass of twice as many, on this machine."""
    blank = torch.zeros(views, 3, prior.resolution, prior.resolution, device=prior.device)
    noisy = prior.encode(blank)
    t = torch.full((views,), len(prior.alphas_cumprod) // 2, device=prior.device)
    text, pose = prior.embed(["", "a thing"])[1:].expand(views, -1, -1), None
    if "pose" in prior.takes:
        pose = torch.eye(4, device=prior.device).repeat(views, 1, 1)
        pose[:, 2, 3] = prior.hints["distance"]
    once = Condition(text, text, text, pose=pose)
    twice = replace(once, empty_null=False)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for condition in (once, twice):
            wait(prior.device)
            began = time.perf_counter()
            predict(prior, condition, Ask(noisy, t, "text"), Ask(noisy, t, "null"))
            wait(prior.device)
            seconds[condition.empty_null].append(time.perf_counter() - began)
    return statistics.median(seconds[False]) / statistics.median(seconds[True])
