"""A prior as a folder in the layout of diffusers: what is written, what is read back, and what may be missing.

Beside the components lies an optional ``dreamkiln.json`` with what diffusers has no words for: how pixels are folded,
how the camera is fed, and what the prior knows of the world. A folder without it is read as plain Stable Diffusion.
"""

import copy
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypedDict

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
    from transformers import CLIPTextModel, CLIPTokenizer

HINTS_FILE = "dreamkiln.json"
FORMAT = 1
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
"""Endings of files that could run code when opened."""
CONVERT = (
    'python -c \'import sys, torch, safetensors.torch as s; w = torch.load(sys.argv[1], map_location="cpu", '
    'weights_only=True); w = w.get("state_dict", w); s.save_file({n: v.clone().contiguous() for n, v in w.items() if '
    "torch.is_tensor(v)}, sys.argv[2])' OLD NEW.safetensors"
)
"""What makes safetensors of such a file, on a machine with PyTorch. It opens weights alone, and refuses all else."""


class MissingPriorError(FileNotFoundError):
    """A prior's folder, or a component in it, is not there or cannot be read; the message says what to do."""


def about_pickles(folder: Path) -> str:
    """Words about weights that lie in a folder as pickles alone, and how to make safetensors of them; "" if none do."""
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    if not pickles:
        return ""
    return (
        f": {pickles[0]} could run code when opened, so it is left alone. Look for a copy as safetensors, or make one "
        f"on another machine: {CONVERT}"
    )


class Hints(TypedDict):
    """What ``dreamkiln.json`` says, or the defaults where it is silent."""

    format: int
    pixel_shuffle: int
    """Pixels a side that are folded into channels, for a prior without an autoencoder."""
    camera: Literal["none", "harmonics", "matrix"]
    """How the network takes the camera: not at all, or for class labels as ``camera_features`` or as a camera-to-world
    matrix (MVDream)."""
    views: int
    """Views that the network sees as one: consecutive samples of a batch."""
    control: Literal["depth", "normal"]
    """What the ControlNet beside the network was trained to be shown."""
    distilled_guidance: float | None
    """Guidance weight to name to a network that was distilled with it; none: 3.5 (FLUX) or 8 (LCM)."""
    picture_elevation: float
    """Elevation at which the picture was taken that a novel-view prior is told, in degrees."""
    picture_camera: Literal["distance", "elevation"]
    """Last of the four numbers about cameras that a novel-view prior is told: how much farther it stands than the
    picture's (Zero123), or from how high the picture was taken (Stable Zero123)."""
    resolution: int | None
    """Pixels a side that it was trained with, where the network does not say."""
    field_of_view: float
    """Vertical field of view of the training cameras, in degrees."""
    distance: float
    """Distance of the training cameras from the origin, in world units."""
    elevations: tuple[float, float]
    """Lowest and highest elevation of the training cameras, in degrees."""
    words: tuple[str, ...] | None
    """All words the prior knows; None where any text will do."""


def default_hints() -> Hints:
    """What is taken of a folder that says nothing about itself."""
    return Hints(
        format=FORMAT,
        pixel_shuffle=1,
        camera="none",
        views=1,
        control="depth",
        distilled_guidance=None,
        picture_elevation=0.0,
        picture_camera="distance",
        resolution=None,
        field_of_view=40.0,
        distance=2.6,
        elevations=(-10.0, 60.0),
        words=None,
    )


_SEEN_BY_ZERO123 = {"field_of_view": 49.1}
"""Of the cameras that Zero123 (arXiv 2303.11328) was trained with: a lens of 35 mm before a sensor of 32 mm, that is
2 atan(16 / 35)."""
KNOWN_HINTS: dict[str, dict[str, Any]] = {
    "MVDreamPipeline": {"views": 4, "camera": "matrix", "elevations": (0.0, 30.0)},
    "Zero1to3StableDiffusionPipeline": _SEEN_BY_ZERO123,
    "Zero123Pipeline": _SEEN_BY_ZERO123,
}
"""What is known of folders that are for these pipelines, whether or not they have hints."""


def read_index(folder: Path) -> dict[str, Any]:
    """``model_index.json`` of a folder in diffusers' layout; empty if it has none.

    Raises:
        ValueError: it cannot be read.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(index, dict):
        raise ValueError(f"{path} holds no index")
    return index


def pipeline_named(folder: Path) -> str:
    """The pipeline that a folder says it is for.

    Raises:
        ValueError: its index cannot be read.
    """
    named = read_index(folder).get("_class_name", "DiffusionPipeline")
    # Folders that came with a pipeline's code name the module too. The code is left alone; the class may be known.
    if isinstance(named, list) and named and named[-1] in KNOWN_HINTS:
        return named[-1]
    return str(named)


def read_hints(folder: Path) -> Hints:
    """Hints of a prior's folder, or of the one beside a single file.

    Raises:
        ValueError: a file is damaged, newer than this program, or says something this program does not know.
    """
    home = folder.with_suffix("") if folder.suffix == ".safetensors" and not folder.is_dir() else folder
    path, hints = home / HINTS_FILE, default_hints()
    hints.update(KNOWN_HINTS.get(pipeline_named(home), {}))  # pyright: ignore[reportCallIssue, reportArgumentType]
    if not path.exists():
        return hints
    try:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    return _checked(said, hints, str(path))


def _number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _range(value: Any) -> bool:
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(_number(v, -90, 90) for v in value)
    return pair and value[0] <= value[1]


_FITTING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "pixel_shuffle": (_count, "a whole number from 1"),
    "camera": (("none", "harmonics", "matrix").__contains__, '"none", "harmonics" or "matrix"'),
    "views": (_count, "a whole number from 1"),
    "control": (("depth", "normal").__contains__, '"depth" or "normal"'),
    "distilled_guidance": (lambda value: _number(value, 1, 100), "a number from 1 to 100"),
    "picture_elevation": (lambda value: _number(value, -90, 90), "a number of degrees from -90 to 90"),
    "picture_camera": (("distance", "elevation").__contains__, '"distance" or "elevation"'),
    "resolution": (_count, "a whole number from 1"),
    "field_of_view": (lambda value: _number(value, 1, 170), "a number of degrees from 1 to 170"),
    "distance": (lambda value: _number(value, 0.1, 100), "a number from 0.1 to 100"),
    "elevations": (_range, "two numbers of degrees from -90 to 90, the lower one first"),
    "words": (
        lambda value: isinstance(value, list | tuple) and all(isinstance(word, str) for word in value),
        "a list of words",
    ),
}
"""What each of the hints may be, and that in words."""


def _checked(said: Any, hints: Hints, where: str) -> Hints:
    if not isinstance(said, dict):
        raise ValueError(f'{where} holds no hints; it is to look like {{"resolution": 512}}')
    unknown = sorted(set(said) - set(hints))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; it may hold {', '.join(hints)}")
    if said.get("format", FORMAT) != FORMAT:
        raise ValueError(f"{where} has format {said['format']!r}; this version of Dreamkiln reads format {FORMAT}")
    for name, (fits, words) in _FITTING.items():
        if said.get(name) is not None and not fits(said[name]):
            raise ValueError(f"{where}: {name} is {words}, not {said[name]!r}")
    hints.update({name: value for name, value in said.items() if value is not None})  # pyright: ignore[reportCallIssue, reportArgumentType]
    hints["elevations"] = (float(hints["elevations"][0]), float(hints["elevations"][1]))
    hints["words"] = None if hints["words"] is None else tuple(hints["words"])
    return hints


def require(folder: Path, component: str) -> Path:
    """The folder of a component.

    Raises:
        MissingPriorError: it, or the whole prior, is not there.
    """
    if not folder.is_dir():
        refuse(folder, "there is no such folder")
    if not (folder / component).is_dir():
        refuse(folder, f"its {component}/ is missing")
    return folder / component


def refuse(folder: Path, problem: str, cause: Exception | None = None) -> NoReturn:
    """Say what is wrong with a prior's folder and what would help.

    Raises:
        MissingPriorError: always.
    """
    raise MissingPriorError(
        f"no prior can be loaded from {folder}: {problem}. Put a diffusers folder there (unet/, text_encoder/, "
        f"tokenizer/ and scheduler/, with vae/ for a latent prior; weights as safetensors), or name another one with "
        f"--prior PATH."
    ) from cause


def unreadable() -> tuple[type[Exception], ...]:
    """What diffusers and transformers raise for settings and weights that they cannot make a model of."""
    from safetensors import SafetensorError

    settings = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
    return (OSError, RuntimeError, ImportError, SafetensorError, *settings)


def in_short(problem: Exception) -> str:
    """What a library says of a problem, in a line: of torch's long lists the first entry."""
    if isinstance(problem, KeyError):
        return f"there is no {problem}"
    lines = [line.strip() for line in str(problem).strip().splitlines() if line.strip()]
    text = " ".join(lines[:2]) or type(problem).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."


def save_prior(
    folder: Path,
    unet: "UNet2DConditionModel",
    text_encoder: "CLIPTextModel",
    tokenizer: "CLIPTokenizer",
    scheduler: "DDPMScheduler",
    hints: dict,
    vae: "AutoencoderKL | None" = None,
    half: bool = True,
) -> None:
    """Write a prior's folder, replacing the one that may be there; a reader sees the old one or the new one, whole.

    Args:
        folder: where to.
        unet: the network; left as it is.
        text_encoder: its text encoder; left as it is.
        tokenizer: of the text encoder.
        scheduler: any scheduler of diffusers with the training's schedule and prediction type.
        hints: what ``dreamkiln.json`` is to say; see ``Hints``.
        vae: autoencoder of a latent prior.
        half: store weights in 16 bits.

    Raises:
        ValueError: hints that ``read_hints`` would refuse.
        OSError: the folder cannot be written.
    """
    _checked({"format": FORMAT, **hints}, default_hints(), "hints")
    models = {"unet": unet, "text_encoder": text_encoder} | ({} if vae is None else {"vae": vae})
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir(parents=True)
    try:
        for name, model in models.items():
            _storable(model, half).save_pretrained(partial / name, safe_serialization=True)  # pyright: ignore[reportCallIssue]
        tokenizer.save_pretrained(partial / "tokenizer")
        scheduler.save_pretrained(partial / "scheduler")
        _write_json(partial / "model_index.json", _index({**models, "tokenizer": tokenizer, "scheduler": scheduler}))
        _write_json(partial / HINTS_FILE, {"format": FORMAT, **hints})
        for weights in partial.rglob("*.safetensors"):  # which safetensors leaves to their owner alone
            weights.chmod((partial / HINTS_FILE).stat().st_mode)
        _flush(partial)
        _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _storable(model: nn.Module, half: bool) -> nn.Module:
    stored = copy.deepcopy(model).to("cpu", torch.float16 if half else torch.float32)
    return stored.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def _index(components: dict[str, object]) -> dict[str, object]:
    import diffusers

    index: dict[str, object] = {"_class_name": "DiffusionPipeline", "_diffusers_version": diffusers.__version__}
    for name, part in sorted(components.items()):
        index[name] = [type(part).__module__.split(".")[0], type(part).__name__]
    return index


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _swap(new: Path, folder: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    old = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.old"
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
