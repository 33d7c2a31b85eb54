"""From a training to a prior's folder: averaged weights in 16 bits, a model card with measured figures, pictures."""

import copy
import dataclasses
import json
import math
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from guidance.camera_features import camera_features
from guidance.conditioning import Prompts
from guidance.contract import Views
from guidance.diffusers_prior import DiffusersPrior
from guidance.prior_folder import Hints, default_hints, save_prior
from guidance.sampling import sample
from representations.cameras import orbit
from studio.checkpoints import write_atomically
from studio.toybox.language import WORDS
from studio.toybox.model import noise_schedule
from studio.toybox.training import HIGHEST, LOWEST, Trainee, TrainPrior, draw_batch
from studio.toybox.views import DISTANCE, FIELD_OF_VIEW
from studio.toybox.world import COLOURS, KINDS

SHOWN = (
    "a red cube",
    "a blue mug",
    "a green table",
    "a yellow chair",
    "a red mushroom",
    "a green tree",
    "an orange car",
    "a pink sphere",
    "a white house with a red roof",
    "a green rocket with a yellow nose",
    "a snowman with a purple hat",
    "a donut with pink icing",
)
"""Prompts on the card's picture."""
_AZIMUTHS, _ELEVATION = tuple(range(0, 360, 60)), 20.0
_STEPS, _SCALE = 25, 4.0
_LEVELS = {"low": (0.0, 0.3), "middle": (0.3, 0.7), "high": (0.7, 1.0)}


@dataclass(frozen=True)
class History:
    """How a training went, as far as it was written down."""

    loss: float | None = None
    """Mean training loss of the last report."""
    seconds: float | None = None
    """Time spent on steps, over all the processes that worked on it."""
    device: str | None = None
    """What it ran on."""


@dataclass(frozen=True)
class Measured:
    """What is known about a trained prior."""

    steps: int
    """Optimiser steps taken."""
    images: int
    """Training images seen."""
    held_out: dict[str, float]
    """Mean squared error in velocity on unseen views, by noise level."""
    loss: float | None = None
    seconds: float | None = None
    device: str | None = None


def release(
    trainee: Trainee, settings: TrainPrior, folder: Path, history: History | None = None, note: str = ""
) -> Measured:
    """Write the prior as a folder that ``DiffusersPrior`` loads, with its card and pictures.

    The trainee is left as it is. Pictures are drawn by a copy that went through a file, before anything is replaced:
    they show what ships, and the folder is never without them for more than a moment.

    Args:
        trainee: whose averaged weights to write.
        settings: of its training.
        folder: where to; a prior that is there is replaced whole.
        history: how the training went, for the card.
        note: a sentence for the card.

    Raises:
        OSError: the folder cannot be written.
    """
    averaged = trainee_average(trainee)
    went = dataclasses.asdict(history or History())
    measured = Measured(trainee.step, trainee.step * settings.batch, held_out_loss(averaged, settings), **went)
    with tempfile.TemporaryDirectory() as temporary:
        _save(averaged, settings, Path(temporary) / "prior")
        picture = samples_picture(DiffusersPrior.load(Path(temporary) / "prior", "cpu"))
    _save(averaged, settings, folder)
    said = {"settings": dataclasses.asdict(settings), "measured": dataclasses.asdict(measured)}
    write_atomically(folder / "samples.png", picture)
    write_atomically(folder / "training.json", json.dumps(said, indent=2).encode())
    write_atomically(folder / "README.md", model_card(settings, measured, note).encode())
    return measured


def trainee_average(trainee: Trainee) -> Trainee:
    """A copy of a trainee whose weights are the running average."""
    averaged = copy.copy(trainee)
    averaged.unet, averaged.text_encoder = copy.deepcopy((trainee.unet, trainee.text_encoder))
    averaged.parameters = [*averaged.unet.parameters(), *averaged.text_encoder.parameters()]
    for parameter, average in zip(averaged.parameters, trainee.average, strict=True):
        parameter.data.copy_(average)
    averaged.average = [p.detach() for p in averaged.parameters]
    return averaged


def in_memory(trainee: Trainee, settings: TrainPrior) -> DiffusersPrior:
    """The trainee as a prior, without a file; it takes the networks over."""
    hints = Hints(**{**default_hints(), **_hints(settings)})
    return DiffusersPrior.of(trainee.unet, trainee.text_encoder, trainee.tokenizer, noise_schedule(), hints=hints)


def _save(averaged: Trainee, settings: TrainPrior, folder: Path) -> None:
    parts = averaged.unet, averaged.text_encoder, averaged.tokenizer, noise_schedule()
    save_prior(folder, *parts, _hints(settings))


def _hints(settings: TrainPrior) -> dict[str, Any]:
    return {
        "pixel_shuffle": settings.network.pixel_shuffle,
        "camera": "harmonics",
        "field_of_view": FIELD_OF_VIEW,
        "distance": DISTANCE,
        "elevations": (round(math.degrees(LOWEST), 6), round(math.degrees(HIGHEST), 6)),
        "words": WORDS,
    }


# Figures --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def held_out_loss(trainee: Trainee, settings: TrainPrior, count: int = 96) -> dict[str, float]:
    """Mean squared error in velocity on views that training never saw, the same ones every time, by noise level."""
    device = trainee.parameters[0].device
    # Another number of views makes another lattice of cameras, none of which training looked from.
    batch = draw_batch(count, settings.views_per_kind + 1, random.Random("held out"))
    noise = torch.randn(batch.pictures.shape, generator=torch.Generator().manual_seed(0))
    share = (torch.arange(count) + 0.5) / count
    levels = noise_schedule().alphas_cumprod
    t = (share * len(levels)).long()
    a, s = levels[t].sqrt().view(-1, 1, 1, 1), (1 - levels[t]).sqrt().view(-1, 1, 1, 1)
    noisy, velocity = (
        F.pixel_unshuffle(pixels, settings.network.pixel_shuffle).to(device)
        for pixels in (a * batch.pictures + s * noise, a * noise - s * batch.pictures)
    )
    features = camera_features(batch.poses, batch.backgrounds).to(device)
    guess = trainee.unet(noisy, t.to(device), trainee.embed(batch.captions), class_labels=features).sample
    error = (guess - velocity).square().mean((1, 2, 3)).cpu()
    return {
        name: round(error[(share >= low) & (share < high)].mean().item(), 4) for name, (low, high) in _LEVELS.items()
    }


# Pictures -------------------------------------------------------------------------------------------------------------


def samples_picture(prior: DiffusersPrior) -> bytes:
    """A PNG of what the prior draws of each prompt in ``SHOWN``, from six sides."""
    from studio.export.pictures import Row, contact_sheet

    return contact_sheet("toybox-64: samples of the prior", [Row(p, sampled(prior, p)) for p in SHOWN], 96)


def sampled(prior: DiffusersPrior, prompt: str) -> Float[Tensor, "b 3 h w"]:
    """What the prior draws of a prompt from six sides, 20 degrees above the horizon, over white."""
    size, count, device = prior.resolution, len(_AZIMUTHS), prior.alphas_cumprod.device
    cameras = orbit(_AZIMUTHS, (_ELEVATION,) * count, size, prior.hints["distance"], prior.hints["field_of_view"])
    blank = torch.zeros(count, 3, size, size, device=device)
    views = Views(blank, cameras.pose.to(device), torch.ones(count, 3, device=device))
    condition = Prompts.embed(prior, prompt, view_dependent="off").condition(views)
    return sample(prior, condition, steps=_STEPS, scale=_SCALE, seed=0)


# Words ----------------------------------------------------------------------------------------------------------------


def model_card(settings: TrainPrior, measured: Measured, note: str = "") -> str:
    """The model card in Markdown."""
    facts = "\n".join(f"| {name} | {value} |" for name, value in _facts(settings, measured).items())
    remark = f"\n{note}\n" if note else ""
    return f"""---
license: apache-2.0
library_name: diffusers
---

# toybox-64

A small text- and camera-conditioned diffusion prior in pixel space, 64 x 64, made to distil 3D objects on a CPU. It is
the prior that Dreamkiln ships with. Apache-2.0; weights, data and code are Dreamkiln's own.

![Samples](samples.png)

Each row is one prompt, from the front and then around in steps of 60 degrees, {_ELEVATION:.0f} degrees above the
horizon: deterministic sampling in {_STEPS} steps with a guidance scale of {_SCALE:.0f}. Nothing was picked by hand.

| | |
|---|---|
{facts}
{remark}
Kinds: {", ".join(KINDS)}. Colours: {", ".join(COLOURS)}. Cameras look at the origin from {DISTANCE} units with a field
of view of {FIELD_OF_VIEW:.0f} degrees, between {math.degrees(LOWEST):.0f} and {math.degrees(HIGHEST):.0f} degrees of
elevation.

The held-out error is that of the averaged weights on freshly drawn objects from cameras that training did not use, over
the first 30 %, the middle 40 % and the last 30 % of the noise schedule. Kinds and colours are the same as in training,
so it measures new views and new combinations, not new objects.

Limits: it knows these objects, each in one shape, and nothing else; other words are spelled out and mean nothing to
it. Shading is part of its pictures. It was trained for little: the pictures above show what it draws well and what it
does not.

`studio train-prior` trains it anew; `training.json` has every setting.

`one_pass.safetensors`, where it is there, lets it answer with the prompt and without it in one pass (`studio generate
--one-pass own`); `studio distill-guidance` makes it, and says in the file's head how exact it is.
"""


def _facts(settings: TrainPrior, measured: Measured) -> dict[str, str]:
    network = settings.network
    size = sum(p.numel() for p in network.unet().parameters()) / 1e6
    fold = network.pixel_shuffle
    planned = "" if measured.steps >= settings.steps else f" (stopped early: {settings.steps:,} were planned)"
    views = f"{settings.views_per_kind} traced views a kind, recoloured at random"
    return {
        "network": f"`UNet2DConditionModel`, {size:.1f} M parameters, channels {network.channels}, "
        f"pixels folded {fold} x {fold}",
        "text": f"`CLIPTextModel`, {network.text_layers} layers, trained along; {len(WORDS)} words",
        "camera": "15 spherical harmonics of the direction of view and the background colour, as class embedding",
        "objective": "v-prediction, cosine schedule, 1000 noise levels",
        "data": f"a procedural world: {len(KINDS)} kinds of objects in {len(COLOURS)} colours, {views}",
        "training": f"AdamW, {measured.steps:,} steps{planned} of {settings.batch} images, "
        f"{measured.images:,} images in all",
        "learning rate": f"{settings.learning_rate}, falling to 0 over the last {settings.descent:.0%}",
        "weights": f"exponential average, decay {settings.average}, stored in 16 bits; seed {settings.seed}",
        "training loss at the end": "not recorded" if measured.loss is None else f"{measured.loss:.4f}",
        "held-out error in velocity": ", ".join(f"{v} at {name} noise" for name, v in measured.held_out.items()),
        "device": measured.device or "not recorded",
        "time": "not recorded" if measured.seconds is None else _duration(measured.seconds),
    }


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(1, minutes)} min"
