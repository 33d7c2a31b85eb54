"""A second prior beside the run's own, which is asked for noise alone: it uses the machine as the first does.

Prompts and pictures are embedded by the run's own prior, so text encoders and autoencoder of the second are let go as
soon as its text encoder is known to say the same.
"""

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import torch

from guidance.contract import Prior
from guidance.diffusers_prior import DiffusersPrior
from guidance.priors.assembly import TEXT_ENCODERS
from guidance.priors.parts import Parts
from guidance.priors.resources import Resources
from guidance.priors.reuse import use_as

_FOLLOWED: dict[str, Any] = {
    "offload": "none",
    "vae_slicing": False,
    "vae_checkpointing": False,
    "network_checkpointing": False,
}
"""What ``use_as`` changes of a prior that is loaded already."""
_ALIVE: "weakref.WeakValueDictionary[Any, DiffusersPrior]" = weakref.WeakValueDictionary()
"""Second priors that some stage has. The next stage, or the same one gone about more thriftily, takes that one."""


def second_prior(folder: Path, first: Prior) -> DiffusersPrior:
    """The second prior of a run, on the device of the first.

    Raises:
        MissingPriorError: there is none in that folder.
        ValueError: its latents or its text encoder are not the first's.
    """
    options: dict[str, Any] = {}
    if isinstance(first, DiffusersPrior):
        options = {"resources": first.parts.resources, "resolution": first.resolution}
    resources = options.pop("resources", Resources("float32"))
    device = first.alphas_cumprod.device
    key = (folder.absolute(), device, *options.values(), dataclasses.replace(resources, **_FOLLOWED))
    second = _ALIVE.get(key)
    if second is None:
        # Its text encoders are asked once, and need not be on the device together with the network.
        waiting = dataclasses.replace(resources, offload="text") if resources.offload == "none" else resources
        second = DiffusersPrior.load(folder, device, resources=waiting, **options)
        _refuse_stranger(first, second, folder)
        second.parts = network_alone(second.parts)
        _ALIVE[key] = second
    second.parts = use_as(second.parts, resources)
    return second


def network_alone(parts: Parts) -> Parts:
    """Parts without what only embeds prompts and pictures; the memory of that is given back."""
    asks_autoencoder = parts.network.takes & {"source", "image"}
    needless = {*TEXT_ENCODERS, *(() if asks_autoencoder else ("vae",))}
    for name in needless & set(parts.modules):
        parts.modules[name].to("meta")
    kept = {name: module for name, module in parts.modules.items() if name not in needless}
    return dataclasses.replace(parts, modules=kept, idle=())


def _refuse_stranger(first: Prior, second: Prior, folder: Path) -> None:
    ours, theirs = first.embed([""]), second.embed([""])
    if first.channels != second.channels or ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-3):
        raise ValueError(
            f"the multi-view prior in {folder} must have the latents and the text encoder of the run's own prior, as "
            "MVDream has those of Stable Diffusion 2.1"
        )
