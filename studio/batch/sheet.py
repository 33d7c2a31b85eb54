"""The contact sheet of a batch: a picture of every result with its prompt, as one PNG."""

import bisect
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from studio.batch.results import THUMBNAILS, Result, newest_preview
from studio.export.pictures import png_bytes

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

MOST = 240
"""Results on a sheet."""
_CELL, _GAP, _MARGIN, _HEAD, _CAPTION = 176, 14, 22, 58, 58
_COLUMNS = 8
_INK, _FAINT, _BAD, _TILE, _PAPER = (35, 35, 40), (120, 120, 128), (176, 40, 40), (244, 244, 246), (255, 255, 255)


def contact_sheet(title: str, home: Path, results: Sequence[Result]) -> bytes:
    """A PNG with a picture and a caption for each of the first ``MOST`` results.

    Args:
        title: above all.
        home: the batch's folder.
        results: its rows, with thumbnails where they are done.
    """
    from PIL import Image, ImageDraw

    shown = results[:MOST]
    columns = max(2, min(_COLUMNS, math.ceil(math.sqrt(len(shown) * 1.4)), len(shown)))
    lines = max(1, math.ceil(len(shown) / columns))
    width = 2 * _MARGIN + columns * (_CELL + _GAP) - _GAP
    sheet = Image.new("RGB", (width, _HEAD + lines * (_CELL + _CAPTION + _GAP) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 20), _cut(title, 20, width - 2 * _MARGIN), fill=_INK, font=_font(20))
    for i, row in enumerate(shown):
        x = _MARGIN + i % columns * (_CELL + _GAP)
        y = _HEAD + i // columns * (_CELL + _CAPTION + _GAP)
        draw.rounded_rectangle((x, y, x + _CELL - 1, y + _CELL - 1), 6, fill=_TILE)
        picture = _picture(home, row)
        if picture is not None:
            sheet.paste(picture, (x + (_CELL - picture.width) // 2, y + (_CELL - picture.height) // 2))
        else:
            _write(draw, row.state, (x + 12, y + _CELL // 2 - 9), 14, _BAD if row.state == "failed" else _FAINT)
        first, second = _two_lines(row.prompt, 13, _CELL)
        _write(draw, first, (x, y + _CELL + 5), 13)
        _write(draw, second, (x, y + _CELL + 21), 13)
        below = y + _CELL + (38 if second else 23)
        _write(draw, _cut(caption(row), 11, _CELL), (x, below), 11, _BAD if row.error else _FAINT)
    return png_bytes(sheet)


def caption(row: Result) -> str:
    """A line on a result: its seed, and its size or what went wrong."""
    words = [f"seed {row.seed}"]
    if row.settings:
        words.append(row.settings)
    if row.error:
        words.append(" ".join(row.error.split()))
    elif row.faces is not None:
        words.append(f"{row.faces:,} faces")
    return ", ".join(words)


def _picture(home: Path, row: Result) -> "Image | None":
    """The thumbnail of a result, or how far it has come."""
    from PIL import Image

    thumbnail = home / THUMBNAILS / f"{row.folder}.webp"
    preview = None if thumbnail.is_file() else newest_preview(home / row.folder)
    try:
        with Image.open(preview or thumbnail) as opened:
            picture = opened.convert("RGB")
    except OSError:
        return None
    if preview is not None:
        picture = picture.crop((0, 0, picture.height, picture.height))
    return picture.resize((_CELL, _CELL), Image.Resampling.LANCZOS)


@functools.lru_cache(maxsize=8)
def _font(size: int) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _write(draw: "ImageDraw", text: str, at: tuple[int, int], size: int, ink: tuple[int, int, int] = _INK) -> None:
    draw.text(at, text, fill=ink, font=_font(size))


def _cut(text: str, size: int, room: int) -> str:
    """The text, or as much of it as fits, with an ellipsis."""
    font, text = _font(size), text[:room]  # no letter is narrower than a pixel
    if font.getlength(text) <= room:
        return text
    most = bisect.bisect_right(range(len(text)), room, key=lambda n: font.getlength(f"{text[:n]}…"))
    return f"{text[: max(0, most - 1)].rstrip()}…"


def _two_lines(text: str, size: int, room: int) -> tuple[str, str]:
    """A text on two lines, the second cut short where it does not fit."""
    words, font = text[: 2 * room].split(" "), _font(size)
    first = words[0]
    for i, word in enumerate(words[1:], 1):
        if font.getlength(f"{first} {word}") > room:
            return _cut(first, size, room), _cut(" ".join(words[i:]), size, room)
        first = f"{first} {word}"
    return _cut(first, size, room), ""
