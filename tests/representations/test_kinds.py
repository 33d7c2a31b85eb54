"""What every kind of representation owes the loop, checked over the union: a new kind is tested by existing."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from representations.cameras import orbit
from representations.hash_field import FieldScene, HashField
from representations.kinds import AnyRepresentation
from representations.particles import Particles
from representations.scene import EmptySceneError, Scene
from representations.splat_scene import SplatScene
from representations.splats import Densify, Splats
from studio.codec import decode, encode, members

CLOUD = Splats(count=600, most=900, position_rate=0.004, densify=Densify(begin=4, every=4, until=40))
SMALL: dict[str, Any] = {
    "HashField": HashField(levels=(4, 8, 16), occupancy_cells=8),
    "Splats": CLOUD,
    "Particles": Particles(CLOUD, count=2),
}
"""Quick knobs of each kind; a kind that is missing here is tested with its defaults."""
KINDS = [SMALL.get(name, kind()) for name, kind in members(AnyRepresentation).items()]
CPU = torch.device("cpu")


def fresh(knobs: Any):
    return knobs.build(torch.Generator().manual_seed(0), CPU)


def look(size: int = 24, views: int = 2):
    return orbit([0.0, 70.0][:views], [10.0, 30.0][:views], size, 2.6, 40.0)


@pytest.fixture(params=KINDS, ids=lambda k: type(k).__name__)
def knobs(request: pytest.FixtureRequest):
    return request.param


def test_knobs_are_frozen_and_travel_through_json(knobs: Any):
    assert dataclasses.is_dataclass(knobs) and decode(type(knobs), encode(knobs)) == knobs
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(knobs, dataclasses.fields(knobs)[0].name, None)


def test_renders_have_the_promised_shapes_and_ranges(knobs: Any):
    out = fresh(knobs).scene().render(look(), torch.rand(2, 3))
    assert out.rgb.shape == (2, 3, 24, 24) and out.alpha.shape == out.depth.shape == (2, 1, 24, 24)
    assert out.rgb.min() >= 0 and out.rgb.max() <= 1 + 1e-5 and out.alpha.min() >= 0 and out.alpha.max() <= 1


def test_background_shows_where_nothing_is(knobs: Any):
    background = torch.tensor([[0.2, 0.4, 0.6], [1.0, 0.0, 0.5]])
    out = fresh(knobs).scene().render(look(), background)
    clear = out.alpha < 0.02
    assert clear.any()
    shown = (out.rgb - background[:, :, None, None]).abs() * clear
    assert shown.max() < 0.02


def test_groups_hold_every_parameter_once_and_all_get_gradients(knobs: Any):
    representation = fresh(knobs)
    grouped = [p for group in representation.groups() for p in group.parameters]
    assert {id(p) for p in grouped} == {id(p) for p in representation.parameters()} and len(grouped) == len(
        set(map(id, grouped))
    )
    for variant in range(representation.variants):
        out = representation.scene(variant=variant).render(look(), torch.ones(2, 3))
        (out.rgb.sum() + out.alpha.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in grouped)
    assert all(group.rate(0.0) >= group.rate(1.0) > 0 for group in representation.groups())


def test_state_survives_saving(knobs: Any):
    first, second = fresh(knobs), knobs.build(torch.Generator().manual_seed(9), CPU)
    optimiser = torch.optim.Adam(first.parameters())
    for step in range(9):
        scene = first.scene(variant=first.turn(step))
        first.restructure(step, scene.render(look(), torch.ones(2, 3)), optimiser)
    second.load_state_dict(first.state_dict())
    for variant in range(first.variants):
        a = first.scene(variant=variant).render(look(), torch.ones(2, 3))
        b = second.scene(variant=variant).render(look(), torch.ones(2, 3))
        assert torch.equal(a.rgb, b.rgb)


def test_a_stage_can_begin_where_another_ended(knobs: Any):
    before = fresh(knobs).scene().detach()
    after = knobs.start_from(before, torch.Generator().manual_seed(1), CPU).scene().detach()
    a, b = before.render(look(), torch.ones(2, 3)), after.render(look(), torch.ones(2, 3))
    torch.testing.assert_close(a.alpha, b.alpha, atol=0.02, rtol=0)


@dataclass(frozen=True)
class Ball:
    """A red ball of radius 0.5 to learn."""

    def target(self, cameras, background):
        _, direction = cameras.rays()
        origin = cameras.pose[:, None, None, :3, 3]
        along = -(direction * origin).sum(-1)
        hit = (origin.square().sum(-1) - along.square() < 0.25).float()[:, None]
        red = torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1)
        return hit * red + (1 - hit) * background[:, :, None, None]


def fitted(knobs: Any, steps: int):
    """A representation whose every variant had ``steps`` steps of learning the ball."""
    representation, rng = fresh(knobs), torch.Generator().manual_seed(5)
    optimiser = torch.optim.Adam([{"params": g.parameters, "lr": g.rate(0)} for g in representation.groups()])
    for step in range(steps * representation.variants):
        cameras = orbit(torch.rand(3, generator=rng) * 360, torch.rand(3, generator=rng) * 60, 48, 2.6, 40.0)
        background = torch.rand(3, 3, generator=rng)
        out = representation.scene(variant=representation.turn(step)).render(cameras, background)
        optimiser.zero_grad()
        (out.rgb - Ball().target(cameras, background)).square().sum().backward()
        optimiser.step()
        representation.restructure(step, out, optimiser)
    return representation


def test_learns_a_ball_and_hands_out_its_surface(knobs: Any):
    learnt = fitted(knobs, 60)
    for variant in range(learnt.variants):
        is_the_ball(learnt.scene(variant=variant).detach())


def is_the_ball(scene: Scene):
    white = torch.ones(2, 3)
    error = (scene.render(look(48), white).rgb - Ball().target(look(48), white)).square().mean()
    assert -10 * error.log10() > 20
    mesh = scene.to_mesh(32)
    radius = mesh.vertices.norm(dim=1)
    assert abs(radius.median() - 0.5) < 0.06 and len(mesh.faces) > 100
    outward = torch.nn.functional.normalize(mesh.vertices, dim=1)
    colour = scene.surface_colour(mesh.vertices, outward).median(0).values
    torch.testing.assert_close(colour, torch.tensor([0.9, 0.1, 0.1]), atol=0.1, rtol=0)


def test_an_empty_scene_has_no_mesh_and_says_why(knobs: Any):
    with pytest.raises(EmptySceneError, match=r"\d"):
        emptied(fresh(knobs).scene().detach()).to_mesh(16)


def emptied(scene: Scene) -> Scene:
    """The scene with nothing in it; a new kind needs its own line here."""
    match scene:
        case FieldScene():
            return dataclasses.replace(scene, table=torch.full_like(scene.table, -20.0))
        case SplatScene():
            return dataclasses.replace(scene, logit_opacities=torch.full_like(scene.logit_opacities, -20.0))
    raise NotImplementedError(f"how is a {type(scene).__name__} emptied?")


def test_a_field_needs_a_level_that_is_not_hashed():
    with pytest.raises(ValueError, match="must fit into a table"):
        HashField(levels=(8, 16), table=2**8).build(torch.Generator(), CPU)


def test_a_field_goes_on_at_another_size_with_hashed_levels():
    before = fresh(HashField(levels=(4, 8, 16), occupancy_cells=8)).scene().detach()
    wanted = HashField(levels=(8, 16, 48), table=2**13, occupancy_cells=8)
    assert (wanted.layout.entries[-1], wanted.finest_dense) == (2**13, 1)
    after = wanted.start_from(before, torch.Generator(), CPU).scene().detach()
    points = 2 * torch.rand(300, 3, generator=torch.Generator().manual_seed(2)) - 1
    for mine, theirs in zip(after.sample(points), before.sample(points), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_occupancy_covers_what_is_there_in_every_corner():
    knobs = HashField(levels=(8, 16), occupancy_cells=8, exploration=0.0)
    field = fresh(knobs)
    with torch.no_grad():
        field.table[:, 0] = -20.0
        # One vertex of the coarse level at (0.75, -0.5, 0.25), x fastest.
        field.table[7 + 9 * (2 + 9 * 5), 0] = 60.0
    field._update_occupancy(step=0)
    full = field.occupancy.nonzero()
    assert field.occupancy[7, 2, 5] and field.occupancy[6, 1, 4] and not field.occupancy[5, 2, 7]
    assert full.min(0).values.tolist() == [5, 0, 3] and full.max(0).values.tolist() == [7, 3, 6]
