"""Objects confined to a box: outside, neither picture nor parameter changes; inside, everything may."""

import copy
from typing import Any

import pytest
import torch

from representations.box import Box, depth_inside, rays_meet
from representations.cameras import orbit
from representations.hash_field import FieldGrid, HashField
from representations.inside import CloudInside, FieldInside, half_extents, inside, restored, wholly_inside
from representations.kinds import AnyRepresentation
from representations.particles import ParticleCloud, Particles
from representations.scene import Representation, Scene
from representations.splats import Densify, Splats

CPU = torch.device("cpu")
UPPER = Box((-1.0, 0.1, -1.0), (1.0, 1.0, 1.0))
SPLATS = Splats(count=300, most=400, initial_opacity=0.4, densify=Densify(begin=2, every=2, growth=0.3, faint=0.02))
FIELD = HashField(levels=(4, 8, 16), occupancy_cells=8)
KINDS: dict[str, AnyRepresentation] = {"cloud": SPLATS, "field": FIELD, "particles": Particles(SPLATS, 2)}


def build(kind: str) -> Representation:
    return KINDS[kind].build(torch.Generator().manual_seed(1), CPU)


def views(scene: Scene, size: int = 48) -> torch.Tensor:
    """Colour and opacity [b, 4, h, w] from around; a row of pixels is a height, nearly."""
    cameras = orbit([0, 70, 200], [0, 5, 0], size, 2.6, 40.0)
    with torch.no_grad():
        out = scene.detach().render(cameras, torch.ones(3, 3))
    return torch.cat([out.rgb, out.alpha], 1)


def outside(box: Box, size: int = 48, margin: int = 2) -> torch.Tensor:
    """Pixels [b, h, w] whose rays miss the box by ``margin`` pixels: no gaussian is drawn smaller than about one."""
    cameras = orbit([0, 70, 200], [0, 5, 0], size, 2.6, 40.0)
    origins, directions = cameras.rays()
    met = rays_meet(origins[:, None, None].expand_as(directions), directions, box.corners).float()
    return torch.nn.functional.max_pool2d(met[:, None], 2 * margin + 1, 1, margin)[:, 0] == 0


def trained(made: Representation, steps: int = 6) -> Representation:
    """Steps towards black pictures in the middle, with density control."""
    groups = [{"params": g.parameters, "lr": g.rate(0.0), "name": g.name} for g in made.groups()]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15)
    for step in range(steps):
        cameras = orbit([60.0 * step, 60.0 * step + 90], [10, 20], 32, 2.6, 40.0)
        out = made.scene(variant=made.turn(step)).render(cameras, torch.ones(2, 3))
        optimiser.zero_grad()
        (out.rgb.mean() - out.alpha.mean()).backward()
        optimiser.step()
        made.restructure(step, out, optimiser)
    return made


# Geometry -------------------------------------------------------------------------------------------------------------


def test_rays_meet_what_lies_ahead():
    box = Box((-0.1, -0.1, -0.1), (0.1, 0.1, 0.1)).corners
    eye = torch.tensor([0.0, 0.0, 2.0])
    to = torch.tensor([[0.0, 0, -1], [0, 0, 1], [0.04, 0, -1], [0.08, 0, -1], [0, 1, 0]])
    met = rays_meet(eye.expand_as(to), torch.nn.functional.normalize(to, dim=1), box)
    assert met.tolist() == [True, False, True, False, False]
    within = rays_meet(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]]), box)
    assert within.tolist() == [True]
    deep = depth_inside(torch.tensor([[0.0, 0, 0], [0.09, 0, 0], [0.2, 0, 0]]), box)
    torch.testing.assert_close(deep[:2], torch.tensor([0.1, 0.01]))
    assert float(deep[2]) < 0


def test_rays_agree_with_points_along_them():
    rng = torch.Generator().manual_seed(0)
    box = Box((-0.3, 0.0, -0.2), (0.2, 0.4, 0.5)).corners
    origins = 1.5 * torch.nn.functional.normalize(torch.randn(400, 3, generator=rng), dim=1)
    towards = torch.nn.functional.normalize(torch.randn(400, 3, generator=rng) * 0.4 - origins, dim=1)
    points = origins[:, None] + torch.linspace(0, 4, 4000)[:, None] * towards[:, None]
    found = (depth_inside(points.view(-1, 3), box).view(400, -1) >= 0).any(1)
    met = rays_meet(origins, towards, box)
    assert 50 < int(found.sum()) < 350
    assert not (found & ~met).any() and int((met & ~found).sum()) <= 4  # a corner that all points step over


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        ((0, 0, 0), (0.5, 0, 0.5), "it is empty: y runs from 0 to 0"),
        ((0, 0.5, 0), (0.5, 0.2, 0.5), "it is upside down: y runs from 0.5 to 0.2; the low corner comes first"),
        ((0, 0, 1.2), (1, 1, 2), "it misses the object: z runs from 1.2 to 2, and all objects lie between -1 and 1"),
        ((0, 0, 0), (1, 1, float("inf")), "its corners must be finite numbers"),
    ],
)
def test_boxes_that_make_no_sense_say_why(low: Any, high: Any, words: str):
    assert Box(low, high).problems(1.0) == [words]
    assert not UPPER.problems(1.0)


# Confined objects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_as_what_it_was(kind: str):
    before = build(kind)
    confined = inside(UPPER, copy.deepcopy(before))
    assert confined.variants == before.variants
    for variant in range(before.variants):
        a, b = views(before.scene(variant=variant)), views(confined.scene(variant=variant))
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_outside_nothing_changes_and_inside_something_does(kind: str):
    before = build(kind)
    after = trained(inside(UPPER, copy.deepcopy(before)), 6 * before.variants)
    miss = outside(UPPER)
    assert 0.2 < float(miss.float().mean()) < 0.8
    for variant in range(before.variants):
        a, b = views(before.scene(variant=variant)), views(after.scene(variant=variant))
        change = (a - b).abs().amax(1)
        assert float((a[:, 3] * miss).max()) > 0.5  # there is something to see outside
        assert float(change[miss].max()) <= 1e-6
        assert float(change[~miss].max()) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_restored_it_is_the_same_and_free(kind: str):
    confined = trained(inside(UPPER, build(kind)))
    whole = restored(KINDS[kind], confined.state_dict(), CPU)
    for variant in range(whole.variants):
        assert torch.equal(views(confined.scene(variant=variant)), views(whole.scene(variant=variant)))
    assert all(p.requires_grad for p in whole.parameters())
    grouped = {id(p) for group in whole.groups() for p in group.parameters}
    assert grouped == {id(p) for p in whole.parameters()}
    again = restored(KINDS[kind], whole.state_dict(), CPU)
    assert torch.equal(views(whole.scene()), views(again.scene()))
    if kind == "cloud":
        assert type(whole) is type(build("cloud"))  # a cloud that was edited in a box is a cloud


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_box_leaves_what_the_first_one_made(kind: str):
    first = trained(inside(UPPER, build(kind)))
    lower = Box((-1.0, -1.0, -1.0), (1.0, -0.1, 1.0))
    before = restored(KINDS[kind], first.state_dict(), CPU)
    second = trained(inside(lower, copy.deepcopy(before)))
    change = (views(before.scene()) - views(second.scene())).abs().amax(1)
    assert float(change[outside(lower)].max()) <= 1e-6 < 0.05 < float(change.max())
    third = restored(KINDS[kind], second.state_dict(), CPU)
    assert torch.equal(views(second.scene()), views(third.scene()))
    after = trained(third)  # and without a box all of it moves
    change = (views(second.scene()) - views(after.scene())).abs().amax(1)
    assert float(change[outside(UPPER)].max()) > 0.01 and float(change[outside(lower)].max()) > 0.01


def test_gaussians_that_reach_out_stay_and_others_are_kept_in():
    cloud = SPLATS.build(torch.Generator().manual_seed(1), CPU)
    reach, corners = half_extents(cloud), UPPER.corners
    confined = inside(UPPER, copy.deepcopy(cloud))
    assert isinstance(confined, CloudInside)
    crossing = (cloud.means[:, 1] > 0.1) & (cloud.means[:, 1] - reach[:, 1] < 0.1)
    assert crossing.any() and int((cloud.means[:, 1] > 0.1).sum()) == int(crossing.sum()) + len(confined.inside)
    kept = confined.outside.means.clone()
    with torch.no_grad():  # as far out as a step may ever throw them
        confined.inside.means.add_(torch.randn(confined.inside.means.shape, generator=torch.Generator().manual_seed(2)))
        confined.inside.log_scales.add_(3)
    trained(confined, 1)
    assert bool(wholly_inside(confined.inside, corners).all())
    assert torch.equal(confined.outside.means, kept)
    assert confined.inside.knobs.most + len(confined.outside) == SPLATS.most


def test_the_reach_of_a_gaussian_is_where_it_is_drawn():
    """The rasterizer's own pictures, large enough that its low-pass is small, end where the reach says."""
    cloud = Splats(count=1, most=1).build(torch.Generator().manual_seed(3), CPU)
    with torch.no_grad():
        cloud.means.zero_()
        cloud.log_scales.copy_(torch.tensor([[-2.0, -2.6, -3.2]]))
        cloud.logit_opacities.fill_(2.0)
    reach = half_extents(cloud)[0]
    alpha = cloud.scene().detach().render(orbit([0], [0], 512, 40.0, 2.8), torch.zeros(1, 3)).alpha[0, 0]
    unit = 512 / 2 / torch.tensor(1.4).deg2rad().tan() / 40.0  # pixels a world unit
    rows, columns = (alpha > 0).any(1).nonzero(), (alpha > 0).any(0).nonzero()
    for axis, where in ((0, columns), (1, rows)):
        half = float(where.max() - where.min() + 1) / 2 / float(unit)
        assert 0.97 * float(reach[axis]) - 0.01 < half < 1.03 * float(reach[axis]) + 0.01


def test_a_box_without_gaussians_is_refused():
    with pytest.raises(ValueError, match="No gaussian lies wholly inside"):
        inside(Box((0.9, 0.9, 0.9), (1.0, 1.0, 1.0)), build("cloud"))


def test_matter_may_grow_where_there_was_none():
    """A field answers inside its box alone, in cells that the other field's occupancy never opened too."""
    empty = Box((0.35, 0.35, 0.35), (0.65, 0.65, 0.65))
    confined = inside(empty, build("field"))
    assert isinstance(confined, FieldInside) and isinstance(confined.inside, FieldGrid)
    before = views(confined.scene())
    with torch.no_grad():
        confined.inside.table[:, 0] += 6.0
        confined.inside.occupancy.fill_(True)
    change = (views(confined.scene()) - before).abs().amax(1)
    assert float(change.max()) > 0.3 and float(change[outside(empty)].max()) <= 1e-6


def test_particles_are_confined_one_by_one():
    confined = inside(UPPER, build("particles"))
    assert isinstance(confined, ParticleCloud)
    assert all(isinstance(confined.particle(i), CloudInside) for i in range(2))
