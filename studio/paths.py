"""Where things lie: the assets that ship with the studio, and the folder of a prior by name or path."""

import contextlib
import difflib
from pathlib import Path

from studio.presets import PRESETS, preset_of, what_to_do

BUNDLED_PRIOR = "toybox-64"
"""Name of the prior that ships with the studio."""

BUNDLED_NAMES = {BUNDLED_PRIOR: BUNDLED_PRIOR, "toybox": BUNDLED_PRIOR}
"""All names of bundled priors, and what they stand for."""

_NETWORKS = ("unet", "transformer")  # what diffusers calls the network of a pipeline


class MissingAsset(FileNotFoundError):
    """Something that ships with the studio is not where it belongs."""


class UnknownPrior(ValueError):
    """Neither the name of a bundled prior nor a folder that holds one."""


def assets_folder() -> Path:
    """The folder of the assets: inside the package when installed, beside it in a checkout.

    Raises:
        MissingAsset: there is neither.
    """
    package = Path(__file__).resolve().parent
    places = (package / "assets", package.parent / "assets")
    for place in places:
        if place.is_dir():
            return place
    raise MissingAsset(f"no assets in {places[0]} or {places[1]}; install dreamkiln again")


def bundled_prior() -> Path:
    """The folder of the prior that ships with the studio.

    Raises:
        MissingAsset: it is not among the assets.
    """
    folder = assets_folder() / BUNDLED_PRIOR
    if not folder.is_dir():
        raise MissingAsset(f"the bundled prior is missing: no folder {folder}; install dreamkiln again")
    return folder


def resolve_prior(name_or_path: str | Path) -> Path:
    """The folder of a prior, or its one file: what is at that path, else the bundled prior or preset of that name.

    Raises:
        UnknownPrior: it is none of these, the preset is not on this machine, or the folder holds no model in diffusers'
            layout.
        MissingAsset: the bundled prior is meant, and missing.
    """
    folder = Path(name_or_path)
    with contextlib.suppress(RuntimeError):  # ~somebody who has no home
        folder = folder.expanduser()
    if folder.is_dir() and holds_prior(folder):
        return folder.resolve()
    if folder.is_file() and folder.suffix == ".safetensors":
        return folder.absolute()  # a link is left one: the configuration lies beside it, not where it leads
    name = str(name_or_path)
    if name in BUNDLED_NAMES:
        return bundled_prior()
    if (preset := preset_of(name)) is not None:
        if holds_prior(preset.folder):
            return preset.folder.resolve()
        raise UnknownPrior(what_to_do(preset))
    if folder.is_file():
        from guidance.prior_folder import CONVERT  # which imports torch

        raise UnknownPrior(
            f"{folder} is no prior: a single file must be *.safetensors; others could run code. Where you trust it, "
            f"this makes one of it: {CONVERT}"
        )
    if folder.is_dir() and (folder / "snapshots").is_dir():
        raise UnknownPrior(f"{folder} is of the hub's cache; the prior is one of the folders in {folder / 'snapshots'}")
    if folder.is_dir():
        raise UnknownPrior(
            f"{folder} holds no prior: expected diffusers' layout, that is model_index.json or a folder "
            + " or ".join(_NETWORKS)
        )
    known = [*BUNDLED_NAMES, *(preset.name for preset in PRESETS)]
    whole = ", ".join(preset.name for preset in PRESETS if preset.whole)
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    raise UnknownPrior(
        f"no prior {name!r}{guess} Bundled is {BUNDLED_PRIOR!r}; known by name are also "
        f"{whole}; any other is a folder in diffusers' layout, or one "
        "safetensors file, given by its path. Nothing is downloaded unless you ask for it."
    )


def holds_prior(folder: Path) -> bool:
    """Whether ``folder`` looks like a model in diffusers' layout."""
    return (folder / "model_index.json").is_file() or any((folder / n / "config.json").is_file() for n in _NETWORKS)
