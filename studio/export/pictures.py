"""Pictures of a result: the contact sheet that compares, the turntable that turns, single PNGs."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from representations.cameras import orbit
from representations.scene import Scene
from studio.checkpoints import write_atomically
from studio.export.glb import quantised

if TYPE_CHECKING:
    from PIL.Image import Image

_MARGIN, _LABEL, _TITLE = 8, 18, 30
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """One labelled row of a contact sheet."""

    label: str
    pictures: Float[Tensor, "n 3 h w"]
    """sRGB in [0, 1]."""


def save_png(picture: Float[Tensor, "3 h w"], path: Path) -> None:
    """Write one picture (sRGB in [0, 1]), whole or not at all."""
    write_atomically(path, png_bytes(_image(picture)))


def contact_sheet(title: str, rows: Sequence[Row], cell: int = 128) -> bytes:
    """A PNG with the title on top and a row of pictures ``cell`` pixels a side under each label."""
    from PIL import Image, ImageDraw

    columns = max((len(row.pictures) for row in rows), default=1)
    width = _MARGIN + columns * (cell + _MARGIN)
    height = _MARGIN + _TITLE + len(rows) * (_LABEL + cell + _MARGIN)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, title, _MARGIN, 17, width)
    for i, row in enumerate(rows):
        y = _MARGIN + _TITLE + i * (_LABEL + cell + _MARGIN)
        _write(draw, row.label, y, 12, width)
        for j, picture in enumerate(row.pictures):
            sheet.paste(_fitted(_image(picture), cell), (_MARGIN + j * (cell + _MARGIN), y + _LABEL))
    return png_bytes(sheet)


def turntable(
    scene: Scene,
    distance: float,
    field_of_view: float,
    frames: int = 30,
    size: int = 256,
    elevation: float = 15.0,
    device: torch.device | str = "cpu",
) -> bytes:
    """An endless WebP of one turn around the scene over white, in three seconds."""
    images = []
    with torch.no_grad():
        for i in range(frames):
            camera = orbit([360 * i / frames], [elevation], size, distance, field_of_view).to(device)
            images.append(_image(scene.render(camera, torch.ones(1, 3, device=device)).rgb[0]))
    buffer = io.BytesIO()
    duration = 3000 // frames
    images[0].save(
        buffer, "WEBP", save_all=True, append_images=images[1:], duration=duration, loop=0, quality=85, method=2
    )
    return buffer.getvalue()


def png_bytes(image: "Image") -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _image(picture: Tensor) -> "Image":
    from PIL import Image

    return Image.fromarray(quantised(picture))


def _fitted(image: "Image", cell: int) -> "Image":
    from PIL import Image

    # Small pictures are shown as the pixels they are.
    kind = Image.Resampling.NEAREST if max(image.size) < cell else Image.Resampling.LANCZOS
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, kind)


def _write(draw, text: str, y: int, size: int, width: int) -> None:
    """One line of text, cut short with an ellipsis where the sheet ends."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    line = " ".join(text.split())
    room = width - 2 * _MARGIN
    while line and draw.textlength(line, font=font) > room:
        line = line.removesuffix("…")[:-1].rstrip()
        line = f"{line}…" if line else ""
    draw.text((_MARGIN, y), line, fill=_INK, font=font)
