"""A projection atlas: charts by dominant axis, packed on shelves. It always finishes, in linear time and a bit.

Each triangle is seen along the axis that its normal is closest to. Neighbours seen along the same axis make a chart, so
the two walls of a mug, though they face the same way, are two charts. Charts are laid on shelves by falling height at
the largest common scale that fits.
"""

import numpy as np
from numpy.typing import NDArray

_PADDINGS = (2.0, 1.0, 0.0)
_WORTH = 0.6


def project(vertices: NDArray, faces: NDArray, resolution: int) -> tuple[NDArray, NDArray, NDArray]:
    """Flatten a mesh into the unit square.

    Args:
        vertices: [v, 3].
        faces: [f, 3] int64, at least one.
        resolution: texels a side of the texture, which sets what padding means.

    Returns:
        For each new vertex the old one [n], the faces over new vertices [f, 3], and uv [n, 2] in [0, 1].
    """
    direction = _directions(vertices, faces)
    chart = _charts(faces, direction)
    # One new vertex for each pair of a chart and an old vertex.
    pairs, corners = np.unique(chart[:, None] * len(vertices) + faces, return_inverse=True)
    owner, source = pairs // len(vertices), pairs % len(vertices)
    axis_of_chart = np.zeros(chart.max() + 1, dtype=np.int64)
    axis_of_chart[chart] = direction % 3
    flat = _flatten(vertices[source].astype(np.float64), axis_of_chart[owner])
    uv = _packed(flat, owner, len(axis_of_chart), resolution)
    return source, corners.reshape(-1, 3), uv


def _directions(vertices: NDArray, faces: NDArray) -> NDArray:
    """0 to 2 for +x, +y, +z and 3 to 5 for their opposites, whichever the face looks along most."""
    corner = vertices[faces].astype(np.float64)
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    axis = np.abs(normal).argmax(1)
    return axis + 3 * (np.take_along_axis(normal, axis[:, None], 1)[:, 0] < 0)


def _charts(faces: NDArray, direction: NDArray) -> NDArray:
    """A label for each face; faces share one if a path over edges between faces of their direction joins them."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    owner = np.tile(np.arange(len(faces)), 3)
    order = np.lexsort((owner, edges[:, 1], edges[:, 0]))
    edges, owner = edges[order], owner[order]
    joined = (edges[1:] == edges[:-1]).all(1) & (direction[owner[1:]] == direction[owner[:-1]])
    left, right = owner[:-1][joined], owner[1:][joined]
    graph = coo_matrix((np.ones(len(left), dtype=np.int8), (left, right)), shape=(len(faces), len(faces)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _flatten(points: NDArray, axis: NDArray) -> NDArray:
    """Points [n, 3] without the coordinate ``axis`` [n]: [n, 2]."""
    others = np.array([[2, 1], [0, 2], [0, 1]])[axis]
    return np.take_along_axis(points, others, 1)


def _packed(flat: NDArray, owner: NDArray, charts: int, resolution: int) -> NDArray:
    low, high = np.full((charts, 2), np.inf), np.full((charts, 2), -np.inf)
    np.minimum.at(low, owner, flat)
    np.maximum.at(high, owner, flat)
    local, size = flat - low[owner], high - low
    upright = size[:, 1] > size[:, 0]  # lie down: low shelves waste less
    local = np.where(upright[owner][:, None], local[:, ::-1], local)
    size = np.where(upright[:, None], size[:, ::-1], size)
    scale, padding = _scale(size, resolution)
    place, _ = _shelves(size * scale + 2 * padding, resolution)
    return np.clip((place[owner] + padding + local * scale) / resolution, 0, 1)


def _scale(size: NDArray, resolution: int) -> tuple[float, float]:
    """Texels a world unit and padding: the widest padding that does not cost too much of the scale."""
    unpadded = _largest_scale(size, resolution, 0.0)
    for padding in _PADDINGS:
        scale = _largest_scale(size, resolution, padding)
        if scale >= _WORTH * unpadded:
            return scale, padding
    return unpadded, 0.0


def _largest_scale(size: NDArray, resolution: int, padding: float) -> float:
    fits, too_large = 0.0, resolution / max(float(size.max()), 1e-12)
    for _ in range(14):
        scale = (fits + too_large) / 2
        boxes = size * scale + 2 * padding
        if boxes[:, 0].max() <= resolution and _shelves(boxes, resolution)[1] <= resolution:
            fits = scale
        else:
            too_large = scale
    return fits


def _shelves(boxes: NDArray, width: float) -> tuple[NDArray, float]:
    """Lower corners [n, 2] of boxes laid side by side on shelves, highest first, and the height used."""
    place = np.zeros_like(boxes)
    x = y = shelf = 0.0
    wide, high = boxes[:, 0].tolist(), boxes[:, 1].tolist()
    for i in np.argsort(-boxes[:, 1], kind="stable").tolist():
        if x + wide[i] > width:
            x, y, shelf = 0.0, y + shelf, 0.0
        place[i] = x, y
        x, shelf = x + wide[i], max(shelf, high[i])
    return place, y + shelf
