"""How a prior uses the machine: what it computes in, what it keeps in memory, and what it trades for speed."""

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
    """Encode and decode in overlapping tiles: for large pictures; seams are possible."""
    vae_checkpointing: bool = False
    """Compute the blocks of the autoencoder's encoder again on the way back, instead of keeping what lies in them: the
    same gradient from less memory, at the price of one more pass through it."""
    channels_last: bool = True
    """Keep the weights of U-Nets in the order that convolutions like best."""
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """torch.compile the network; reduce-overhead also replays CUDA graphs. The first evaluations take minutes."""

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
    """Put a network, and its autoencoder, to work as ``resources`` say; both are changed in place."""
    if resources.attention_slicing and hasattr(network, "set_attention_slice"):
        network.set_attention_slice("max")
    if vae is not None and resources.vae_slicing:
        vae.enable_slicing()
    if vae is not None and resources.vae_checkpointing:
        vae.enable_gradient_checkpointing()
    if vae is not None and resources.vae_tiling:
        vae.enable_tiling()
    if resources.offload == "layers":
        from accelerate import cpu_offload

        cpu_offload(network, device)
    elif resources.channels_last:
        network.to(device=device, memory_format=torch.channels_last)
    else:
        network.to(device)
    if resources.compile != "off":
        network.compile(mode=resources.compile)  # in place: the module and its weights stay what they are
