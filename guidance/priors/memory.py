"""How much memory a prior needs: its weights, and what a step keeps on the way.

Neither is guessed. The prior is put together without memory (``weightless``), and a step's worst moments go through
the very code of a run while every tensor that would be alive is counted: pictures encoded, with their way back; the
network asked, with all that its family adds (a ControlNet, a picture's latents); a critic that learns.
"""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guidance.diffusers_prior import DiffusersPrior
from guidance.lora import CameraEmbedding, inject, structural_copy
from guidance.piecewise import Piecewise
from guidance.prior_folder import read_hints
from guidance.priors.assembly import TEXT_ENCODERS
from guidance.priors.counting import Counting, FusedAttention, peak_of, way_back
from guidance.priors.ldm_names import unet_settings
from guidance.priors.network import Asked, size_of, width_of
from guidance.priors.parts import Parts
from guidance.priors.resources import Resources
from guidance.priors.weightless import META, bytes_of, weightless
from guidance.priors.zero123 import NovelView
from guidance.second_prior import network_alone

_REMEMBERED = 12
"""Bytes of a critic for each of its numbers: the number itself and AdamW's two moments, in 32 bits."""


@dataclass(frozen=True)
class Need:
    """Bytes that a prior takes."""

    weights: int
    """Of what stays on the device: networks, but for what is offloaded."""
    texts: int
    """Of the text encoders."""
    predicting: int
    """Most that one evaluation of the network keeps besides."""
    kept: int
    """What an encoding of pictures keeps for the way back, while the network is asked."""
    encoding: int
    """Most that an encoding and its way back keep."""
    critic: int = 0
    """Of what a method with critics learns, with its optimisers' memory."""
    learning: int = 0
    """Most that a critic's step keeps besides; the pictures' way back is over by then."""
    decoding: int = 0
    """Most that decoding one picture keeps, as is done when the steps are over."""

    def peak(self, text_waits: bool = False) -> int:
        """Most at any time; ``text_waits``: text encoders are on the device only while prompts are embedded, alone."""
        busy = max(self.predicting + self.kept, self.encoding, self.learning, self.decoding)
        working = self.weights + self.critic + busy
        return max(working, self.texts) if text_waits else working + self.texts


@functools.lru_cache(maxsize=64)
def need_of(
    folder: Path,
    samples: int,
    branches: int,
    pixels: int,
    dtype: torch.dtype,
    ranks: tuple[int, ...] = (),
    at_once: int | None = None,
    resources: Resources = Resources(),  # noqa: B008 -- frozen
) -> Need:
    """Memory that distilling with a folder's prior takes.

    Args:
        folder: in diffusers' layout, of a supported pipeline, or the configuration beside a single file.
        samples: views a step.
        branches: answers for each view in one pass; 2 for plain guidance.
        pixels: a side, as the prior sees views.
        dtype: what it computes in.
        ranks: of the adapters that the method learns, one after the other.
        at_once: most samples in a pass; None: all of a step's.
        resources: how it uses the machine.

    Raises:
        ValueError: it is no folder that is supported.
        OSError: its files cannot be read.
    """
    return need_of_parts(weightless(folder, dtype, resources, pixels), samples, branches, ranks, at_once, resources)


def need_of_parts(
    parts: Parts,
    samples: int,
    branches: int,
    ranks: tuple[int, ...] = (),
    at_once: int | None = None,
    resources: Resources = Resources(),  # noqa: B008 -- frozen
) -> Need:
    """As ``need_of``, of parts on the meta device."""
    texts = sum(bytes_of(module) for name, module in parts.modules.items() if name in TEXT_ENCODERS)
    weights, group = staying(parts, resources) - texts, parts.hints["views"]
    kept, encoded = encoding(parts, samples, at_once)
    critic, learnt = learning(parts, _piece(samples, at_once, group), ranks)
    answering = predicting(parts, _piece(samples * branches, at_once, group))
    return Need(weights, texts, answering, kept, encoded, critic, learnt, decoding(parts))


def with_second(
    need: Need,
    folder: Path,
    samples: int,
    pixels: int,
    dtype: torch.dtype,
    at_once: int | None = None,
    resources: Resources = Resources(),  # noqa: B008 -- frozen
) -> Need:
    """As ``need``, with a second prior that is asked for noise alone, once for each view (``guidance.second_prior``).

    Raises:
        ValueError: it is no folder that is supported.
        OSError: its files cannot be read.
    """
    parts = network_alone(weightless(folder, dtype, resources, pixels))
    answering = predicting(parts, _piece(samples, at_once, parts.hints["views"]))
    weights = need.weights + staying(parts, resources)
    return dataclasses.replace(need, weights=weights, predicting=max(need.predicting, answering))


def staying(parts: Parts, resources: Resources) -> int:
    """Bytes of all modules, but for layers that wait in main memory."""
    network, whole = parts.network.model, sum(bytes_of(module) for module in parts.modules.values())
    return whole + largest_layer(network) - bytes_of(network) if resources.offload == "layers" else whole


def _piece(samples: int, at_once: int | None, group: int) -> int:
    """Samples of the widest pass, in whole groups of views."""
    return samples if at_once is None else min(samples, max(group, at_once // group * group))


# Moments of a step ----------------------------------------------------------------------------------------------------


def predicting(parts: Parts, samples: int) -> int:
    """Bytes of an evaluation of the network for so many samples, branches of guidance among them."""

    def step() -> None:
        with torch.no_grad():
            parts.network.answer(parts.network.model, asked(parts, samples)).float()

    return peak_of(step)


def learning(parts: Parts, samples: int, ranks: tuple[int, ...]) -> tuple[int, int]:
    """Bytes of adapters with their optimisers' memory, and of the largest one's step for so many samples: forward,
    backward, and its gradient."""
    if not ranks:
        return 0, 0
    network, rank = parts.network.model, max(ranks)
    with META:
        adapted = structural_copy(network)
        changes = inject(adapted, rank, torch.Generator("cpu"))
    camera = CameraEmbedding(_time_width(network), torch.Generator())
    own, numbers = (sum(weight.numel() for weight in some) for some in (camera.parameters(), changes.values()))

    def step() -> None:
        answer = parts.network.answer(adapted, asked(parts, samples)).float()
        way_back((answer - torch.empty_like(answer)).square().mean())

    return _REMEMBERED * (len(ranks) * own + sum(ranks) * numbers // rank), peak_of(step)


def encoding(parts: Parts, samples: int, at_once: int | None = None) -> tuple[int, int]:
    """Bytes kept after encoding pictures, and the most until the way back is done."""
    prior = DiffusersPrior(parts)
    with FusedAttention(), Counting() as counting:
        images = torch.empty(samples, 3, parts.resolution, parts.resolution, device=META, requires_grad=True)
        found = (prior if at_once is None else Piecewise(prior, at_once)).encode(images)
        kept = counting.now
        way_back(found.sum())
    return kept, counting.peak


def decoding(parts: Parts) -> int:
    """Bytes of decoding one picture."""
    side = parts.resolution // parts.latents.factor

    def step() -> None:
        with torch.no_grad():
            parts.latents.decode(torch.empty(1, parts.latents.channels, side, side, device=META))

    return peak_of(step)


def largest_layer(network: nn.Module) -> int:
    """Bytes of the layer with the largest weights of its own: as much as offloaded layers have on a device."""
    return max(sum(w.nbytes for w in module.parameters(recurse=False)) for module in network.modules())


def _time_width(network: Any) -> int:
    """Numbers in the embedding of time of a U-Net or transformer of diffusers."""
    embedding = getattr(network, "time_text_embed", None)
    return (embedding.timestep_embedder if embedding is not None else network.time_embedding).linear_2.out_features


# What a network is asked ----------------------------------------------------------------------------------------------


def asked(parts: Parts, samples: int) -> Asked:
    """A question to a network on the meta device, of the size of a run's."""
    network, pixels, side = parts.network, parts.resolution, parts.resolution // parts.latents.factor

    def of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((samples, *shape), device=META, dtype=dtype)

    shapes = {
        "background": (3,),
        "depth": (1, pixels, pixels),
        "alpha": (1, pixels, pixels),
        "mask": (1, pixels, pixels),
        "source": (3, pixels, pixels),
    }
    extra = {name: of(*shape) for name, shape in shapes.items() if name in network.takes}
    if isinstance(network, NovelView):
        extra["image_embedding"] = of(network.encoder.config.projection_dim)
        extra["image_latents"] = of(parts.latents.channels, side, side)
    pooled = parts.words.pooled
    return Asked(
        z=of(parts.latents.channels, side, side, dtype=parts.dtype),
        time=of(),
        tokens=of(parts.words.tokens, width_of(network.model.config), dtype=parts.dtype),
        pooled=of(pooled, dtype=parts.dtype) if pooled else None,
        pose=of(4, 4) if "pose" in network.takes else None,
        extra=extra,
    )


def native_pixels(folder: Path) -> int:
    """Pixels a side that a folder's prior was trained with."""
    hinted = read_hints(folder)["resolution"]
    network = next(folder / name for name in ("unet", "transformer") if (folder / name).is_dir())
    size = size_of(unet_settings(network))
    vae = folder / "vae" / "config.json"
    factor = 8 if vae.parent.is_dir() else read_hints(folder)["pixel_shuffle"]  # published autoencoders' all
    if vae.is_file():
        factor = 2 ** (len(json.loads(vae.read_text(encoding="utf-8"))["block_out_channels"]) - 1)
    return hinted or size * factor
