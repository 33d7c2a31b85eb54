"""Clouds of gaussians as PLY files, in the layout that splat viewers and editors share.

One vertex a gaussian, all properties float32, little endian: ``x y z  nx ny nz  f_dc_0..2  f_rest_*  opacity
scale_0..2  rot_0..3``. Values are raw: logarithms of semi-axes, opacity before the sigmoid, quaternions wxyz, harmonics
of one colour channel after the other in ``f_rest``. Normals are written as zeros and ignored. The world is ours: +y up,
front +z.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from representations.splat_scene import SplatScene

_HARMONICS = {0: 1, 9: 4, 24: 9, 45: 16}
"""Coefficients of a channel for each number of ``f_rest`` properties."""
_LARGEST_HEADER = 1 << 16


def splat_ply_bytes(scene: SplatScene) -> bytes:
    """The cloud as a PLY file."""
    n, k = scene.sh.shape[:2]
    rest = scene.sh[:, 1:].transpose(1, 2).reshape(n, 3 * (k - 1))
    columns = (
        scene.means,
        torch.zeros_like(scene.means),
        scene.sh[:, 0],
        rest,
        scene.logit_opacities[:, None],
        scene.log_scales,
        scene.quaternions,
    )
    table = torch.cat([part.detach().cpu().float() for part in columns], 1).numpy().astype("<f4")
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {n}"]
    lines += [f"property float {name}" for name in _properties(3 * (k - 1))]
    return "\n".join([*lines, "end_header", ""]).encode("ascii") + table.tobytes()


def load_splat_ply(path: Path, bound: float = 1.0) -> SplatScene:
    """The cloud in a PLY file; properties may stand in any order, and those that say nothing about it are skipped.

    Raises:
        ValueError: not a binary little-endian PLY of gaussians, or cut short; the message says what is wrong.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    count, names, start = _read_header(content, path)
    if len(content) - start < 4 * count * len(names):
        raise ValueError(f"{path} is cut short: {count} gaussians need {4 * count * len(names)} bytes after the header")
    table = np.frombuffer(content, "<f4", count * len(names), start).reshape(count, len(names))
    rest = sum(name.startswith("f_rest_") for name in names)
    missing = [name for name in _properties(rest) if name not in names and name not in ("nx", "ny", "nz")]
    if rest not in _HARMONICS or missing:
        raise ValueError(f"{path} is no cloud of gaussians: {_lack(rest, missing)}")

    def pick(*wanted: str) -> Tensor:
        return torch.from_numpy(table[:, [names.index(name) for name in wanted]].astype(np.float32))

    higher = pick(*(f"f_rest_{i}" for i in range(rest))).reshape(count, 3, _HARMONICS[rest] - 1).transpose(1, 2)
    return SplatScene(
        means=pick("x", "y", "z"),
        log_scales=pick("scale_0", "scale_1", "scale_2"),
        quaternions=pick("rot_0", "rot_1", "rot_2", "rot_3"),
        logit_opacities=pick("opacity")[:, 0],
        sh=torch.cat([pick("f_dc_0", "f_dc_1", "f_dc_2")[:, None], higher], 1),
        bound=bound,
    )


def _properties(rest: int) -> list[str]:
    return [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{i}" for i in range(rest)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]


def _read_header(content: bytes, path: Path) -> tuple[int, list[str], int]:
    """Number of gaussians, names of their properties, and where the values begin."""
    end = content.find(b"end_header\n", 0, _LARGEST_HEADER)
    if not content.startswith(b"ply\n") or end < 0:
        raise ValueError(f"{path} is not a PLY file")
    words = [line.split() for line in content[:end].decode("ascii", "replace").splitlines()]
    kept = [line for line in words[1:] if line and line[0] not in ("comment", "obj_info")]
    shape = (
        kept[:1] == [["format", "binary_little_endian", "1.0"]] and kept[1:2] and kept[1][:2] == ["element", "vertex"]
    )
    if not shape or not kept[1][2:] or not kept[1][2].isdigit():
        raise ValueError(f"{path} must be binary little endian and begin with its vertices")
    properties = kept[2:]
    if any(line[:2] != ["property", "float"] or len(line) != 3 for line in properties):
        raise ValueError(f"{path}: every property must be a float, and vertices its only element")
    return int(kept[1][2]), [line[2] for line in properties], end + len(b"end_header\n")


def _lack(rest: int, missing: list[str]) -> str:
    if missing:
        return f"it lacks {', '.join(missing)}"
    return f"{rest} properties f_rest fit no degree of spherical harmonics"
