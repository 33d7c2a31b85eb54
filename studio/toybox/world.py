"""The objects of the toybox and the captions that name them.

Every caption keeps its geometry reachable: ``Toy`` is at once what ``caption`` describes, what ``parts`` builds and
what the benchmark compares a distilled object with.
"""

import math
import random
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from studio.toybox.shapes import (
    Distance,
    both,
    box,
    cone,
    cylinder,
    ellipsoid,
    halfspace,
    sphere,
    torus,
    union,
    without,
)

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.10),
    "green": (0.15, 0.60, 0.20),
    "blue": (0.12, 0.25, 0.85),
    "yellow": (0.95, 0.85, 0.10),
    "orange": (0.95, 0.50, 0.10),
    "purple": (0.50, 0.15, 0.65),
    "white": (0.92, 0.92, 0.92),
    "black": (0.08, 0.08, 0.08),
    "pink": (0.95, 0.55, 0.70),
    "brown": (0.45, 0.27, 0.13),
}
"""sRGB of each colour word."""

FIRST, SECOND = "first", "second"
"""Paints that a caption chooses; every other paint is a colour word of its own."""


@dataclass(frozen=True)
class Part:
    """One painted solid: ``paint`` is ``first``, ``second`` or a colour word."""

    distance: Distance
    paint: str


def _legs(x: float, z: float, top: float, bottom: float, thickness: float) -> Distance:
    middle, half = (top + bottom) / 2, (top - bottom) / 2
    corners = [(sx * x, middle, sz * z) for sx in (-1, 1) for sz in (-1, 1)]
    return union(*(box(c, (thickness, half, thickness)) for c in corners))


def _wheels(x: float, z: float) -> Distance:
    return union(*(cylinder((sx * x, -0.25, sz * z), 0.17, 0.07, "x") for sx in (-1, 1) for sz in (-1, 1)))


def _gable(half_x: float, half_z: float, eaves: float, ridge: float) -> Distance:
    """A roof whose ridge runs along x."""
    run, rise = half_z, ridge - eaves
    length = math.hypot(run, rise)
    ny, nz = run / length, rise / length
    return both(
        halfspace((0, ny, nz), ridge * ny),
        halfspace((0, ny, -nz), ridge * ny),
        halfspace((0, -1, 0), -eaves),
        halfspace((1, 0, 0), half_x),
        halfspace((-1, 0, 0), half_x),
    )


def _parts() -> dict[str, tuple[Part, ...]]:
    mug_body = without(cylinder((-0.1, 0, 0), 0.40, 0.45), cylinder((-0.1, 0.12, 0), 0.33, 0.45))
    mug_handle = without(torus((0.30, 0, 0), 0.25, 0.065, "z"), cylinder((-0.1, 0, 0), 0.36, 0.6))
    fins = union(box((0, -0.47, 0), (0.42, 0.16, 0.035)), box((0, -0.47, 0), (0.035, 0.16, 0.42)))
    hat = union(cylinder((0, 0.62, 0), 0.24, 0.03), cylinder((0, 0.73, 0), 0.15, 0.12))
    return {
        "sphere": (Part(sphere((0, 0, 0), 0.60), FIRST),),
        "cube": (Part(box((0, 0, 0), (0.45, 0.45, 0.45)), FIRST),),
        "cylinder": (Part(cylinder((0, 0, 0), 0.40, 0.55), FIRST),),
        "cone": (Part(cone((0, -0.55, 0), 0.55, 1.15), FIRST),),
        "donut": (
            Part(torus((0, -0.02, 0), 0.45, 0.20), "brown"),
            Part(both(torus((0, 0, 0), 0.45, 0.225), halfspace((0, -1, 0), -0.02)), FIRST),
        ),
        "snowman": (
            Part(union(sphere((0, -0.43, 0), 0.38), sphere((0, 0.08, 0), 0.28), sphere((0, 0.45, 0), 0.20)), "white"),
            Part(hat, FIRST),
            Part(ellipsoid((0, 0.45, 0.24), (0.045, 0.045, 0.13)), "orange"),
        ),
        "mushroom": (
            Part(cylinder((0, -0.35, 0), 0.17, 0.34), "white"),
            Part(both(ellipsoid((0, 0.0, 0), (0.62, 0.48, 0.62)), halfspace((0, -1, 0), 0.03)), FIRST),
        ),
        "table": (Part(union(box((0, 0.28, 0), (0.65, 0.055, 0.45)), _legs(0.55, 0.36, 0.28, -0.50, 0.055)), FIRST),),
        "chair": (
            Part(
                union(
                    box((0, -0.06, 0), (0.34, 0.05, 0.34)),
                    box((0, 0.32, -0.29), (0.34, 0.40, 0.05)),
                    _legs(0.28, 0.28, -0.06, -0.66, 0.055),
                ),
                FIRST,
            ),
        ),
        "tree": (
            Part(cylinder((0, -0.55, 0), 0.11, 0.22), "brown"),
            Part(union(cone((0, -0.38, 0), 0.52, 0.68), cone((0, 0.05, 0), 0.40, 0.70)), FIRST),
        ),
        "rocket": (
            Part(cylinder((0, -0.12, 0), 0.23, 0.45), FIRST),
            Part(union(cone((0, 0.33, 0), 0.23, 0.45), fins), SECOND),
        ),
        "house": (
            Part(box((0, -0.25, 0), (0.50, 0.35, 0.40)), FIRST),
            Part(_gable(0.57, 0.50, 0.08, 0.55), SECOND),
            Part(box((0, -0.38, 0.40), (0.10, 0.20, 0.025)), "brown"),
        ),
        "mug": (Part(union(mug_body, mug_handle), FIRST),),
        "car": (
            Part(
                union(
                    box((0, -0.10, 0), (0.26, 0.10, 0.61), 0.05),
                    box((0, 0.12, -0.08), (0.22, 0.10, 0.29), 0.05),
                ),
                FIRST,
            ),
            Part(_wheels(0.30, 0.40), "black"),
            Part(box((0, 0.13, 0.262), (0.21, 0.075, 0.012)), "white"),
        ),
    }


PARTS: dict[str, tuple[Part, ...]] = _parts()
KINDS: tuple[str, ...] = tuple(PARTS)
SYNONYMS: dict[str, str] = {"ball": "sphere", "box": "cube", "doughnut": "donut", "cup": "mug"}
SECOND_WORD: dict[str, str] = {"rocket": "nose", "house": "roof"}
"""Kinds with a second colour of choice, and the word that names its place."""
DEFAULT_SECOND: dict[str, str] = {"rocket": "white", "house": "brown"}
TRIM: dict[str, str] = {"snowman": "hat", "donut": "icing"}
"""Kinds whose chosen colour is a trim: 'a donut with pink icing'."""
VIEW_WORDS: tuple[str, ...] = ("front", "side", "back", "overhead")


def view_word(azimuth: float, elevation: float) -> str:
    """Which of ``VIEW_WORDS`` a camera at these angles (radians) sees, at the boundaries DreamFusion uses."""
    if elevation > math.radians(60):
        return "overhead"
    turned = abs(math.atan2(math.sin(azimuth), math.cos(azimuth)))
    return "front" if turned < math.radians(45) else "back" if turned > math.radians(135) else "side"


@dataclass(frozen=True)
class Toy:
    """One object: a kind, its colour, and the second colour of the kinds that have one."""

    kind: str
    first: str
    second: str | None = None

    @property
    def caption(self) -> str:
        """The plainest words for this object."""
        if self.kind in TRIM:
            article = "" if self.kind == "donut" else "a "
            return f"a {self.kind} with {article}{self.first} {TRIM[self.kind]}"
        plain = f"{_article(self.first)} {self.first} {self.kind}"
        return plain if self.second is None else f"{plain} with a {self.second} {SECOND_WORD[self.kind]}"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The painted solids."""
        return PARTS[self.kind]

    def paint(self, name: str) -> tuple[float, float, float]:
        """sRGB of a part's paint on this object."""
        second = self.second or DEFAULT_SECOND.get(self.kind, self.first)
        return COLOURS[{FIRST: self.first, SECOND: second}.get(name, name)]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def distances(kind: str, points: Float[Tensor, "n 3"]) -> Float[Tensor, "parts n"]:
    """Signed distance of every part at each point."""
    return torch.stack([part.distance(points) for part in PARTS[kind]])


_SHARE = {"sphere": 1, "cube": 1, "cylinder": 1, "cone": 1, "mushroom": 2, "table": 2, "chair": 2, "tree": 2}
_WEIGHTS = [_SHARE.get(kind, 4) for kind in KINDS]


def random_toy(rng: random.Random) -> Toy:
    """A kind and its colours; most of the two-coloured kinds name both.

    Colours are equally likely. What takes longest to learn comes most often: kinds of two colours, and those with a
    handle, wheels or a hole, four times as often as primitives and twice as often as the others.
    """
    kind = rng.choices(KINDS, _WEIGHTS)[0]
    first, second = rng.choice(list(COLOURS)), rng.choice(list(COLOURS))
    return Toy(kind, first, second if kind in SECOND_WORD and rng.random() < 0.7 else None)


def phrase(toy: Toy, azimuth: float, elevation: float, rng: random.Random) -> str:
    """A caption as people might type it: synonyms, a dropped article, sometimes the direction of the view."""
    text = toy.caption
    if toy.kind in TRIM and rng.random() < 0.3:
        text = f"{_article(toy.first)} {toy.first} {toy.kind}"
    for word, kind in SYNONYMS.items():
        if kind == toy.kind and rng.random() < 0.2:
            text = text.replace(kind, word)
    if rng.random() < 0.15:
        text = text.removeprefix("an ").removeprefix("a ")
    return f"{text}, {view_word(azimuth, elevation)} view" if rng.random() < 0.25 else text
