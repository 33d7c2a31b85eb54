"""The results side by side: a column a prompt, a row a contender, the truth on top."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio.evaluate.trial import STRIP_SIZE

if TYPE_CHECKING:
    from PIL.Image import Image

VIEWS: tuple[int, ...] = (0, 1, 3, 6)
"""Which of a strip's pictures are shown: front, a little to the right, from behind, and the left side."""
MOST_PROMPTS = 4
_RESULT, _TRUTH, _SOURCE = range(3)
"""Lines of a run's pictures."""
_CELL, _GAP, _GROUP, _MARGIN, _LABELS, _HEAD = 84, 2, 18, 24, 170, 76
_INK, _FAINT, _RULE, _PAPER = (35, 35, 40), (125, 125, 132), (225, 225, 230), (255, 255, 255)


@dataclass(frozen=True)
class SheetRow:
    """A contender: its name, a word on it, and the file of pictures for each prompt, where there is one."""

    label: str
    note: str
    strips: Sequence[Path | None]


def sheet(title: str, prompts: Sequence[str], rows: Sequence[SheetRow], edits: bool = False) -> bytes:
    """A WebP of what came of every prompt (the first ``MOST_PROMPTS``) under every contender, with the truth on top.

    Args:
        title: above all.
        prompts: heads of the columns.
        rows: the contenders, the best first.
        edits: show also what they began with.
    """
    from PIL import Image, ImageDraw

    prompts = prompts[:MOST_PROMPTS]
    group = len(VIEWS) * (_CELL + _GAP) + _GROUP
    width = 2 * _MARGIN + _LABELS + len(prompts) * group - _GROUP
    given = [
        SheetRow("truth", "the toybox's own", _first(rows)),
        *([SheetRow("source", "as it was", _first(rows))] * edits),
    ]
    lines = [*zip(given, (_TRUTH, _SOURCE), strict=False), *((row, _RESULT) for row in rows)]
    image = Image.new("RGB", (width, _MARGIN + _HEAD + len(lines) * (_CELL + _GAP) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(image)
    _write(draw, (_MARGIN, _MARGIN), title, 20)
    for i, prompt in enumerate(prompts):
        _write(draw, (_MARGIN + _LABELS + i * group, _MARGIN + 44), prompt, 15)
    for i, (row, place) in enumerate(lines):
        y = _MARGIN + _HEAD + i * (_CELL + _GAP) + (6 if i >= len(given) else 0)
        _write(draw, (_MARGIN, y + 24), row.label, 16)
        _write(draw, (_MARGIN, y + 46), row.note, 12, _FAINT)
        for j, strip in enumerate(row.strips[: len(prompts)]):
            for k, cell in enumerate(_cells(strip, place) if strip is not None else []):
                image.paste(cell, (_MARGIN + _LABELS + j * group + k * (_CELL + _GAP), y))
    rule = _MARGIN + _HEAD + len(given) * (_CELL + _GAP) + 2
    draw.line((_MARGIN, rule, width - _MARGIN, rule), fill=_RULE, width=2)
    return webp(image)


def _first(rows: Sequence[SheetRow]) -> list[Path | None]:
    """For each column, pictures that any of the rows has."""
    columns = max((len(row.strips) for row in rows), default=0)
    return [next((row.strips[i] for row in rows if row.strips[i] is not None), None) for i in range(columns)]


def _cells(strip: Path, place: int) -> list["Image"]:
    """The pictures of ``VIEWS`` from one line of a run's pictures."""
    from PIL import Image

    with Image.open(strip) as opened:
        whole = opened.convert("RGB")
    inner, border = round(STRIP_SIZE * 0.92), round(STRIP_SIZE * 0.04)  # no toy reaches the border
    corners = [(v * STRIP_SIZE + border, place * STRIP_SIZE + border) for v in VIEWS]
    cells = [whole.crop((x, y, x + inner, y + inner)) for x, y in corners]
    return [cell.resize((_CELL, _CELL), Image.Resampling.LANCZOS) for cell in cells]


def _write(draw, at: tuple[int, int], text: str, size: int, ink: tuple[int, int, int] = _INK) -> None:
    from PIL import ImageFont

    draw.text(at, text, fill=ink, font=ImageFont.load_default(size))


def webp(image: "Image") -> bytes:
    """The image as a WebP file."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=6)
    return buffer.getvalue()
