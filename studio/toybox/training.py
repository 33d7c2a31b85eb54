"""Training of the bundled prior on the toybox: ``studio train-prior``.

What a step sees is a function of (seed, step) alone, so a training killed at any moment resumes to the same weights
on the same machine. Objects are traced once a view and recoloured for free, so the network, not the world, sets the
pace.
"""

import contextlib
import functools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from guidance.camera_features import camera_features
from guidance.prior_folder import refuse, require
from studio.checkpoints import Checkpoints
from studio.toybox.model import RESOLUTION, Network, noise_schedule, tokenizer
from studio.toybox.views import Layers, look_from, trace
from studio.toybox.world import KINDS, phrase, random_toy

LOWEST, HIGHEST = math.radians(-20), math.radians(75)
"""Elevations of training cameras."""


@dataclass(frozen=True)
class TrainPrior:
    """How the bundled prior is trained; the defaults made the one in ``assets``."""

    images: int = 104_000
    """Training images to see in all."""
    batch: int = 16
    """Images a step. Small batches learn most per image while the budget is a laptop's."""
    learning_rate: float = 1e-3
    """Peak of the schedule: a short warm-up, a plateau, a linear descent to zero."""
    descent: float = 0.3
    """Share of the training spent on the descent."""
    views_per_kind: int = 256
    """Traced cameras of each kind; colours and backgrounds vary freely over each."""
    text_dropout: float = 0.12
    """Share of images without a prompt, for classifier-free guidance."""
    camera_dropout: float = 0.15
    """Share of images without a camera."""
    detail_weight: float = 0.15
    """Weight of the loss where there is no noise; it grows to 1 with the noise. Where little is missing the error in
    velocity is large and says little about shape: equal weights would spend most of the gradient there."""
    average: float = 0.999
    """Decay of the exponential moving average of the weights, which is what ships."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's arithmetic; weights and their averages are always fp32. bf16 pays where the processor has it."""
    seed: int = 0
    """Seed of everything."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    network: Network = field(default_factory=Network)
    """Size of the network."""

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return max(1, self.images // self.batch)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        warm = min(1.0, (step + 1) / 100)
        left = (self.steps - step) / (self.descent * self.steps)
        return self.learning_rate * warm * min(1.0, left)


@dataclass(frozen=True)
class TrainingProgress:
    """One report of a training: ``loss`` is the mean since the last report, ``seconds`` counts this process alone."""

    step: int
    steps: int
    loss: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class Batch:
    """What a step learns from."""

    pictures: Float[Tensor, "b 3 h w"]
    """sRGB in [-1, 1]."""
    captions: list[str]
    poses: Float[Tensor, "b 4 4"]
    """Camera-to-world, OpenGL axes."""
    backgrounds: Float[Tensor, "b 3"]
    """sRGB in [0, 1]."""


class Trainee:
    """The network, its running average and its optimiser: all that training changes."""

    def __init__(self, settings: TrainPrior, device: torch.device):
        torch.manual_seed(settings.seed)
        self.unet = settings.network.unet().to(device)  # pyright: ignore[reportArgumentType]
        self.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.text_encoder = settings.network.text_encoder().to(device)  # pyright: ignore[reportArgumentType]
        self.tokenizer = tokenizer()
        self.parameters = [*self.unet.parameters(), *self.text_encoder.parameters()]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
        self.step = 0

    def state(self) -> dict[str, Any]:
        """Everything a resume needs."""
        return {
            "weights": [p.detach() for p in self.parameters],
            "average": self.average,
            "optimiser": _in_memory_order(self.optimiser.state_dict()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        for mine, saved in zip(self.parameters, state["weights"], strict=True):
            mine.data.copy_(saved)
        for mine, saved in zip(self.average, state["average"], strict=True):
            mine.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        for parameter, moments in self.optimiser.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = moments[name].as_strided(parameter.shape, parameter.stride())
        self.step = state["step"]

    def begin_with(self, folder: Path) -> None:
        """Take over the weights of a released prior of the same network.

        Raises:
            MissingPriorError: the folder or a part of it is not there.
            ValueError: it is of another network.
        """
        from safetensors.torch import load_file

        for name, model in (("unet", self.unet), ("text_encoder", self.text_encoder)):
            file = next(iter(sorted(require(folder, name).glob("*.safetensors"))), None)
            if file is None:
                refuse(folder, f"its {name}/ has no weights")
            try:
                model.load_state_dict(load_file(file))
            except RuntimeError as problem:
                raise ValueError(str(problem).replace("\n\t", " ")) from problem
        for average, parameter in zip(self.average, self.parameters, strict=True):
            average.copy_(parameter.detach())

    def embed(self, captions: list[str]) -> Float[Tensor, "b t d"]:
        """Hidden states of captions."""
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(ids.to(self.average[0].device)).last_hidden_state


def _in_memory_order(optimiser: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state whose moments are written as they lie in memory, which is where they must lie again.

    The fused step pairs a parameter with its moments by their place in memory and never looks at strides. Files keep
    no strides, so moments of channels-last weights would come back in another order than their weights.
    """
    moments = {
        i: {name: value.as_strided(value.shape, torch.empty(value.shape).stride()) for name, value in of_one.items()}
        for i, of_one in optimiser["state"].items()
    }
    return {**optimiser, "state": moments}


def train(
    settings: TrainPrior, folder: Path, device: torch.device, every: int = 100, begin_with: Path | None = None
) -> Iterator[TrainingProgress]:
    """Train until ``settings.images`` are seen, reporting ``every`` so many steps; resumes from ``folder``.

    Args:
        begin_with: a released prior whose weights a new training starts from.

    Raises:
        OSError: the folder cannot be written, or there is no prior to begin with.
        ValueError: the prior to begin with is of another network.
    """
    trainee, checkpoints = Trainee(settings, device), Checkpoints(folder / "checkpoints")
    saved, _ = checkpoints.newest(device)
    if saved is not None:
        trainee.restore(saved)
    elif begin_with is not None:
        trainee.begin_with(begin_with)
    diffusion_levels = noise_schedule().alphas_cumprod.to(device)
    started, first, losses = time.monotonic(), trainee.step, []
    while trainee.step < settings.steps:
        losses.append(_learn(trainee, settings, diffusion_levels))
        trainee.step += 1
        if trainee.step % every == 0 or trainee.step == settings.steps:
            seconds = time.monotonic() - started
            pace = (trainee.step - first) * settings.batch / seconds
            mean = torch.stack(losses).mean().item()
            yield TrainingProgress(trainee.step, settings.steps, mean, pace, seconds)
            losses = []
        if trainee.step % settings.checkpoint_every == 0 or trainee.step == settings.steps:
            checkpoints.save(trainee.step, trainee.state())


def _learn(trainee: Trainee, settings: TrainPrior, levels: Float[Tensor, " t"]) -> Float[Tensor, ""]:
    """One step of v-prediction (Salimans and Ho, arXiv 2202.00512); returns the loss."""
    device = levels.device
    rng = random.Random(f"{settings.seed} {trainee.step}")
    batch = draw_batch(settings.batch, settings.views_per_kind, rng)
    torch_rng = torch.Generator().manual_seed(rng.getrandbits(48))
    t = torch.randint(len(levels), (settings.batch,), generator=torch_rng)
    noise = torch.randn(batch.pictures.shape, generator=torch_rng).to(device)
    captions = ["" if rng.random() < settings.text_dropout else c for c in batch.captions]
    features = camera_features(batch.poses, batch.backgrounds)
    blind = torch.tensor([rng.random() < settings.camera_dropout for _ in captions])
    features[blind] = camera_features(None, batch.backgrounds[blind])

    abar = levels[t.to(device)].view(-1, 1, 1, 1)
    clean = batch.pictures.to(device)
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    velocity = abar.sqrt() * noise - (1 - abar).sqrt() * clean
    shuffle = settings.network.pixel_shuffle
    folded = F.pixel_unshuffle(noisy, shuffle).contiguous(memory_format=torch.channels_last)
    with _arithmetic(settings.precision, device):
        guess = trainee.unet(folded, t.to(device), trainee.embed(captions), class_labels=features.to(device)).sample
    weight = settings.detail_weight + (1 - settings.detail_weight) * (1 - abar)
    loss = (weight * (guess.float() - F.pixel_unshuffle(velocity, shuffle)).square()).mean()

    for group in trainee.optimiser.param_groups:
        group["lr"] = settings.rate(trainee.step)
    trainee.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainee.parameters, 1.0)
    trainee.optimiser.step()
    decay = min(settings.average, (1 + trainee.step) / (10 + trainee.step))
    torch._foreach_lerp_(trainee.average, [p.detach() for p in trainee.parameters], 1 - decay)
    return loss.detach()


def _arithmetic(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def draw_batch(size: int, views_per_kind: int, rng: random.Random) -> Batch:
    """Random toys, cameras and backgrounds."""
    pictures, captions, poses, backgrounds = [], [], [], []
    for _ in range(size):
        toy, view, background = random_toy(rng), rng.randrange(views_per_kind), _background(rng)
        azimuth, elevation = camera_angles(KINDS.index(toy.kind), view, views_per_kind)
        pictures.append(_layers(toy.kind, azimuth, elevation).painted(toy, background) * 2 - 1)
        captions.append(phrase(toy, azimuth, elevation, rng))
        poses.append(look_from(azimuth, elevation))
        backgrounds.append(background)
    return Batch(torch.stack(pictures), captions, torch.stack(poses), torch.stack(backgrounds))


def camera_angles(kind: int, view: int, views: int) -> tuple[float, float]:
    """Azimuth and elevation of a kind's view: a spherical Fibonacci lattice, turned differently for each kind."""
    golden = (math.sqrt(5) - 1) / 2
    turn = (view * golden + kind * golden**2) % 1.0
    height = math.sin(LOWEST) + (math.sin(HIGHEST) - math.sin(LOWEST)) * (view + 0.5) / views
    return (2 * turn - 1) * math.pi, math.asin(height)


@functools.cache
def _layers(kind: str, azimuth: float, elevation: float) -> Layers:
    traced = trace(kind, look_from(azimuth, elevation), RESOLUTION)
    return Layers(traced.shade.half(), traced.alpha.half(), traced.paints)


def _background(rng: random.Random) -> Float[Tensor, " 3"]:
    """White or grey most of the time, any grey or colour now and then."""
    choice = rng.random()
    if choice < 0.35:
        return torch.ones(3)
    if choice < 0.5:
        return torch.full((3,), 0.5)
    if choice < 0.75:
        return torch.full((3,), rng.random())
    return torch.tensor([rng.random() for _ in range(3)])
