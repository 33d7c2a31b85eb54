"""States, times and results in the words that the page shows."""

from typing import Any

from studio.app.service import Run
from studio.jobs.progress import Progress


def duration(seconds: float) -> str:
    """``8 s``, ``1 min 20 s``, ``25 min``, ``3 h 5 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 10 and whole % 60:
        return f"{minutes} min {whole % 60} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def memory(mib: float) -> str:
    """``850 MB``, ``1.2 GB``."""
    return f"{mib / 1024:.1f} GB" if mib >= 1000 else f"{mib:.0f} MB"


def ordinal(number: int) -> str:
    """``1st``, ``2nd``, ``11th``."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"


def pace(progress: Progress) -> list[str]:
    """Step, iterations a second and time left, as far as they are known."""
    words = [f"step {progress.step:,} of {progress.steps:,}"] if progress.steps else []
    words += [f"{progress.rate:.1f} it/s"] if progress.rate else []
    words += [f"{duration(progress.left)} left"] if progress.left else []
    return words


def state_line(run: Run, progress: Progress, position: int | None, held: bool = False) -> str:
    """One line about where a job stands."""
    job, state = run.job, run.state
    if state == "queued":
        place = "next in the queue" if position == 1 else f"{ordinal(position)} in the queue" if position else "queued"
        again = f", after {job.attempts} failed attempt{'s' * (job.attempts > 1)}" if job and job.attempts else ""
        return f"{place}{', the queue is held' if held else ''}{again}"
    if state == "running":
        asked = {"pause": "pausing", "cancel": "cancelling"}.get(job.wish if job else "")
        doing = [progress.phase] if progress.phase else pace(progress) or ["starting"]
        return ", ".join([*([asked] if asked else []), *doing])
    if state == "paused":
        return f"paused at step {progress.step:,} of {progress.steps:,}" if progress.steps else "paused"
    if state == "done":
        return f"done in {duration(progress.seconds)}" if progress.seconds is not None else "done"
    if state == "failed":
        return (job.error if job and job.error else progress.error or "failed").splitlines()[0]
    if state == "stopped":
        return progress.error or "not finished; the command line stopped working on it"
    return state


def result_words(report: dict[str, Any]) -> list[str]:
    """The figures of a finished asset, shortest first to read."""
    words = []
    if (faces := report.get("faces")) is not None:
        words.append(f"{faces:,} faces")
    if "watertight" in report:
        words.append("watertight" if report["watertight"] else "not watertight")
    if (texture := report.get("texture_size")) is not None:
        words.append(f"{texture} px texture")
    if (psnr := report.get("render_to_asset_psnr")) is not None:
        words.append(f"like its render to {psnr:.1f} dB")
    return words


def score(report: dict[str, Any]) -> str:
    """How well it fits the prompt, where that was judged."""
    match = report.get("prompt_match")
    return f"match {match:.2f}" if isinstance(match, int | float) else ""


def checks(report: dict[str, Any]) -> list[tuple[str, bool | None, str]]:
    """What was checked of an asset: a title, whether it is well (None: cannot be said), and the finding in words."""
    psnr, iou = report.get("render_to_asset_psnr"), report.get("silhouette_iou")
    found: list[tuple[str, bool | None, str]] = [_surface(report), _validity(report.get("validator"))]
    if psnr is not None:
        words = f"Pictures of the file and of what was optimised agree to {psnr:.1f} dB (PSNR)"
        found.append(("Like what was optimised", psnr >= 20, words + "."))
    if iou is not None:
        found.append(("Same outline", iou >= 0.9, f"{iou:.1%} of the outline is shared (IoU)."))
    if (fill := report.get("uv_fill")) is not None:
        how = report.get("unwrap", "")
        reason = f", because {report['unwrap_reason']}" if report.get("unwrap_reason") else ""
        words = f"{fill:.0%} of {report.get('texture_size')} px lie on the surface; unwrapped by {how}{reason}."
        found.append(("Texture", True if how == "xatlas" else None, words))
    if seconds := report.get("seconds"):
        parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items() if value >= 0.5)
        found.append(("Time", None, f"{duration(sum(seconds.values()))}: {parts}."))
    if peak := report.get("peak_memory_mb"):
        parts = ", ".join(f"{memory(value)} of the {name}" for name, value in peak.items())
        found.append(("Memory", None, f"At most {parts}."))
    return found


def _surface(report: dict[str, Any]) -> tuple[str, bool | None, str]:
    size = f"{report.get('faces', 0):,} faces, {report.get('vertices', 0):,} vertices"
    if report.get("watertight"):
        return ("Watertight", True, f"The surface is closed: {size}.")
    return ("Not watertight", False, f"The surface has holes; slicers and simulations may refuse it. {size}.")


def _validity(validator: dict[str, int] | None) -> tuple[str, bool | None, str]:
    if validator is None:
        return ("Not validated", None, "Khronos' glTF validator is not installed here.")
    errors, warnings = validator.get("errors", 0), validator.get("warnings", 0)
    if not errors and not warnings:
        return ("Valid glTF", True, "Khronos' validator has no objection.")
    return ("glTF objections", False, f"Khronos' validator counts {errors} errors and {warnings} warnings.")
