"""Pictures of what the prior and a method ask for: score distillation seen as a reconstruction.

StableDreamer (arXiv 2312.02189) shows that the gradient of SDS is that of a squared distance between the
render and the prior's clean estimate, and looks at those estimates to see where a run is led. Here every method is
shown so, whatever it computes.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import combine, predict_branches
from guidance.contract import Condition, Prior, Trace
from guidance.controls import Controls
from guidance.noising import add_noise, clean_estimate
from studio.export.pictures import Row, contact_sheet
from studio.optimize import Step


@torch.no_grad()
def debug_picture(method: Any, prior: Prior, prompt: str, step: Step) -> bytes | None:
    """A PNG with a column for each view of a step; None where the method leaves no trace of what it did.

    Rows: the render; its noisy latent z_t; the prior's clean estimate z0_hat for the prompt alone; the same under the
    method's guidance weight, if it has one; and ``z0 - k g``, where the gradient g leads. The scale of g means nothing
    by itself, as weights w(t) and learning rates follow: k is positive and gives each view's ``k g`` the root mean
    square of ``z0 - z0_hat`` under the guidance weight. For SDS with any w(t) the last row is then that very estimate,
    ``z0 - (z0 - z0_hat)``, since g is a multiple of the distance to it; for any other method one compares directions.

    Draws no random numbers and changes nothing.
    """
    trace = step.loss.trace
    if trace is None:
        return None
    t = trace.draw.timesteps
    noisy = add_noise(prior, trace.latents, trace.draw.noise, t)
    plain, guided = estimates(method, prior, trace, step.condition, noisy, step.progress)
    led = where_it_leads(trace, plain if guided is None else guided)
    rows = [
        Row("render", step.views.images.detach()),
        Row(f"z_t, t = {', '.join(map(str, t.tolist()))}", _picture(prior, noisy)),
        Row("z0_hat, prompt alone", _picture(prior, plain)),
    ]
    if guided is not None:
        rows.append(Row(f"z0_hat, guidance {_weight(method, trace, step.progress)}", _picture(prior, guided)))
    rows.append(Row("z0 - k g: what the method asks for", _picture(prior, led)))
    name = type(method).__name__
    return contact_sheet(f"{name}, step {step.event.step} of {step.event.total}: {prompt}", rows)


def estimates(
    method: Any, prior: Prior, trace: Trace, condition: Condition, noisy: Float[Tensor, "b c i j"], progress: float
) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b c i j"] | None]:
    """z0_hat for the prompt alone and under the guidance weight; None for the latter where a method has no weight."""
    t, controls = trace.draw.timesteps, getattr(method, "controls", Controls())
    text, null = predict_branches(prior, noisy, t, condition)
    plain = clean_estimate(prior, noisy, text, t)
    if not hasattr(method, "scale"):
        return plain, None
    scale = controls.scale(method.scale, progress, trace.draw).to(text)
    eps = controls.bounded(prior, noisy, t, combine(text, null, scale), text)
    return plain, clean_estimate(prior, noisy, eps, t)


def where_it_leads(trace: Trace, estimate: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
    """``z0 - k g`` with the root mean square of ``k g`` that ``z0 - estimate`` has, view by view."""
    wanted, given = _rms(trace.latents - estimate), _rms(trace.gradient)
    k = torch.where(given > 0, wanted / given.clamp_min(1e-30), 0)
    return trace.latents - k * trace.gradient


def _rms(latents: Tensor) -> Tensor:
    return latents.square().mean((1, 2, 3), keepdim=True).sqrt()


def _weight(method: Any, trace: Trace, progress: float) -> str:
    weights = method.controls.scale(method.scale, progress, trace.draw).flatten().tolist()
    return ", ".join(f"{weight:.3g}" for weight in dict.fromkeys(weights))


def _picture(prior: Prior, latents: Tensor) -> Tensor:
    return prior.decode(latents).clamp(0, 1).float().cpu()
