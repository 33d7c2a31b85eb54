"""A prior with a known answer: the exact score of Gaussians, against which every method is checked on paper."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from guidance.contract import Condition, Draw, Guidance, Prior
from guidance.noising import levels, stable_diffusion_alphas
from guidance.priors.process import Prediction, noise_of
from guidance.schedules import Schedule

Gaussian = tuple[float | int, float | int]
"""Mean and variance."""


class GaussianPrior:
    """The exact noise prediction for clean pictures whose elements are all N(mean, variance).

    ``eps(z, t) = s (z - a mean) / (abar variance + 1 - abar)``, in float64 on Stable Diffusion's schedule. A text
    embedding [t, d] = [1, 2] holds mean and variance, so prompts, null and negative differ as a test wishes.
    """

    def __init__(
        self,
        prompts: Mapping[str, Gaussian] | None = None,
        channels: int = 3,
        resolution: int = 8,
        prediction: Prediction = "epsilon",
    ) -> None:
        """Prior of pictures ``resolution`` a side; ``prompts`` not named there are N(2, .25), null is N(0, 1).

        ``prediction`` is what it answers inside, before that is converted as every prior's answer is.
        """
        self.prediction: Prediction = prediction
        self.alphas_cumprod = stable_diffusion_alphas()
        self.channels, self.resolution = channels, resolution
        self.takes: frozenset[str] = frozenset()
        self.pixel_space = True
        self._prompts: dict[str, Gaussian] = {"": (0, 1), **(prompts or {})}

    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "n 1 2"]:
        """Mean and variance of each prompt."""
        return torch.cat([embedding(self._prompts.get(prompt, (2, 0.25))) for prompt in prompts])

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures scaled to [-1, 1], in float64."""
        return images.double() * 2 - 1

    def decode(self, latents: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1]."""
        return ((latents + 1) / 2).clamp(0, 1)

    def predict_noise(
        self,
        noisy: Float[Tensor, "b c i j"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b 1 2"],
        pose: Float[Tensor, "b 4 4"] | None = None,
        extra: dict[str, Tensor] | None = None,
        adapter: Any = None,
    ) -> Float[Tensor, "b c i j"]:
        """The exact noise prediction; only ``text`` conditions it, and a ``GaussianAdapter`` may change it."""
        a, s = levels(self, t, noisy)
        mean, variance = text[:, 0, :, None, None, None].unbind(1)
        with torch.set_grad_enabled(adapter is not None and torch.is_grad_enabled()):
            if adapter is not None:
                mean, variance = mean + adapter.shift, variance * adapter.log_spread.exp()
            if self.prediction == "epsilon":
                return s * (noisy - a * mean) / (a**2 * variance + s**2)
            exact = _EXACT[self.prediction]
            return noise_of(self, self.prediction, noisy, t, lambda z, time: exact(self, z, time, mean, variance))

    def adapter(self, rank: int, seed: int) -> "GaussianAdapter":
        """Another mean and variance, which at first are the prior's."""
        return GaussianAdapter()


class GaussianAdapter(nn.Module):
    """What a critic can learn of Gaussians: how far the mean lies from the prior's, and the ratio of variances."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.log_spread = nn.Parameter(torch.zeros((), dtype=torch.float64))


def _exact_v(prior: Prior, z: Tensor, t: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """E[a n - s z0 | z_t]: noise and picture each have mean and covariance with z_t of their own."""
    a, s = levels(prior, t, z)
    return -s * mean + a * s * (1 - variance) * (z - a * mean) / (a**2 * variance + s**2)


def _exact_clean(prior: Prior, z: Tensor, t: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """E[z0 | z_t]."""
    a, s = levels(prior, t, z)
    return mean + a * variance * (z - a * mean) / (a**2 * variance + s**2)


def _exact_velocity(prior: Prior, z: Tensor, sigma: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """E[n - z0 | z_sigma], of ``z_sigma = sigma n + (1 - sigma) z0``."""
    n, c = sigma.view(-1, 1, 1, 1), 1 - sigma.view(-1, 1, 1, 1)
    return -mean + (n - c * variance) * (z - c * mean) / (c**2 * variance + n**2)


_EXACT = {"v_prediction": _exact_v, "sample": _exact_clean, "flow": _exact_velocity}


def embedding(gaussian: Gaussian) -> Float[Tensor, "1 1 2"]:
    """The text embedding that stands for a Gaussian."""
    return torch.tensor(gaussian, dtype=torch.float64).view(1, 1, 2)


_ORACLE_SETTINGS: dict[str, Any] = {
    "scale": 7.5,
    "t_min": Schedule(0.02),
    "controls": {"final_scale": None, "score_clamp": None, "loss_weight": 1.0},
    "base": "null",
    "delta": Schedule(50.0),
    "blend": Schedule(0.0),
    "eta": 0.0,
}
"""What the oracle sets, over a method's own defaults, in every method that has such a knob."""
_ORACLE_WEIGHTING = {"CSD": "sds"}
"""Weights of methods whose default is another."""


def oracle_gradient(
    method: Guidance,
    *,
    z0: float | int,
    n: float | int,
    t: int,
    conditional: Gaussian = (2, 0.25),
    null: Gaussian = (0, 1),
    negative: Gaussian = (-2, 0.25),
    source_z0: float | int | None = None,
) -> float:
    """A method's gradient for a single number, under the exact score of Gaussians, in float64.

    A guidance scale of 7.5, no clamp, a loss weight of 1 and the like (``_ORACLE_SETTINGS``) take the place of the
    method's defaults; a knob that was built with any other value than its default stays. ``draw.shift`` is 1 and
    ``draw.gap`` is 0. A critic has learnt nothing.

    Args:
        method: the method.
        z0: the clean latent.
        n: the noise.
        t: the timestep.
        conditional: mean and variance for the prompt.
        null: of the null prompt.
        negative: of the negative prompt, and of the prompt of an edit's source.
        source_z0: the clean latent of an edit's source; ``z0`` without it.
    """
    prior, method = GaussianPrior(channels=1, resolution=1), _with_oracle_settings(method)
    condition = Condition(
        text=embedding(conditional),
        negative=embedding(negative),
        null=embedding(null),
        source=embedding(negative),
        source_latents=_number(z0 if source_z0 is None else source_z0),
    )
    one = torch.ones(1, dtype=torch.float64)
    draw = Draw(torch.tensor([t]), _number(n), shift=one, gap=0 * one, scale=one / 2, seed=0)
    return method.gradient(method.init(prior), prior, _number(z0), condition, draw, 0.0).item()


def _with_oracle_settings(method: Any) -> Any:
    settings = dict(_ORACLE_SETTINGS)
    if type(method).__name__ in _ORACLE_WEIGHTING:
        settings["weighting"] = _ORACLE_WEIGHTING[type(method).__name__]
    return _with_defaults_replaced(method, type(method)(), settings)


def _with_defaults_replaced(knobs: Any, default: Any, settings: Mapping[str, Any]) -> Any:
    """``knobs`` with those ``settings`` that it has and that still stand where they stand in ``default``."""
    changes = {}
    for name in {field.name for field in dataclasses.fields(knobs)} & set(settings):
        now, before, wanted = getattr(knobs, name), getattr(default, name), settings[name]
        if isinstance(wanted, Mapping):
            changes[name] = _with_defaults_replaced(now, before, wanted)
        elif now == before:
            changes[name] = wanted
    return dataclasses.replace(knobs, **changes)


def _number(value: float | int) -> Float[Tensor, "1 1 1 1"]:
    return torch.full((1, 1, 1, 1), float(value), dtype=torch.float64)
