"""The Maps tab: the textures that a GLB's surface has."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.restore import read_tree

if TYPE_CHECKING:
    from PIL.Image import Image

_CHUNK_HEAD = 8
"""Bytes before the content of a chunk."""
_JSON_AT = 20
"""Where the JSON begins: after the head of the file and that of its first chunk."""
_LARGEST = 1024
"""Pixels a side of a map that is shown beside others."""
_GAP, _LABEL, _INK, _PAPER = 16, 34, (40, 40, 40), (255, 255, 255)


def write_maps(source: Path, target: Path) -> None:
    """The textures of a GLB's first material: one alone as the file that lies there, several side by side as a PNG.

    Raises:
        ValueError, OSError: the GLB cannot be read, or has none.
    """
    found = textures(source)
    if not found:
        raise ValueError(f"{source} has no texture")
    content = next(iter(found.values())) if len(found) == 1 else _side_by_side(found)
    target.write_bytes(content)


def textures(source: Path) -> dict[str, bytes]:
    """The textures of a GLB's first material as files, by what they hold, the base colour first.

    Raises:
        ValueError, OSError: the GLB cannot be read.
    """
    tree, content = read_tree(source), source.read_bytes()
    begin = _JSON_AT + int.from_bytes(content[12:16], "little") + _CHUNK_HEAD
    found = {}
    try:
        material = tree["materials"][0] if tree.get("materials") else {}
        for words, place in _places(material).items():
            image = tree["images"][tree["textures"][place["index"]]["source"]]
            view = tree["bufferViews"][image["bufferView"]]
            start = begin + view.get("byteOffset", 0)
            found[words] = content[start : start + view["byteLength"]]
    except (LookupError, TypeError, AttributeError) as problem:
        raise ValueError(f"{source} has textures that cannot be found: {problem!r}") from problem
    return found


def _places(material: dict[str, Any]) -> dict[str, Any]:
    """Where a material says that its textures are."""
    surface = material.get("pbrMetallicRoughness", {})
    places = {
        "Base colour": surface.get("baseColorTexture"),
        "Roughness (green) and metallic (blue)": surface.get("metallicRoughnessTexture"),
        "Normals": material.get("normalTexture"),
        "Occlusion (red)": material.get("occlusionTexture"),
        "Emission": material.get("emissiveTexture"),
    }
    return {words: place for words, place in places.items() if place is not None}


def _side_by_side(maps: dict[str, bytes]) -> bytes:
    from PIL import Image, ImageDraw, ImageFont

    pictures = [_opened(content) for content in maps.values()]
    side = min(_LARGEST, max(max(picture.size) for picture in pictures))
    sheet = Image.new("RGB", (len(pictures) * (side + _GAP) - _GAP, side + _LABEL), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (words, picture) in enumerate(zip(maps, pictures, strict=True)):
        x = i * (side + _GAP)
        draw.text((x + 2, 8), words, fill=_INK, font=ImageFont.load_default(16))
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, _LABEL))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _opened(content: bytes) -> "Image":
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "WEBP"]) as picture:
        return picture.convert("RGB")
