"""How a prior uses the machine: what it computes in, what it keeps in memory, and what it trades for speed."""

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch

Kind = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Resources:
    """Options of memory and speed. None changes what a prior is; 16 bits and tiling change its answers a little."""

    dtype: Kind = "auto"
    """What networks compute in. auto: float32 on a CPU and for small priors that name no pipeline, such as the bundled
    one; on a GPU float16 for U-Nets, and bfloat16 for transformers and whatever T5 reads for, whose numbers leave
    float16's range. Latents, noise and gradients are float32 whatever this says."""
    offload: Literal["none", "text", "layers"] = "none"
    """text: text encoders wait in main memory and visit the GPU once a run, to embed the prompts. layers: so does every
    layer of the network, in every evaluation: the least memory, many times slower, and no method with a critic."""
    attention_slicing: bool = False
    """Attention one head at a time: less memory on machines without fused attention, and slower everywhere."""
    vae_slicing: bool = False
    """Encode and decode one picture at a time."""
    vae_tiling: bool = False
    """Encode and decode pictures larger than the autoencoder was trained with in overlapping tiles. It makes decoding
    thrifty. For gradients it helps together with ``vae_checkpointing`` alone: tiles overlap, and all that is kept of
    them is more than of the whole picture. Seams are possible."""
    vae_checkpointing: bool = False
    """Compute the blocks of the autoencoder's encoder again on the way back, instead of keeping what lies in them: the
    same gradient from less memory, at the price of one more pass through it."""
    network_checkpointing: bool = False
    """The same for the network's own blocks, where a critic learns: most of what methods like VSD keep lies there."""
    channels_last: bool = True
    """Keep the weights of U-Nets in the order that convolutions like best."""
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """torch.compile the network, with a C++ compiler on a CPU and Triton on a GPU. Its first evaluation, and the first
    with another number of pictures, take a minute or more (70 s of one core each for the bundled prior, which is 1.1
    times as fast afterwards). Critics run uncompiled. reduce-overhead is to replay CUDA graphs on a GPU, by torch's own
    means; it has never been run on one here."""

    def type_for(self, device: torch.device, wide: bool, small: bool = False) -> torch.dtype:
        """The type that networks compute in.

        Args:
            device: where.
            wide: it is a transformer, or T5 reads for it.
            small: it names no pipeline.
        """
        if self.dtype != "auto":
            return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]
        if small or device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if wide else torch.float16


def settle(network: Any, vae: Any, resources: Resources, device: torch.device) -> None:
    """Put a network, and its autoencoder, to work as ``resources`` say; both are changed in place.

    Raises:
        ValueError: it is to be compiled, and this machine cannot; in words.
    """
    if resources.compile != "off":
        refuse_without_compiler(device)
    if resources.attention_slicing and hasattr(network, "set_attention_slice"):
        _slice_attention(network)
    if vae is not None and resources.vae_tiling:
        vae.enable_tiling()
    economise(network, vae, resources)
    if resources.offload == "layers":
        _stream(network, device)
    elif resources.channels_last:
        network.to(device=device, memory_format=torch.channels_last)
    else:
        network.to(device)
    if resources.compile != "off":
        network.compile(mode=resources.compile)  # in place: the module and its weights stay what they are


def _slice_attention(network: Any) -> None:
    """Attention one head at a time, but for layers that an IP-Adapter attends in: they have weights, and go on as they
    are."""
    adapted = {name: one for name, one in network.attn_processors.items() if isinstance(one, torch.nn.Module)}
    network.set_attention_slice("max")
    if adapted:
        network.set_attn_processor({**network.attn_processors, **adapted})


def economise(network: Any, vae: Any, resources: Resources) -> None:
    """Switch on, or off again, what trades time for memory and moves nothing: slicing and checkpointing."""
    if vae is not None:
        (vae.enable_slicing if resources.vae_slicing else vae.disable_slicing)()
    for module, wanted in ((vae, resources.vae_checkpointing), (network, resources.network_checkpointing)):
        if module is not None and module.is_gradient_checkpointing != wanted:
            (module.enable_gradient_checkpointing if wanted else module.disable_gradient_checkpointing)()


def offload_layers(network: Any, wanted: bool, device: torch.device) -> None:
    """Let a network's layers wait in main memory, or bring them back to the device, while nothing runs through it."""
    streams = any(hasattr(module, "_hf_hook") for module in network.modules())
    if wanted and not streams:
        _stream(network, device)
    elif streams and not wanted:
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(network, recurse=True)
        network.to(device)


def _stream(network: Any, device: torch.device) -> None:
    from accelerate import cpu_offload

    cpu_offload(network, device)


def refuse_without_compiler(device: torch.device) -> None:
    """Refuse to compile where there is nothing to compile with; torch itself would say so in the midst of a run.

    Raises:
        ValueError: in words.
    """
    advice = "or leave out --prior-options.resources.compile"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError(
            f"to compile a network for a GPU takes Triton, which is not installed here; install it, {advice}"
        )
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(
            f"to compile a network takes a C++ compiler, and there is no {compiler}; install one, {advice}"
        )
