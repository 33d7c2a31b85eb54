"""A prior examined before it is used: what it is, where it came from, and the memory that it needs."""

import contextlib
import sys
from pathlib import Path

import torch

from guidance.prior_folder import read_hints
from guidance.priors.loading import WIDE, pipeline_of
from guidance.priors.memory import native_pixels, need_of
from guidance.priors.resources import Resources
from studio.doctor import Check, free_memory
from studio.paths import resolve_prior
from studio.presets import download, preset_of
from studio.prior_stamp import revision
from studio.request import Request

VIEWS = 4
"""Views a step that memory is stated for, in two branches of guidance."""


def examine_prior(name: str, fetch: bool = False) -> list[Check]:
    """Look at a prior by name or path; no weights are loaded.

    Args:
        name: of a preset or the bundled prior, or a path.
        fetch: fetch the preset first.

    Raises:
        ValueError: there is no such prior, or no such preset to fetch; in words.
    """
    if fetch:
        preset = preset_of(name)
        if preset is None:
            raise ValueError(f"{name!r} is no preset that could be fetched; studio doctor --prior {name} names them")
        sys.stderr.write(f"Fetching {preset.repository} into {preset.folder}. Licence: {preset.licence}\n")
        download(preset)
    place = resolve_prior(name)
    folder = place.with_suffix("") if place.is_file() else place
    checks = [_kind(place, folder)]
    if checks[0].verdict == "ok":
        with contextlib.redirect_stderr(None):
            checks += _memory(folder)
    return checks


def memory_warnings(request: Request, device: torch.device) -> list[str]:
    """Words about a prior that will not fit, before it is loaded; nothing about small ones, and about single files."""
    place, options = resolve_prior(request.prior), request.prior_options
    if place.is_file() or pipeline_of(place) is None or device.type not in ("cpu", "cuda"):
        return []
    dtype = options.resources.type_for(device, pipeline_of(place) in WIDE)
    views, pixels = max(stage.cameras.views for stage in request.stages), options.resolution or native_pixels(place)
    need = need_of(place, views, 2, pixels, dtype).peak(options.resources.offload != "none")
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if free is None or need <= free:
        return []
    return [
        f"The prior needs {_gigabytes(need)} for {views} views of {pixels} px, and {_gigabytes(free)} are free. What "
        f"helps: --prior-options.resolution {pixels // 2}, fewer views, and --prior-options.resources.offload text."
    ]


def _kind(place: Path, folder: Path) -> Check:
    try:
        pipeline, hints = pipeline_of(folder), read_hints(folder)
    except (ValueError, OSError) as problem:
        return Check("prior asked for", "failure", str(problem))
    kind = {None: "a bare U-Net", "": "Zero1to3StableDiffusionPipeline"}.get(pipeline, pipeline or "")
    views = f", {hints['views']} views as one" if hints["views"] > 1 else ""
    came = f", revision {found}" if (found := revision(place)) else ""
    return Check("prior asked for", "ok", f"{kind}{views}{came}, {place}")


def _memory(folder: Path) -> list[Check]:
    """Memory at the resolution it was trained with, at half of it, and at half of that."""
    native, cuda = native_pixels(folder), torch.cuda.is_available()
    wide, small = pipeline_of(folder) in WIDE, pipeline_of(folder) is None
    dtype = Resources().type_for(torch.device("cuda" if cuda else "cpu"), wide, small)
    free = torch.cuda.mem_get_info()[0] if cuda else free_memory()
    checks = []
    for pixels in (native // 4, native // 2, native):
        try:
            need = need_of(folder, VIEWS, 2, pixels, dtype)
        except (ValueError, OSError, RuntimeError, KeyError) as problem:
            return [*checks, Check("memory of the prior", "warning", f"at {pixels} px unknown: {problem}")]
        whole, thrifty = need.peak(), need.peak(text_waits=True)
        weights = _gigabytes(need.weights + need.texts)
        finding = f"{VIEWS} views of {pixels} px: {_gigabytes(whole)}, of which weights {weights}"
        finding += f"; {_gigabytes(thrifty)} with --prior-options.resources.offload text" if thrifty < whole else ""
        short = free is not None and thrifty > free
        advice = "More than is free here: fewer pixels (--prior-options.resolution) or views." if short else ""
        checks.append(Check(f"memory at {pixels} px", "warning" if short else "ok", finding, advice))
    return checks


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.2f} GB"
