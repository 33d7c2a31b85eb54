"""The results side by side: a column a prompt, a row a contender, the truth on top."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio.evaluate.trial import STRIP_AZIMUTHS, STRIP_SIZE

if TYPE_CHECKING:
    from PIL.Image import Image

VIEWS: tuple[int, ...] = (0, 1, 3, 6)
"""Which of a strip's pictures are shown: front, a little to the right, from behind, and the left side."""
MOST_PROMPTS = 4
_CELL, _GAP, _GROUP, _MARGIN, _LABELS, _HEAD = 84, 2, 18, 24, 170, 76
_INK, _FAINT, _RULE, _PAPER = (35, 35, 40), (125, 125, 132), (225, 225, 230), (255, 255, 255)


@dataclass(frozen=True)
class SheetRow:
    """A contender: its name, a word on it, and the file of pictures for each prompt, where there is one."""

    label: str
    note: str
    strips: Sequence[Path | None]


def sheet(title: str, prompts: Sequence[str], rows: Sequence[SheetRow]) -> bytes:
    """A WebP of what came of every prompt (the first ``MOST_PROMPTS``) under every contender, with the truth on top.

    Args:
        title: above all.
        prompts: heads of the columns.
        rows: the contenders, the best first; each strip's lower half is the truth.
    """
    from PIL import Image, ImageDraw

    prompts = prompts[:MOST_PROMPTS]
    group = len(VIEWS) * (_CELL + _GAP) + _GROUP
    width = 2 * _MARGIN + _LABELS + len(prompts) * group - _GROUP
    image = Image.new("RGB", (width, _MARGIN + _HEAD + (len(rows) + 1) * (_CELL + _GAP) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(image)
    _write(draw, (_MARGIN, _MARGIN), title, 20)
    for i, prompt in enumerate(prompts):
        _write(draw, (_MARGIN + _LABELS + i * group, _MARGIN + 44), prompt, 15)
    truths = [next((row.strips[i] for row in rows if row.strips[i] is not None), None) for i in range(len(prompts))]
    lines = [(SheetRow("truth", "the toybox's own", truths), 1), *((row, 0) for row in rows)]
    for i, (row, half) in enumerate(lines):
        y = _MARGIN + _HEAD + i * (_CELL + _GAP) + (6 if i else 0)
        _write(draw, (_MARGIN, y + 24), row.label, 16)
        _write(draw, (_MARGIN, y + 46), row.note, 12, _FAINT)
        for j, strip in enumerate(row.strips[: len(prompts)]):
            for k, cell in enumerate(_cells(strip, half) if strip is not None else []):
                image.paste(cell, (_MARGIN + _LABELS + j * group + k * (_CELL + _GAP), y))
    rule = _MARGIN + _HEAD + _CELL + 4
    draw.line((_MARGIN, rule, width - _MARGIN, rule), fill=_RULE, width=2)
    return webp(image)


def _cells(strip: Path, half: int) -> list["Image"]:
    """The pictures of ``VIEWS`` from the upper (0) or lower (1) half of a strip."""
    from PIL import Image

    with Image.open(strip) as opened:
        whole = opened.convert("RGB")
    assert whole.size == (len(STRIP_AZIMUTHS) * STRIP_SIZE, 2 * STRIP_SIZE)
    inner, border = round(STRIP_SIZE * 0.92), round(STRIP_SIZE * 0.04)  # no toy reaches the border
    corners = [(v * STRIP_SIZE + border, half * STRIP_SIZE + border) for v in VIEWS]
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
