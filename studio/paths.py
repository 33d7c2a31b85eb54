"""Where things lie: the assets that ship with the studio, and the folder of a prior by name or path."""

import contextlib
import difflib
from pathlib import Path

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
    """The folder of a prior: a folder at that path if there is one, else the bundled prior of that name.

    Raises:
        UnknownPrior: it is neither, or the folder holds no model in diffusers' layout.
        MissingAsset: the bundled prior is meant, and missing.
    """
    folder = Path(name_or_path)
    with contextlib.suppress(RuntimeError):  # ~somebody who has no home
        folder = folder.expanduser()
    if folder.is_dir() and holds_prior(folder):
        return folder.resolve()
    name = str(name_or_path)
    if name in BUNDLED_NAMES:
        return bundled_prior()
    if folder.is_dir():
        raise UnknownPrior(
            f"{folder} holds no prior: expected diffusers' layout, that is model_index.json or a folder "
            + " or ".join(_NETWORKS)
        )
    near = difflib.get_close_matches(name, BUNDLED_NAMES, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    raise UnknownPrior(
        f"no prior {name!r}{guess} Bundled is {BUNDLED_PRIOR!r}; any other is a folder in diffusers' layout, given by "
        "its path. Nothing is downloaded, so fetch the model first."
    )


def holds_prior(folder: Path) -> bool:
    """Whether ``folder`` looks like a model in diffusers' layout."""
    return (folder / "model_index.json").is_file() or any((folder / n / "config.json").is_file() for n in _NETWORKS)
