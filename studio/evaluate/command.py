"""``studio evaluate`` on a terminal: what is compared, how far it is, and the files it leaves."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from studio.bench import machine
from studio.checkpoints import write_atomically
from studio.cli import FAILED, OK, SOME_FAILED
from studio.delivery import versions
from studio.evaluate.contenders import METHODS, Contender, contenders
from studio.evaluate.plot import Line, plot
from studio.evaluate.protocol import Advanced, Began, Ended, Job, Record, carry_out, jobs
from studio.evaluate.sheet import SheetRow, sheet
from studio.evaluate.tables import edit_rows, rows, write_summary
from studio.evaluate.truth import recoloured, toy_of
from studio.paths import assets_folder

PROMPTS: tuple[str, ...] = ("a red mushroom", "a green table", "an orange car", "a purple tree")


@dataclass(frozen=True)
class Plan:
    """What to compare."""

    contenders: Sequence[Contender]
    prompts: Sequence[str]
    seeds: Sequence[int]
    evaluations: int
    folder: Path

    @property
    def jobs(self) -> list[Job]:
        """Every run."""
        return jobs(self.contenders, self.prompts, self.seeds, self.evaluations)

    @property
    def edits(self) -> dict[str, str]:
        """Prompts and what edits make of them."""
        return {prompt: recoloured(toy_of(prompt)).caption for prompt in self.prompts}

    def check(self) -> None:
        """Refuse what cannot be compared, before anything heavy is loaded.

        Raises:
            ValueError: a name there is not, a prompt without a truth, a number out of range; in words.
            SystemExit: a knob there is not.
        """
        if self.evaluations < 1:
            raise ValueError(f"--evaluations must be 1 or more, not {self.evaluations}")
        if not self.seeds or not self.prompts:
            raise ValueError("there is nothing to compare: name a prompt and a seed")
        for prompt in self.prompts:
            toy_of(prompt)
        for contender in self.contenders:
            request = contender.request(self.prompts[0], self.seeds[0])
            if missing := {need for stage in request.stages for need in stage.guidance.requires} - {"text", "source"}:
                raise ValueError(f"{contender.label} needs {', '.join(sorted(missing))}")


def make_plan(
    methods: Sequence[str] | None,
    recipes: Sequence[str] | None,
    prompts: Path | None,
    seeds: Sequence[int] | None,
    evaluations: int | None,
    full: bool,
    out: Path,
) -> Plan:
    """What the options of ``studio evaluate`` ask for.

    Raises:
        ValueError: see ``Plan.check``, and a file of prompts that cannot be read.
    """
    if methods is None:
        methods = METHODS if recipes is None else ()
    file = assets_folder() / "prompts" / "ten.txt" if full and prompts is None else prompts
    plan = Plan(
        contenders(methods, recipes or ()),
        PROMPTS if file is None else read_prompts(file),
        ((0, 1, 2) if full else (0,)) if seeds is None else seeds,
        (3200 if full else 800) if evaluations is None else evaluations,
        out,
    )
    plan.check()
    return plan


def read_prompts(file: Path) -> list[str]:
    """The prompts in a file, one a line.

    Raises:
        ValueError: it cannot be read, or holds none.
    """
    try:
        found = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise ValueError(f"The prompts in {file} cannot be read: {why}") from problem
    if not found:
        raise ValueError(f"{file} holds no prompt; write one a line")
    return found


@dataclass
class Pace:
    """How long the runs that are left will take, from those that were made."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, job: Job, seconds: float) -> None:
        """A run of this contender took so long."""
        self.seconds.setdefault(job.contender.label, []).append(seconds)

    def left(self, work: Iterable[Job]) -> str:
        """Words for the time that ``work`` will take; of a contender not yet seen, as long as the mean of the rest."""
        every, work = [s for known in self.seconds.values() for s in known], list(work)
        if not every or not work:
            return ""
        known = {label: sum(took) / len(took) for label, took in self.seconds.items()}
        minutes = sum(known.get(job.contender.label, sum(every) / len(every)) for job in work) / 60
        if minutes < 1:
            return "less than a minute left"
        return f"about {minutes:.0f} min left" if minutes < 90 else f"about {minutes / 60:.1f} h left"


def show(plan: Plan, device: torch.device, console: Console | None = None) -> int:
    """Carry the plan out with a progress bar, write all files, and return the exit status.

    Raises:
        OSError: the folder cannot be written.
        KeyboardInterrupt: passed on, after what is done was summarised.
    """
    console, work = console or Console(stderr=True), plan.jobs
    plan.folder.mkdir(parents=True, exist_ok=True)
    console.print(
        f"{len(plan.contenders)} contenders, {len(plan.prompts)} prompts, {len(plan.seeds)} seeds: {len(work)} runs, "
        f"kept in {plan.folder}",
        markup=False,
    )
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"), TimeElapsedColumn()
    records: list[Record] = []
    try:
        with Progress(*columns, console=console) as progress:
            _listen(plan, work, device, progress, records)
    finally:
        if records:
            _write(plan, device, records, pictures=True)
    console.print(f"{plan.folder}/summary.md, summary.json and pictures beside them", markup=False)
    failed = [record for record in records if record["error"] is not None]
    return OK if not failed else FAILED if all("quality" not in record for record in records) else SOME_FAILED


def _listen(plan: Plan, work: list[Job], device: torch.device, progress: Progress, records: list[Record]) -> None:
    task = progress.add_task("", total=len(work), left="")
    pace, began = Pace(), time.monotonic()
    for event in carry_out(work, plan.folder, device):
        match event:
            case Began(job=job, index=index):
                began = time.monotonic()
                words = f"{index + 1}/{len(work)} {job.contender.label}: {job.prompt}, seed {job.seed}"
                progress.update(task, description=words)
            case Advanced(done=done, total=total, what=what):
                progress.update(task, completed=len(records) + (0 if what else done / total), left=what)
            case Ended(job=job, record=record, was_there=was_there):
                records.append(record)
                if not was_there:
                    pace.add(job, time.monotonic() - began)
                    _write(plan, device, records, pictures=False)
                left = pace.left(work[len(records) :])
                progress.update(task, completed=len(records), left=left)
                progress.console.print(_words(record, was_there, left), markup=False, highlight=False, soft_wrap=True)


def _words(record: Record, was_there: bool, left: str) -> str:
    name = f"{record['label']:<12} {record['prompt']}, seed {record['seed']}"
    if "quality" not in record:
        return f"{name}: {record['error']}"
    figures = f"quality {record['quality']:.3f}, IoU {record['iou']:.3f}, colour error {record['colour_error']:.3f}"
    after = "was there" if was_there else f"{record['evaluations']} evaluations in {record['seconds']:.0f} s"
    after += f"; {left}" if left and not was_there else ""
    return f"{name}: {figures}; {record['error'] or after}"


# Files ----------------------------------------------------------------------------------------------------------------


def _write(plan: Plan, device: torch.device, records: Sequence[Record], pictures: bool) -> None:
    edits = edit_rows([record for record in records if record["source"] is not None])
    found = rows([record for record in records if record["source"] is None])
    write_summary(plan.folder, _about(plan, device, records), found, edits)
    if not pictures:
        return
    lines = [Line(row["label"], [(p["evaluations"], p["quality"]) for p in row["curve"]]) for row in found]
    if lines := [line for line in lines if line.points]:
        runs = sum(row["runs"] for row in found)
        subtitle = f"silhouette IoU x (1 - colour error) against the true object; {runs} runs"
        write_atomically(plan.folder / "quality.webp", plot("Quality against compute", subtitle, lines))
    if found:
        shown = sheet("What came of it", plan.prompts, _sheet_rows(plan, found))
        write_atomically(plan.folder / "sheet.webp", shown)
    if edits:
        heads = [f"{before} -> {after}" for before, after in plan.edits.items()]
        shown = sheet("Edits", heads, _sheet_rows(plan, edits), edits=True)
        write_atomically(plan.folder / "edits.webp", shown)


def _sheet_rows(plan: Plan, found: Sequence[dict[str, Any]]) -> list[SheetRow]:
    """A row for each contender, in the order of the table, with the pictures of the first seed."""
    first = [job for job in plan.jobs if job.seed == plan.seeds[0]]
    pictures = {(job.contender.label, job.source or job.prompt): job.picture(plan.folder) for job in first}
    shown = []
    for row in found:
        strips = [pictures.get((row["label"], prompt)) for prompt in plan.prompts]
        note = "failed" if row["quality"] is None else f"quality {row['quality']:.2f}, {row['steps']:.0f} steps"
        if any(strips):
            shown.append(SheetRow(row["label"], note, [s if s and s.is_file() else None for s in strips]))
    return shown


def _about(plan: Plan, device: torch.device, records: Sequence[Record]) -> dict[str, Any]:
    protocol = {
        "prompts": list(plan.prompts),
        "edits": plan.edits,
        "seeds": list(plan.seeds),
        "evaluations": plan.evaluations,
    }
    threads = sorted({record["threads"] for record in records})  # of the runs, which may be older than this process
    counted = {"threads": threads[0] if len(threads) == 1 else threads}
    return {"protocol": protocol, "machine": machine(device) | counted, "versions": versions()}
