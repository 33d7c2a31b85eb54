"""Guidance distillation: both answers that classifier-free guidance needs, from one pass through the network.

An adapter, small beside the network that it changes, learns to answer with the prompt and without it at once (after
adapter guidance distillation, Jensen and Sadat, arXiv 2503.07274). There the adapted network is told a guidance weight
and answers with the guided prediction; here it has a second last layer, which answers with the difference
``eps_c - eps_u``, so that one adapter serves every weight, every schedule of weights, and the methods that use the two
predictions in ways of their own.

A file of such an adapter is added into the weights when a prior is loaded, so that it costs no time afterwards.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.lora import inject, structural_copy

FORMAT = "1"
_KIND = "dreamkiln one-pass guidance"
_HEAD = "difference"


class TwoAnswers(nn.Module):
    """A network's last layer, and beside it one for the difference that the prompt makes.

    The answer told the prompt comes first, that told nothing behind it, along the channels.
    """

    def __init__(self, own: nn.Conv2d, difference: nn.Conv2d) -> None:
        super().__init__()
        self.own, self.difference = own, difference

    def forward(self, features: Float[Tensor, "b f i j"]) -> Float[Tensor, "b c2 i j"]:
        """Both answers."""
        told = self.own(features)
        kind = self.difference.weight.dtype
        return torch.cat([told, told - self.difference(features.to(kind)).to(told)], 1)


class OnePassAdapter(nn.Module):
    """What is trained: low-rank updates (LoRA, arXiv 2106.09685) of a network's layers, and the second last layer.

    ``network`` is a structural copy around the very weights of the network, as in ``LoraAdapter``. At first it says
    that the prompt makes no difference.
    """

    def __init__(self, network: Any, rank: int, seed: int) -> None:
        """Adapt a network, whose parameters are frozen and stay as they are.

        Raises:
            ValueError: the network cannot have a second answer.
        """
        super().__init__()
        refuse_other_networks(network)
        adapted: Any = structural_copy(network)
        self.lora = nn.ParameterDict(inject(adapted, rank, torch.Generator().manual_seed(seed)))
        self.difference = _nothing_like(adapted.conv_out).float()
        adapted.conv_out = TwoAnswers(adapted.conv_out, self.difference)
        self.rank = rank
        self._hidden = (adapted.eval(),)  # in a tuple, where nn.Module does not look for submodules

    @property
    def network(self) -> Any:
        """The network with its change."""
        return self._hidden[0]

    def write(self, file: Path, about: dict[str, Any]) -> None:
        """Write the adapter as safetensors, in 16 bits.

        Args:
            file: where to.
            about: what is known about it, as plain values; ``one_pass_notes`` reads it back.

        Raises:
            OSError: the file cannot be written.
        """
        from safetensors.torch import save

        # A single entry: safetensors writes several in any order, and the same adapter is to be the same file.
        notes = {_KIND: json.dumps({"format": FORMAT, **about})}
        tensors = {name: value.detach().half().cpu().contiguous() for name, value in self._named().items()}
        file.write_bytes(save(tensors, notes))  # its own writing of files leaves them to their owner alone

    @torch.no_grad()
    def begin_with(self, file: Path) -> None:
        """Take the weights in a file that ``write`` wrote.

        Raises:
            ValueError: the file is none, or of another network or rank.
        """
        from safetensors.torch import load_file

        one_pass_notes(file)
        tensors, mine = load_file(file), self._named()
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in mine.items()}:
            raise ValueError(f"{file} is of another network or rank")
        for name, weight in mine.items():
            weight.copy_(tensors[name])

    def _named(self) -> dict[str, Tensor]:
        """The weights as a file names them."""
        named: dict[str, Tensor] = {f"lora/{name}": weight for name, weight in self.lora.items()}
        named |= {f"{_HEAD}/{name}": weight for name, weight in self.difference.named_parameters()}
        return named


def add_one_pass(network: Any, file: Path) -> None:
    """Make a network of diffusers answer twice in one pass, as an adapter in a file says; it is changed in place.

    Raises:
        ValueError: the file is none of ``OnePassAdapter``, or of another network.
    """
    refuse_other_networks(network)
    one_pass_notes(file)
    from safetensors.torch import load_file

    tensors, modules = load_file(file), dict(network.named_modules())
    head = _nothing_like(network.conv_out)
    try:
        for name in [n.removesuffix("/lora_A") for n in tensors if n.endswith("/lora_A")]:
            layer: Any = modules[name.removeprefix("lora/").replace("/", ".")]
            layer.weight.data += low_rank_change(tensors[f"{name}/lora_A"], tensors[f"{name}/lora_B"]).to(layer.weight)
        head.load_state_dict({name: tensors[f"{_HEAD}/{name}"] for name in head.state_dict()})
    except (KeyError, RuntimeError) as problem:
        raise ValueError(f"{file} is of another network than this prior's: {problem}") from problem
    network.conv_out = TwoAnswers(network.conv_out, head.requires_grad_(False))


def low_rank_change(down: Tensor, up: Tensor) -> Tensor:
    """The change of a weight [o, i] or [o, i, h, w] that ``down`` [r, i, ...] and then ``up`` [o, r, ...] make."""
    return torch.einsum("or,r...->o...", up.float().flatten(1), down.float())


def one_pass_notes(file: Path) -> dict[str, Any]:
    """What is known about an adapter's file, without reading its weights.

    Raises:
        ValueError: it is not there, or no such file.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    try:
        with safe_open(file, "pt") as opened:
            notes = opened.metadata() or {}
        about = dict(json.loads(notes[_KIND])) if _KIND in notes else None
    except (SafetensorError, TypeError, ValueError, OSError) as problem:
        raise ValueError(f"{file} is no safetensors file of one-pass guidance: {problem}") from problem
    if about is None:
        raise ValueError(f"{file} is no file of one-pass guidance; `studio distill-guidance` makes them")
    if about.pop("format", None) != FORMAT:
        raise ValueError(f"{file} has another format; this version of Dreamkiln reads format {FORMAT}")
    return about


def refuse_other_networks(network: Any) -> None:
    """Refuse a network whose last layer answers with more than a prediction, or that is not in memory.

    Raises:
        ValueError: in words.
    """
    config = network.config
    if not isinstance(getattr(network, "conv_out", None), nn.Conv2d) or config.get("encoder_hid_dim_type") is not None:
        raise ValueError("one-pass guidance is for U-Nets that text alone prompts")
    if config.out_channels > config.in_channels:
        raise ValueError("one-pass guidance is not for networks that learnt a variance")
    if any(weight.is_meta for weight in network.parameters()):
        raise ValueError("one-pass guidance needs the network in memory; leave out the offloading of layers")


def _nothing_like(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer of the same kind that answers zero."""
    k, p = layer.kernel_size, layer.padding
    made: Any = nn.utils.skip_init(nn.Conv2d, layer.in_channels, layer.out_channels, k, padding=p)
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    return made.to(layer.weight.device, layer.weight.dtype)
