"""Curves of a run, drawn with Pillow: what its steps measured, a panel for each figure, one below the other."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.evaluate.plot import FAINT, FINE, HUES, INK, PAPER, RULE, Canvas

LABELS: dict[str, str] = {
    "value": "loss: half the squared gradient, mean over views",
    "gradient_norm": "norm of the gradient, mean over views",
    "opacity": "opacity, mean over pixels",
    "timestep": "timestep, mean over views",
    "critic_loss": "squared error of the critic, per element",
    "prior_loss": "squared error of the prior that learns, per element",
    "discriminator_loss": "loss of the discriminator, nats",
    "skipped": "steps that came to nothing",
}
"""Panels in their order, and what their figures are; others follow under their own names."""
_LEFT, _RIGHT, _TOP, _BOTTOM, _PANEL, _GAP, _WIDTH = 84, 32, 104, 58, 128, 44, 960
_MOST = 400
"""Points of a curve: about as many as can be told apart."""
_CALM = 25
"""Points that a calm curve averages over."""

Series = Mapping[str, Sequence[tuple[int, float]]]


def history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What the steps in a run's record measured, by name: step, counted over all stages, and value.

    Steps that were taken again count as they were taken last; what is damaged or no number is left out.
    """
    found: dict[str, dict[int, float]] = {}
    for line in _lines(folder / "events.jsonl"):
        if line.get("event") == "Stepped":
            for name, value in line["diagnostics"].items():
                found.setdefault(name, {})[line["done"]] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}


def _lines(path: Path) -> list[dict]:
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def curves(title: str, series: Series, total: int, ends: Sequence[int] = ()) -> bytes:
    """A PNG of curves over the steps of a run.

    Args:
        title: above all; cut if it is too long.
        series: step and value, by the name of the figure; those without two steps are left out.
        total: steps of the run.
        ends: steps at which a stage ends, marked in every panel.

    Raises:
        ValueError: there is no figure of two steps.
    """
    from PIL import Image, ImageDraw

    series = {name: [point for point in points if math.isfinite(point[1])] for name, points in series.items()}
    names = [name for name in (*LABELS, *sorted(set(series) - set(LABELS))) if len(series.get(name, ())) > 1]
    names = [name for name in names if name != "skipped" or any(value for _, value in series[name])]
    if not names:
        raise ValueError("curves need a figure of two steps or more")
    height = _TOP + len(names) * (_PANEL + _GAP) - _GAP + _BOTTOM
    image = Image.new("RGB", (_WIDTH * FINE, height * FINE), PAPER)
    canvas = Canvas(ImageDraw.Draw(image))
    canvas.text(_LEFT, 20, title if len(title) < 80 else f"{title[:78]}...", 20)
    canvas.text(_LEFT, 48, "faint: as measured; full: averaged; dashed upright: a stage ends", 12, FAINT)
    for i, name in enumerate(names):
        panel = _Panel.around(_TOP + i * (_PANEL + _GAP), series[name], total)
        _draw(canvas, panel, LABELS.get(name, name.replace("_", " ")), series[name], HUES[i % len(HUES)], ends)
    _number_steps(canvas, panel)  # pyright: ignore[reportPossiblyUnboundVariable]
    content = io.BytesIO()
    image.resize((_WIDTH, height), Image.Resampling.BOX).save(content, "png", optimize=False)
    return content.getvalue()


@dataclass(frozen=True)
class _Panel:
    """Where a number lies on the picture."""

    top: float
    ticks: list[float]
    steps: list[float]

    @classmethod
    def around(cls, top: float, points: Sequence[tuple[int, float]], total: int) -> "_Panel":
        values = [value for _, value in points]
        return cls(top, round_ticks(min(values), max(values), 3), round_ticks(0, max(total, points[-1][0]), 8))

    def at(self, step: float, value: float) -> tuple[float, float]:
        across = step / self.steps[-1]
        up = (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), self.top + (1 - up) * _PANEL


def round_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers, evenly spaced, about as many as asked for, the first and the last around [low, high]."""
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    rough = (high - low) / about
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _draw(
    canvas: Canvas,
    panel: _Panel,
    label: str,
    points: Sequence[tuple[int, float]],
    hue: tuple[int, int, int],
    ends: Sequence[int],
) -> None:
    canvas.text(_LEFT, panel.top - 20, label, 13, INK)
    for tick in panel.ticks:
        _, y = panel.at(0, tick)
        canvas.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], RULE, width=1)
        canvas.text(_LEFT - 38, y - 8, f"{tick:.4g}", 12, FAINT, centred=True)
    for end in ends:
        canvas.line([panel.at(end, panel.ticks[0]), panel.at(end, panel.ticks[-1])], FAINT, (4, 4), 1)
    some = thinned(points)
    light = (hue[0] // 3 + 170, hue[1] // 3 + 170, hue[2] // 3 + 170)
    canvas.line([panel.at(*point) for point in some], light, width=1)
    canvas.line([panel.at(*point) for point in calmed(some)], hue, width=2)


def _number_steps(canvas: Canvas, panel: _Panel) -> None:
    for step in panel.steps:
        x, bottom = panel.at(step, panel.ticks[0])
        canvas.line([(x, bottom), (x, bottom + 5)], FAINT, width=1)
        canvas.text(x, bottom + 9, f"{step:,.0f}", 12, FAINT, centred=True)
    canvas.text(
        (_LEFT + _WIDTH - _RIGHT) / 2, panel.top + _PANEL + 30, "steps of the optimiser", 13, FAINT, centred=True
    )


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most ``_MOST`` points, each the mean of neighbours."""
    size = math.ceil(len(points) / _MOST)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def calmed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, each the mean of the neighbours to both sides, fewer near the ends."""
    calm = []
    for i, (x, _) in enumerate(points):
        reach = min(i, len(points) - 1 - i, _CALM // 2, len(points) // 8)
        near = points[i - reach : i + reach + 1]
        calm.append((x, sum(y for _, y in near) / len(near)))
    return calm
