"""Surfaces and colours out of clouds whose shape is known."""

import math

import pytest
import torch
from torch import Tensor

from representations.album import Album
from representations.cameras import Cameras, orbit
from representations.densify import rotations
from representations.extraction import extract_surface, sample_grid
from representations.scene import EmptySceneError
from representations.splat_density import density_grid
from representations.splat_scene import SH_ZERO, SplatScene
from representations.splats import Splats
from representations.textured_mesh import TexturedMesh, vertex_normals

CPU = torch.device("cpu")


def ball(p: Tensor) -> Tensor:
    """Positive inside."""
    return 0.5 - p.norm(dim=1)


def plate(p: Tensor) -> Tensor:
    """A plate 0.08 thick: two to three cells of the grid it is found on."""
    return (p.new_tensor([0.6, 0.04, 0.5]) - p.abs()).amin(1)


def torus(p: Tensor) -> Tensor:
    """A ring around the y axis."""
    return 0.15 - ((p[:, [0, 2]].norm(dim=1) - 0.45).square() + p[:, 1].square()).sqrt()


def solid(shape) -> TexturedMesh:
    mesh = extract_surface(sample_grid(shape, 1.0, 64), 1.0, 0.0)
    return TexturedMesh(mesh.vertices, mesh.faces, torch.zeros(len(mesh.vertices), 2), torch.full((3, 2, 2), 0.5))


def silhouettes(scene, cameras: Cameras) -> Tensor:
    return scene.render(cameras, torch.ones(len(cameras), 3)).alpha > 0.5


@pytest.mark.parametrize("shape", [ball, plate, torus], ids=lambda s: s.__name__)
def test_the_mesh_of_a_cloud_has_its_silhouettes(shape):
    truth = solid(shape)
    cloud = Splats(count=1500, most=1500).start_from(truth, torch.Generator().manual_seed(0), CPU).scene().detach()
    mesh = cloud.to_mesh(64)
    found = TexturedMesh(mesh.vertices, mesh.faces, torch.zeros(len(mesh.vertices), 2), torch.zeros(3, 2, 2))
    cameras = orbit([0.0, 60.0, 200.0], [15.0, 60.0, -20.0], 96, 2.6, 40.0)
    shown, meant = silhouettes(cloud, cameras), silhouettes(truth, cameras)
    got = silhouettes(found, cameras)
    assert float((got & shown).sum() / (got | shown).sum()) > 0.93
    assert float((got & meant).sum() / (got | meant).sum()) > 0.78


def test_the_grid_holds_the_sum_of_all_gaussians():
    """Against the plain formula at every point; large ones, so that blurring to the grid changes little."""
    generator = torch.Generator().manual_seed(4)
    n, resolution = 7, 24
    means = torch.rand(n, 3, generator=generator) * 2.4 - 1.2  # some outside the cube, reaching in
    scales = 0.3 + 0.3 * torch.rand(n, 3, generator=generator)
    quaternions, logits = torch.randn(n, 4, generator=generator), torch.randn(n, generator=generator)
    grid = density_grid(means, scales.log(), quaternions, logits, 1.0, resolution)
    axis = torch.linspace(-1, 1, resolution)
    points = torch.cartesian_prod(axis, axis, axis)
    turn = rotations(quaternions)
    square = torch.einsum("nij,npi->npj", turn, points - means[:, None]).div(scales[:, None]).square().sum(-1)
    expected = (torch.exp(-0.5 * square) * -torch.log(1 - logits.sigmoid())[:, None]).sum(0)
    torch.testing.assert_close(grid.flatten(), expected, atol=0.1, rtol=0.03)


def test_a_sheet_thinner_than_a_cell_does_not_fall_between_its_points():
    """Half-way between two layers of the grid it still leaves nearly what it leaves on one."""
    resolution = 21
    cell = 2 / (resolution - 1)
    shape = (torch.tensor([[0.5, 1e-3, 0.5]]).log(), torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([2.0]))
    on, between = (
        density_grid(torch.tensor([[0.0, height, 0.0]]), *shape, 1.0, resolution).max() for height in (0.0, cell / 2)
    )
    assert between > 0.55 * on


def test_what_is_far_outside_or_no_number_leaves_nothing():
    means = torch.tensor([[9.0, 0, 0], [math.nan, 0, 0], [0, math.inf, 0]])
    grid = density_grid(means, torch.full((3, 3), -2.0), torch.eye(4)[:1].repeat(3, 1), torch.ones(3), 1.0, 8)
    assert grid.shape == (8, 8, 8) and not grid.any()


def test_no_gaussians_have_no_mesh():
    none = torch.zeros(0, 3)
    with pytest.raises(EmptySceneError, match="0 gaussians"):
        SplatScene(none, none, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 1, 3)).to_mesh(16)


def two_faced() -> tuple[SplatScene, TexturedMesh]:
    """A ball that is red where x is positive and blue elsewhere, as a cloud and as a mesh."""
    mesh = solid(ball)
    scene = Splats(count=2000, most=2000).start_from(mesh, torch.Generator().manual_seed(0), CPU).scene().detach()
    red = (scene.means[:, :1] > 0).float()
    colour = torch.cat([red, torch.zeros_like(red), 1 - red], 1)
    sh = ((colour - 0.5) / SH_ZERO)[:, None]
    opaque = torch.full_like(scene.logit_opacities, 5.0)
    return SplatScene(scene.means, scene.log_scales, scene.quaternions, opaque, sh), mesh


def test_surface_points_get_the_colour_that_is_seen_there():
    cloud, mesh = two_faced()
    normals = vertex_normals(mesh.vertices, mesh.faces)
    colour = cloud.surface_colour(mesh.vertices, normals)
    clear = mesh.vertices[:, 0].abs() > 0.1
    expected = torch.cat([mesh.vertices[:, :1] > 0, torch.zeros(len(clear), 1), mesh.vertices[:, :1] < 0], 1)
    assert (colour - expected).abs()[clear].mean() < 0.03
    assert ((colour >= 0) & (colour <= 1)).all()


def test_points_that_no_picture_sees_still_get_a_colour():
    """Inside the ball: from the views that at least look at the right side, and failing that from all."""
    cloud, _ = two_faced()
    album = Album.of(cloud, 1.0, CPU)
    inside = torch.tensor([[0.1, 0.0, 0.0], [-0.1, 0.0, 0.0]])
    colour = album.colour(inside, torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
    assert colour[0, 0] > 2 * colour[0, 2] and colour[1, 2] > 2 * colour[1, 0]
    assert album.colour(inside, torch.zeros(2, 3)).isfinite().all()
