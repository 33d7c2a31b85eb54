"""Triangles to pixels in plain torch: a z-buffer whose coverage is exact.

The reference form of the triangle ops. Corners are snapped to 1/256 pixel and every edge function is an integer, so
coverage follows the top-left rule exactly: pixels on a shared edge belong to one triangle, and the same ids come out on
every machine. Rows of each triangle are solved for their span of pixels, the spans are filled, and one scatter with
``amin`` over 64-bit keys (depth, triangle) leaves the nearest triangle in each pixel, whatever the order of work.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SUBPIXELS = 256
"""Corner positions are rounded to this fraction of a pixel."""
LIMIT = 2**20
"""Corners further than this many pixels from the origin are not drawn: integer edge functions stay below 2^63."""
_EMPTY = torch.iinfo(torch.int64).max
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Raster:
    """What each pixel centre sees."""

    triangle: Int[Tensor, "b h w"]
    """Row of ``faces``, or -1 where nothing is."""
    barycentric: Float[Tensor, "b h w 3"]
    """Weights of the three corners on the surface (perspective-correct); 0 where nothing is."""
    depth: Float[Tensor, "b h w"]
    """Interpolated third coordinate of ``screen``; 0 where nothing is."""

    @property
    def hit(self) -> Tensor:
        """Where a triangle is, [b, h, w] bool."""
        return self.triangle >= 0


def rasterize_triangles(
    screen: Float[Tensor, "b v 3"], faces: Int[Tensor, "f 3"], size: tuple[int, int], cull: bool = False
) -> Raster:
    """The nearest triangle at every pixel centre.

    Barycentrics and depth are differentiable with respect to ``screen``; the choice of triangle is not.

    Args:
        screen: x and y in pixels (origin at the top-left corner of the picture, y down, centres at half-integers)
            and the distance along the viewing axis. For texture space give uv times the size and a distance of 1.
        faces: rows of vertex indices.
        size: height and width in pixels.
        cull: leave out triangles that wind clockwise on the screen as it is seen.

    A triangle is left out as a whole when a corner is behind the camera (distance not above 0), not finite or beyond
    ``LIMIT``, or when it has no area. Of triangles at the same depth the one with the lower index is seen.

    Raises:
        ValueError: a face names a vertex that does not exist.
    """
    if len(faces) and (int(faces.min()) < 0 or int(faces.max()) >= screen.shape[1]):
        raise ValueError(f"faces name vertices {int(faces.min())} to {int(faces.max())}; there are {screen.shape[1]}")
    with torch.no_grad():
        views = [_nearest(view.double(), faces, size, cull) for view in screen]
    blank = faces.new_full((0, *size), -1, dtype=torch.int64)
    triangle = torch.stack(views) if views else blank
    return _resolve(screen, faces, triangle)


def interpolate(
    attributes: Float[Tensor, "*b v c"], faces: Int[Tensor, "f 3"], raster: Raster
) -> Float[Tensor, "n h w c"]:
    """Per-vertex values at every pixel, 0 where nothing is; ``attributes`` are shared by all views or one per view."""
    view, y, x = raster.hit.nonzero(as_tuple=True)
    corners = faces.long()[raster.triangle[view, y, x]]
    values = attributes[view[:, None], corners] if attributes.ndim == 3 else attributes[corners]
    weight = raster.barycentric[view, y, x].to(values.dtype)
    blended = weight[:, :1] * values[:, 0] + weight[:, 1:2] * values[:, 1] + weight[:, 2:] * values[:, 2]
    out = values.new_zeros(*raster.triangle.shape, attributes.shape[-1])
    return out.index_put((view, y, x), blended)


# --- visibility -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SetUp:
    """Drawable triangles of one view, corners in subpixels, wound so that their area is positive with y down."""

    face: Tensor  # [n] row in the caller's faces
    edge: Tensor  # [n, 3, 3] integers A, B, C: inside where A x + B y + C >= 0
    inverse_depth: Tensor  # [n, 3] plane over pixels: value = p0 x + p1 y + p2
    low: Tensor  # [n, 2] first pixel (x, y) whose centre may be inside
    high: Tensor  # [n, 2] last one


def _nearest(screen: Tensor, faces: Tensor, size: tuple[int, int], cull: bool) -> Tensor:
    """Visible triangle ids [h, w] of one view."""
    h, w = size
    keys = torch.full((h * w,), _EMPTY, dtype=torch.int64, device=screen.device)
    triangles = _set_up(screen, faces.long(), size, cull)
    for chunk in _chunks(triangles):
        pixel, key = _cover(chunk, w)
        keys.scatter_reduce_(0, pixel, key, "amin")
    return torch.where(keys == _EMPTY, -1, keys & 0xFFFFFFFF).view(h, w)


def _set_up(screen: Tensor, faces: Tensor, size: tuple[int, int], cull: bool) -> _SetUp:
    drawable = screen.isfinite().all(-1) & (screen[:, :2].abs() <= LIMIT).all(-1) & (screen[:, 2] > 0)
    face = drawable[faces].all(-1).nonzero()[:, 0]
    snapped = (torch.where(drawable[:, None], screen[:, :2], 0) * SUBPIXELS).round().long()
    corner, depth = snapped[faces[face]], screen[:, 2][faces[face]]
    area = _cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    low, high = _pixel_bounds(corner, size)
    seen = ((area < 0) if cull else (area != 0)) & (low <= high).all(-1)
    face, corner, depth, area, low, high = (t[seen] for t in (face, corner, depth, area, low, high))
    order = torch.where(area[:, None] > 0, torch.tensor([0, 1, 2]).to(area), torch.tensor([0, 2, 1]).to(area))
    corner = corner.gather(1, order[..., None].expand(-1, -1, 2))
    return _SetUp(face, _edges(corner), _plane(corner, 1 / depth.gather(1, order)), low, high)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _pixel_bounds(corner: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    half = SUBPIXELS // 2
    last = torch.tensor([size[1] - 1, size[0] - 1]).to(corner)
    a, b, c = corner.unbind(1)  # far faster than a reduction over an axis of three
    low = -torch.div(half - torch.minimum(torch.minimum(a, b), c), SUBPIXELS, rounding_mode="floor")
    high = torch.div(torch.maximum(torch.maximum(a, b), c) - half, SUBPIXELS, rounding_mode="floor")
    return low.clamp_min(0), torch.minimum(high, last)


def _edges(corner: Tensor) -> Tensor:
    step = corner.roll(-1, 1) - corner
    a, b = -step[..., 1], step[..., 0]
    c = -(a * corner[..., 0] + b * corner[..., 1])
    # A centre exactly on an edge is inside only if the edge is a left or a top one.
    top_left = (a > 0) | ((a == 0) & (b > 0))
    return torch.stack([a, b, c - (~top_left).long()], -1)


def _plane(corner: Tensor, value: Tensor) -> Tensor:
    """Coefficients over pixel positions of the plane through ``value`` [n, 3] at corners [n, 3, 2] (subpixels)."""
    position = corner.double() / SUBPIXELS
    u, v = position[:, 1] - position[:, 0], position[:, 2] - position[:, 0]
    du, dv = value[:, 1] - value[:, 0], value[:, 2] - value[:, 0]
    area = _cross(u, v)
    gx, gy = (du * v[:, 1] - dv * u[:, 1]) / area, (dv * u[:, 0] - du * v[:, 0]) / area
    return torch.stack([gx, gy, value[:, 0] - gx * position[:, 0, 0] - gy * position[:, 0, 1]], -1)


def _chunks(triangles: _SetUp) -> Iterator[_SetUp]:
    """Runs of triangles whose bounding boxes hold about ``_CHUNK`` pixels, so that memory stays bounded."""
    if not len(triangles.face):
        return
    box = (triangles.high - triangles.low + 1).prod(-1)
    run = torch.div(box.cumsum(0) - box, _CHUNK, rounding_mode="floor")
    ends = run.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        part = slice(start, end)
        fields = (triangles.face, triangles.edge, triangles.inverse_depth, triangles.low, triangles.high)
        yield _SetUp(*(field[part] for field in fields))


def _cover(triangles: _SetUp, width: int) -> tuple[Tensor, Tensor]:
    """Flat index and key of every pixel that each triangle covers."""
    owner, y = _expand(triangles.low[:, 1], triangles.high[:, 1])
    first, last = _spans(triangles, owner, y)
    plane = triangles.inverse_depth[owner]
    start = plane[:, 0] / 2 + plane[:, 1] * (y + 0.5) + plane[:, 2]
    span, x = _expand(first, last)
    depth = (1 / (start[span] + plane[:, 0][span] * x)).float()
    key = (depth.view(torch.int32).long() << 32) | triangles.face[owner][span]
    return y[span] * width + x, key


def _spans(triangles: _SetUp, owner: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """First and last pixel of each row, last < first where it has none: integer solutions of A x + B y + C >= 0."""
    first, last = triangles.low[owner, 0], triangles.high[owner, 0]
    centre = y * SUBPIXELS + SUBPIXELS // 2
    for edge in triangles.edge.unbind(1):
        a, b, c = edge[owner].unbind(-1)
        slope, rest = a * SUBPIXELS, a * (SUBPIXELS // 2) + b * centre + c
        crossing = torch.div(rest, slope.abs().clamp_min(1), rounding_mode="floor")
        first = torch.where(a > 0, torch.maximum(first, -crossing), first)
        last = torch.where(a < 0, torch.minimum(last, crossing), last)
        last = torch.where((a == 0) & (rest < 0), first - 1, last)
    return first, last


def _expand(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Every integer of each closed interval, and the interval it belongs to."""
    count = (last - first + 1).clamp_min(0)
    owner = torch.arange(len(count), device=count.device).repeat_interleave(count)
    offset = first - (count.cumsum(0) - count)
    return owner, torch.arange(len(owner), device=count.device) + offset[owner]


# --- barycentrics ---------------------------------------------------------------------------------------------------


def _resolve(screen: Tensor, faces: Tensor, triangle: Tensor) -> Raster:
    view, y, x = (triangle >= 0).nonzero(as_tuple=True)
    corner = screen[view[:, None], faces.long()[triangle[view, y, x]]]
    centre = torch.stack([x, y], -1).to(screen.dtype) + 0.5
    to_corner = corner[..., :2] - centre[:, None]
    flat = [_cross(to_corner[:, i - 2], to_corner[:, i - 1]) for i in range(3)]
    area = flat[0] + flat[1] + flat[2]
    # Snapping may leave a centre outside by a hair, or a sliver without area: the weights stay a convex combination.
    some = area.abs() > 1e-12
    area = torch.where(some, area, 1)
    near = [torch.where(some, f / area, 1 / 3).clamp(0, 1) / corner[:, i, 2] for i, f in enumerate(flat)]
    total = near[0] + near[1] + near[2]
    weight = torch.stack([n / total for n in near], -1)
    distance = (near[0] * corner[:, 0, 2] + near[1] * corner[:, 1, 2] + near[2] * corner[:, 2, 2]) / total
    barycentric = screen.new_zeros(*triangle.shape, 3).index_put((view, y, x), weight)
    depth = screen.new_zeros(triangle.shape).index_put((view, y, x), distance)
    return Raster(triangle, barycentric, depth)
