"""The rasterizer and the textured mesh against what geometry says."""

import math

import pytest
import torch
from torch import Tensor

from cuda_ext.triangles import LIMIT, interpolate, rasterize_triangles
from representations.cameras import orbit
from representations.scene import EmptySceneError
from representations.textured_mesh import TexturedMesh, texel_geometry, vertex_normals

WHITE = torch.ones(1, 3)


def test_a_shared_edge_belongs_to_one_triangle():
    """A square of two triangles covers each centre once, whichever way its diagonal runs; the sum has no gap."""
    corners = torch.tensor([[[1.5, 1.5, 2.0], [6.5, 1.5, 2.0], [6.5, 6.5, 2.0], [1.5, 6.5, 2.0]]])
    halves = [torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 3]])]
    first, second = (rasterize_triangles(corners, half, (8, 8)).hit for half in halves)
    assert not (first & second).any()
    # Left and top edges are in, right and bottom ones out: centres 1.5 to 5.5 in both directions.
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1:6, 1:6] = True
    assert torch.equal((first | second)[0], expected)


def test_random_triangles_agree_with_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    screen = torch.rand(1, 60, 3, generator=generator, dtype=torch.float64) * torch.tensor([40.0, 30.0, 3.0]) - 4
    screen[..., 2] += 5
    faces = torch.randint(60, (50, 3), generator=generator)
    raster = rasterize_triangles(screen, faces, (24, 32))
    depth = brute_force(screen[0], faces, (24, 32))
    torch.testing.assert_close(raster.depth[0], depth, atol=5e-2, rtol=0)
    assert torch.equal(raster.hit[0], depth > 0)
    torch.testing.assert_close(raster.barycentric.sum(-1), raster.hit.double())
    depth_again = interpolate(screen[..., 2:], faces, raster)[..., 0]
    torch.testing.assert_close(depth_again, raster.depth)


def brute_force(screen: Tensor, faces: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth by solving each pixel of each triangle in floating point, with corners snapped as specified."""
    depth = torch.full(size, math.inf, dtype=torch.float64)
    screen = torch.cat([(screen[:, :2] * 256).round() / 256, screen[:, 2:]], -1)
    for face in faces:
        corner = screen[face]
        system = torch.cat([corner[:, :2].T, torch.ones(1, 3, dtype=torch.float64)])
        if system.det().abs() < 1e-9:
            continue
        for y in range(size[0]):
            for x in range(size[1]):
                weight = torch.linalg.solve(system, torch.tensor([x + 0.5, y + 0.5, 1.0], dtype=torch.float64))
                if weight.min() >= 0:
                    depth[y, x] = min(depth[y, x], 1 / (weight / corner[:, 2]).sum())
    return torch.where(depth.isinf(), 0, depth)


def test_perspective_is_honoured():
    """Half-way across a receding edge on screen is not half-way along it in space."""
    screen = torch.tensor([[[0.0, -10.0, 1.0], [8.0, -10.0, 3.0], [8.0, 40.0, 3.0], [0.0, 40.0, 1.0]]])
    raster = rasterize_triangles(screen, torch.tensor([[0, 1, 2], [0, 2, 3]]), (4, 8))
    expected = 1 / torch.lerp(torch.tensor(1.0), torch.tensor(1 / 3), (torch.arange(8) + 0.5) / 8)
    torch.testing.assert_close(raster.depth[0, 2], expected)


@pytest.mark.parametrize(
    "corner", [[2.0, 2.0, -1.0], [2.0, 2.0, 0.0], [math.nan, 2.0, 1.0], [2.0, math.inf, 1.0], [2.0 * LIMIT, 2.0, 1.0]]
)
def test_what_cannot_be_drawn_is_left_out(corner: list[float]):
    screen = torch.tensor([[corner, [6.0, 0.0, 1.0], [0.0, 6.0, 1.0]]])
    raster = rasterize_triangles(screen, torch.tensor([[0, 1, 2]]), (8, 8))
    assert not raster.hit.any() and not raster.depth.any() and not raster.barycentric.any()


def test_nothing_degenerate_and_off_screen_give_empty_pictures():
    line = torch.tensor([[[0.0, 0.0, 1.0], [4.0, 4.0, 1.0], [8.0, 8.0, 1.0]]])
    assert not rasterize_triangles(line, torch.tensor([[0, 1, 2]]), (8, 8)).hit.any()
    assert not rasterize_triangles(line + 100, torch.tensor([[0, 1, 2]]), (8, 8)).hit.any()
    empty = rasterize_triangles(torch.zeros(2, 0, 3), torch.zeros(0, 3, dtype=torch.long), (4, 5))
    assert empty.triangle.shape == (2, 4, 5) and not empty.hit.any()
    assert interpolate(torch.zeros(0, 2), torch.zeros(0, 3, dtype=torch.long), empty).shape == (2, 4, 5, 2)
    with pytest.raises(ValueError, match="faces name vertices 0 to 3; there are 3"):
        rasterize_triangles(line, torch.tensor([[0, 1, 3]]), (8, 8))


def test_gradients_of_barycentrics_and_depth_are_exact():
    screen = torch.tensor([[[1.2, 0.7, 2.0], [7.1, 2.3, 3.0], [3.3, 6.9, 4.0]]], dtype=torch.float64)
    values = torch.tensor([[0.3, 1.0], [2.0, -1.0], [0.7, 0.1]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2]])

    def picture(moved: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        raster = rasterize_triangles(moved, faces, (8, 8))
        return interpolate(shown, faces, raster), raster.depth

    assert torch.autograd.gradcheck(picture, (screen.requires_grad_(), values.requires_grad_()))


def test_a_textured_quad_shows_its_texture_upright():
    """Colours arrive where glTF puts them: (0, 0) is the top-left texel, seen from the front."""
    quad = facing_quad()
    camera = orbit([0.0], [0.0], 64, 3.0, 40.0)
    out = quad.render(camera, torch.zeros(1, 3))
    centre, reach = 32, 8
    for dy, dx, expected in ((-1, -1, [1, 0, 0]), (-1, 1, [0, 1, 0]), (1, -1, [0, 0, 1]), (1, 1, [1, 1, 1])):
        pixel = out.rgb[0, :, centre + dy * reach, centre + dx * reach]
        torch.testing.assert_close(pixel, torch.tensor(expected, dtype=torch.float32), atol=0.02, rtol=0)
    assert out.normal is not None
    torch.testing.assert_close(out.normal[0, :, centre, centre], torch.tensor([0.0, 0.0, 1.0]))
    assert abs(float(out.depth[0, 0, centre, centre]) - 3.0) < 1e-3
    assert not out.rgb[0, :, 0, 0].any() and not out.depth[0, 0, 0, 0]


def test_back_faces_are_not_drawn():
    behind = facing_quad().render(orbit([180.0], [0.0], 16, 3.0, 40.0), WHITE)
    assert not behind.alpha.any() and (behind.rgb == 1).all()


def test_the_texture_gets_gradients():
    quad = facing_quad()
    texture = quad.texture.clone().requires_grad_()
    shown = TexturedMesh(quad.vertices, quad.faces, quad.uv, texture).render(orbit([0.0], [0.0], 16, 3.0, 40.0), WHITE)
    shown.rgb.sum().backward()
    assert texture.grad is not None and float(texture.grad.abs().sum()) > 0


def test_both_sides_of_a_thin_wall_keep_their_colour():
    front = facing_quad()
    vertices = torch.cat([front.vertices, front.vertices - torch.tensor([0.0, 0.0, 0.001])])
    faces = torch.cat([front.faces, front.faces.flip(1) + 4])
    uv = torch.cat([front.uv * torch.tensor([0.5, 1.0]), front.uv * torch.tensor([0.5, 1.0]) + torch.tensor([0.5, 0])])
    texture = torch.zeros(3, 32, 32)
    texture[0, :, :16], texture[2, :, 16:] = 1, 1
    wall = TexturedMesh(vertices, faces, uv, texture)
    points = torch.tensor([[0.1, 0.1, -0.0009], [0.1, 0.1, -0.0001]])
    towards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    assert torch.equal(wall.surface_colour(points, towards), torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]))


def test_texels_know_their_place():
    quad = facing_quad()
    position, normal, covered = texel_geometry(quad.vertices, quad.faces, quad.uv, (8, 8))
    assert covered.all()
    torch.testing.assert_close(position[0, 0], torch.tensor([-0.4375, 0.4375, 0.0]))
    torch.testing.assert_close(normal[3, 5], torch.tensor([0.0, 0.0, 1.0]))


def test_seams_vanish_in_normals_and_meshes():
    quad = facing_quad()
    split = TexturedMesh(
        quad.vertices[quad.faces.flatten()], torch.arange(6).view(2, 3), torch.zeros(6, 2), quad.texture
    )
    assert split.to_mesh(8).vertices.shape == (4, 3) and split.to_mesh(8).faces.shape == (2, 3)
    assert (vertex_normals(split.vertices, split.faces) == torch.tensor([0.0, 0.0, 1.0])).all()


def test_no_triangles_is_an_error_with_words():
    nothing = TexturedMesh(torch.zeros(0, 3), torch.zeros(0, 3).long(), torch.zeros(0, 2), torch.zeros(3, 2, 2))
    with pytest.raises(EmptySceneError, match="no triangles"):
        nothing.to_mesh(8)
    assert (nothing.render(orbit([0.0], [0.0], 8, 3.0, 40.0), WHITE).rgb == 1).all()


def facing_quad() -> TexturedMesh:
    """A unit square that faces +z: red and green above, blue and white below."""
    vertices = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    uv = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]])
    texture = torch.zeros(3, 8, 8)
    texture[0, :4, :4] = texture[1, :4, 4:] = texture[2, 4:, :4] = 1
    texture[:, 4:, 4:] = 1
    return TexturedMesh(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]), uv, texture)
