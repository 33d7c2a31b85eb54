"""A flat place for every triangle: xatlas in a process of its own, and a projection that always finishes.

xatlas is the better of the two and usually takes seconds, but on tangled surfaces it has been seen to run for hours and
it cannot be interrupted from inside. So it works in a subprocess under a time limit; if it is late or fails, the
triangles are projected along the six axes instead, and the result says so.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from representations.scene import Mesh
from studio.export.projection import project

PADDING = 3
"""Texels kept free around each chart, so that bilinear lookups never reach a neighbour."""
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Unwrapped:
    """A surface cut into charts that lie side by side in the unit square."""

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    """The faces of the mesh that was given, in the same order, over vertices that are split along seams."""
    uv: Float[Tensor, "v 2"]
    """In [0, 1]; (0, 0) is the top-left corner of the texture."""
    method: Literal["xatlas", "projection"]
    reason: str | None = None
    """Why it was not xatlas."""


def unwrap(mesh: Mesh, resolution: int, timeout: float = 60.0) -> Unwrapped:
    """Unwrap for a square texture of ``resolution`` texels a side.

    Args:
        mesh: at least one face.
        resolution: texels a side.
        timeout: seconds xatlas may take.
    """
    vertices = mesh.vertices.detach().cpu().numpy().astype(np.float32)
    faces = mesh.faces.cpu().numpy().astype(np.uint32)
    try:
        source, corners, uv = _xatlas(vertices, faces, resolution, timeout)
        return _unwrapped(mesh, source, corners, uv, "xatlas", None)
    except subprocess.TimeoutExpired:
        reason = f"xatlas took longer than {timeout:g} s"
    except (subprocess.CalledProcessError, OSError, ValueError, KeyError) as problem:
        reason = f"xatlas failed: {_last_line(problem)}"
    source, corners, uv = project(vertices, faces.astype(np.int64), resolution)
    return _unwrapped(mesh, source, corners, uv, "projection", reason)


def _xatlas(vertices: NDArray, faces: NDArray, resolution: int, timeout: float) -> tuple[NDArray, NDArray, NDArray]:
    """For each new vertex the old one, the faces over new vertices, and uv.

    Raises:
        subprocess.TimeoutExpired, subprocess.CalledProcessError: late or failed.
        ValueError, KeyError, OSError: what came back is not an unwrapping of this mesh.
    """
    with tempfile.TemporaryDirectory(prefix="dreamkiln-unwrap-") as folder:
        given, made = Path(folder, "mesh.npz"), Path(folder, "atlas.npz")
        np.savez(given, vertices=vertices, faces=faces, resolution=resolution, padding=PADDING, seconds=timeout)
        command = [sys.executable, "-m", "studio.export.unwrap_worker", str(given), str(made)]
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path}
        subprocess.run(command, check=True, timeout=timeout, capture_output=True, env=environment)
        with np.load(made, allow_pickle=False) as atlas:
            source, corners, uv = atlas["source"], atlas["faces"], atlas["uv"]
    _check(vertices, faces, source, corners, uv)
    return source, corners, uv


def _check(vertices: NDArray, faces: NDArray, source: NDArray, corners: NDArray, uv: NDArray) -> None:
    if corners.shape != faces.shape or not np.array_equal(source[corners], faces):
        raise ValueError("the faces that came back are not those that were given")
    if not np.isfinite(uv).all():
        raise ValueError("texture coordinates are not finite")
    if source.max(initial=0) >= len(vertices):
        raise ValueError("a vertex came back that was never given")


def _unwrapped(mesh: Mesh, source: NDArray, corners: NDArray, uv: NDArray, method, reason) -> Unwrapped:
    device = mesh.vertices.device
    old = torch.from_numpy(source.astype(np.int64)).to(device)
    faces = torch.from_numpy(corners.astype(np.int64)).to(device)
    coordinates = torch.from_numpy(uv.astype(np.float32)).clamp(0, 1).to(device)
    return Unwrapped(mesh.vertices.detach()[old], faces, coordinates, method, reason)


def _last_line(problem: Exception) -> str:
    said = problem.stderr if isinstance(problem, subprocess.CalledProcessError) else str(problem)
    text = said.decode(errors="replace") if isinstance(said, bytes) else said or type(problem).__name__
    return (text.strip().splitlines() or [type(problem).__name__])[-1][:200]
