"""One step's randomness: bounds that are reached, numbers that are independent of the options."""

import torch

from guidance.drawing import make_draw, timestep_bounds
from guidance.schedules import Schedule
from guidance.testing import GaussianPrior


def draw(shared: bool = False, count: int = 6000, bounds: tuple[int, int] = (20, 980)):
    return make_draw(torch.zeros(count, 1, 1, 1), bounds, torch.Generator().manual_seed(0), shared)


def test_both_bounds_are_drawn():
    bounds = timestep_bounds(GaussianPrior(), Schedule(0.02), Schedule(0.98), 0.5)
    assert bounds == (20, 980)
    near = draw(bounds=(20, 23)).timesteps
    assert near.unique().tolist() == [20, 21, 22, 23]
    assert draw(bounds=(7, 7)).timesteps.unique().tolist() == [7]
    assert timestep_bounds(GaussianPrior(), Schedule(0.0), Schedule(1.0), 0.0) == (0, 999)


def test_sharing_a_timestep_changes_nothing_else():
    apart, shared = draw(), draw(shared=True)
    assert shared.timesteps.unique().numel() == 1
    assert torch.equal(apart.noise, shared.noise) and torch.equal(apart.gap, shared.gap)
    assert apart.seed == shared.seed


def test_the_numbers_are_independent():
    made = draw()
    rows = torch.stack([made.timesteps.float(), made.noise.flatten(), made.shift, made.gap, made.scale])
    correlation = torch.corrcoef(rows) - torch.eye(5)
    assert correlation.abs().max() < 0.05
    assert made.shift.min() >= 0 and made.shift.max() < 1
