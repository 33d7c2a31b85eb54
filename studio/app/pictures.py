"""Pictures for the page: thumbnails, previews and views with a box drawn on them, small and kept in memory."""

import base64
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from studio.export.asset import ELEVATION

if TYPE_CHECKING:
    from PIL.Image import Image

_ACCENT, _SHADE = (234, 88, 12), (255, 255, 255)
# Corners of a box are numbered by the bits of x, y and z; an edge joins two that differ in one bit.
_EDGES = [(a, a | bit) for a in range(8) for bit in (1, 2, 4) if not a & bit]


def newest_previews(run: Path, count: int) -> list[Path]:
    """The newest preview pictures of a run, oldest first."""
    return sorted(path for path in (run / "previews").glob("*.png") if path.stem.isdigit())[-count:]


def preview_uri(path: Path) -> str:
    """A preview, four views side by side, as a data URI; "" if it cannot be read."""
    return _uri(path, "whole", 0)


def view_uri(path: Path, size: int = 96) -> str:
    """The first of the views in a preview, or the first frame of a turntable; "" if it cannot be read."""
    return _uri(path, "first", size)


def thumbnail(run: Path, size: int = 128) -> str:
    """What a run looks like by now, as a data URI; "" while there is nothing to see."""
    if (run / "turntable.webp").is_file():
        return view_uri(run / "turntable.webp", size)
    previews = newest_previews(run, 1)
    return view_uri(previews[-1], size) if previews else ""


def _uri(path: Path, part: str, size: int) -> str:
    try:
        stat = path.stat()
        return _encoded(path, stat.st_mtime_ns, stat.st_size, part, size)
    except OSError:  # there is none, or it is being replaced: the next look finds it
        return ""


@functools.lru_cache(maxsize=1024)
def _encoded(path: Path, modified: int, length: int, part: str, size: int) -> str:
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if part == "first":
        side = min(image.size)
        image = image.crop((0, 0, side, side)).resize((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# A box on views ---------------------------------------------------------------------------------------------------


def boxed_views(
    run: Path, low: Sequence[float], high: Sequence[float], distance: float, field_of_view: float
) -> "Image | None":
    """Four views of a finished run, in two rows, with the edges of a box in the world drawn on them.

    Args:
        run: its turntable, of a known orbit, is what is drawn on.
        low, high: corners of the box, in world units.
        distance, field_of_view: of the turntable's cameras, in world units and degrees.
    """
    from PIL import Image

    frames = _frames(run / "turntable.webp", 4)
    if not frames:
        return None
    size = frames[0][1].width
    sheet = Image.new("RGB", (2 * size, 2 * size), _SHADE)
    for i, (azimuth, frame) in enumerate(frames):
        picture = frame.copy()
        _draw_box(picture, corners(low, high), azimuth, distance, field_of_view)
        sheet.paste(picture, ((i % 2) * size, (i // 2) * size))
    return sheet


def corners(low: Sequence[float], high: Sequence[float]) -> list[tuple[float, float, float]]:
    """The eight corners of a box, numbered by the bits of x, y and z."""
    return [
        (high[0] if i & 1 else low[0], high[1] if i & 2 else low[1], high[2] if i & 4 else low[2]) for i in range(8)
    ]


def project(
    points: Sequence[tuple[float, float, float]], azimuth: float, size: int, distance: float, field_of_view: float
) -> list[tuple[float, float, bool]]:
    """Pixels (x, y) of points in the world for a camera of the turntable, and whether they lie before it."""
    import torch

    from representations.cameras import orbit

    camera = orbit([azimuth], [ELEVATION], size, distance, field_of_view)
    world = torch.tensor([(*point, 1.0) for point in points])
    x, y, z, _ = (world @ torch.linalg.inv(camera.pose[0]).T).unbind(-1)
    depth, focal = -z, float(camera.focal[0])
    safe = depth.clamp(min=1e-3)
    across, down = size / 2 + focal * x / safe, size / 2 - focal * y / safe
    return list(zip(across.tolist(), down.tolist(), (depth > 1e-3).tolist(), strict=True))


def _frames(turntable: Path, count: int) -> "list[tuple[float, Image]]":
    """``count`` frames of a turntable at even steps, each with its azimuth in degrees."""
    from PIL import Image

    try:
        with Image.open(turntable) as film:
            total = getattr(film, "n_frames", 1)
            found = []
            for i in range(count):
                number = round(i * total / count) % total
                film.seek(number)
                found.append((360 * number / total, film.convert("RGB")))
            return found
    except OSError:
        return []


def _draw_box(
    picture: "Image", box: list[tuple[float, float, float]], azimuth: float, distance: float, field_of_view: float
) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    points = project(box, azimuth, picture.width, distance, field_of_view)
    for a, b in _EDGES:
        (ax, ay, seen_a), (bx, by, seen_b) = points[a], points[b]
        if seen_a and seen_b:
            draw.line((ax, ay, bx, by), fill=_SHADE, width=4)
            draw.line((ax, ay, bx, by), fill=_ACCENT, width=2)
