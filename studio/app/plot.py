"""A line over steps as SVG, in the page's own colours, so that it suits light and dark."""

import math
from collections.abc import Sequence

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 560, 170, 52, 10, 24


def loss_plot(points: Sequence[tuple[int, float]], steps: int) -> str:
    """The losses of a run over its steps, logarithmic where they span more than a decade; "" for fewer than two."""
    if len(points) < 2:
        return ""
    values = [value for _, value in points]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > 10
    scaled = [math.log10(v) for v in values] if logarithmic else values
    bottom, top = _padded(min(scaled), max(scaled))
    right = max(steps, points[-1][0], 1)

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * step / right

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (top - value) / (top - bottom)

    line = " ".join(f"{x(step):.1f},{y(value):.1f}" for (step, _), value in zip(points, scaled, strict=True))
    marks = [bottom + (top - bottom) * share for share in (0.08, 0.5, 0.92)]
    grid = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y(m):.1f}" y2="{y(m):.1f}" class="dk-grid"/>'
        f'<text x="{_LEFT - 6}" y="{y(m) + 3.5:.1f}" text-anchor="end">{_short(10**m if logarithmic else m)}</text>'
        for m in marks
    )
    ends = (
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">0</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 6}" text-anchor="end">{right:,} steps</text>'
    )
    scale = ", logarithmic" if logarithmic else ""
    return (
        f'<figure class="dk-plot"><figcaption>Loss{scale}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Loss over steps, now {_short(values[-1])}">'
        f'{grid}{ends}<polyline points="{line}"/></svg></figure>'
    )


def _padded(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.06 or max(abs(high) * 0.1, 1e-6)
    return low - room, high + room


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
