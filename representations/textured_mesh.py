"""A mesh with a texture: the scene that leaves the studio as a file, and the one that stages hand to each other."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from cuda_ext.ops import interpolate, rasterize_triangles
from representations.cameras import Cameras
from representations.scene import EmptySceneError, Mesh, RenderOutput, Scene

SUPERSAMPLING = 2
"""Samples a pixel a side."""


@dataclass(frozen=True)
class TexturedMesh(Scene):
    """Triangles that show a picture, unlit: shading is part of the texture, as far as it was baked."""

    vertices: Float[Tensor, "v 3"]
    """World positions; a vertex on a seam of the unwrapping stands once for each side."""
    faces: Int[Tensor, "f 3"]
    """Counter-clockwise seen from outside; back faces are not drawn."""
    uv: Float[Tensor, "v 2"]
    """glTF's texture coordinates: (0, 0) is the top-left corner of the texture."""
    texture: Float[Tensor, "3 h w"]
    """sRGB in [0, 1]."""

    @cached_property
    def normals(self) -> Float[Tensor, "v 3"]:
        """Smooth unit normals, equal on both sides of a seam."""
        return vertex_normals(self.vertices, self.faces)

    def render(self, cameras: Cameras, background: Float[Tensor, "b 3"]) -> RenderOutput:
        """Pictures by rasterization with ``SUPERSAMPLING`` and bilinear lookup.

        Depth is the mean distance over the samples of a pixel that hit, and normals are in world space. Gradients
        reach the texture and, inside silhouettes, the vertices.
        """
        views = [self._render_one(_one(cameras, i), background[i]) for i in range(len(cameras))]
        rgb, alpha, depth, normal = (torch.stack(parts) for parts in zip(*views, strict=True))
        return RenderOutput(rgb, alpha, depth, normal)

    def _render_one(self, camera: Cameras, background: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s = SUPERSAMPLING
        fine = Cameras(camera.pose, camera.focal * s, (camera.size[0] * s, camera.size[1] * s))
        raster = rasterize_triangles(screen_positions(self.vertices, fine), self.faces, fine.size, cull=True)
        hit = raster.hit[0]
        attributes = torch.cat([self.uv, self.vertices, self.normals], -1)
        uv, position, normal = interpolate(attributes, self.faces, raster)[0][hit].split([2, 3, 3], -1)
        distance = (position - camera.pose[0, :3, 3]).norm(dim=-1, keepdim=True)
        samples = torch.cat([sample_texture(self.texture, uv), distance, normal], -1)
        # Means over all samples of a pixel; those that miss count as zero.
        mean = _pool(samples.new_zeros(*hit.shape, 7).index_put((hit,), samples), s)
        alpha = _pool(hit[..., None].to(samples.dtype), s)
        rgb = mean[:3] + (1 - alpha) * background[:, None, None]
        return rgb, alpha, mean[3:4] / alpha.clamp_min(1e-6), normalize(mean[4:], dim=0)

    def to_mesh(self, resolution: int) -> Mesh:
        """The triangles without seams; ``resolution`` has no meaning here.

        Raises:
            EmptySceneError: there are no triangles.
        """
        if not len(self.faces):
            raise EmptySceneError("the textured mesh has no triangles")
        return weld(Mesh(self.vertices, self.faces))

    def surface_colour(self, points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """The colour of the nearest place on the surface that does not face away, to the texel.

        Raises:
            EmptySceneError: there are no triangles, or none covers a texel.
        """
        axis = normals.detach().abs().argmax(-1)
        side = axis + 3 * (normals.detach().gather(1, axis[:, None])[:, 0] < 0)
        texel = side.new_zeros(len(points))
        for direction in side.unique().tolist():
            those = side == direction
            tree, indices = self._facing[direction]
            nearest = tree.query(points[those].detach().cpu().double().numpy())[1]
            texel[those] = indices[torch.from_numpy(nearest).to(indices.device)]
        return self.texture.flatten(1)[:, texel].T

    @cached_property
    def _facing(self) -> list[tuple[Any, Tensor]]:
        """For +x, +y, +z, -x, -y, -z: a search tree of texels whose normal leans that way, and their flat indices.

        A thin wall keeps its two sides apart because a point only ever searches among texels on its own side.
        """
        from scipy.spatial import KDTree

        _, h, w = self.texture.shape
        position, normal, covered = texel_geometry(self.vertices, self.faces, self.uv, (h, w))
        index = covered.flatten().nonzero()[:, 0]
        if not len(index):
            raise EmptySceneError(f"{len(self.faces)} faces cover no texel of the texture")
        place, lean = position[covered].detach().cpu().double().numpy(), normal[covered].detach()
        trees = []
        for direction in torch.cat([torch.eye(3), -torch.eye(3)]).to(lean):
            towards = lean @ direction > 0
            towards = towards if towards.any() else torch.ones_like(towards)
            tree = KDTree(place[towards.cpu().numpy()], balanced_tree=False, compact_nodes=False)
            trees.append((tree, index[towards]))
        return trees

    def detach(self) -> "TexturedMesh":
        """The same mesh off the autograd graph."""
        return TexturedMesh(self.vertices.detach(), self.faces, self.uv.detach(), self.texture.detach())


def screen_positions(points: Float[Tensor, "v 3"], cameras: Cameras) -> Float[Tensor, "b v 3"]:
    """Pixel x, pixel y (down, from the top-left corner) and distance along the viewing axis, for the rasterizer."""
    rotation, origin = cameras.pose[:, :3, :3], cameras.pose[:, :3, 3]
    local = torch.einsum("bvi,bij->bvj", points - origin[:, None], rotation)
    distance = -local[..., 2]
    # A point in the camera's plane has no picture: any finite one does, its distance tells the rasterizer.
    scale = cameras.focal[:, None] / torch.where(distance.abs() > 1e-9, distance, 1e-9)
    h, w = cameras.size
    return torch.stack([w / 2 + scale * local[..., 0], h / 2 - scale * local[..., 1], distance], -1)


def sample_texture(texture: Float[Tensor, "3 h w"], uv: Float[Tensor, "n 2"]) -> Float[Tensor, "n 3"]:
    """Bilinear lookup, clamped to the border; sRGB values are blended as they are."""
    grid = (uv * 2 - 1)[None, :, None].to(texture.dtype)
    return grid_sample(texture[None], grid, padding_mode="border", align_corners=False)[0, :, :, 0].T


def texel_geometry(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], uv: Float[Tensor, "v 2"], size: tuple[int, int]
) -> tuple[Float[Tensor, "h w 3"], Float[Tensor, "h w 3"], Tensor]:
    """World position and unit normal of every texel of a texture of ``size`` (h, w), and which texels have one [h, w].

    The rasterizer runs in texture space: uv is the position, and every triangle is as near as the next.
    """
    h, w = size
    flat = torch.cat([uv * uv.new_tensor([w, h]), torch.ones_like(uv[:, :1])], -1)
    raster = rasterize_triangles(flat[None], faces, (h, w))
    geometry = interpolate(torch.cat([vertices, vertex_normals(vertices, faces)], -1), faces, raster)[0]
    return geometry[..., :3], normalize(geometry[..., 3:], dim=-1), raster.hit[0]


def vertex_normals(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "v 3"]:
    """Unit normals, the mean of the faces around each position weighted by area; +y where there is none."""
    _, place = _places(vertices)
    corner = vertices[faces.long()]
    doubled = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    total = torch.zeros_like(vertices)
    for i in range(3):
        total = total.index_add(0, place[faces[:, i].long()], doubled)
    length = total.norm(dim=-1, keepdim=True)
    up = vertices.new_tensor([0.0, 1.0, 0.0])
    return torch.where(length > 1e-20, total / length.clamp_min(1e-20), up)[place]


def weld(mesh: Mesh) -> Mesh:
    """The same surface with one vertex for each position, and without triangles that thereby vanish."""
    first, place = _places(mesh.vertices)
    faces = place[mesh.faces.long()]
    whole = (faces != faces.roll(1, 1)).all(-1)
    used, faces = faces[whole].unique(return_inverse=True)
    return Mesh(mesh.vertices[first][used], faces)


def _places(vertices: Tensor) -> tuple[Tensor, Tensor]:
    """A vertex of each distinct position [p], and the position of each vertex [v]."""
    distinct, place = vertices.detach().unique(dim=0, return_inverse=True)
    first = place.new_full((len(distinct),), len(vertices))
    return first.scatter_reduce(0, place, torch.arange(len(vertices), device=place.device), "amin"), place


def _one(cameras: Cameras, i: int) -> Cameras:
    return Cameras(cameras.pose[i : i + 1], cameras.focal[i : i + 1], cameras.size)


def _pool(samples: Tensor, s: int) -> Tensor:
    """Mean over blocks of s x s samples: [h s, w s, c] to [c, h, w]."""
    h, w, c = samples.shape
    return samples.view(h // s, s, w // s, s, c).mean((1, 3)).permute(2, 0, 1)
