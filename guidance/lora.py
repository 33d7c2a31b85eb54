"""A trainable change of a frozen network: low-rank updates of its layers, and an embedding of the camera."""

import copy
import math
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

POSE = 16
"""Numbers of a flattened camera-to-world matrix."""
_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.", "transformer_blocks.", "single_transformer_blocks.")


class LoraAdapter(nn.Module):
    """A U-Net or transformer with low-rank updates (LoRA, arXiv 2106.09685) that knows the camera (ProlificDreamer,
    arXiv 2305.16213). It predicts exactly what the network does until it has learnt something.

    ``network`` is a structural copy: modules of its own around the very weights of the network, which thus neither
    changes nor exists twice. It is no submodule, so parameters and state are those of the change alone, in float32
    whatever type the network computes in.
    """

    def __init__(self, network: Any, rank: int, seed: int) -> None:
        """Adapt every convolution and linear layer of the network's blocks.

        The papers adapt attention alone, which Stable Diffusion has on every level. The bundled network has it at the
        lowest level only, and a critic confined to that level could not learn what a render looks like up close.

        Args:
            network: what to change; its parameters must be frozen, and stay as they are.
            rank: of the updates.
            seed: of the initial weights; global generators are left alone.

        Raises:
            ValueError: the network's weights are not in memory, but come to it layer by layer.
        """
        super().__init__()
        if any(weight.is_meta for weight in network.parameters()):
            raise ValueError("a method with a critic needs the network in memory; leave out the offloading of layers")
        rng = torch.Generator().manual_seed(seed)
        adapted: Any = structural_copy(network)
        self.lora = nn.ParameterDict(inject(adapted, rank, rng))
        self.camera = _tell_camera(adapted, rng)
        self._hidden = (adapted.eval(),)  # in a tuple, where nn.Module does not look for submodules

    @property
    def network(self) -> Any:
        """The network with its change; takes the camera in front of its class labels or pooled prompt."""
        return self._hidden[0]

    def changes(self, network: Any) -> bool:
        """Whether this is an adapter of that very network."""
        return next(self.network.parameters()) is next(network.parameters())

    def told(self, pose: Float[Tensor, "b 4 4"] | None, count: int) -> Float[Tensor, "b 16"]:
        """The camera as ``network`` takes it; zeros: no camera."""
        like = self.camera.inner.weight
        return like.new_zeros(count, POSE) if pose is None else pose.to(like).flatten(1)


class CameraEmbedding(nn.Module):
    """A camera-to-world matrix as a class embedding; zero at first, and always zero for a pose of zeros."""

    def __init__(self, width: int, rng: torch.Generator) -> None:
        super().__init__()
        self.inner = cast(nn.Linear, nn.utils.skip_init(nn.Linear, POSE, width))
        self.outer = cast(nn.Linear, nn.utils.skip_init(nn.Linear, width, width))
        nn.init.kaiming_uniform_(self.inner.weight, math.sqrt(5), generator=rng)
        for zero in (self.inner.bias, self.outer.weight, self.outer.bias):
            nn.init.zeros_(zero)

    def forward(self, pose: Float[Tensor, "b 16"]) -> Float[Tensor, "b w"]:
        """The embedding."""
        given = (pose != 0).any(1, keepdim=True)
        return self.outer(nn.functional.silu(self.inner(pose))) * given


class _WithCamera(nn.Module):
    """The class embedding that a U-Net has, or none, plus that of the camera."""

    def __init__(self, own: nn.Module | None, camera: CameraEmbedding) -> None:
        super().__init__()
        self.own, self.camera = own, camera

    def forward(self, labels: Tensor) -> Tensor:
        embedded = self.camera(labels[:, :POSE])
        if self.own is None:
            return embedded
        return self.own(labels[:, POSE:].to(next(self.own.parameters()).dtype)) + embedded


class _TimeWithCamera(nn.Module):
    """A transformer's embedding of time and pooled prompt, which come last, plus that of the camera in front of it."""

    def __init__(self, own: nn.Module, camera: CameraEmbedding) -> None:
        super().__init__()
        self.own, self.camera = own, camera

    def forward(self, *given: Tensor) -> Tensor:
        *others, pooled = given
        own = pooled[:, POSE:].to(next(self.own.parameters()).dtype)
        embedded = self.own(*others, own)
        return embedded + self.camera(pooled[:, :POSE]).to(embedded.dtype)


def _tell_camera(network: Any, rng: torch.Generator) -> CameraEmbedding:
    """Put an embedding of the camera, zero as yet, beside that of time."""
    if hasattr(network, "time_text_embed"):
        width = network.time_text_embed.timestep_embedder.linear_2.out_features
        camera = CameraEmbedding(width, rng).to(network.device)
        network.time_text_embed = _TimeWithCamera(network.time_text_embed, camera)
    else:
        width = network.time_embedding.linear_2.out_features
        camera = CameraEmbedding(width, rng).to(network.device)
        network.class_embedding = _WithCamera(network.class_embedding, camera)
    return camera


def structural_copy(network: nn.Module) -> nn.Module:
    """The same modules anew, around the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


def inject(network: nn.Module, rank: int, rng: torch.Generator) -> dict[str, nn.Parameter]:
    """Put low-rank updates into ``network``, all without effect as yet; their weights, by name."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = [
        name
        for name, module in network.named_modules()
        if name.startswith(_BLOCKS) and isinstance(module, nn.Linear | nn.Conv2d)
    ]
    with torch.random.fork_rng(devices=[]):  # peft draws weights of its own first, which are replaced below
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), network)
    weights = {}
    for name, weight in network.named_parameters():
        if ".lora_" not in name:
            continue
        weight.data = weight.data.float()
        if ".lora_A." in name:
            weight.data.copy_(nn.init.kaiming_uniform_(torch.empty(weight.shape), math.sqrt(5), generator=rng))
        else:
            nn.init.zeros_(weight)
        weights[name.removesuffix(".default.weight").replace(".", "/")] = weight
    return weights
