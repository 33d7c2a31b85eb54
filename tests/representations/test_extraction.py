"""Surfaces out of densities whose shape is known."""

import math

import pytest
import torch
from torch import Tensor

from representations.cameras import Cameras
from representations.extraction import (
    choose_threshold,
    extract_surface,
    mesh_from_density,
    sample_grid,
    survey_cameras,
)
from representations.scene import EmptySceneError, Mesh

RADIUS = 0.55


def ball(points: Tensor) -> Tensor:
    """A density that falls smoothly; its surface, where it is opaque, is at 40."""
    return 80 * torch.sigmoid((RADIUS - points.norm(dim=-1)) / 0.03)


def disc(cameras: Cameras) -> Tensor:
    """Exact silhouettes of the ball."""
    origin, direction = cameras.rays()
    nearest = torch.linalg.cross(origin[:, None, None].expand_as(direction), direction).norm(dim=-1)
    return (nearest < RADIUS).float()[:, None]


def volume(mesh: Mesh) -> float:
    """Signed volume: positive where faces wind counter-clockwise seen from outside."""
    a, b, c = mesh.vertices[mesh.faces].double().unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def test_the_threshold_is_found_by_silhouettes():
    grid = sample_grid(ball, 1.0, 64)
    found = choose_threshold(grid, 1.0, disc, survey_cameras(1.0))
    assert abs(found.value - 40) < 4 and found.iou > 0.98


def test_a_ball_comes_out_as_a_ball():
    mesh = mesh_from_density(ball, 1.0, 64, disc)
    radius = mesh.vertices.norm(dim=-1)
    assert abs(float(radius.mean()) - RADIUS) < 0.008 and float(radius.std()) < 0.004
    assert abs(volume(mesh) / (4 / 3 * math.pi * RADIUS**3) - 1) < 0.03


def test_axes_are_not_swapped():
    box = sample_grid(lambda p: (p.abs() < p.new_tensor([0.8, 0.5, 0.3])).all(-1).float(), 1.0, 48)
    extent = extract_surface(box, 1.0, 0.5).vertices.abs().amax(0)
    torch.testing.assert_close(extent, torch.tensor([0.8, 0.5, 0.3]), atol=0.05, rtol=0)


def test_what_reaches_the_edge_is_closed_there():
    mesh = extract_surface(torch.ones(12, 12, 12), 1.0, 0.5)
    assert abs(volume(mesh) - 8) < 0.25
    assert 1 <= float(mesh.vertices.abs().max()) < 1.02


def test_an_empty_field_is_an_error_with_numbers():
    fog = torch.full((8, 8, 8), 0.01)
    with pytest.raises(EmptySceneError, match=r"largest density 0\.01, largest opacity 0\.200 .* 100\.00% of the cube"):
        choose_threshold(fog, 1.0, lambda c: torch.full((len(c), 1, *c.size), 0.2), survey_cameras(1.0))
    with pytest.raises(EmptySceneError, match="largest density 0, largest opacity 1"):
        choose_threshold(torch.zeros(8, 8, 8), 1.0, disc, survey_cameras(1.0))
    with pytest.raises(EmptySceneError, match=r"the largest density is 0\.01, the threshold 1"):
        extract_surface(fog, 1.0, 1.0)


def test_values_that_are_not_finite_are_never_a_surface():
    broken = torch.ones(4, 4, 4)
    broken[1, 2, 3] = math.nan
    with pytest.raises(ValueError, match="1 of 64 values"):
        extract_surface(broken, 1.0, 0.5)
