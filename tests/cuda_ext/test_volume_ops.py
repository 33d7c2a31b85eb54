"""Trilinear lookup, marching and compositing against slow, obvious forms of the same, and at the edges."""

import math

import pytest
import torch
from torch.nn import functional as F

from cuda_ext import ops
from cuda_ext.reference import ray_jitter


def obvious_march(origin, direction, occupancy, bound, step):
    """One ray, one sample after the other."""
    inverse = 1 / direction
    low, high = (-bound - origin) * inverse, (bound - origin) * inverse
    near = max(float(torch.minimum(low, high).max()), 0.0)
    far = float(torch.maximum(low, high).min())
    cells, found = occupancy.shape[0], []
    for i in range(math.ceil(max(far - near, 0) / step) + 8):
        t = near + (i + 0.5) * step
        cell = ((origin + direction * t + bound) / (2 * bound) * cells).floor().long()
        if t < far and ((cell >= 0) & (cell < cells)).all() and occupancy[tuple(cell)]:
            found.append(t)
    return found


def test_march_finds_every_sample_of_an_occupied_cell():
    rng = torch.Generator().manual_seed(3)
    occupancy = torch.rand(8, 8, 8, generator=rng) < 0.2
    origins = torch.tensor([0.1, 0.2, 3.0]) + 0.1 * torch.randn(20, 3, generator=rng)
    directions = F.normalize(torch.randn(20, 3, generator=rng) * 0.2 - origins, dim=-1)
    t, ray = ops.march_rays(origins, directions, occupancy, 1.0, 0.05)
    for i in range(20):
        expected = obvious_march(origins[i], directions[i], occupancy, 1.0, 0.05)
        torch.testing.assert_close(t[ray == i], torch.tensor(expected), atol=1e-5, rtol=0)
    assert (ray.diff() >= 0).all()


def test_march_jitter_stays_within_a_step_and_repeats():
    origins, directions = (
        torch.tensor([[0.0, 0.0, 3.0]]).repeat(500, 1),
        torch.tensor([[0.0, 0.0, -1.0]]).repeat(500, 1),
    )
    everywhere = torch.ones(4, 4, 4, dtype=torch.bool)
    t, ray = ops.march_rays(origins, directions, everywhere, 1.0, 0.1, seed=7)
    again, _ = ops.march_rays(origins, directions, everywhere, 1.0, 0.1, seed=7)
    first = t[torch.cat([torch.ones(1, dtype=torch.bool), ray.diff() > 0])] - 2.0
    assert torch.equal(t, again)
    assert first.min() >= 0 and first.max() < 0.1 and abs(first.mean() - 0.05) < 0.01


@pytest.mark.parametrize("origin", [(0.0, 0.0, -5.0), (9.0, 9.0, 9.0)])
def test_march_misses_what_is_behind_or_beside(origin):
    t, ray = ops.march_rays(
        torch.tensor([origin]), torch.tensor([[0.0, 0.0, -1.0]]), torch.ones(2, 2, 2, dtype=torch.bool), 1.0, 0.1
    )
    assert len(t) == len(ray) == 0


def obvious_composite(density, colour, t, step):
    """One ray, front to back, as NeRF writes it."""
    passed, rgb, depth = 1.0, torch.zeros(colour.shape[1], dtype=colour.dtype), 0.0
    for i in range(len(t)):
        alpha = 1 - torch.exp(-density[i] * step)
        rgb, depth = rgb + passed * alpha * colour[i], depth + passed * alpha * t[i]
        passed = passed * (1 - alpha)
    return rgb, 1 - passed, depth


def test_composite_agrees_with_the_loop_and_skips_empty_rays():
    density, colour = torch.rand(9, dtype=torch.float64) * 8, torch.rand(9, 3, dtype=torch.float64)
    t, ray = torch.rand(9, dtype=torch.float64).sort().values, torch.tensor([0, 0, 0, 2, 2, 2, 2, 2, 5])
    rgb, alpha, depth, weight = ops.composite(density, colour, t, ray, 7, 0.2)
    for i in range(7):
        mine = ray == i
        expected = obvious_composite(density[mine], colour[mine], t[mine], 0.2)
        torch.testing.assert_close(rgb[i], expected[0])
        torch.testing.assert_close(alpha[i], torch.as_tensor(expected[1], dtype=torch.float64))
        torch.testing.assert_close(depth[i], torch.as_tensor(expected[2], dtype=torch.float64))
        torch.testing.assert_close(weight[mine].sum(), alpha[i])


def test_composite_gradients():
    density = torch.rand(6, dtype=torch.float64, requires_grad=True)
    colour = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    t, ray = torch.linspace(0, 1, 6, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 1, 3])
    assert torch.autograd.gradcheck(lambda d, c: ops.composite(d, c, t, ray, 4, 0.3)[:3], (density, colour))


def test_wrong_input_is_refused_in_words():
    with pytest.raises(ValueError, match="positive step"):
        ops.march_rays(torch.zeros(1, 3), torch.ones(1, 3), torch.ones(2, 2, 2, dtype=torch.bool), 1.0, 0.0)


def test_rays_are_shifted_by_their_number_whoever_has_them():
    whole = ray_jitter(50, 3, torch.device("cpu"))
    assert torch.equal(ray_jitter(20, 3, torch.device("cpu"), first=30), whole[30:])
