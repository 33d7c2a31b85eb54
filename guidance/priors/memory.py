"""How much memory a prior needs: its weights, read off their files' heads, and what a step keeps on the way.

The second is not guessed. Networks are built without memory, on the meta device, and a step goes through them while
every tensor that would be alive is counted: an evaluation of the network for a batch, and an encoding with its way
back. Fused attention is taken for granted, as torch has it on CPUs and GPUs. What libraries take for themselves, such
as a GPU's context and workspaces of convolutions, comes on top.
"""

import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from guidance.prior_folder import read_hints
from guidance.priors.latents import Autoencoder
from guidance.priors.loading import pipeline_of

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


@dataclass(frozen=True)
class Need:
    """Bytes that a prior takes."""

    weights: int
    """Of the networks that stay on the device."""
    texts: int
    """Of the text encoders."""
    predicting: int
    """Most that one evaluation of the network keeps besides."""
    kept: int
    """What an encoding of pictures keeps for the way back, while the network is asked."""
    encoding: int
    """Most that an encoding and its way back keep."""

    def peak(self, text_waits: bool = False) -> int:
        """Most at any time; ``text_waits``: text encoders are on the device only while prompts are embedded."""
        working = self.weights + max(self.predicting + self.kept, self.encoding)
        return max(working, self.weights + self.texts) if text_waits else working + self.texts


def weight_bytes(folder: Path, size: int) -> int:
    """Bytes of a component's weights with ``size`` bytes a number; of variants of the same weights the first counts."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if ".fp16" not in file.name and ".non_ema" not in file.name] or files
    return sum(_numbers(file) for file in plain) * size


def _numbers(file: Path) -> int:
    with file.open("rb") as opened:
        head = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    spans = [(e["data_offsets"], _BYTES.get(e["dtype"], 1)) for name, e in head.items() if name != "__metadata__"]
    return sum((end - start) // size for (start, end), size in spans)


class Counting(TorchDispatchMode):
    """Counts the bytes of tensors alive that were made while it is on; ``peak`` is the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        before = {id(t.untyped_storage()) for t in tree_iter((args, kwargs or {})) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._known and id(storage) not in before:
                    self._known.add(id(storage))
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _FusedAttention(TorchFunctionMode):
    """Attention that keeps its inputs and its result, not the table of all pairs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _Attention.apply(given["query"], given["key"], given["value"])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


def peak_of(step: Callable[[], Any]) -> int:
    """Most bytes that ``step`` would keep alive at once, beyond what was there before it."""
    with _FusedAttention(), Counting() as counting:
        step()
    return counting.peak


def predicting(network: Any, samples: int, side: int, tokens: int) -> int:
    """Bytes of an evaluation of a U-Net or transformer of diffusers on the meta device.

    Args:
        network: built from its settings, on the meta device, in the type that it will compute in.
        samples: in a batch, branches of guidance among them.
        side: elements a side of a latent.
        tokens: of a prompt.
    """
    config, dtype = network.config, next(network.parameters()).dtype

    def of(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    def step() -> None:
        with torch.no_grad():
            time = of(samples)
            if "axes_dims_rope" in config:
                places = (side // 2) ** 2
                network(
                    hidden_states=of(samples, places, config.in_channels),
                    encoder_hidden_states=of(samples, tokens, config.joint_attention_dim),
                    pooled_projections=of(samples, config.pooled_projection_dim),
                    timestep=time,
                    img_ids=of(places, 3),
                    txt_ids=of(tokens, 3),
                    guidance=time,
                )
            elif "joint_attention_dim" in config:
                network(
                    hidden_states=of(samples, config.in_channels, side, side),
                    encoder_hidden_states=of(samples, tokens, config.joint_attention_dim),
                    pooled_projections=of(samples, config.pooled_projection_dim),
                    timestep=time,
                )
            else:
                _ask_unet(network, samples, side, tokens, of)

    return peak_of(step)


def _ask_unet(network: Any, samples: int, side: int, tokens: int, of: Callable[..., Tensor]) -> None:
    config, added = network.config, {}
    width = config.encoder_hid_dim or config.cross_attention_dim
    width = max(width) if isinstance(width, list | tuple) else width
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": of(samples, pooled), "time_ids": of(samples, 6)}
    labels = config.projection_class_embeddings_input_dim if config.class_embed_type == "projection" else None
    network(
        of(samples, config.in_channels, side, side),
        of(samples),
        of(samples, tokens, width),
        class_labels=None if labels is None else of(samples, labels),
        added_cond_kwargs=added or None,
    )


def encoding(vae: Any, samples: int, pixels: int) -> tuple[int, int]:
    """Bytes kept after encoding pictures, and the most until the way back is done, on the meta device."""
    latents = Autoencoder(vae.requires_grad_(False))
    with _FusedAttention(), Counting() as counting:
        images = torch.empty(samples, 3, pixels, pixels, device="meta", requires_grad=True)
        found = latents.encode(images * 2 - 1)
        kept = counting.now
        found.sum().backward()
    return kept, counting.peak


def on_meta(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A model of diffusers from the settings in a folder, without memory."""
    with torch.device("meta"):
        return kind.from_config(kind.load_config(folder, local_files_only=True)).to(dtype).eval()


def need_of(folder: Path, samples: int, branches: int, pixels: int, dtype: torch.dtype) -> Need:
    """Memory that distilling with a folder's prior takes.

    Args:
        folder: in diffusers' layout, of a supported pipeline.
        samples: views a step.
        branches: answers for each view in one pass; 2 for plain guidance.
        pixels: a side, as the prior sees views.
        dtype: what it computes in.

    Raises:
        ValueError: it is no folder that is supported.
        OSError: its files cannot be read.
    """
    import diffusers

    pipeline = pipeline_of(folder)
    flow = (folder / "transformer").is_dir()
    kinds = {"StableDiffusion3Pipeline": "SD3Transformer2DModel", "FluxPipeline": "FluxTransformer2DModel"}
    component, kind = ("transformer", kinds[pipeline or ""]) if flow else ("unet", "UNet2DConditionModel")
    network = on_meta(getattr(diffusers, kind), folder / component, dtype)
    tokens = {"StableDiffusion3Pipeline": 333, "FluxPipeline": 512}.get(pipeline or "", 77)
    resident = [n for n in (component, "vae", "controlnet", "image_encoder") if (folder / n).is_dir()]
    texts = [n for n in ("text_encoder", "text_encoder_2", "text_encoder_3") if (folder / n).is_dir()]
    factor, kept, most = read_hints(folder)["pixel_shuffle"], 0, 0
    if (folder / "vae").is_dir():
        vae = on_meta(diffusers.AutoencoderKL, folder / "vae", dtype)
        if "XL" in (pipeline or "") and dtype == torch.float16 and vae.config["force_upcast"]:
            vae.float()
        factor, (kept, most) = Autoencoder(vae).factor, encoding(vae, samples, pixels)
    return Need(
        sum(weight_bytes(folder / name, dtype.itemsize) for name in resident),
        sum(weight_bytes(folder / name, dtype.itemsize) for name in texts),
        predicting(network, samples * branches, pixels // factor, tokens),
        kept,
        most,
    )


def native_pixels(folder: Path) -> int:
    """Pixels a side that a folder's prior was trained with."""
    hinted = read_hints(folder)["resolution"]
    settings = next(folder / n / "config.json" for n in ("unet", "transformer") if (folder / n).is_dir())
    size = json.loads(settings.read_text(encoding="utf-8")).get("sample_size") or 128
    vae = folder / "vae" / "config.json"
    factor = read_hints(folder)["pixel_shuffle"]
    if vae.is_file():
        factor = 2 ** (len(json.loads(vae.read_text(encoding="utf-8"))["block_out_channels"]) - 1)
    return hinted or size * factor
