"""Which files hold a folder's weights, and whether they are all there: looked at before any of them is read.

A part of a large prior takes a minute to read, and a run should not learn after several that the next one is cut short.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guidance.prior_folder import about_pickles, refuse, require

IP_ADAPTER = "ip_adapter.safetensors"
"""In a prior's folder: an IP-Adapter, whose pictures are seen by ``image_encoder/``."""
_NAME = re.compile(r"(?:diffusion_pytorch_model|model)(?:-\d+-of-\d+)?(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
"""As diffusers and transformers name weights: whole or in pieces, with a variant or without."""
_PIECE = re.compile(r"-(\d+)-of-(\d+)")
_WORD_LISTS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")
_POINTER = b"version https://git-lfs"


def variant_of(part: Path) -> str | None:
    """Which variant of a part's weights is read: the plain one if there is one, then ``fp16``, then its kin, then any.

    Published folders often hold 16-bit weights alone. Those without the average over training come last.
    """
    kinds = {found[1] for file in part.glob("*.safetensors") if (found := _NAME.fullmatch(file.name))}
    order = {"fp16": 0, "bf16": 2, "non_ema": 4}
    named = sorted(kind for kind in kinds if kind is not None)
    return None if None in kinds or not named else min(named, key=lambda k: order.get(k, 1 if "fp16" in k else 3))


def weight_files(part: Path) -> list[Path]:
    """The safetensors that a part is read from: one, or the pieces of one; none if there are none.

    Of names that diffusers does not know, as novel-view priors have them, it is one that is not in 16 bits, if any.
    """
    files, variant = sorted(part.glob("*.safetensors")), variant_of(part)
    known = [file for file in files if (found := _NAME.fullmatch(file.name)) and found[1] == variant]
    if not known:
        return sorted(files, key=lambda file: (".fp16" in file.name, file.name))[:1]
    single = [file for file in known if not _PIECE.search(file.name)]
    return single[:1] or known


def damage(file: Path) -> str:
    """What is wrong with a safetensors file, in words, by its head alone; "" if it is as long as that says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(len(_POINTER))
            if start == _POINTER:
                return f"{file.name} is a pointer of Git LFS, not the weights: `git lfs pull` fetches them"
            opened.seek(0)
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= size - 8:
                return f"{file.name} is no safetensors file, or cut short: copy it again"
            head = json.loads(opened.read(length))
        end = max((entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__"), default=0)
    except OSError as problem:
        return f"{file.name} cannot be opened: {problem.strerror}"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return f"{file.name} is no safetensors file: copy it again"
    return "" if size == 8 + length + end else f"{file.name} is not as long as it says: copy it again"


def refuse_incomplete(folder: Path, entries: dict[str, Any]) -> None:
    """Refuse a folder of which something is missing or damaged, so far as it can be told without reading weights.

    Args:
        folder: in diffusers' layout.
        entries: library and class of its parts by name.

    Raises:
        MissingPriorError: in words.
    """
    if (folder / IP_ADAPTER).is_file() and not (folder / "image_encoder").is_dir():
        refuse(folder, f"its image_encoder/ is missing, through which {IP_ADAPTER} sees pictures")
    for name, (_, kind, *_) in entries.items():
        part = require(folder, name)
        if name.startswith("tokenizer"):
            refuse_wordless(folder, part)
        elif not kind.endswith("Scheduler"):
            _refuse_part(folder, part, weight_files(part))
    if (folder / IP_ADAPTER).is_file() and (wrong := damage(folder / IP_ADAPTER)):
        refuse(folder, wrong)


def _refuse_part(folder: Path, part: Path, files: list[Path]) -> None:
    if not files:
        refuse(folder, f"its {part.name}/ holds no *.safetensors{about_pickles(part)}")
    for wrong in filter(None, map(damage, files)):
        refuse(folder, f"its {part.name}/ cannot be read: {wrong}")
    if (piece := _PIECE.search(files[0].name)) and len(files) < int(piece[2]):
        there = {found[1] for file in files if (found := _PIECE.search(file.name))}
        lacking = _first_lacking(there, piece)
        name = files[0].name.replace(piece[0], f"-{lacking}-of-{piece[2]}")
        refuse(folder, f"its {part.name}/ lacks pieces, {name} among them")


def _first_lacking(there: Iterable[str], piece: re.Match[str]) -> str:
    numbers = (str(i + 1).zfill(len(piece[1])) for i in range(int(piece[2])))
    return next(number for number in numbers if number not in there)


def refuse_wordless(folder: Path, part: Path) -> None:
    """Refuse a tokenizer's folder without its list of words: transformers would make a tokenizer that knows none.

    Raises:
        MissingPriorError: in words.
    """
    if not any((part / name).is_file() for name in _WORD_LISTS):
        refuse(folder, f"its {part.name}/ holds no words: none of {', '.join(_WORD_LISTS)} is there")
    if not (part / "tokenizer.json").is_file() and (part / "vocab.json").is_file():
        if not (part / "merges.txt").is_file():
            refuse(folder, f"its {part.name}/ has vocab.json, but not merges.txt, which belongs to it")
