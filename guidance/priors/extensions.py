"""Small files on top of a prior: LoRA (arXiv 2106.09685) and textual inversion (arXiv 2208.01618), safetensors only.

A LoRA is added into the weights when the prior is loaded, so that it costs nothing afterwards and critics adapt the
network that came of it. A textual inversion is a new word for prompts: the name in the file, or the file's own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


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
        return Path(file), float(weight)
    except ValueError as error:
        raise ValueError(f"--lora takes FILE or FILE:WEIGHT with a number for the weight, not {text!r}") from error


def refuse_extension(file: Path) -> None:
    """Refuse a file that is not there or that is no safetensors file.

    Raises:
        ValueError: in words.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    if file.suffix != ".safetensors":
        raise ValueError(
            f"{file} is no safetensors file; other kinds could run code when opened, so they are left alone"
        )


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
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            raise ValueError(f"{file} is no LoRA of this prior: {error}") from error
        if name not in {n for names in pipeline.get_list_adapters().values() for n in names}:
            raise ValueError(f"{file} holds no LoRA of this prior")
    pipeline.set_adapters(names, [weight for _, weight in loras])
    pipeline.fuse_lora(components=list(pipeline.get_list_adapters()))
    pipeline.unload_lora_weights()


def _add_word(pipeline: Any, file: Path) -> list[str]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    refuse_extension(file)
    if not hasattr(pipeline, "load_textual_inversion"):
        raise ValueError(f"{type(pipeline).__name__} takes no textual inversion")
    try:
        state: dict[str, Tensor] = load_file(file)
        if {"clip_l", "clip_g"} <= set(state):  # of Stable Diffusion XL: one for each text encoder
            parts = (("clip_l", "text_encoder", "tokenizer"), ("clip_g", "text_encoder_2", "tokenizer_2"))
            for key, encoder, tokenizer in parts:
                given = {"text_encoder": getattr(pipeline, encoder), "tokenizer": getattr(pipeline, tokenizer)}
                pipeline.load_textual_inversion({file.stem: state[key]}, token=file.stem, **given)
            return [file.stem]
        named = {file.stem: state["emb_params"]} if "emb_params" in state else state
        pipeline.load_textual_inversion(named)
        return list(named)
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{file} is no textual inversion of this prior: {error}") from error
