"""Quality against compute: a line a contender, drawn with Pillow, each named where it ends."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studio.evaluate.sheet import webp

if TYPE_CHECKING:
    from PIL import ImageDraw

FINE = 2
"""Drawn at this many times the size and reduced, which makes smooth lines."""
_WIDTH, _HEIGHT = 1120, 660
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 190, 84, 66
INK, FAINT, RULE, PAPER = (35, 35, 40), (115, 115, 122), (228, 228, 232), (255, 255, 255)
HUES = (
    *((31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14), (148, 103, 189), (23, 170, 190)),
    *((140, 86, 75), (227, 89, 168), (110, 110, 110), (168, 160, 20)),
)
_DASHES = ((), (12, 6), (3, 4))
_LABEL = 19
"""Pixels between names."""


@dataclass(frozen=True)
class Line:
    """One contender: its name, and its quality by evaluations."""

    label: str
    points: Sequence[tuple[float, float]]


def plot(title: str, subtitle: str, lines: Sequence[Line]) -> bytes:
    """A WebP of quality against evaluations of the prior, these on a scale of equal ratios.

    Raises:
        ValueError: there is no line, or one without points.
    """
    from PIL import Image, ImageDraw

    if not lines or not all(line.points for line in lines):
        raise ValueError("a plot needs lines, and every line points")
    image = Image.new("RGB", (_WIDTH * FINE, _HEIGHT * FINE), PAPER)
    canvas, axes = Canvas(ImageDraw.Draw(image)), _Axes.around(lines)
    canvas.text(_LEFT, 22, title, 22)
    canvas.text(_LEFT, 52, subtitle, 13, FAINT)
    _grid(canvas, axes)
    styles = [(HUES[i % len(HUES)], _DASHES[i // len(HUES) % len(_DASHES)]) for i in range(len(lines))]
    for line, (hue, dash) in zip(lines, styles, strict=True):
        canvas.line([axes.at(x, y) for x, y in line.points], hue, dash)
    ends = [axes.at(*line.points[-1]) for line in lines]
    for line, (hue, _), (x, y), level in zip(lines, styles, ends, _apart([y for _, y in ends]), strict=True):
        name = _WIDTH - _RIGHT + 46
        canvas.line([(x, y), (_WIDTH - _RIGHT + 8, y), (name - 24, level), (name - 5, level)], hue, width=1)
        canvas.text(name, level - 8, f"{line.label}  {line.points[-1][1]:.2f}", 13, hue)
    return webp(image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class _Axes:
    """Where a number lies on the picture."""

    low: float
    high: float
    floor: float
    ceiling: float

    @classmethod
    def around(cls, lines: Sequence[Line]) -> "_Axes":
        xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
        floor, ceiling = math.floor(min(ys) * 10 - 1e-9) / 10, math.ceil(max(ys) * 10 + 1e-9) / 10
        low, high = max(min(xs), 1), max(*xs, 2)
        return cls(low, high if high > low else 2 * low, floor, ceiling if ceiling > floor else floor + 0.1)

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = math.log(max(x, self.low) / self.low) / math.log(self.high / self.low)
        up = (y - self.floor) / (self.ceiling - self.floor)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    @property
    def ticks(self) -> list[int]:
        """1, 2, 5, 10, 20, ... as far as they lie on the picture."""
        return [n * 10**k for k in range(9) for n in (1, 2, 5) if self.low <= n * 10**k <= self.high * 1.001]


def _grid(canvas: "Canvas", axes: _Axes) -> None:
    for i in range(round((axes.ceiling - axes.floor) * 10) + 1):
        level = axes.floor + i / 10
        _, y = axes.at(axes.low, level)
        canvas.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], RULE, width=1)
        canvas.text(_LEFT - 36, y - 8, f"{level:.1f}", 13, FAINT)
    for tick in axes.ticks:
        x, bottom = axes.at(tick, axes.floor)
        canvas.line([(x, bottom), (x, bottom + 5)], FAINT, width=1)
        canvas.text(x, bottom + 10, f"{tick:,}", 13, FAINT, centred=True)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    canvas.text(middle, _HEIGHT - 30, "evaluations of the prior spent", 14, FAINT, centred=True)


@dataclass(frozen=True)
class Canvas:
    """A drawing on a picture of ``FINE`` times the size, in pixels of the finished one."""

    draw: "ImageDraw.ImageDraw"

    def line(
        self,
        points: Sequence[tuple[float, float]],
        hue: tuple[int, int, int],
        dash: Sequence[int] = (),
        width: float = 2.4,
    ) -> None:
        """A line through points; ``dash``: lengths of its strokes and of the gaps between them."""
        parts = _strokes(points, dash) if dash else [list(points)]
        for part in parts:
            fine = [(x * FINE, y * FINE) for x, y in part]
            self.draw.line(fine, fill=hue, width=round(width * FINE), joint="curve")

    def text(
        self, x: float, y: float, words: str, size: int, ink: tuple[int, int, int] = INK, centred: bool = False
    ) -> None:
        """Words whose top left corner, or whose middle of the upper edge, is at (x, y)."""
        from PIL import ImageFont

        font = ImageFont.load_default(size * FINE)
        left = x * FINE - (self.draw.textlength(words, font=font) / 2 if centred else 0)
        self.draw.text((left, y * FINE), words, fill=ink, font=font)


def _strokes(points: Sequence[tuple[float, float]], dash: Sequence[int]) -> list[list[tuple[float, float]]]:
    """A line cut into strokes of ``dash[0]`` pixels with gaps of ``dash[1]``, counted on around its corners."""
    strokes: list[list[tuple[float, float]]] = []
    stroke, left, drawn = [points[0]], float(dash[0]), True
    for start, end in itertools.pairwise(points):
        length, done = math.dist(start, end), 0.0
        while length - done > left:
            done += left
            share = done / length
            corner = start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share
            if drawn:
                strokes.append([*stroke, corner])
            stroke, drawn = [corner], not drawn
            left = float(dash[0] if drawn else dash[1])
        left -= length - done
        stroke.append(end)
    return [*strokes, stroke] if drawn and len(stroke) > 1 else strokes


def _apart(levels: Sequence[float]) -> list[float]:
    """Heights near ``levels``, in the same order, so far apart that names do not cover each other."""
    order = sorted(range(len(levels)), key=lambda i: levels[i])
    moved = [levels[i] for i in order]
    for _ in range(500):  # neighbours push each other until all have room
        for i in range(len(moved) - 1):
            lacking = _LABEL - (moved[i + 1] - moved[i])
            if lacking > 0:
                moved[i], moved[i + 1] = moved[i] - lacking / 2, moved[i + 1] + lacking / 2
    lowest, highest = _TOP + 8, _HEIGHT - 24
    shift = max(0.0, lowest - moved[0]) - max(0.0, moved[-1] - highest)
    found = dict(zip(order, [level + shift for level in moved], strict=True))
    return [found[i] for i in range(len(levels))]
