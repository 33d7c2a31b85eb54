"""Seconds and memory of a run, told before it begins, and on what that rests.

Best are runs of the same kind in the same folder: the same prior, kind and size of representation, method and renders.
Without any, a step is counted (``evaluate.cost``) and priced with figures that were measured once, on two cores, with
the bundled prior; for other priors their weights say how much they are to compute and to keep.
"""

import dataclasses
import functools
import json
import math
import os
import statistics
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from guidance.priors.loading import pipeline_of
from guidance.priors.memory import native_pixels
from representations.hash_field import HashField
from representations.kinds import AnyRepresentation
from representations.particles import Particles
from studio.evaluate.cost import Work, work_of
from studio.folder import RunError, read_request
from studio.paths import MissingAsset, UnknownPrior, resolve_prior
from studio.prior_check import configuration_of
from studio.request import Export, Request, Stage
from studio.tuning import is_bundled

NEWEST = 40
"""Runs of the folder that are looked at."""
_MOST_ALIKE = 5
_COUNTED_STEPS, _COUNTED_VIEWS = 32, 4
"""Steps that stand for all of a stage, and views for all of a step."""
LEARNERS = {"VSD": (3.0, 1.0), "DSD": (3.0, 1.0), "BSD": (2.72, 1.0), "FVSD": (5.0, 1.0)}
"""Pictures that methods ask for, and that they learn from, of each view: as counted over 200 steps. Counting them anew
would take seconds, most of them for the optimiser's own imports."""
ONE_PASS_LEARNERS = {**LEARNERS, "VSD": (2.0, 1.0), "DSD": (2.0, 1.0), "FVSD": (3.0, 1.0)}
"""The same of a prior that answers with the prompt and without it in one pass; a prior that BSD tunes does not."""

# Measured with the bundled prior, AVX-512, torch 2.13: seconds of two idle cores. Runs of the recipe draft took 40 ms a
# step, 83 % of it in the prior for 8 pictures; the others are seconds of one core, times the 0.48 that it is of those.
_PICTURE, _LEARNT_PICTURE = 0.0042, 0.018
_SPLAT_STEP, _SPLAT_PIXEL = 5e-3, 0.1e-6
_FIELD_PIXEL_CELL = 0.042e-6
"""Of a pixel, for each cell a side of the finest level."""
_LOADING = 3.0
_SAMPLED_PICTURES = 320
"""Pictures that the prior makes of the prompt at the end: 8, in 20 steps, guided."""
_WRITING = 4.0
"""Seconds of what follows, without the unwrapping."""
_UNWRAP, _UNWRAP_POWER = 1.0, 1.7
"""Seconds for 12,000 faces, and how they grow with faces."""
_OWN_MEMORY, _FIELD_MEMORY, _TEXTURE_MEMORY = 860.0, 100.0, 190.0
"""MiB of a process with the bundled prior and a texture of 1024, and further ones: for 16,384 pixels of a field of 64
cells, and for a million texels more. Of runs of draft with a field, standard and fine: 960, 1520 and 1490 in all."""

# Counted on Stable Diffusion 1.5, of whose networks every other is taken to be a larger or smaller one.
_FLOP_PER_WEIGHT = 935.0
"""Of the network, for a picture of 512 x 512."""
_ENCODER_FLOP_PER_PIXEL = 4.2e6
_ENCODER_BYTES_PER_PIXEL = 12.3e3
"""What the encoder keeps for its gradient, in 32 bits."""
_ANSWER_BYTES = 0.1e9
"""What a picture takes in a forward pass of the network; a rule of thumb."""
_CORE_FLOPS, _GPU_FLOPS = 80e9, 20e12
"""A second: of one core, measured with the bundled prior; of a GPU in 16 bits, a cautious guess."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take."""

    seconds: float
    memory_mb: float
    """At its peak: of the GPU if it runs on one, else of the process. MiB."""
    basis: str
    """What this rests on, in words."""
    guessed: bool = False
    """Whether the memory is a guess, where it could be counted (``prior_check``)."""

    def words(self) -> str:
        """Both figures, rounded, e.g. "about 2 min, 1.4 GB"."""
        return f"about {_duration(self.seconds)}, {self.memory_mb / 1024:.1f} GB"


def estimate(request: Request, home: Path, counted: int | None = None) -> Estimate:
    """What ``request`` will take.

    Args:
        request: need not pass ``check``.
        home: folder of runs, whose reports are read.
        counted: bytes that its prior takes, if that is known; a guess stands for it otherwise, since counting takes
            seconds that few have who ask for an estimate.
    """
    alike = [past for past in _past(home) if past.kind == kind_of(request)][:_MOST_ALIKE]
    if alike:
        return _from_past(request, alike)
    return _from_figures(request) if is_bundled(request.prior) else _from_weights(request, counted)


def kind_of(request: Request) -> tuple[Any, ...]:
    """Runs of the same kind take the same for a step: prior and how it is used, and by stage representation, method,
    renders, and how many of them it sees at once."""
    options = request.prior_options
    return (
        (request.prior, options.resolution, options.resources, bool(options.one_pass)),
        *(
            (_size(spec), type(stage.guidance).__name__, stage.cameras.views, stage.cameras.size, stage.at_once)
            for spec, stage in _stages(request)
        ),
    )


def _size(spec: Any) -> tuple[Any, ...]:
    """Kind and size of a representation: its class and its whole numbers, also those of what lies in it."""
    parts: list[Any] = [type(spec).__name__]
    for f in dataclasses.fields(spec) if dataclasses.is_dataclass(spec) else ():
        value = getattr(spec, f.name)
        if dataclasses.is_dataclass(value):
            parts.append(_size(value))
        elif isinstance(value, int | tuple):
            parts.append(value)
    return tuple(parts)


# Earlier runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Past:
    """What an earlier run took."""

    kind: tuple[Any, ...]
    export: Export
    step: float
    """Seconds."""
    loading: float
    """Seconds of optimisation that are no steps."""
    delivery: float
    """Seconds after the optimisation."""
    memory_mb: float


def _from_past(request: Request, alike: Sequence[_Past]) -> Estimate:
    """The median of runs of this kind, scaled to the steps of this one."""
    same = [past.delivery for past in alike if past.export == request.export]
    delivery = statistics.median(same) if same else _delivery(request)
    step = statistics.median(past.step for past in alike)
    seconds = step * request.steps + statistics.median(past.loading for past in alike) + delivery
    runs = "an earlier run" if len(alike) == 1 else f"{len(alike)} earlier runs"
    memory = statistics.median(past.memory_mb for past in alike)
    return Estimate(seconds, memory, f"from {runs} of this kind here")


def _past(home: Path) -> Iterator[_Past]:
    """Finished runs in a folder, the newest first."""
    try:
        folders = [entry.path for entry in os.scandir(home)]
    except OSError:
        return
    found = []
    for folder in folders:
        try:
            found.append((os.stat(f"{folder}/report.json").st_mtime_ns, folder))
        except OSError:
            continue
    for changed, folder in sorted(found, reverse=True)[:NEWEST]:
        if (past := _read_past(Path(folder), changed)) is not None:
            yield past


@functools.lru_cache(maxsize=1024)
def _read_past(folder: Path, changed: int) -> _Past | None:
    """What the run in a folder took; None if its report does not say. ``changed``: when the report was written."""
    try:
        request = read_request(folder)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        seconds, memory = report["seconds"], report["peak_memory_mb"]
        step, optimise = float(report["seconds_per_iteration"]), float(seconds["optimise"])
        delivery = sum(float(value) for name, value in seconds.items() if name != "optimise")
        peak = float(memory.get("device", memory["host"]))
    except (RunError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    # A run that was resumed says what its last part took, which may be less than all of its steps.
    loading = max(0.0, optimise - step * request.steps)
    return _Past(kind_of(request), request.export, step, loading, delivery, peak)


# Figures --------------------------------------------------------------------------------------------------------------


def _from_figures(request: Request) -> Estimate:
    """The counted steps at the measured prices."""
    seconds = _LOADING + _delivery(request)
    texels = max(0.0, request.export.texture**2 / 1e6 - 1)
    further = _TEXTURE_MEMORY * texels
    for spec, stage in _stages(request):
        work = _work(stage, request)
        asked = work.pictures * _PICTURE + work.learnt * _LEARNT_PICTURE
        seconds += asked + max(stage.steps, 0) * _rendering(spec, stage)
        further = max(further, _field_memory(spec, stage))
    return Estimate(seconds, _OWN_MEMORY + further, "from figures measured on two cores; your machine may differ")


def _stages(request: Request) -> Iterator[tuple[AnyRepresentation | None, Stage]]:
    """Each stage with what it works on."""
    spec = None
    for stage in request.stages:
        spec = stage.representation or spec
        yield spec, stage


def _work(stage: Stage, request: Request) -> Work:
    """What all steps of a stage of a request ask of the prior: known, or counted on some of them."""
    steps, one_pass = max(stage.steps, 0), bool(request.prior_options.one_pass)
    if (known := (ONE_PASS_LEARNERS if one_pass else LEARNERS).get(type(stage.guidance).__name__)) is not None:
        asked, learnt = (round(each * steps * max(stage.cameras.views, 0)) for each in known)
        return Work(0, asked, learnt)
    views = max(stage.cameras.views, 0)
    cameras = dataclasses.replace(stage.cameras, views=max(1, min(views, _COUNTED_VIEWS)))
    counted = dataclasses.replace(stage, representation=None, cameras=cameras, steps=max(1, min(steps, _COUNTED_STEPS)))
    work = work_of(counted, request.view_prompts or "bucketed", one_pass)
    share = steps * views / (counted.steps * cameras.views)
    return Work(0, round(work.pictures * share), round(work.learnt * share))


def _rendering(spec: AnyRepresentation | None, stage: Stage) -> float:
    """Seconds of a step outside the prior: renders of all views, and what they change."""
    pixels = _pixels(stage)
    if isinstance(spec, Particles):  # one of them a step
        return _rendering(spec.kind, stage)
    if isinstance(spec, HashField):
        return pixels * _FIELD_PIXEL_CELL * max(spec.levels, default=0)
    return _SPLAT_STEP + pixels * _SPLAT_PIXEL


def _field_memory(spec: AnyRepresentation | None, stage: Stage) -> float:
    """MiB that the samples of a field's rays take."""
    kind = spec.kind if isinstance(spec, Particles) else spec
    cells = max(kind.levels, default=0) if isinstance(kind, HashField) else 0
    return _FIELD_MEMORY * (_pixels(stage) / 16_384) * (cells / 64)


def _pixels(stage: Stage) -> int:
    return max(stage.cameras.views, 0) * max(stage.cameras.size, 0) ** 2


def _delivery(request: Request, picture: float = _PICTURE) -> float:
    """Seconds from the last step to the files; ``picture``: that the prior takes for one."""
    unwrap = _UNWRAP * (max(request.export.faces, 0) / 12_000) ** _UNWRAP_POWER
    sampled = _SAMPLED_PICTURES // 2 if request.prior_options.one_pass else _SAMPLED_PICTURES
    return sampled * picture + _WRITING * max(request.export.texture, 0) / 1024 + unwrap


# Weights --------------------------------------------------------------------------------------------------------------


def _from_weights(request: Request, counted: int | None) -> Estimate:
    """What the prior's own files let one expect, taking its networks for Stable Diffusion's, larger or smaller."""
    try:
        place = resolve_prior(request.prior)
    except (UnknownPrior, MissingAsset):
        return dataclasses.replace(
            _from_figures(request), basis="of the bundled prior; the one that is named is not there"
        )
    gpu = torch.cuda.is_available()
    folder = configuration_of(place)
    weights = {part: _weights_of(folder / part) for part in (sorted(os.listdir(folder)) if folder.is_dir() else ())}
    if place.is_file():
        weights["unet"] = _numbers_in(place)
    network, pixels = weights.get("unet", 0) or weights.get("transformer", 0), _resolution(folder) ** 2
    flops = _GPU_FLOPS if gpu else _CORE_FLOPS * (os.cpu_count() or 1)
    picture = network * _FLOP_PER_WEIGHT * (pixels / 512**2) / flops
    seconds, most = _LOADING + _delivery(request, picture), 0.0
    for spec, stage in _stages(request):
        work, steps, views = _work(stage, request), max(stage.steps, 1), max(stage.cameras.views, 0)
        encoding = 3 * views * pixels * _ENCODER_FLOP_PER_PIXEL / flops if weights.get("vae") else 0.0
        seconds += (work.pictures + 3 * work.learnt) * picture + steps * (encoding + _rendering(spec, stage))
        kept = views * pixels * _ENCODER_BYTES_PER_PIXEL if weights.get("vae") else 0.0
        most = max(most, kept, (work.pictures + work.learnt) / steps * _ANSWER_BYTES)
    size = 2 if gpu else 4
    memory = sum(weights.values()) * size + most * size / 4 if counted is None else counted
    memory = memory / 2**20 + (0 if gpu else _OWN_MEMORY)
    basis = "a rough guess from the size of the prior's weights, for " + (
        "a GPU in 16 bits" if gpu else "this processor"
    )
    basis += "" if counted is None else "; its memory is counted"
    return Estimate(seconds, memory, basis, counted is None and _names_pipeline(folder))


def _names_pipeline(folder: Path) -> bool:
    """Whether a prior is one whose memory is counted before a run: not a small one of a bare U-Net."""
    try:
        return pipeline_of(folder) is not None
    except (OSError, ValueError):
        return False


def _weights_of(folder: Path) -> int:
    """Numbers in the safetensors files of a component; the smallest of several variants of the same."""
    counts = {}
    for file in folder.glob("*.safetensors") if folder.is_dir() else ():
        variant = file.name.split(".")[1] if file.name.count(".") > 1 else ""
        counts[variant] = counts.get(variant, 0) + _numbers_in(file)
    return min(counts.values(), default=0)


def _numbers_in(file: Path) -> int:
    """Numbers in a safetensors file, from its head alone."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > 100 * 2**20:
                return 0
            tensors = json.loads(opened.read(length))
        return sum(math.prod(tensor["shape"]) for name, tensor in tensors.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return 0


def _resolution(folder: Path) -> int:
    """Pixels a side that a prior was trained with; 512 where it does not say."""
    try:
        return native_pixels(folder)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return 512


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
