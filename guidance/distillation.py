"""How a prior learns to answer with and without the prompt in one pass; see ``one_pass``.

It is its own teacher, and needs no pictures. The questions are those that a run asks: noised pictures on their way from
next to nothing to what the prompt says, each drawn by score distillation, so that every pair of answers of the teacher
is a target for the student and the next touch to a picture.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from guidance.classifier_free import Ask, combine, predict
from guidance.contract import Condition
from guidance.controls import Controls
from guidance.diffusers_prior import DiffusersPrior
from guidance.noising import add_noise, clean_estimate, levels
from guidance.one_pass import OnePassAdapter

LEVELS = {"low": (0.0, 0.3), "middle": (0.3, 0.7), "high": (0.7, 1.0)}
"""Parts of the schedule that errors are told for."""


@dataclass(frozen=True)
class Distillation:
    """How guidance is distilled; the defaults made the bundled prior's adapter, which then learnt on."""

    steps: int = 4000
    """Of the student."""
    batch: int = 16
    """Pictures a step."""
    rank: int = 32
    """Of the updates of the network's layers."""
    learning_rate: float = 2e-3
    """Peak; it falls in a straight line over the second half."""
    scales: tuple[float, float] = (1.0, 10.0)
    """Guidance weights between which the error of the guided prediction counts, and under which pictures are drawn."""
    pulls: tuple[float, float] = (0.05, 0.5)
    """Least and largest share of the way to the guided estimate that a touch takes a picture."""
    blind: float = 0.1
    """Share of the questions that are asked without a prompt, where both answers are the same."""
    average: float = 0.998
    """Decay of the exponential moving average of the weights, which is what is kept."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        low, high = self.scales
        if not (1 <= low <= high and 0 < self.pulls[0] <= self.pulls[1] <= 1):
            raise ValueError("scales are from 1 up, and pulls between 0 and 1, each the lesser one first")
        if min(self.steps, self.batch, self.rank) < 1 or not (0 <= self.blind < 1 and 0 <= self.average < 1):
            raise ValueError("steps, batch and rank are at least 1; blind and average from 0 to below 1")

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return self.learning_rate * min(1.0, (step + 1) / 50, 2 * (self.steps - step) / self.steps)


@dataclass(frozen=True)
class Subjects:
    """What pictures are of."""

    text: Float[Tensor, "b t d"]
    pose: Float[Tensor, "b 4 4"] | None
    """Camera-to-world, if the prior takes it."""
    background: Float[Tensor, "b 3"]
    """sRGB."""


Choose = Callable[[int, torch.Generator], Subjects]
"""Subjects for so many pictures."""


@dataclass
class Sketches:
    """Pictures that are being drawn, and all that is known of each."""

    clean: Float[Tensor, "b c i j"]
    """As they are now, as latents."""
    subjects: Subjects
    age: Int[Tensor, " b"]
    """Touches so far."""
    pull: Float[Tensor, " b"]
    scale: Float[Tensor, " b"]
    """Guidance weight that each is drawn under."""

    @classmethod
    def begin(
        cls, prior: DiffusersPrior, choose: Choose, count: int, knobs: Distillation, rng: torch.Generator
    ) -> "Sketches":
        """Blobs of any colour, some next to invisible, on plain backgrounds."""
        subjects = choose(count, rng)
        low, high = (math.log(pull) for pull in knobs.pulls)
        pull = torch.exp(low + (high - low) * torch.rand(count, generator=rng))
        scale = knobs.scales[0] + (knobs.scales[1] - knobs.scales[0]) * torch.rand(count, generator=rng)
        with torch.no_grad():
            clean = prior.encode(blobs(subjects.background, prior.resolution, rng).to(prior.device))
        age = torch.zeros(count, dtype=torch.long)
        return cls(clean, subjects, *(value.to(prior.device) for value in (age, pull, scale)))

    @property
    def progress(self) -> Float[Tensor, " b"]:
        """How far each is; one that is drawn in small touches takes more of them."""
        return self.age * self.pull / 3

    def state(self) -> dict[str, Tensor]:
        """As named tensors."""
        told = {"text": self.subjects.text, "pose": self.subjects.pose, "background": self.subjects.background}
        own = {"clean": self.clean, "age": self.age, "pull": self.pull, "scale": self.scale}
        return own | {name: value for name, value in told.items() if value is not None}

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> "Sketches":
        """From ``state``."""
        subjects = Subjects(state["text"], state.get("pose"), state["background"])
        return cls(state["clean"], subjects, state["age"], state["pull"], state["scale"])

    def replace(self, these: Bool[Tensor, " b"], by: "Sketches") -> None:
        """Put others in the place of some."""
        mine, theirs = self.state(), by.state()
        place = these.to(self.clean.device)
        for name, value in mine.items():
            value[place] = theirs[name].to(value)

    def condition(self, prior: DiffusersPrior) -> Condition:
        """What the prior is told."""
        empty = prior.embed([""]).expand(len(self.clean), -1, -1)
        extra = {"background": self.subjects.background} if "background" in prior.takes else {}
        return Condition(self.subjects.text, empty, empty, pose=self.subjects.pose, extra=extra)


def blobs(background: Float[Tensor, "b 3"], size: int, rng: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Soft round blobs in the middle of plain pictures, of random colour, size and opacity."""
    count = len(background)
    colour, radius, opacity = (torch.rand(shape, generator=rng) for shape in ((count, 3), (count, 1, 1), (count, 1, 1)))
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    cover = opacity * torch.exp(-(x**2 + y**2) / (0.1 + 0.5 * radius) ** 2)
    return torch.lerp(background.cpu()[:, :, None, None], colour[:, :, None, None], cover[:, None])


def refuse_other_priors(prior: DiffusersPrior) -> None:
    """Refuse a prior whose guidance cannot be distilled.

    Raises:
        ValueError: in words.
    """
    if "both" in prior.takes:
        raise ValueError("this prior gives both answers in one pass already")
    if further := prior.takes - {"pose", "background"}:
        raise ValueError(f"one-pass guidance is for priors that words and a camera prompt; this one takes {further}")


# One step -------------------------------------------------------------------------------------------------------------


def teach(
    prior: DiffusersPrior, student: OnePassAdapter, sketches: Sketches, knobs: Distillation, rng: torch.Generator
) -> Float[Tensor, ""]:
    """One question about each sketch to teacher and student; the sketches take a touch. Returns the student's loss.

    It is the error of the guided prediction under a random weight, and that of the prediction told the prompt, as the
    network answers: of v where it predicts v.
    """
    count, condition = len(sketches.clean), sketches.condition(prior)
    t = draw_timesteps(sketches.progress.cpu(), len(prior.alphas_cumprod), rng).to(prior.device)
    noisy = add_noise(prior, sketches.clean, torch.randn(sketches.clean.shape, generator=rng).to(sketches.clean), t)
    told, null = predict(prior, condition, Ask(noisy, t, "text"), Ask(noisy, t, "null"))
    blind = (torch.rand(count, generator=rng) < knobs.blind).to(prior.device)
    text = torch.where(blind[:, None, None], condition.null, condition.text)
    pose = None if condition.pose is None else condition.pose * ~blind[:, None, None]
    target = torch.where(blind[:, None, None, None], null, told)
    guess, guess_null = prior.predict_both(noisy, t, text, pose, condition.extra, student)
    low, high = knobs.scales
    scale = (low + (high - low) * torch.rand((count, 1, 1, 1), generator=rng)).to(told)
    gain = answer_gain(prior, t, told)
    error = (guess - target) / gain
    guided_error = (combine(guess, guess_null, scale) - combine(target, null, scale)) / gain
    touch(prior, sketches, noisy, t, told, null)
    return error.square().mean() + guided_error.square().mean()


def draw_timesteps(progress: Float[Tensor, " b"], count: int, rng: torch.Generator) -> Int[Tensor, " b"]:
    """Timesteps that descend while a picture is drawn, as a run's do; any for three in ten."""
    p = progress.clamp(0, 1)
    share = torch.rand(len(p), generator=rng)
    descending = (0.5 - 0.45 * p) + 0.48 * share
    anywhere = torch.rand(len(p), generator=rng) < 0.3
    return (torch.where(anywhere, share, descending) * count).long().clamp(0, count - 1)


def answer_gain(prior: DiffusersPrior, t: Int[Tensor, " b"], like: Tensor) -> Float[Tensor, "b 1 1 1"]:
    """How much predicted noise changes with the network's own answer."""
    a, s = levels(prior, t, like)
    return {"epsilon": torch.ones_like(a), "v_prediction": a, "sample": a / s, "flow": a / (a + s)}[
        prior.prediction_type
    ]


@torch.no_grad()
def touch(prior: DiffusersPrior, sketches: Sketches, noisy: Tensor, t: Tensor, told: Tensor, null: Tensor) -> None:
    """Bring the sketches nearer to the guided estimate, each by its pull."""
    bounds = Controls(rescale=0.5, clamp=1.0 if prior.pixel_space else None)
    scale = sketches.scale.to(told)[:, None, None, None]
    eps = bounds.bounded(prior, noisy, t, combine(told, null, scale), told)
    pull = sketches.pull.to(told)[:, None, None, None]
    sketches.clean = torch.lerp(sketches.clean, clean_estimate(prior, noisy, eps, t), pull)
    sketches.age = sketches.age + 1


# What is measured -----------------------------------------------------------------------------------------------------


@dataclass
class Errors:
    """Sums over pictures and elements, by level of noise."""

    wrong: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0.0))
    of: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0.0))

    def add(self, t: Tensor, count: int, guess: Tensor, truth: Tensor) -> None:
        """Add squares of what is wrong and of what is true."""
        share = (t.cpu() + 0.5) / count
        for name, (low, high) in LEVELS.items():
            these = ((share >= low) & (share < high)).to(guess.device)
            self.wrong[name] += float((guess - truth)[these].square().sum())
            self.of[name] += float(truth[these].square().sum())

    def relative(self) -> dict[str, float]:
        """Root of the mean square of what is wrong, as a share of that of what is true."""
        return {n: round(math.sqrt(self.wrong[n] / self.of[n]), 4) for n in LEVELS if self.of[n] > 0}


@torch.no_grad()
def measure(
    prior: DiffusersPrior, student: Any, choose: Choose, knobs: Distillation, count: int = 32, touches: int = 24
) -> dict[str, float]:
    """Relative error of the difference that the prompt makes, on sketches that the training did not see.

    Args:
        prior: the teacher.
        student: what answers twice: an adapter, or a prior that has one.
        choose: subjects.
        knobs: how sketches are drawn.
        count: sketches.
        touches: questions about each.
    """
    rng, errors = torch.Generator().manual_seed(knobs.seed + 1_000_003), Errors()
    sketches = Sketches.begin(prior, choose, count, knobs, rng)
    for _ in range(touches):
        condition = sketches.condition(prior)
        t = draw_timesteps(sketches.progress.cpu(), len(prior.alphas_cumprod), rng).to(prior.device)
        noise = torch.randn(sketches.clean.shape, generator=rng).to(sketches.clean)
        noisy = add_noise(prior, sketches.clean, noise, t)
        told, null = predict(prior, condition, Ask(noisy, t, "text"), Ask(noisy, t, "null"))
        asked = (noisy, t, condition.text, condition.pose, condition.extra)
        if isinstance(student, OnePassAdapter):
            guess, guess_null = prior.predict_both(*asked, student)
        else:
            guess, guess_null = student.predict_both(*asked)
        gain = answer_gain(prior, t, told)
        errors.add(t, len(prior.alphas_cumprod), (guess - guess_null) / gain, (told - null) / gain)
        touch(prior, sketches, noisy, t, told, null)
    return errors.relative()
