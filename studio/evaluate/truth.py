"""The truth of a prompt: the toy that it names, and how like it a scene looks, best over turns about the vertical."""

import dataclasses
import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from representations.cameras import Cameras, orbit
from representations.scene import Scene
from studio.toybox.views import DISTANCE, FIELD_OF_VIEW, Layers, trace
from studio.toybox.world import COLOURS, KINDS, SECOND_WORD, SYNONYMS, TRIM, Toy

AZIMUTHS: tuple[float, ...] = tuple(range(0, 360, 60))
ELEVATIONS: tuple[float, ...] = (10, 40)
SIZE = 64
"""Pixels a side of the views that are compared."""
TURN = 15
"""Degrees between the turns that are tried."""
_SOLID = 0.5
_KNOWN: dict[str, str] = {kind: kind for kind in KINDS} | SYNONYMS


@dataclass(frozen=True)
class Likeness:
    """How like the truth a scene looks."""

    iou: float
    """Intersection over union of the silhouettes (opacity above one half), mean over the views."""
    colour_error: float
    """Mean absolute difference in sRGB, in [0, 1], of the pictures over white: over the three channels and over all
    pixels, of all views together, that lie in the union of both silhouettes. Shading counts, as the prior's pictures
    are shaded. A pixel that only one of the two covers counts with what is seen there, which is mostly white."""
    yaw: float
    """Degrees by which the scene is turned against the truth."""

    solid: bool = True
    """Whether anything of the scene was seen at all."""

    @property
    def quality(self) -> float:
        """One number for both: ``iou (1 - colour_error)``, in [0, 1]."""
        return self.iou * (1 - self.colour_error)


# The prompt -----------------------------------------------------------------------------------------------------------


def toy_of(prompt: str) -> Toy:
    """The toy that a caption names; articles may be left out, and synonyms are understood.

    Raises:
        ValueError: the prompt is no caption of the toybox; the message says what would be.
    """
    words = [word for word in re.findall(r"[^\W_]+", prompt.lower()) if word not in ("a", "an")]
    plain: list[str] = [_KNOWN[word] if word in _KNOWN else word for word in words]
    match plain:
        case [first, kind] if first in COLOURS and kind in KINDS:
            return Toy(kind, first)
        case [first, kind, "with", second, place] if (
            first in COLOURS and second in COLOURS and SECOND_WORD.get(kind) == place
        ):
            return Toy(kind, first, second)
        case [kind, "with", first, place] if first in COLOURS and TRIM.get(kind) == place:
            return Toy(kind, first)
    raise ValueError(
        f"{prompt!r} names no object of the toybox, so there is no truth to compare with; {_advice(words)}"
    )


def recoloured(toy: Toy) -> Toy:
    """The same object in another colour: what an edit is asked for."""
    return dataclasses.replace(toy, first=_OTHER[toy.first])


_OTHER = {
    "red": "blue",
    "green": "red",
    "blue": "yellow",
    "yellow": "purple",
    "orange": "blue",
    "purple": "green",
    "white": "pink",
    "black": "orange",
    "pink": "green",
    "brown": "white",
}


def _advice(words: Sequence[str]) -> str:
    """What to write instead, after the first word that is not known."""
    places = [*SECOND_WORD.values(), *TRIM.values()]
    known = [*COLOURS, *_KNOWN, *places, "with"]
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, 1)
            return f"did you mean {near[0]!r} for {word!r}?" if near else f"it does not know {word!r}. {_FORMS}"
    return _FORMS


_FORMS = (
    'Write a colour and a kind, as in "a red mushroom", "a white house with a red roof", "a donut with pink icing". '
    f"Colours: {', '.join(COLOURS)}. Kinds: {', '.join(KINDS)}."
)


# Pictures -------------------------------------------------------------------------------------------------------------


def cameras(azimuths: Sequence[float], elevations: Sequence[float], size: int) -> Cameras:
    """Cameras where the toybox has its own, at these angles in degrees."""
    return orbit(azimuths, elevations, size, DISTANCE, FIELD_OF_VIEW)


def pictures(
    toy: Toy, azimuths: Sequence[float], elevations: Sequence[float], size: int
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b h w"]]:
    """The toy itself over white, sRGB in [0, 1], and its coverage of each pixel."""
    layers = [_traced(toy.kind, a % 360, e, size) for a, e in zip(azimuths, elevations, strict=True)]
    return torch.stack([one.painted(toy, torch.ones(3)) for one in layers]), torch.stack([one.alpha for one in layers])


@functools.lru_cache(maxsize=2048)
def _traced(kind: str, azimuth: float, elevation: float, size: int) -> Layers:
    return trace(kind, cameras([azimuth], [elevation], size).pose[0], size)


# Comparison -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def likeness(scene: Scene, toy: Toy, device: torch.device | str = "cpu") -> Likeness:
    """Compare a scene with a toy from ``AZIMUTHS`` at each of ``ELEVATIONS``, over white.

    The toy is tried in turns of ``TURN`` degrees about the vertical, with its light, and the turn of the highest
    ``quality`` counts: whether a method finds the front of an object is another question.

    Raises:
        ValueError: the scene's pictures hold what is no number.
    """
    angles = [(a, e) for a in AZIMUTHS for e in ELEVATIONS]
    rgb, solid = seen(scene, [a for a, _ in angles], [e for _, e in angles], SIZE, device)
    return max(
        (_compared(rgb, solid, toy, angles, yaw) for yaw in range(0, 360, TURN)), key=lambda found: found.quality
    )


def seen(
    scene: Scene, azimuths: Sequence[float], elevations: Sequence[float], size: int, device: torch.device | str
) -> tuple[Float[Tensor, "b 3 h w"], Bool[Tensor, "b h w"]]:
    """A scene over white, sRGB in [0, 1], and its silhouettes, on the CPU."""
    white = torch.ones(len(azimuths), 3, device=device)
    out = scene.render(cameras(azimuths, elevations, size).to(device), white)
    return out.rgb.clamp(0, 1).cpu(), (out.alpha[:, 0] > _SOLID).cpu()


def _compared(rgb: Tensor, solid: Tensor, toy: Toy, angles: Sequence[tuple[float, float]], yaw: float) -> Likeness:
    true_rgb, cover = pictures(toy, [a - yaw for a, _ in angles], [e for _, e in angles], SIZE)
    true_solid = cover > _SOLID
    union, both = solid | true_solid, solid & true_solid
    difference = (rgb - true_rgb).abs().mean(1)
    iou = (both.sum((1, 2)) / union.sum((1, 2)).clamp_min(1)).mean()
    return Likeness(iou.item(), difference[union].mean().item(), yaw, bool(solid.any()))
