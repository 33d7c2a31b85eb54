"""Edits: a run that begins as the object another run made and leads it towards another prompt.

Such a run keeps, in ``source/`` of its own folder, the request and the final representation of the run it began from,
written in one atomic step. It needs nothing else of it, so the source may move or vanish.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from guidance.dds import DDS
from guidance.methods import AnyGuidance
from guidance.schedules import Schedule
from representations.box import Box
from representations.inside import inside, restored
from representations.kinds import AnyRepresentation
from representations.scene import Representation
from studio.checkpoints import Checkpoints, read_state, write_state
from studio.codec import decode, encode
from studio.folder import RunError, read_request
from studio.prior_options import PriorOptions
from studio.region import region_problems
from studio.request import Edit, Regularizers, Request, Stage
from studio.tuning import suited

STEPS = 300
"""Steps of an edit that asks for no other number."""


@dataclass(frozen=True)
class Source:
    """The object that an edit starts from: what was asked for, and the representation it ended as."""

    request: Request
    state: dict[str, Any]

    def begin(self, spec: AnyRepresentation, device: torch.device) -> Representation:
        """A representation of the shape that ``spec`` says, with the source's parameters, bit for bit.

        Raises:
            RunError: the source is of another shape.
        """
        try:
            return restored(spec, self.state, device)
        except RuntimeError as problem:
            own = type(self.representation_spec).__name__
            raise RunError(
                f"An edit begins exactly as its source, a {own}; its stages.0.representation may change rates, but not "
                f"what it consists of ({problem})"
            ) from problem

    def confined(self, spec: AnyRepresentation, region: Box | None, device: torch.device) -> Representation:
        """The same, free to change inside ``region`` alone if there is one.

        Raises:
            RunError: the source is of another shape, or the region makes no sense or has nothing that could change.
        """
        if region is not None and (wrong := region_problems(region, spec)):
            raise RunError("\n".join(f"{text}." for text in wrong))
        begun = self.begin(spec, device)
        try:
            return begun if region is None else inside(region, begun)
        except ValueError as problem:
            raise RunError(str(problem)) from problem

    def representation(self, device: torch.device) -> Representation:
        """The object as its run left it."""
        return self.begin(self.representation_spec, device).requires_grad_(False)

    @property
    def representation_spec(self) -> AnyRepresentation:
        """Knobs of what the source run ended with."""
        return self.request.representation(len(self.request.stages) - 1)


def edit(
    source: Path,
    prompt: str,
    method: AnyGuidance | type[AnyGuidance] = DDS,
    keep: Sequence[str] = (),
    prior: str | None = None,
    region: Box | None = None,
) -> Request:
    """A request that changes what the finished run ``source`` made until it fits another prompt.

    Negative prompt, cameras, export and seed are the source's; so are the regularisers, at their final weights, and the
    files on top of the prior, unless it is another one.

    Args:
        source: folder of the run.
        prompt: what the object is to be.
        method: what says how, or its class, for the knobs that suit the prior; one that compares with the source
            changes least (DDS, PDS).
        keep: names of groups of parameters that may not move.
        prior: name or folder; the source's without it.
        region: a box in world units, outside of which nothing changes: neither pixel nor surface.

    Raises:
        RunError: the folder holds no run, or one that is not finished.
    """
    found = finished(source)
    last, prior = found.request.stages[-1], prior or found.request.prior
    guidance = suited(method, prior) if isinstance(method, type) else method
    final = {f.name: Schedule(getattr(last.regularizers, f.name)(1.0)) for f in dataclasses.fields(Regularizers)}
    stage = Stage(found.representation_spec, guidance, STEPS, last.cameras, Regularizers(**final))
    task, options = Edit(source.absolute(), tuple(keep), region=region), found.request.prior_options
    if prior != found.request.prior:
        options = PriorOptions(resources=options.resources)
    return dataclasses.replace(
        found.request, prompt=prompt, prior=prior, prior_options=options, stages=(stage,), task=task, debug_every=0
    )


def finished(run: Path) -> Source:
    """What a finished run made.

    Raises:
        RunError: the folder holds no run, or one that is not finished.
    """
    request = read_request(run)
    saved, _ = Checkpoints(run / "checkpoints").newest()
    done = 0 if saved is None else saved["step"]
    if saved is None or done < request.steps:
        raise RunError(
            f"{run} is not finished: {done} of {request.steps} steps are done. Go on with: studio resume {run}"
        )
    return Source(request, saved["representation"])


def check_source(request: Request) -> None:
    """Refuse an edit that cannot begin.

    Raises:
        RunError: its source is no finished run, of another shape than its representation, or has nothing in the region.
    """
    if request.task is not None:
        source = finished(request.task.source)
        source.confined(request.representation(0), request.task.region, torch.device("cpu"))


def own_source(folder: Path, task: Edit, device: torch.device) -> Source:
    """The copy of its source that an edit's run keeps in ``folder``, made now if there is none yet.

    Raises:
        RunError: there is no copy, and no finished run to make it from.
        CorruptCheckpoint: the copy is damaged.
    """
    copy = folder / "source"
    if not copy.is_dir():
        source = finished(task.source)
        write_state(copy, {"request": json.dumps(encode(source.request)), "representation": source.state})
    saved = read_state(copy, device)
    return Source(decode(Request, json.loads(saved["request"])), saved["representation"])
