"""Gaussians for a scene that is there already: another cloud, a textured mesh or a field."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from representations.field import RadianceField
from representations.scene import EmptySceneError, Scene
from representations.splat_scene import SH_ZERO, SplatScene
from representations.textured_mesh import TexturedMesh, sample_texture

_FLATNESS = 0.1
"""Thickness of a surface's gaussians, as a share of their width."""
_SURFACE_OPACITY = 0.8
_WIDTH = 0.6
"""Semi-axis of a gaussian as a share of the edge of what falls to it, of a surface's area or of a field's volume."""
_CELLS = 48
"""Cells a side of the grid on which a field's matter is looked for."""


@dataclass(frozen=True)
class Wanted:
    """What the cloud shall be like."""

    count: int
    """Gaussians that are sampled."""
    most: int
    """Gaussians that are kept at most, of another cloud."""
    harmonics: int
    """Coefficients of a colour channel."""
    sizes: tuple[float, float]
    """Shortest and longest semi-axis, in world units."""


def sampled(scene: Scene, wanted: Wanted, rng: torch.Generator) -> dict[str, Tensor]:
    """Parameters of gaussians, on the CPU, that look like ``scene``.

    Raises:
        TypeError: there is no way from this kind of scene.
        EmptySceneError: there is nothing in it.
    """
    match scene:
        case SplatScene():
            return from_cloud(scene, wanted)
        case TexturedMesh():
            return from_mesh(scene, wanted, rng)
        case RadianceField():
            return from_field(scene, wanted, rng)
    raise TypeError(
        f"Splats can go on from a cloud of gaussians, a textured mesh or a field, not from a {type(scene).__name__}"
    )


def from_cloud(scene: SplatScene, wanted: Wanted) -> dict[str, Tensor]:
    """The same gaussians, the most opaque ones if there are too many, with harmonics of the degree asked for."""
    if not len(scene):
        raise EmptySceneError("the cloud to start from has 0 gaussians")
    still = scene.detach()
    chosen = torch.arange(len(still))
    if len(still) > wanted.most:
        chosen = still.logit_opacities.cpu().argsort(descending=True, stable=True)[: wanted.most].sort().values
    names = ("means", "log_scales", "quaternions", "logit_opacities")
    sh = torch.zeros(len(chosen), wanted.harmonics, 3)
    shared = min(wanted.harmonics, still.sh.shape[1])
    sh[:, :shared] = still.sh.cpu()[chosen, :shared]
    return {name: getattr(still, name).cpu()[chosen].clone() for name in names} | {"sh": sh}


def from_mesh(mesh: TexturedMesh, wanted: Wanted, rng: torch.Generator) -> dict[str, Tensor]:
    """Flat gaussians on the surface, spread evenly by area, in the texture's colours."""
    still = mesh.detach()
    vertices, faces, uv, texture = (
        part.cpu() for part in (still.vertices, still.faces.long(), still.uv, still.texture)
    )
    corner = vertices[faces]
    doubled = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    area = doubled.norm(dim=1).double() / 2
    if not len(faces) or float(area.sum()) <= 0:
        raise EmptySceneError(f"the mesh to start from has {len(faces)} faces and no area")
    face = _evenly(area, wanted.count, rng)
    weight = _barycentric(wanted.count, rng)
    width = math.log(_WIDTH * math.sqrt(float(area.sum()) / wanted.count))
    size = torch.tensor([width, width, width + math.log(_FLATNESS)]).repeat(wanted.count, 1)
    return {
        "means": torch.einsum("nc,nci->ni", weight, corner[face]),
        "log_scales": size.clamp(*map(math.log, wanted.sizes)),
        "quaternions": turn_to(normalize(doubled[face], dim=1)),
        "logit_opacities": torch.full((wanted.count,), _SURFACE_OPACITY).logit(),
        "sh": harmonics(sample_texture(texture, torch.einsum("nc,nci->ni", weight, uv[faces[face]])), wanted.harmonics),
    }


def from_field(field: RadianceField, wanted: Wanted, rng: torch.Generator) -> dict[str, Tensor]:
    """Round gaussians where the field is dense, in its colours; each is as opaque as the matter it stands for."""
    still, bound = field.detach(), field.bound
    cell = 2 * bound / _CELLS
    axis = torch.arange(_CELLS) * cell + (cell / 2 - bound)
    centres = torch.cartesian_prod(axis, axis, axis)
    density = torch.cat([still.sample(part.to(still.device))[0].cpu() for part in centres.split(1 << 17)])
    opacity = 1 - torch.exp(-density * cell)
    opacity = torch.where(opacity > 0.01, opacity, 0.0).double()
    if not bool(opacity.any()):
        raise EmptySceneError(f"the field to start from is empty: its largest density is {float(density.max()):.4g}")
    chosen = _evenly(opacity, wanted.count, rng)
    means = centres[chosen] + (torch.rand(wanted.count, 3, generator=rng) - 0.5) * cell
    here, colour = (part.cpu() for part in still.sample(means.to(still.device)))
    # The gaussians share the opaque volume. A ray that crosses many meets their matter times 2 pi semi-axis^2 in an
    # area of edge^2 for every edge that it goes, and where the field is thin there are fewer of them.
    edge = cell * float(opacity.sum() / wanted.count) ** (1 / 3)
    matter = here * edge / (2 * math.pi * _WIDTH**2 * (1 - torch.exp(-here * cell)).clamp_min(0.01))
    return {
        "means": means,
        "log_scales": torch.full((wanted.count, 3), math.log(_WIDTH * edge)).clamp(*map(math.log, wanted.sizes)),
        "quaternions": torch.randn(wanted.count, 4, generator=rng),
        "logit_opacities": (1 - torch.exp(-matter)).clamp(0.01, 0.95).logit(),
        "sh": harmonics(colour, wanted.harmonics),
    }


def harmonics(colour: Float[Tensor, "n 3"], count: int) -> Float[Tensor, "n k 3"]:
    """Spherical harmonics that show one colour from all sides."""
    sh = colour.new_zeros(len(colour), count, 3)
    sh[:, 0] = (colour - 0.5) / SH_ZERO
    return sh


def turn_to(normals: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
    """Quaternions, wxyz, that turn +z to unit ``normals`` the short way."""
    x, y, z = normals.unbind(1)
    turned = torch.stack([1 + z, -y, x, torch.zeros_like(x)], 1)
    # Straight down there is no short way: half a turn around x is as good as any.
    return torch.where(turned[:, :1] > 1e-6, turned, torch.tensor([0.0, 1.0, 0.0, 0.0]).to(turned))


def _evenly(weight: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Indices in proportion to ``weight``, by systematic sampling: as even as chance allows."""
    edges = weight.cumsum(0)
    at = (torch.arange(count) + torch.rand(count, generator=rng)).double() / count * edges[-1]
    return torch.searchsorted(edges, at, right=True).clamp_max(len(weight) - 1)


def _barycentric(count: int, rng: torch.Generator) -> Tensor:
    """Weights of a triangle's corners [n, 3] for points that are uniform in it."""
    root, share = torch.rand(count, generator=rng).sqrt(), torch.rand(count, generator=rng)
    return torch.stack([1 - root, root * (1 - share), root * share], 1)
