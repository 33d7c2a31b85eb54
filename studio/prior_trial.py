"""A loaded prior tried on grey pictures, where numbers did not hold: is it the prior itself?"""

import torch
from torch import Tensor

from guidance.diffusers_prior import DiffusersPrior


@torch.no_grad()
def fault_of(prior: DiffusersPrior) -> str:
    """Which part of a prior answers with what is no number, and what helps, in words; "" if none does."""
    grey = torch.full((prior.hints["views"], 3, prior.resolution, prior.resolution), 0.5, device=prior.device)
    text = prior.embed([""]).expand(len(grey), -1, -1)
    if not text.isfinite().all():
        return _words(prior, "text encoder")
    latents = prior.encode(grey)
    if not latents.isfinite().all():
        return _words(prior, "autoencoder")
    extra: dict[str, Tensor] = {}
    if "image" in prior.takes:
        extra = {name: seen.expand(len(grey), *seen.shape[1:]) for name, seen in prior.see(grey[:1]).items()}
    t = torch.full((len(grey),), len(prior.alphas_cumprod) // 2, device=prior.device)
    answer = prior.predict_noise(torch.randn_like(latents), t, text, extra=extra)
    return "" if answer.isfinite().all() else _words(prior, "network")


def _words(prior: DiffusersPrior, part: str) -> str:
    kind = str(prior.dtype).removeprefix("torch.")
    narrow = ", or float16 is too narrow for it: --prior-options.resources.dtype bfloat16" if kind == "float16" else ""
    return (
        f"It is the prior: its {part} answers a grey picture with what is no number, in {kind}. Its file is "
        f"damaged{narrow}."
    )
