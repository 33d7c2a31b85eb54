"""Files that the page may serve: copies, under names that people like, in a folder of this process alone.

The folder of runs is never served. What the page shows is copied (linked, where that is possible) to the shelf, and so
is what is made for the page only: a cloud of gaussians turned and scaled for the viewer, the texture out of a GLB.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

_FITTED = 1.6
"""Largest extent of a cloud in the viewer's own units."""


class Shelf:
    """A folder of copies; whoever makes it removes it."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def copy(self, source: Path, name: str) -> str | None:
        """The path of a copy called ``name``; None if there is no such file."""
        return self.made(source, name, lambda target: _link(source, target))

    def made(self, source: Path, name: str, make: Callable[[Path], None]) -> str | None:
        """The path of a file called ``name`` that ``make`` writes from ``source``, once for each state of that."""
        try:
            stat = source.stat()
        except OSError:
            return None
        key = hashlib.sha256(f"{source.absolute()} {stat.st_mtime_ns} {stat.st_size} {name}".encode()).hexdigest()[:20]
        target = self.folder / key / name
        if not target.is_file():
            target.parent.mkdir(exist_ok=True)
            part = target.with_name(f".{os.getpid()}.{os.urandom(4).hex()}{target.suffix}")
            try:
                make(part)
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
        return str(target)


def _link(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # another file system, or one without links
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def fitted_splats(source: Path, target: Path) -> None:
    """A copy of a cloud for the page's viewer: its world has +y down, and its camera stands too near to ours.

    Raises:
        ValueError, OSError: the cloud cannot be read.
    """
    import dataclasses

    import torch

    from studio.export.splat_ply import load_splat_ply, splat_ply_bytes

    cloud = load_splat_ply(source)
    solid = cloud.logit_opacities > 0
    means = cloud.means[solid] if bool(solid.any()) else cloud.means
    low, high = means.amin(0), means.amax(0)
    scale = _FITTED / max(float((high - low).max()), 1e-6)
    turn = torch.tensor([1.0, -1.0, -1.0])  # half a turn about x
    w, x, y, z = cloud.quaternions.unbind(-1)
    turned = dataclasses.replace(
        cloud,
        means=(cloud.means - (low + high) / 2) * scale * turn,
        log_scales=cloud.log_scales + torch.tensor(scale).log(),
        quaternions=torch.stack([-x, w, -z, y], -1),
    )
    target.write_bytes(splat_ply_bytes(turned))


def base_colour(source: Path, target: Path) -> None:
    """The base colour texture of a GLB, as the file that lies in it: a PNG in those made here.

    Raises:
        ValueError, OSError: the GLB cannot be read, or has none.
    """
    content = source.read_bytes()
    try:
        length = int.from_bytes(content[12:16], "little")
        tree = json.loads(content[20 : 20 + length])
        texture = tree["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]["index"]
        image = tree["images"][tree["textures"][texture]["source"]]
        view = tree["bufferViews"][image["bufferView"]]
    except (LookupError, TypeError, ValueError) as problem:
        raise ValueError(f"{source} has no base colour texture: {problem!r}") from problem
    begin = 20 + length + 8 + view.get("byteOffset", 0)
    target.write_bytes(content[begin : begin + view["byteLength"]])
