"""A prior examined before it is used: what it is, where it came from, and the memory that it needs."""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from guidance.critic import Criticised
from guidance.prior_folder import read_hints
from guidance.priors.loading import WIDE, listed, pipeline_of
from guidance.priors.memory import Need, native_pixels, need_of, with_second
from guidance.priors.resources import Resources
from guidance.priors.single_file import require_configuration
from guidance.priors.weightless import weightless
from guidance.priors.weights import refuse_incomplete
from guidance.priors.words import Words
from studio.doctor import Check, free_memory
from studio.evaluate.cost import work_of
from studio.folder import RunError
from studio.loaded import kept_bytes
from studio.memory import with_resources
from studio.paths import resolve_prior
from studio.presets import download, preset_of
from studio.prior_options import PriorOptions
from studio.prior_stamp import revision, weights_of
from studio.request import Request
from studio.second_prior import second_prior_of

VIEWS, RANK = 4, 4
"""Views a step that memory is stated for, in two branches of guidance, and the rank of a critic."""
UNCOUNTED = (ValueError, OSError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What counting raises for a prior that cannot be put together or gone through without memory."""
_COUNTED_STEPS, _COUNTED_VIEWS = 8, 4
"""Steps of a stage, and views a step, that show how many samples its method asks about at once."""
_MOST_VIEWS = 1024
"""More are counted as so many: no machine has the memory."""
_THRIFTY = Resources(offload="text", vae_checkpointing=True, network_checkpointing=True)
_HOW = (
    "--stages.0.at-once 1 --prior-options.resources.vae-checkpointing True --prior-options.resources.offload text, and "
    "--prior-options.resources.network-checkpointing True for a critic; a run whose memory comes to its end takes "
    "these steps by itself"
)


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
        if not preset.whole:
            return [Check("part of a prior", "ok", f"{preset.folder}: {preset.use}")]
    place = resolve_prior(name)
    folder = configuration_of(place)
    checks = [_kind(place, folder)]
    if checks[0].verdict == "ok":
        with contextlib.redirect_stderr(None):
            files, memory = _files(place, folder), _memory(folder)
        counted = [check for check in memory if files.finding not in check.finding]
        checks += [files, *(counted if len(counted) > 1 else [])]
    return checks


def memory_warnings(request: Request, device: torch.device) -> list[str]:
    """Words about a prior that will not fit, before it is loaded; nothing about small ones that name no pipeline.

    Raises:
        MissingPriorError, ValueError: loading would fail; said before weights are read.
    """
    place = resolve_prior(request.prior)
    folder = configuration_of(place)
    if pipeline_of(folder) is None or device.type not in ("cpu", "cuda"):
        return []
    if place.is_dir():
        _put_together(folder, request.prior_options, device)
    try:
        most, free = peak_of(request, device), available(device)
        if free is None or most <= free:
            return []
        helps, thrifty = _remedies(request, device, free)
    except UNCOUNTED:  # loading says what is wrong
        return []
    pixels = request.prior_options.resolution or native_pixels(folder)
    end = f"with all of it {_gigabytes(thrifty)}" if thrifty <= free else f"even then {_gigabytes(thrifty)}"
    two = any(second_prior_of(stage) for stage in request.stages)
    needing = "The prior and the second one of its method need" if two else "The prior needs"
    return [
        f"{needing} {_gigabytes(most)} for {max(stage.cameras.views for stage in request.stages)} views of "
        f"{pixels} px, and {_gigabytes(free)} are free. What helps: {', '.join(helps)}; {end}."
    ]


def refuse_long_prompt(request: Request, device: torch.device) -> None:
    """Refuse a prompt that the prior would read in part only, by its tokenizer alone: no weights are read.

    Raises:
        RunError: in words.
    """
    folder, options = configuration_of(resolve_prior(request.prior)), request.prior_options
    try:
        pixels = options.resolution or native_pixels(folder)
        words = weightless(folder, _type_for(folder, options.resources, device), options.resources, pixels).words
    except UNCOUNTED:  # loading says what is wrong
        return
    refuse_cut(words, request.prompt)


def refuse_cut(words: Words, prompt: str) -> None:
    """Refuse a prompt of more tokens than are read.

    Raises:
        RunError: in words.
    """
    tokens, most = words.count_tokens(prompt), words.most_tokens
    if tokens > most:
        raise RunError(f"The prompt has {tokens} tokens and this prior reads {most}; shorten it.")


def available(device: torch.device) -> int | None:
    """Bytes that a run can have of a device's memory: what is free, and what the last run's prior has, which is either
    used again or given back; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = free_memory()
    return None if free is None else free + kept_bytes()


def _put_together(folder: Path, options: PriorOptions, device: torch.device) -> None:
    """What loading would say of a folder's settings, and of options that do not go with them."""
    refuse_incomplete(folder, listed(folder, pipeline_of(folder)))
    try:
        pixels = options.resolution or native_pixels(folder)
        weightless(folder, _type_for(folder, options.resources, device), options.resources, pixels)
    except (RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError):
        return  # what the meta device cannot do


def peak_of(request: Request, device: torch.device) -> int:
    """Most bytes that a run's prior takes at any time, all stages considered.

    Raises:
        ValueError, OSError, RuntimeError, KeyError: it cannot be counted.
    """
    text_waits = request.prior_options.resources.offload != "none" and device.type != "cpu"
    return max(need_of_stage(request, index, device).peak(text_waits) for index in range(len(request.stages)))


def need_of_stage(request: Request, index: int, device: torch.device) -> Need:
    """Memory that a stage takes of its prior, by what its method asks and learns.

    Raises:
        ValueError, OSError, RuntimeError, KeyError: it cannot be counted.
    """
    stage, options = request.stages[index], request.prior_options
    folder = configuration_of(resolve_prior(request.prior))
    pixels, views = options.resolution or native_pixels(folder), max(1, min(stage.cameras.views, _MOST_VIEWS))
    few = dataclasses.replace(stage.cameras, views=_COUNTED_VIEWS)
    short = dataclasses.replace(stage, representation=None, cameras=few, steps=_COUNTED_STEPS, at_once=None)
    work = work_of(short, request.view_prompts or "bucketed", bool(options.one_pass))
    need = need_of(
        folder,
        views,
        math.ceil(work.widest / _COUNTED_VIEWS),
        pixels,
        _type_for(folder, options.resources, device),
        work.ranks,
        stage.at_once,
        options.resources,
    )
    if (second := second_prior_of(stage)) is None:
        return need
    second, resources = configuration_of(second), options.resources
    return with_second(need, second, views, pixels, _type_for(second, resources, device), stage.at_once, resources)


def _type_for(folder: Path, resources: Resources, device: torch.device) -> torch.dtype:
    """What a folder's prior computes in."""
    pipeline = pipeline_of(folder)
    return resources.type_for(device, pipeline in WIDE, pipeline is None)


def configuration_of(place: Path) -> Path:
    """The folder that says what a prior is: its own, or the one beside a single file."""
    return place.with_suffix("") if place.is_file() else place


def _remedies(request: Request, device: torch.device, free: int) -> tuple[list[str], int]:
    """Options that make the prior fit, the gentlest first, as few as suffice, and what it takes then."""
    said, most = [], 0
    for words, change in _thriftier(request, device):
        request = change(request)
        said.append(words)
        most = peak_of(request, device)
        if most <= free:
            break
    return said, most


def _thriftier(request: Request, device: torch.device) -> Iterator[tuple[str, Callable[[Request], Request]]]:
    """Options and what they change."""
    pixels = request.prior_options.resolution or native_pixels(configuration_of(resolve_prior(request.prior)))
    single = " ".join(f"--stages.{index}.at-once 1" for index in range(len(request.stages)))
    yield single, _one_at_once
    yield _option("vae-checkpointing", True), lambda r: with_resources(r, vae_checkpointing=True)
    if any(isinstance(stage.guidance, Criticised) for stage in request.stages):
        yield _option("network-checkpointing", True), lambda r: with_resources(r, network_checkpointing=True)
    if device.type != "cpu" and request.prior_options.resources.offload == "none":
        yield _option("offload", "text"), lambda r: with_resources(r, offload="text")
    yield f"--prior-options.resolution {pixels // 2}", functools.partial(_at_resolution, pixels=pixels // 2)


def _option(name: str, value: Any) -> str:
    return f"--prior-options.resources.{name} {value}"


def _one_at_once(request: Request) -> Request:
    return dataclasses.replace(request, stages=tuple(dataclasses.replace(s, at_once=1) for s in request.stages))


def _at_resolution(request: Request, pixels: int) -> Request:
    options = dataclasses.replace(request.prior_options, resolution=pixels)
    return dataclasses.replace(request, prior_options=options)


def _kind(place: Path, folder: Path) -> Check:
    try:
        pipeline, hints = pipeline_of(folder), read_hints(folder)
    except (ValueError, OSError) as problem:
        return Check("prior asked for", "failure", str(problem))
    kind = {None: "a bare U-Net", "": "Zero1to3StableDiffusionPipeline"}.get(pipeline, pipeline or "")
    views = f", {hints['views']} views as one" if hints["views"] > 1 else ""
    came = f", revision {found}" if (found := revision(place)) else ""
    return Check("prior asked for", "ok", f"{kind}{views}{came}, {place}")


def _files(place: Path, folder: Path) -> Check:
    """Whether all is there that loading reads, and fits together."""
    try:
        if place.is_file():
            require_configuration(place, folder)
        else:
            _put_together(folder, PriorOptions(), torch.device("cpu"))
        size = sum(file.stat().st_size for file in weights_of(place))
    except (ValueError, OSError) as problem:
        return Check("its files", "failure", str(problem))
    return Check("its files", "ok", f"all there, {_gigabytes(size)} of weights")


def _memory(folder: Path) -> list[Check]:
    """Memory at the resolution it was trained with, at half of it, and at half of that."""
    try:
        native, cuda = native_pixels(folder), torch.cuda.is_available()
    except (*UNCOUNTED, StopIteration) as problem:
        return [Check("memory", "warning", f"unknown: {problem}")]
    dtype = _type_for(folder, Resources(), torch.device("cuda" if cuda else "cpu"))
    free = torch.cuda.mem_get_info()[0] if cuda else free_memory()
    checks = []
    for pixels in (native // 4, native // 2, native):
        name = f"memory at {pixels} px"
        try:
            plain = need_of(folder, VIEWS, 2, pixels, dtype, (RANK,))
            thrifty = need_of(folder, VIEWS, 2, pixels, dtype, (RANK,), 1, _THRIFTY)
        except UNCOUNTED as problem:
            checks.append(Check(name, "warning", f"unknown: {problem}"))
            continue
        least = _without_critic(thrifty).peak(text_waits=cuda)
        finding = (
            f"{VIEWS} views: {_gigabytes(_without_critic(plain).peak())}, of which weights "
            f"{_gigabytes(plain.weights + plain.texts)}, or {_gigabytes(least)} at the thriftiest; for methods with a "
            f"critic (VSD) {_gigabytes(plain.peak())}, or {_gigabytes(thrifty.peak(text_waits=cuda))}"
        )
        short = free is not None and least > free
        advice = "More than is free here: fewer pixels (--prior-options.resolution) or another prior." if short else ""
        checks.append(Check(name, "warning" if short else "ok", finding, advice))
    return [*checks, Check("the thriftiest", "ok", _HOW)]


def _without_critic(need: Need) -> Need:
    return dataclasses.replace(need, critic=0, learning=0)


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.2f} GB"
