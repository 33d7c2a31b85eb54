"""``studio bench``: what the kernels cost on this machine, next to their plain-torch forms and to installed peers.

Every form of a case runs in this process and the median of its times counts: machines are shared and noisy, ratios
within one run are not. A case has a gate, the ratio to the plain-torch form below which something is broken, and a
target, the ratio we aim at.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from cuda_ext.backends import Backend, available
from studio.bench_cases import Case, gaussian_cases, hash_cases, step_cases
from studio.cli import FAILED, OK
from studio.request import Request

PATIENCE, HASTE = 3.0, 0.5
"""Seconds that one form of a case may take in all, as a rule and with --quick; it always runs once."""


@dataclass(frozen=True)
class Row:
    """Medians of a case."""

    group: str
    name: str
    milliseconds: dict[str, float]
    """By backend, those that were run."""
    ratio: float | None
    """Plain torch over native; none where one of them was not run."""
    gate: float | None = None
    target: float | None = None
    target_ms: float | None = None
    why_no_reference: str = ""

    @property
    def broken(self) -> bool:
        """Whether the ratio is under its gate."""
        return self.ratio is not None and self.gate is not None and self.ratio < self.gate


@dataclass(frozen=True)
class Iteration:
    """A step of a recipe, prior and all; means over the steps that were timed."""

    recipe: str
    representation: str
    milliseconds: float
    in_prior: float
    """Milliseconds of it spent in the guidance."""

    @property
    def prior_share(self) -> float:
        """The part of an iteration that is spent in the prior."""
        return self.in_prior / self.milliseconds


def show(device: torch.device, only: str = "", quick: bool = False, file: Path | None = None) -> int:
    """Measure, print a table as it grows, write ``file`` if there is one; returns the exit status.

    Raises:
        ValueError: no case is called so.
        OSError: the file cannot be written.
    """
    from rich.console import Console

    from studio.checkpoints import write_atomically

    every = (*gaussian_cases(), *hash_cases(), *step_cases())
    cases = [case for case in every if only in f"{case.group}: {case.name}"]
    if not cases:
        groups = ", ".join(dict.fromkeys(case.group for case in every))
        raise ValueError(f"No case has {only!r} in its name; the groups are {groups}.")
    console = Console(width=150)
    about = machine(device)
    console.print(", ".join(f"{name} {value}" for name, value in about.items()), markup=False)
    rows = []
    for row in measure(cases, device, HASTE if quick else PATIENCE):
        if not rows or rows[-1].group != row.group:
            console.print(f"\n{row.group}", style="bold", markup=False)
        console.print(_line(row), markup=False, style="red" if row.broken else None)
        rows.append(row)
    iterations = [] if only else [iteration(name, request, device) for name, request in _recipes()]
    for one in iterations:
        console.print(_words(one), markup=False)
    broken = [f"{row.group}: {row.name}" for row in rows if row.broken]
    if file is not None:
        found = {"machine": about, "rows": [asdict(r) for r in rows], "iterations": [_noted(i) for i in iterations]}
        write_atomically(file, json.dumps(found | {"under_their_gates": broken}, indent=2).encode())
    for name in broken:
        console.print(f"under its gate: {name}", style="bold red", markup=False)
    return FAILED if broken else OK


def _line(row: Row) -> str:
    times = "  ".join(f"{name} {ms:9.2f} ms" for name, ms in row.milliseconds.items())
    ratio = f"  {row.ratio:6.1f}x" if row.ratio is not None else f"  ({row.why_no_reference or 'one form'})"
    aims = [f"gate {row.gate:.0f}x" if row.gate else "", f"target {row.target:.0f}x" if row.target else ""]
    aims.append(f"{row.target_ms:g} ms" if row.target_ms else "")
    return f"  {row.name:<44}{times}{ratio}  {', '.join(a for a in aims if a)}"


def _words(one: Iteration) -> str:
    return (
        f"\nan iteration of {one.recipe} on {one.representation}: {one.milliseconds:.1f} ms, {one.in_prior:.1f} ms "
        f"of it ({one.prior_share:.0%}) in the prior, {one.milliseconds - one.in_prior:.1f} ms outside"
    )


def _noted(one: Iteration) -> dict[str, Any]:
    return asdict(one) | {"prior_share": round(one.prior_share, 4)}


def measure(cases: Iterable[Case], device: torch.device, patience: float = PATIENCE) -> Iterator[Row]:
    """Time every case, one row as soon as it is known."""
    for case in cases:
        run = case.prepare(device)
        left_out = "reference" if case.why_no_reference else None
        backends: list[Backend] = [b for b in available(case.op, device) if b != left_out]
        times = {backend: median_seconds(_with(run, backend), device, patience) for backend in backends}
        ratio = times["reference"] / times["native"] if {"reference", "native"} <= times.keys() else None
        yield Row(
            case.group,
            case.name,
            {backend: round(1e3 * seconds, 3) for backend, seconds in times.items()},
            None if ratio is None else round(ratio, 1),
            case.gate,
            case.target,
            case.target_ms,
            case.why_no_reference,
        )


def _with(run: Callable[[Backend], Any], backend: Backend) -> Callable[[], Any]:
    return lambda: run(backend)


def median_seconds(run: Callable[[], Any], device: torch.device, patience: float = PATIENCE) -> float:
    """Median time of ``run``; the first run warms caches up and counts only if there is no patience for a second."""
    first = _seconds(run, device)
    if first > patience:
        return first
    return statistics.median(_seconds(run, device) for _ in range(max(3, min(50, int(patience / max(first, 1e-4))))))


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Until everything that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _recipes() -> Iterator[tuple[str, Request]]:
    from studio.options import Generate, build_request

    for representation in (None, "HashField"):
        yield "draft", build_request(Generate("a green table", representation=representation), [])


def iteration(recipe: str, request: Request, device: torch.device, warm: int = 5, steps: int = 25) -> Iteration:
    """Time ``steps`` iterations of a request's first stage, after ``warm`` that do not count."""
    from guidance.conditioning import Prompts
    from guidance.diffusers_prior import DiffusersPrior
    from studio.optimize import Run, Setting, Timing, make_optimiser, optimize, step_rng
    from studio.paths import resolve_prior
    from studio.run import never

    stage = request.stages[0]
    assert stage.representation is not None
    prior = DiffusersPrior.load(resolve_prior(request.prior), device)
    prompts = Prompts.embed(prior, request.prompt, request.negative, request.view_prompts or "off")
    representation = stage.representation.build(step_rng(request.seed, 0, -1), device)
    run = Run(0, 0, representation, make_optimiser(representation), stage.guidance.init(prior))
    for count in (warm, steps):
        timing = Timing(every=1)
        taken = optimize(run, Setting(stage, prior, prompts, prior.hints, request.seed), timing, never)
        for _ in range(count):
            next(taken)
    return Iteration(
        recipe,
        type(stage.representation).__name__,
        round(1e3 * timing.seconds / timing.steps, 2),
        round(1e3 * timing.in_prior / timing.steps, 2),
    )


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    from cuda_ext import native

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "date": date.today().isoformat(),
        "device": name,
        "threads": torch.get_num_threads(),
        "library": native.status().partition(f", {os.sep}")[0],  # where it lies is nobody's business
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
