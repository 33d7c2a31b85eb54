"""The process that runs xatlas: ``python -m studio.export.unwrap_worker mesh.npz atlas.npz``.

It reads ``vertices`` [v, 3], ``faces`` [f, 3], ``resolution``, ``padding`` and the ``seconds`` that it may take, and
writes ``source`` [n] (the old vertex of each new one), ``faces`` [f, 3] over new vertices and ``uv`` [n, 2].
"""

import math
import signal
import sys

import numpy as np


def main(given: str, made: str) -> None:
    """Unwrap one mesh."""
    import xatlas

    with np.load(given, allow_pickle=False) as mesh:
        vertices, faces = mesh["vertices"], mesh["faces"]
        resolution, padding = int(mesh["resolution"]), int(mesh["padding"])
        signal.alarm(math.ceil(float(mesh["seconds"])) + 1)  # whoever asked may be killed before it can end this
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces)
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = resolution, padding, True
    packing.create_image = False
    atlas.generate(xatlas.ChartOptions(), packing)
    if atlas.atlas_count != 1:
        raise SystemExit(f"xatlas needed {atlas.atlas_count} pages")
    source, corners, uv = atlas[0]
    np.savez(made, source=source, faces=corners, uv=uv)


if __name__ == "__main__":
    main(*sys.argv[1:])
