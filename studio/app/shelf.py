"""Files that the page may serve: copies, under names that people like, in a folder of this process alone.

The folder of runs is never served. What the page shows is copied (linked, where that is possible) to the shelf, and so
is what is made for the page only: a cloud of gaussians turned and scaled for the viewer, the textures out of a GLB,
files that were exported. What nobody asks for any more goes, and so does what was made of a run that is gone.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_FITTED = 1.6
"""Largest extent of a cloud in the viewer's own units."""
COPIES_KEPT, EXPORTS_KEPT = 24 * 3600.0, 3600.0
"""Seconds since a copy was last asked for, or an export made, until it goes."""
_EVERY = 60.0
"""Seconds between looks for what is to go."""


@dataclass(frozen=True)
class _Kept:
    """What a folder on the shelf is of."""

    run: Path
    """The folder that its content was made from."""
    seconds: float
    """How long it is kept."""


class Shelf:
    """A folder of copies; whoever makes it removes it."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._kept: dict[Path, _Kept] = {}
        self._due = 0.0

    def copy(self, source: Path, name: str) -> str | None:
        """The path of a copy called ``name``; None if there is no such file."""
        return self.made(source, name, _link)

    def made(self, source: Path, name: str, make: Callable[[Path, Path], None]) -> str | None:
        """The path of a file called ``name`` that ``make`` writes from ``source``, once for each state of that."""
        self.sweep()
        try:
            stat = source.stat()
        except OSError:
            return None
        key = hashlib.sha256(f"{source.absolute()} {stat.st_mtime_ns} {stat.st_size} {name}".encode()).hexdigest()[:20]
        target = self.folder / key / name
        self._kept[target.parent] = _Kept(source.parent, COPIES_KEPT)
        if target.is_file():
            os.utime(target.parent)
            return str(target)
        target.parent.mkdir(exist_ok=True)
        part = target.with_name(f".{os.getpid()}.{os.urandom(4).hex()}{target.suffix}")
        try:
            make(source, part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return str(target)

    def room(self, run: Path) -> Path:
        """An empty folder for what is exported of a run."""
        self.sweep()
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        self._kept[folder] = _Kept(run, EXPORTS_KEPT)
        return folder

    def sweep(self) -> None:
        """Remove what has been there for long enough, or is of a run that is gone, if it is time to look."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _EVERY
        for folder, kept in list(self._kept.items()):
            if not kept.run.is_dir() or _age(folder) > kept.seconds:
                self._remove(folder)

    def forget(self, run: Path) -> None:
        """Remove what was made of a run."""
        for folder, kept in list(self._kept.items()):
            if kept.run == run:
                self._remove(folder)

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._kept.pop(folder, None)


def _age(folder: Path) -> float:
    """Seconds since something was put into a folder, or asked for."""
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return float("inf")


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
