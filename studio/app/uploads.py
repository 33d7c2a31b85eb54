"""What may be uploaded: by kind, by size, and by the size that it would have once decoded. Only heads are read."""

from pathlib import Path

from studio.restore import LARGEST_FILE, read_tree

LARGEST_UPLOAD = LARGEST_FILE
"""Bytes of one file."""
LARGEST_TEXT = 16 * 2**20
"""Bytes of a file of prompts or settings."""
MOST_PIXELS = 2**24
"""Pixels of a picture, however few bytes hold them."""

_TEXTS = {".csv", ".json", ".jsonl", ".txt"}
_PICTURES = {".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
KINDS = (".glb", *sorted(_TEXTS), *_PICTURES)
"""Endings of the names of files that may be uploaded."""


def check_upload(file: Path) -> None:
    """Refuse what the app has no use for, or what would burst once it is opened.

    Raises:
        ValueError: in words.
    """
    kind = file.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"{file.name}: only {', '.join(KINDS)} can be uploaded")
    size = file.stat().st_size
    if size > (LARGEST_TEXT if kind in _TEXTS else LARGEST_UPLOAD):
        raise ValueError(f"{file.name}: {size:,} bytes are too many")
    try:
        if kind == ".glb":
            read_tree(file)
        elif kind in _TEXTS:
            _check_text(file)
        else:
            _check_picture(file, _PICTURES[kind])
    except ValueError as problem:
        raise ValueError(f"{file.name}: {problem}") from problem


def _check_text(file: Path) -> None:
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError("this is no text in UTF-8") from problem
    if "\0" in text:
        raise ValueError("this is no text")


def _check_picture(file: Path, kind: str) -> None:
    from PIL import Image

    try:
        with Image.open(file, formats=[kind]) as picture:
            width, height = picture.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as problem:
        raise ValueError("it has far too many pixels") from problem
    except (OSError, SyntaxError, ValueError) as problem:
        raise ValueError(f"this is no {kind}") from problem
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are too many; at most {MOST_PIXELS:,} in all")
