"""From a raw iso-surface to a clean one: no floaters, no hidden cavities, few enough faces, watertight if possible."""

import numpy as np
import torch
from numpy.typing import NDArray

from representations.box import Box, depth_inside
from representations.scene import EmptySceneError, Mesh

FLOATER_SHARE = 0.05
"""A component with less than this share of the largest one's area is a floater."""
_TAUBIN = (0.5, -0.53)
"""Steps of Taubin's smoothing (SIGGRAPH 1995): a shrinking one, then a slightly longer growing one."""


def clean(mesh: Mesh, faces: int, smoothing: int = 0) -> Mesh:
    """The surface that is worth a texture.

    Floaters and cavities that no one can see from outside go, solids that overlap or contain each other are united,
    and the rest is decimated by quadric errors to at most about ``faces`` faces. The result is an oriented manifold
    wherever the input was one; where decimation breaks it, manifold3d's own simplification takes its place.

    Args:
        mesh: faces wind counter-clockwise seen from outside.
        faces: the number of faces to aim at.
        smoothing: rounds of Taubin smoothing before decimation.

    Raises:
        EmptySceneError: nothing is left.
    """
    solid = _united(drop_floaters(mesh))
    if smoothing:
        solid = smooth(solid, smoothing)
    reduced = _decimated(solid, faces)
    if not len(reduced.faces):
        raise EmptySceneError(f"no surface is left of {len(mesh.faces)} faces after cleaning")
    return reduced


def spliced(outer: Mesh, inner: Mesh, box: Box) -> Mesh:
    """The surface of ``outer`` outside a box and of ``inner`` inside, one closed solid where both are.

    Where either is no oriented manifold there is no telling its inside: then faces go by where their centres lie, and
    the two parts meet without being joined.
    """
    import manifold3d

    solids = _manifold(outer), _manifold(inner)
    if solids[0] is None or solids[1] is None:
        return _by_centres(outer, inner, box)
    size = [high - low for low, high in zip(box.low, box.high, strict=True)]
    block = manifold3d.Manifold.cube(size).translate(box.low)
    return _from_manifold((solids[0] - block) + (solids[1] ^ block), inner)


def drop_floaters(mesh: Mesh) -> Mesh:
    """The components that matter: the largest by area, and others that are large enough and not cavities."""
    vertices, faces = _arrays(mesh)
    component = _components(len(vertices), faces)
    corner = vertices[faces]
    doubled = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    area = np.bincount(component, np.linalg.norm(doubled, axis=1))
    volume = np.bincount(component, (corner[:, 0] * doubled).sum(1))
    keep = (area >= FLOATER_SHARE * area.max(initial=0)) & (volume > 0)
    # An open or inside-out surface has no volume to speak of: then the area alone decides.
    if not keep.any():
        keep = area >= FLOATER_SHARE * area.max(initial=0)
    return _mesh(vertices, faces[keep[component]], mesh)


def is_watertight(mesh: Mesh) -> bool:
    """Whether every edge is shared by exactly two faces that run along it in opposite directions."""
    faces = mesh.faces.detach().cpu().numpy().astype(np.int64)
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forward, backward = (
        np.sort(pair[:, 0] * len(mesh.vertices) + pair[:, 1]) for pair in (directed, directed[:, ::-1])
    )
    return len(forward) > 0 and bool((np.diff(forward) > 0).all() and (forward == backward).all())


def smooth(mesh: Mesh, rounds: int) -> Mesh:
    """Taubin smoothing with uniform weights: noise goes, the volume stays."""
    from scipy.sparse import coo_matrix, diags

    vertices, faces = _arrays(mesh)
    n = len(vertices)
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    link = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n)).tocsr()
    link = ((link + link.T) > 0).astype(np.float64)
    mean = diags(1 / np.maximum(np.asarray(link.sum(1)).ravel(), 1)) @ link
    for step in _TAUBIN * rounds:
        vertices = vertices + step * (mean @ vertices - vertices)
    return _mesh(vertices, faces, mesh)


def _components(n: int, faces: NDArray) -> NDArray:
    """A label for each face; faces that share a vertex share a label."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1][faces[:, 0]]


def _manifold(mesh: Mesh):
    """The mesh as manifold3d has it, or None where it is not an oriented manifold."""
    import manifold3d

    vertices, faces = _arrays(mesh)
    packed = manifold3d.Mesh(vertices.astype(np.float32), faces.astype(np.uint32))
    packed.merge()
    solid = manifold3d.Manifold(packed)
    return solid if solid.status() == manifold3d.Error.NoError and solid.num_tri() else None


def _united(mesh: Mesh) -> Mesh:
    import manifold3d

    solid = _manifold(mesh)
    if solid is None:
        return mesh
    parts = solid.decompose()
    return _from_manifold(manifold3d.Manifold.batch_boolean(parts, manifold3d.OpType.Add), mesh) if parts[1:] else mesh


def _by_centres(outer: Mesh, inner: Mesh, box: Box) -> Mesh:
    corners = box.corners.to(inner.vertices)
    within = [depth_inside(mesh.vertices[mesh.faces].mean(1), corners) > 0 for mesh in (outer, inner)]
    faces = torch.cat([outer.faces[~within[0]], inner.faces[within[1]] + len(outer.vertices)])
    return Mesh(torch.cat([outer.vertices, inner.vertices]), faces)


def _decimated(mesh: Mesh, faces: int) -> Mesh:
    import fast_simplification

    if len(mesh.faces) <= faces:
        return mesh
    vertices, triangles = _arrays(mesh)
    points, kept = fast_simplification.simplify(vertices, triangles, target_count=faces)[:2]
    reduced = _mesh(points, kept, mesh)
    if not is_watertight(mesh) or is_watertight(reduced):
        return reduced
    solid = _manifold(reduced) or _manifold(mesh)
    return _simplified(solid, faces, mesh) if solid is not None else reduced


def _simplified(solid, faces: int, like: Mesh) -> Mesh:
    """manifold3d's simplification, at the first tolerance that leaves few enough faces: coarser, never broken."""
    low, _, _, high = solid.bounding_box()[:4]
    tolerance = 1e-4 * abs(high - low)
    while solid.num_tri() > faces and tolerance < 0.05 * abs(high - low):
        solid, tolerance = solid.simplify(tolerance), tolerance * 1.5
    return _from_manifold(solid, like)


def _from_manifold(solid, like: Mesh) -> Mesh:
    packed = solid.to_mesh()
    return _mesh(packed.vert_properties[:, :3], packed.tri_verts, like)


def _arrays(mesh: Mesh) -> tuple[NDArray, NDArray]:
    return mesh.vertices.detach().cpu().numpy().astype(np.float64), mesh.faces.cpu().numpy().astype(np.int64)


def _mesh(vertices: NDArray, faces: NDArray, like: Mesh) -> Mesh:
    """As tensors on the device of ``like``, without vertices that no face uses."""
    used, compact = np.unique(faces, return_inverse=True)
    points = torch.from_numpy(vertices[used].astype(np.float32))
    triangles = torch.from_numpy(compact.reshape(-1, 3).astype(np.int64))
    return Mesh(points.to(like.vertices.device), triangles.to(like.faces.device))
