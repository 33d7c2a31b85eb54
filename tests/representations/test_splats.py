"""The cloud of gaussians: its limits, density control in the loop, bit-equal resume, and where it can begin."""

import dataclasses
import math

import pytest
import torch

from representations.cameras import Cameras, orbit
from representations.hash_field import HashField
from representations.scene import EmptySceneError, Mesh, RenderOutput, Scene
from representations.splat_scene import SH_ZERO, SplatScene, axis_to_ray
from representations.splats import Densify, SplatCloud, Splats
from representations.textured_mesh import TexturedMesh

CPU = torch.device("cpu")
BUSY = Splats(count=60, most=90, densify=Densify(begin=3, every=2, until=9, growth=0.3, faint=0.04, reset_every=2))
"""Rounds in nearly every other step, so that the number of gaussians changes all the time."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def optimiser_of(cloud: SplatCloud) -> torch.optim.Adam:
    groups = [{"params": g.parameters, "lr": g.rate(0)} for g in cloud.groups()]
    return torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)


def advance(cloud: SplatCloud, optimiser: torch.optim.Adam, steps: range) -> list[int]:
    """Optimise towards a red picture; returns the number of gaussians after each step."""
    counts = []
    for step in steps:
        cameras = orbit(torch.rand(2, generator=generator(step)) * 360, [10.0, 30.0], 16, 2.6, 40.0)
        out = cloud.scene().render(cameras, torch.ones(2, 3))
        optimiser.zero_grad()
        (out.rgb - torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1)).square().sum().backward()
        optimiser.step()
        cloud.restructure(step, out, optimiser)
        counts.append(len(cloud))
    return counts


def test_the_number_of_gaussians_changes_and_stays_under_the_cap():
    cloud = BUSY.build(generator(), CPU)
    counts = advance(cloud, optimiser_of(cloud), range(12))
    assert len(set(counts)) > 2 and max(counts) <= BUSY.most
    assert counts[0] == counts[1] == 60 and counts[-1] == counts[-3], "rounds only from begin to until"
    assert all(len(p) == len(cloud) == len(cloud.seen) for p in cloud.parameters())


@pytest.mark.parametrize("at", [2, 3, 4, 7, 10])
def test_a_resumed_cloud_ends_bit_equal_across_changes_of_size(at: int):
    whole = BUSY.build(generator(), CPU)
    advance(whole, optimiser_of(whole), range(12))

    first = BUSY.build(generator(), CPU)
    optimiser = optimiser_of(first)
    advance(first, optimiser, range(at))
    state = {name: value.clone() for name, value in first.state_dict().items()}
    moments = optimiser.state_dict()

    second = BUSY.build(generator(7), CPU)
    again = optimiser_of(second)
    identity = [id(p) for p in second.parameters()]
    second.load_state_dict(state)
    again.load_state_dict(moments)
    advance(second, again, range(at, 12))
    assert identity == [id(p) for p in second.parameters()]
    assert whole.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())


def test_going_back_to_a_smaller_checkpoint_in_the_same_process():
    """A run that breaks down goes back to its last checkpoint while the last graph is still held."""
    cloud = BUSY.build(generator(), CPU)
    optimiser = optimiser_of(cloud)
    advance(cloud, optimiser, range(2))
    saved = {name: value.clone() for name, value in cloud.state_dict().items()}
    moments = {k: {n: v.clone() for n, v in s.items()} for k, s in optimiser.state_dict()["state"].items()}
    held = cloud.scene().render(orbit([0.0], [0.0], 16, 2.6, 40.0), torch.ones(1, 3))
    ahead = advance(cloud, optimiser, range(2, 12))
    end = {name: value.clone() for name, value in cloud.state_dict().items()}
    cloud.load_state_dict(saved)
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    assert len(cloud) == 60 and advance(cloud, optimiser, range(2, 12)) == ahead
    assert all(torch.equal(value, cloud.state_dict()[name]) for name, value in end.items())
    assert held.rgb.requires_grad


def test_a_gradient_that_is_no_number_never_counts_as_pull():
    cloud = BUSY.build(generator(), CPU)
    out = cloud.scene().render(orbit([0.0], [0.0], 16, 2.6, 40.0), torch.ones(1, 3))
    out.aux["probe"].grad = torch.full((60,), math.nan)
    cloud.restructure(0, out, optimiser_of(cloud))
    assert torch.equal(cloud.pull, torch.zeros(60)) and cloud.seen.max() == 1


def test_a_reset_lowers_opacity_and_forgets_its_moments():
    knobs = dataclasses.replace(
        BUSY, densify=Densify(begin=1, every=1, until=1, reset_every=1, reset_to=0.03, faint=0.0)
    )
    cloud = knobs.build(generator(), CPU)
    optimiser = optimiser_of(cloud)
    advance(cloud, optimiser, range(1))
    assert cloud.logit_opacities.sigmoid().max() <= 0.03 + 1e-6
    assert not optimiser.state[cloud.logit_opacities]["exp_avg"].any()
    assert optimiser.state[cloud.means]["exp_avg"].any()


def test_sizes_and_colours_stay_within_their_limits():
    cloud = BUSY.build(generator(), CPU)
    with torch.no_grad():
        cloud.log_scales[0], cloud.log_scales[1] = 3.0, -30.0
        cloud.sh[0], cloud.sh[1] = 9.0, -9.0
    advance(cloud, optimiser_of(cloud), range(1))
    scales, colour = cloud.log_scales.exp(), 0.5 + SH_ZERO * cloud.sh
    tight = 1e-6
    assert scales.min() >= BUSY.smallest - tight and scales.max() <= BUSY.largest + tight
    assert colour.min() >= -tight and colour.max() <= 1 + tight


def test_depth_is_the_distance_along_the_ray():
    """A wide flat opaque gaussian at the origin, seen straight on: the corner of the picture is farther away."""
    wall = SplatScene(
        torch.zeros(1, 3),
        torch.tensor([[3.0, 3.0, 1e-3]]).log(),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        torch.tensor([9.0]),
        torch.zeros(1, 1, 3),
    )
    cameras = orbit([0.0], [0.0], 32, 2.0, 50.0)
    depth = wall.render(cameras, torch.zeros(1, 3)).depth[0, 0]
    # The rasterizer takes a gaussian's distance at its centre, so along the axis it is the same in every pixel.
    torch.testing.assert_close(depth, 2.0 * axis_to_ray(cameras)[0, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(axis_to_ray(cameras)[0, 0], -1 / cameras.rays()[1][0, ..., 2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 0}, "count must be 1"),
        ({"count": 100, "most": 99}, "100 and 99"),
        ({"sh_degree": 4}, "0 to 3, got 4"),
        ({"initial_opacity": 1.0}, "between 0 and 1"),
        ({"smallest": 0.2}, "below largest"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(change: dict[str, float], words: str):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(Splats(), **change).build(generator(), CPU)


# Beginnings -----------------------------------------------------------------------------------------------------------


def look(size: int = 96) -> Cameras:
    return orbit([0.0, 70.0, 200.0], [10.0, 30.0, -20.0], size, 2.6, 40.0)


def agreement(a: RenderOutput, b: RenderOutput) -> tuple[float, float]:
    """Intersection over union of silhouettes, and mean colour error where both are solid."""
    first, second = a.alpha > 0.5, b.alpha > 0.5
    both = first & second
    error = ((a.rgb - b.rgb).abs().mean(1, keepdim=True) * both).sum() / both.sum().clamp_min(1)
    return float(both.sum() / (first | second).sum()), float(error)


def test_from_a_textured_mesh_in_its_colours():
    from representations.extraction import extract_surface, sample_grid

    ball = extract_surface(sample_grid(lambda p: 1 - p.norm(dim=1), 1.0, 24), 1.0, 0.5)
    uv = (ball.vertices[:, :2] + 1) / 2
    texture = torch.zeros(3, 8, 8)
    texture[0, :, 4:], texture[2, :, :4] = 1.0, 1.0
    mesh = TexturedMesh(ball.vertices, ball.faces, uv, texture)
    cloud = Splats(count=2500, most=3000).start_from(mesh, generator(), CPU)
    white = torch.ones(3, 3)
    iou, error = agreement(mesh.render(look(), white), cloud.scene().detach().render(look(), white))
    assert iou > 0.87 and error < 0.08
    # Flat along the surface: the shortest axis is the normal.
    from representations.densify import rotations

    normal = rotations(cloud.quaternions.detach())[:, :, 2]
    assert (normal * torch.nn.functional.normalize(cloud.means.detach(), dim=1)).sum(1).min() > 0.9


def test_from_a_field_where_it_is_dense():
    field = HashField(levels=(8, 16, 32), occupancy_cells=16).build(generator(), CPU)
    with torch.no_grad():
        field_scene = field.scene().detach()
    cloud = Splats(count=2500, most=3000).start_from(field_scene, generator(), CPU)
    white = torch.ones(3, 3)
    iou, error = agreement(field_scene.render(look(), white), cloud.scene().detach().render(look(), white))
    assert iou > 0.85 and error < 0.1


def test_from_a_cloud_with_more_harmonics_and_fewer_gaussians():
    scene = BUSY.build(generator(), CPU).scene().detach()
    more = Splats(count=60, most=60, sh_degree=2).start_from(scene, generator(1), CPU)
    assert more.sh.shape == (60, 9, 3) and torch.equal(more.sh[:, :1], scene.sh) and not more.sh[:, 1:].any()
    assert torch.equal(more.means, scene.means)
    bright = dataclasses.replace(scene, logit_opacities=torch.arange(60.0))
    few = Splats(count=10, most=20).start_from(bright, generator(1), CPU)
    assert torch.equal(few.logit_opacities, torch.arange(40.0, 60.0))


def test_there_is_no_way_from_other_kinds():
    class Other(Scene):
        def render(self, cameras: Cameras, background: torch.Tensor) -> RenderOutput:
            raise NotImplementedError

        def to_mesh(self, resolution: int) -> Mesh:
            raise NotImplementedError

        def surface_colour(self, points: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

        def detach(self) -> "Other":
            return self

    with pytest.raises(TypeError, match="not from a Other"):
        BUSY.start_from(Other(), generator(), CPU)


def test_nothing_cannot_be_started_from():
    field = HashField(levels=(8, 16), occupancy_cells=8).build(generator(), CPU).scene().detach()
    empty = dataclasses.replace(field, table=torch.full_like(field.table, -20.0))
    with pytest.raises(EmptySceneError, match="largest density"):
        BUSY.start_from(empty, generator(), CPU)
    none = torch.zeros(0, 3)
    nobody = SplatScene(none, none, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 1, 3))
    with pytest.raises(EmptySceneError, match="0 gaussians"):
        BUSY.start_from(nobody, generator(), CPU)
    bare = TexturedMesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), torch.zeros(3, 2), torch.zeros(3, 2, 2))
    with pytest.raises(EmptySceneError, match="no area"):
        BUSY.start_from(bare, generator(), CPU)
