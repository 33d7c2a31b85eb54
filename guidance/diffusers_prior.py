"""A prior from a diffusers folder: the bundled pixel-space one and Stable Diffusion, through the same class."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from guidance.camera_features import camera_features
from guidance.lora import LoraAdapter
from guidance.noising import noise_estimate, noise_from_v
from guidance.prior_folder import Hints, default_hints, read_hints, refuse, require

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
    from transformers import CLIPTextModel, CLIPTokenizer


class DiffusersPrior:
    """A text-conditioned U-Net of diffusers as a ``Prior``: frozen, in pixel space or in an autoencoder's.

    Latents, predictions and conversions are float32 whatever type the networks run in.
    """

    def __init__(
        self,
        unet: "UNet2DConditionModel",
        text_encoder: "CLIPTextModel",
        tokenizer: "CLIPTokenizer",
        scheduler: "DDPMScheduler",
        vae: "AutoencoderKL | None" = None,
        hints: Hints | None = None,
    ):
        """Take over loaded components; they are frozen and put in evaluation mode.

        Raises:
            ValueError: the components do not fit together, or do what this class cannot.
        """
        self.hints = default_hints() if hints is None else hints
        self.prediction_type: str = scheduler.config.prediction_type  # pyright: ignore[reportAttributeAccessIssue]
        _check(unet, vae, self.prediction_type, self.hints)
        for module in (unet, text_encoder, vae):
            if module is not None:
                module.eval().requires_grad_(False)
        self.device, self.dtype = unet.device, unet.dtype
        if self.device.type == "cpu":
            unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._unet, self._text_encoder, self._tokenizer, self._vae = unet, text_encoder, tokenizer, vae
        self._embedded: dict[str, Tensor] = {}
        self.evaluations = 0
        """Forward passes through the network so far, those through adapters among them."""
        self.images = 0
        """Samples in these passes."""
        self.adapter_evaluations = 0
        """Forward passes through adapters."""
        self.adapter_images = 0
        """Samples in these passes."""
        self.alphas_cumprod = scheduler.alphas_cumprod.to(self.device, torch.float32)
        config: Any = unet.config
        self.channels: int = config.in_channels
        self.resolution: int = config.sample_size * self._factor
        self.takes = frozenset({"pose", "background"} if self.hints["camera"] == "harmonics" else ())

    @classmethod
    def load(cls, folder: Path, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "DiffusersPrior":
        """Load a folder from the disk; nothing is fetched, and no code in the folder runs.

        Args:
            folder: in the layout of diffusers, with unet/, text_encoder/, tokenizer/, scheduler/ and maybe vae/.
            device: where the prior is to live.
            dtype: what its networks compute in; 16-bit weights are converted. On a CPU with AMX the bundled prior is
                1.6 times as fast in bfloat16, but its predictions are off by 0.1 to 2 % in the middle of the schedule,
                and the difference that guidance multiplies by 2 to 30 %.

        Raises:
            MissingPriorError: the folder or a component is not there or cannot be read.
            ValueError: it is a kind of prior that is not supported.
        """
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
        from transformers import CLIPTextModel, CLIPTokenizer

        for component in ("unet", "text_encoder", "tokenizer", "scheduler"):
            require(folder, component)
        with _quiet():
            return cls(
                unet=_load_model(UNet2DConditionModel, folder, "unet", dtype).to(device),
                text_encoder=_load_model(CLIPTextModel, folder, "text_encoder", dtype).to(device),
                tokenizer=_load(CLIPTokenizer, folder, "tokenizer"),
                scheduler=_load(DDPMScheduler, folder, "scheduler"),
                vae=_load_model(AutoencoderKL, folder, "vae", dtype).to(device) if (folder / "vae").is_dir() else None,
                hints=read_hints(folder),
            )

    @property
    def pixel_space(self) -> bool:
        """Whether latents are pictures, rearranged, in [-1, 1]."""
        return self._vae is None

    @property
    def _factor(self) -> int:
        """Pixels a side of a latent's element."""
        if self._vae is None:
            return self.hints["pixel_shuffle"]
        return 2 ** (len(self._vae.config.block_out_channels) - 1)  # pyright: ignore[reportAttributeAccessIssue]

    # Text ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "n t d"]:
        """Hidden states of the text encoder; each prompt is computed once. What exceeds its length is cut off."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embedded]
        if missing:
            self._embedded.update(zip(missing, self._encode_text(missing), strict=True))
        return torch.stack([self._embedded[prompt] for prompt in prompts])

    def _encode_text(self, prompts: list[str]) -> Tensor:
        length = self._text_encoder.config.max_position_embeddings
        tokens = self._tokenizer(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        return self._text_encoder(tokens.to(self.device)).last_hidden_state.float()

    @property
    def most_tokens(self) -> int:
        """Tokens of a prompt that are read, without the marks at its ends."""
        return self._text_encoder.config.max_position_embeddings - 2

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, without the marks at its ends."""
        return len(self._tokenizer(prompt, add_special_tokens=False).input_ids)

    # Pictures and latents ------------------------------------------------------------------------------------------

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """Latents of sRGB pictures in [0, 1], resized if they are not ``resolution`` a side; differentiable.

        Of an autoencoder's distribution it is the mode, so that encoding has no randomness of its own.
        """
        images = images.float()
        if images.shape[-2:] != (self.resolution, self.resolution):
            images = F.interpolate(images, (self.resolution,) * 2, mode="bilinear", antialias=True)
        signed = images * 2 - 1
        if self._vae is None:
            return F.pixel_unshuffle(signed, self._factor)
        posterior = self._vae.encode(signed.to(self.dtype)).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        shift, scale = self._latent_scaling(self._vae)
        return (posterior.mode().float() - shift) * scale

    def decode(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1] of latents."""
        if self._vae is None:
            signed = F.pixel_shuffle(latents.float(), self._factor)
        else:
            shift, scale = self._latent_scaling(self._vae)
            decoded: Any = self._vae.decode((latents / scale + shift).to(self.dtype))  # pyright: ignore[reportArgumentType]
            signed = decoded.sample.float()
        return ((signed + 1) / 2).clamp(0, 1)

    @staticmethod
    def _latent_scaling(vae: "AutoencoderKL") -> tuple[float, float]:
        return vae.config.shift_factor or 0.0, vae.config.scaling_factor  # pyright: ignore[reportAttributeAccessIssue]

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
            extra: ``background`` [b, 3] in sRGB for camera-conditioned priors; white without it.
            adapter: from ``adapter``; where gradients are enabled, the answer is on the graph of its parameters.

        Raises:
            ValueError: an adapter of another prior.
        """
        z = noisy.detach().float()
        labels = self._class_labels(z, pose, extra or {})
        network = self._unet if adapter is None else self._adapted(adapter)
        if adapter is not None:
            labels = adapter.labels(pose, labels, len(z))
        self._count(len(z), adapter is not None)
        with torch.set_grad_enabled(adapter is not None and torch.is_grad_enabled()):
            answer = network(
                z.to(self.dtype).contiguous(memory_format=torch.channels_last),
                t.to(self.device),
                text.detach().to(self.dtype),
                class_labels=labels,
            ).sample.float()
            if self.prediction_type == "v_prediction":
                answer = noise_from_v(self, z, answer, t)
            elif self.prediction_type == "sample":
                answer = noise_estimate(self, z, answer, t)
            return answer.contiguous().to(noisy.dtype)

    def adapter(self, rank: int, seed: int) -> LoraAdapter:
        """A small trainable change of this prior, which shares its weights and leaves them alone."""
        return LoraAdapter(self._unet, rank, seed)

    def fingerprint(self) -> str:
        """SHA-256 of all weights, in hexadecimal: it is the same as long as the prior is."""
        digest = hashlib.sha256()
        for module in (self._unet, self._text_encoder, self._vae):
            for name, weight in ({} if module is None else module.state_dict()).items():
                digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
                digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _adapted(self, adapter: Any) -> "UNet2DConditionModel":
        if not (isinstance(adapter, LoraAdapter) and adapter.changes(self._unet)):
            raise ValueError("a prior takes only the adapters that it made itself")
        return adapter.network

    def _count(self, samples: int, adapted: bool) -> None:
        self.evaluations, self.images = self.evaluations + 1, self.images + samples
        if adapted:
            self.adapter_evaluations, self.adapter_images = self.adapter_evaluations + 1, self.adapter_images + samples

    def _class_labels(self, noisy: Tensor, pose: Tensor | None, extra: dict[str, Tensor]) -> Tensor | None:
        if self.hints["camera"] == "none":
            return None
        background = extra.get("background", noisy.new_ones(len(noisy), 3))
        return camera_features(pose, background).to(self.device, self.dtype)


def _check(unet: Any, vae: Any, prediction_type: str, hints: Hints) -> None:
    expected = 3 * hints["pixel_shuffle"] ** 2 if vae is None else vae.config.latent_channels
    embedding = unet.config.class_embed_type
    problems = {
        f"a prior that predicts {prediction_type!r} (epsilon, v_prediction and sample are)": (
            prediction_type in ("epsilon", "v_prediction", "sample")
        ),
        f"a network of {unet.config.in_channels} input channels where its latents have {expected}": (
            unet.config.in_channels == expected
        ),
        f"a network conditioned on {unet.config.addition_embed_type!r}, such as that of Stable Diffusion XL": (
            unet.config.addition_embed_type in (None, "text")
        ),
        f'class embedding {embedding!r} with camera "{hints["camera"]}"': (
            embedding == (None if hints["camera"] == "none" else "projection")
        ),
    }
    for problem, fine in problems.items():
        if not fine:
            raise ValueError(f"not supported: {problem}")


def _load(kind: Any, folder: Path, component: str, **options: Any) -> Any:
    from safetensors import SafetensorError

    try:
        return kind.from_pretrained(folder / component, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        refuse(folder, f"its {component}/ cannot be read ({error})", error)


def _load_model(kind: Any, folder: Path, component: str, dtype: torch.dtype) -> Any:
    if not (folder / component / "config.json").exists():  # transformers would make one up
        refuse(folder, f"its {component}/ has no config.json")
    # Published folders often hold the 16-bit variant alone.
    weights = [path.name for path in (folder / component).glob("*.safetensors")]
    if not weights:
        refuse(folder, f"its {component}/ holds no *.safetensors")
    variant = "fp16" if all(".fp16." in name for name in weights) else None
    model, report = _load(
        kind, folder, component, use_safetensors=True, dtype=dtype, variant=variant, output_loading_info=True
    )
    if report["missing_keys"]:
        refuse(folder, f"its {component}/ lacks weights, {min(report['missing_keys'])} among them")
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and remarks about unused settings off the terminal; errors still raise."""
    import diffusers
    import transformers

    logs = [diffusers.utils.logging, transformers.utils.logging]
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (verbosity, bars) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
