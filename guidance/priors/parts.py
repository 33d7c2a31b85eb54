"""What a loader hands over: everything a prior is put together from."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.prior_folder import Hints
from guidance.priors.latents import Latents
from guidance.priors.network import Network
from guidance.priors.process import Prediction
from guidance.priors.resources import Resources
from guidance.priors.words import Words


@dataclass(frozen=True)
class Parts:
    """A prior's parts, loaded and in place."""

    network: Network
    words: Words
    latents: Latents
    alphas_cumprod: Float[Tensor, " t"]
    prediction: Prediction
    hints: Hints
    resolution: int
    """Pixels a side of the pictures that are distilled."""
    modules: dict[str, Any]
    """Every module of it by name, the network and the text encoders among them."""
    eye: Any = None
    """What ``see``s a picture that prompts: an IP-Adapter, or a novel-view network; None: pictures say nothing."""
    dtype: torch.dtype = torch.float32
    """What the network computes in."""
    device: torch.device = field(default=torch.device("cpu"))
    resources: Resources = field(default=Resources())
    """How it uses the machine."""
    idle: tuple[str, ...] = ()
    """Modules that come to the device only while prompts are embedded."""
