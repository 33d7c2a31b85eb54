"""A prior from a diffusers folder: the bundled pixel-space one, Stable Diffusion and all others, as one class."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from guidance.lora import LoraAdapter
from guidance.one_pass import OnePassAdapter, TwoAnswers, add_one_pass
from guidance.prior_folder import Hints, default_hints
from guidance.priors.assembly import Plan, bare
from guidance.priors.extensions import Extensions
from guidance.priors.latents import Pixels
from guidance.priors.loading import load_parts, quiet
from guidance.priors.network import Asked
from guidance.priors.parts import Parts
from guidance.priors.process import Prediction, noise_of
from guidance.priors.resources import Resources
from guidance.priors.words import parted

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


_MOST_EMBEDDED = 256 * 2**20
"""Bytes of embeddings that a prior keeps: 1,100 prompts of Stable Diffusion, 32 of FLUX; workers see any number."""


class DiffusersPrior:
    """A diffusion model of diffusers as a ``Prior``: frozen, in pixel space or in an autoencoder's.

    Latents, predictions and conversions are float32 whatever type the networks run in.
    """

    def __init__(self, parts: Parts):
        """Take over loaded parts."""
        self.parts = parts
        self.hints, self.device, self.dtype = parts.hints, parts.device, parts.dtype
        self.prediction_type: Prediction = parts.prediction
        self.alphas_cumprod = parts.alphas_cumprod
        self.channels = parts.latents.channels
        self.resolution = parts.resolution
        answers_both = isinstance(getattr(parts.network.model, "conv_out", None), TwoAnswers)
        self.takes = parts.network.takes | ({"both"} if answers_both else frozenset())
        self._embedded: dict[str, Tensor] = {}
        self.evaluations = 0
        """Forward passes through the network so far, those through adapters among them."""
        self.images = 0
        """Samples in these passes."""
        self.adapter_evaluations = 0
        """Forward passes through adapters."""
        self.adapter_images = 0
        """Samples in these passes."""

    @classmethod
    def of(
        cls,
        unet: "UNet2DConditionModel",
        text_encoder: "CLIPTextModel",
        tokenizer: "CLIPTokenizer",
        scheduler: "DDPMScheduler",
        vae: "AutoencoderKL | None" = None,
        hints: Hints | None = None,
    ) -> "DiffusersPrior":
        """A text-conditioned U-Net as a prior; the components are frozen and put in evaluation mode.

        Raises:
            ValueError: the components do not fit together, or do what this class cannot.
        """
        parts = {"unet": unet, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler}
        plan = Plan(unet.device, Resources(), default_hints() if hints is None else hints)
        return cls(bare(parts | ({} if vae is None else {"vae": vae}), plan))

    @classmethod
    def load(
        cls,
        path: Path,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        *,
        resources: Resources | None = None,
        resolution: int | None = None,
        extensions: Extensions | None = None,
        one_pass: Path | None = None,
    ) -> "DiffusersPrior":
        """Load a prior from the disk; nothing is fetched, and no code in it runs.

        Args:
            path: a folder in the layout of diffusers, or one safetensors file with its configuration beside it.
            device: where the prior is to live.
            dtype: what its networks compute in; 16-bit weights are converted. None: as ``resources`` say.
            resources: how it is to use memory and time.
            resolution: pixels a side to distil at; None: those it was trained with.
            extensions: LoRA and textual inversion files to put on top.
            one_pass: an adapter's file that makes it answer twice in one pass.

        Raises:
            MissingPriorError: the folder or a component is not there or cannot be read.
            ValueError: it is a kind of prior that is not supported.
        """
        if resources is None:
            resources = Resources("float32") if dtype is None else Resources(_NAMES[dtype])
        with quiet():
            parts = load_parts(path, torch.device(device), resources, resolution, extensions or Extensions())
        if one_pass is not None:
            add_one_pass(parts.network.model, one_pass)
        return cls(parts)

    @property
    def pixel_space(self) -> bool:
        """Whether latents are pictures, rearranged, in [-1, 1]."""
        return isinstance(self.parts.latents, Pixels)

    @property
    def network(self) -> Any:
        """The network itself, a module of diffusers."""
        return self.parts.network.model

    # Text ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "n t d"]:
        """Embeddings of prompts; the last ones are kept. What exceeds the text encoder's length is cut off.

        For networks that also want one vector for the whole prompt, it is the last row, zeros to its right.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embedded]
        if missing:
            self._embedded.update(zip(missing, map(torch.clone, self._encode_text(missing)), strict=True))
        for prompt in dict.fromkeys(prompts):
            self._embedded[prompt] = self._embedded.pop(prompt)  # the last asked for come last
        found = torch.stack([self._embedded[prompt] for prompt in prompts])
        for prompt in list(self._embedded)[: -max(1, _MOST_EMBEDDED // found[0].nbytes)]:
            del self._embedded[prompt]
        return found

    def _encode_text(self, prompts: list[str]) -> Tensor:
        idle = [self.parts.modules[name] for name in self.parts.idle]
        # Text encoders can be larger than all else, so that what is there otherwise makes room for them meanwhile.
        there = [
            m for n, m in self.parts.modules.items() if idle and n not in self.parts.idle and not _comes_by_layers(m)
        ]
        for module in there:
            module.to("cpu")
        for module in idle:
            module.to(self.device)
        try:
            return self.parts.words.encode(prompts).to(self.device)
        finally:
            for module in idle:
                module.to("cpu")
            for module in there:
                module.to(self.device)

    @property
    def most_tokens(self) -> int:
        """Tokens of a prompt that are read, without the marks at its ends."""
        return self.parts.words.most_tokens

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, without the marks at its ends."""
        return self.parts.words.count_tokens(prompt)

    # Pictures and latents ------------------------------------------------------------------------------------------

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """Latents of sRGB pictures in [0, 1], resized if they are not ``resolution`` a side; differentiable.

        Of an autoencoder's distribution it is the mode, so that encoding has no randomness of its own.
        """
        images = images.float()
        if images.shape[-2:] != (self.resolution, self.resolution):
            images = F.interpolate(images, (self.resolution,) * 2, mode="bilinear", antialias=True)
        return self.parts.latents.encode(images * 2 - 1)

    def decode(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1] of latents."""
        return ((self.parts.latents.decode(latents) + 1) / 2).clamp(0, 1)

    def see(self, image: Float[Tensor, "1 3 h w"]) -> dict[str, Tensor]:
        """A picture in [0, 1] as tensors [1, ...] for ``extra``, for priors that take ``image``."""
        return self.parts.eye.see(image.to(self.device))

    # Noise ---------------------------------------------------------------------------------------------------------

    def predict_noise(
        self,
        noisy: Float[Tensor, "b c i j"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b t d"],
        pose: Float[Tensor, "b 4 4"] | None = None,
        extra: dict[str, Tensor] | None = None,
        adapter: Any = None,
    ) -> Float[Tensor, "b c i j"]:
        """Predicted noise, whatever the network itself predicts.

        Args:
            noisy: ``z_t``.
            t: timesteps.
            text: from ``embed``.
            pose: camera-to-world; zeros, or None for all, leave the camera out. Read by camera-conditioned priors, and
                by every adapter.
            extra: named tensors, a row for each sample, as ``takes`` says: ``background`` [b, 3] in sRGB (white without
                it), ``depth`` and ``alpha`` [b, 1, h, w], ``mask`` and ``source`` for inpainting, and those that
                ``see`` makes.
            adapter: from ``adapter``; where gradients are enabled, the answer is on the graph of its parameters.

        Raises:
            ValueError: an adapter of another prior, or samples that are not whole groups of views.
        """
        model = self.network if adapter is None else self._adapted(adapter)
        camera = None if adapter is None else adapter.told(pose, len(noisy))
        with torch.set_grad_enabled(adapter is not None and torch.is_grad_enabled()):
            return self._noise(model, noisy, t, text, pose, extra, camera)[0]

    def predict_both(
        self,
        noisy: Float[Tensor, "b c i j"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b t d"],
        pose: Float[Tensor, "b 4 4"] | None = None,
        extra: dict[str, Tensor] | None = None,
        adapter: OnePassAdapter | None = None,
    ) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b c i j"]]:
        """Noise predicted with the prompt and without it, from one pass.

        Args:
            noisy, t, text, pose, extra: as in ``predict_noise``; the second answer is told neither text nor pose.
            adapter: one of this prior's network, which is being trained; None: that which is in the prior.

        Raises:
            ValueError: there is none in the prior.
        """
        if adapter is None and "both" not in self.takes:
            raise ValueError("this prior gives one answer a pass; `studio distill-guidance` teaches it to give two")
        model = self.network if adapter is None else adapter.network
        with torch.set_grad_enabled(adapter is not None and torch.is_grad_enabled()):
            told, null = self._noise(model, noisy, t, text, pose, extra, None)
        return told, null

    def _noise(
        self,
        model: Any,
        noisy: Tensor,
        t: Tensor,
        text: Tensor,
        pose: Tensor | None,
        extra: dict[str, Tensor] | None,
        camera: Tensor | None,
    ) -> list[Tensor]:
        """Predicted noise of each answer that the network gives."""
        z = noisy.detach().float()
        tokens, pooled = parted(text.detach().to(self.dtype), self.parts.words.pooled)
        self._count(len(z), camera is not None)
        answers: list[Tensor] = []

        def answer(given: Tensor, time: Tensor) -> Tensor:
            asked = Asked(given.to(self.dtype), time.to(self.device), tokens, pooled, pose, extra or {}, camera)
            answers.extend(self.parts.network.answer(model, asked).float().split(z.shape[1], 1))
            return answers[0]

        first = noise_of(self, self.prediction_type, z, t, answer)
        further = [noise_of(self, self.prediction_type, z, t, lambda *_, a=a: a) for a in answers[1:]]
        return [noise.contiguous().to(noisy.dtype) for noise in (first, *further)]

    def adapter(self, rank: int, seed: int) -> LoraAdapter:
        """A small trainable change of this prior, which shares its weights and leaves them alone."""
        return LoraAdapter(self.network, rank, seed)

    def fingerprint(self) -> str:
        """SHA-256 of all weights, in hexadecimal: it is the same as long as the prior is."""
        digest = hashlib.sha256()
        for module in self.parts.modules.values():
            for name, weight in module.state_dict().items():
                digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
                digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _adapted(self, adapter: Any) -> Any:
        if not (isinstance(adapter, LoraAdapter) and adapter.changes(self.network)):
            raise ValueError("a prior takes only the adapters that it made itself")
        return adapter.network

    def _count(self, samples: int, adapted: bool) -> None:
        self.evaluations, self.images = self.evaluations + 1, self.images + samples
        if adapted:
            self.adapter_evaluations, self.adapter_images = self.adapter_evaluations + 1, self.adapter_images + samples


def _comes_by_layers(module: Any) -> bool:
    """Whether a module's weights are not in memory, but come to the device layer by layer."""
    return any(weight.is_meta for weight in module.parameters())


_NAMES: dict[torch.dtype, Any] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def best_dtype(device: torch.device | str) -> torch.dtype:
    """What networks compute in fastest on a device: bfloat16 on GPUs and on CPUs with AMX, float32 elsewhere.

    With bfloat16 the bundled prior is 1.6 times as fast on such a CPU. Its predictions are off by 0.1 to 2 % in the
    middle of the schedule, and the difference that guidance multiplies by 2 to 10 %, or by 30 % where a render is
    already what the prompt asks for.
    """
    kind = torch.device(device).type
    matrices = kind == "cpu" and torch.cpu._is_amx_tile_supported()  # no public name before torch 2.13
    return torch.bfloat16 if kind == "cuda" or matrices else torch.float32
