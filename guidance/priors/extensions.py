"""Small files on top of a prior: LoRA (arXiv 2106.09685) and textual inversion (arXiv 2208.01618), safetensors only.

A LoRA is added into the weights when the prior is loaded, so that it costs nothing afterwards and critics adapt the
network that came of it. A textual inversion is a new word for prompts: the name in the file, or the file's own.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from guidance.prior_folder import in_short, unreadable
from guidance.priors.weights import damage


@dataclass(frozen=True)
class Extensions:
    """Files that change a prior."""

    loras: tuple[tuple[Path, float], ...] = ()
    """Each with its weight."""
    inversions: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.loras or self.inversions)


def parse_lora(text: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE:WEIGHT``; the weight is 1 without it.

    Raises:
        ValueError: the weight is no number.
    """
    file, colon, weight = text.rpartition(":")
    if not colon or weight.endswith(".safetensors"):
        return Path(text), 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"--lora takes FILE or FILE:WEIGHT with a number for the weight, not {text!r}")
    return Path(file), number


def refuse_extension(file: Path) -> None:
    """Refuse a file that is not there, that is no safetensors file, or not a whole one.

    Raises:
        ValueError: in words.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    if file.suffix != ".safetensors":
        raise ValueError(
            f"{file} is no safetensors file; other kinds could run code when opened, so they are left alone"
        )
    if wrong := damage(file):
        raise ValueError(f"{file.parent}: {wrong}")


def extend(pipeline: Any, extensions: Extensions) -> list[str]:
    """Apply the files to a pipeline of diffusers; returns the new words.

    Raises:
        ValueError: a file is missing, of another kind, or not for this prior.
    """
    for file, _ in extensions.loras:
        refuse_extension(file)
    if extensions.loras:
        _add_loras(pipeline, extensions.loras)
    return [word for file in extensions.inversions for word in _add_word(pipeline, file)]


def _add_loras(pipeline: Any, loras: tuple[tuple[Path, float], ...]) -> None:
    if not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(f"{type(pipeline).__name__} takes no LoRA")
    names = [f"file{i}" for i in range(len(loras))]
    for name, (file, _) in zip(names, loras, strict=True):
        try:
            pipeline.load_lora_weights(
                file.parent,
                weight_name=file.name,
                adapter_name=name,
                use_safetensors=True,
                local_files_only=True,
            )
        except unreadable() as error:
            raise ValueError(f"{file} is no LoRA of this prior: {in_short(error)}") from error
        changed = [part for part, names in pipeline.get_list_adapters().items() if name in names]
        if not changed:
            raise ValueError(f"{file} holds no LoRA of this prior")
        for part in changed:
            _refuse_other_layers(file, getattr(pipeline, part), name)
    pipeline.set_adapters(names, [weight for _, weight in loras])
    pipeline.fuse_lora(components=list(pipeline.get_list_adapters()))
    pipeline.unload_lora_weights()


def _refuse_other_layers(file: Path, network: Any, name: str) -> None:
    """Refuse a LoRA of which only some layers are this network's: diffusers would leave the others out."""
    own = {layer for layer, _ in network.named_modules()}
    endings = {".".join(layer.split(".")[-n:]) for layer in own for n in (1, 2)}
    wanted = network.peft_config[name].target_modules
    strange = sorted(layer for layer in wanted if layer not in own and layer not in endings)
    if strange:
        raise ValueError(f"{file} is a LoRA of another base: this prior has no layer {strange[0]}")


def _add_word(pipeline: Any, file: Path) -> list[str]:
    from safetensors.torch import load_file

    refuse_extension(file)
    if not hasattr(pipeline, "load_textual_inversion"):
        raise ValueError(f"{type(pipeline).__name__} takes no textual inversion")
    try:
        state: dict[str, Tensor] = load_file(file)
        if {"clip_l", "clip_g"} <= set(state):  # of Stable Diffusion XL: one for each text encoder
            if getattr(pipeline, "text_encoder_2", None) is None:
                raise ValueError("it is of Stable Diffusion XL, which has two text encoders")
            parts = (("clip_l", "text_encoder", "tokenizer"), ("clip_g", "text_encoder_2", "tokenizer_2"))
            for key, encoder, tokenizer in parts:
                given = {"text_encoder": getattr(pipeline, encoder), "tokenizer": getattr(pipeline, tokenizer)}
                pipeline.load_textual_inversion({file.stem: state[key]}, token=file.stem, **given)
            return [file.stem]
        named = {file.stem: state["emb_params"]} if "emb_params" in state else state
        if len(named) != 1:
            raise ValueError(f"it holds {len(named)} tensors, where one word has one")
        ((word, vectors),) = named.items()
        width = pipeline.text_encoder.get_input_embeddings().weight.shape[-1]
        if vectors.shape[-1] != width:
            raise ValueError(f"its vectors have {vectors.shape[-1]} numbers, those of the text encoder {width}")
        pipeline.load_textual_inversion({word: vectors})
        return [word]
    except unreadable() as error:
        raise ValueError(f"{file} is no textual inversion of this prior: {in_short(error)}") from error
