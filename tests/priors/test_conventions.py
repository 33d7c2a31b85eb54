"""What networks of others were trained to be told, in numbers worked by hand: a wrong axis, sign or scale fails."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from guidance.classifier_free import predict_branches
from guidance.conditioning import viewing_angles
from guidance.diffusers_prior import DiffusersPrior
from guidance.prior_folder import default_hints
from guidance.priors.controlnet import nearness, normal_colours, normals_of_depth, solidity
from guidance.priors.multiview import camera_matrix
from guidance.priors.network import Asked
from guidance.priors.zero123 import relative_pose, squared
from studio.cameras import Orbit
from studio.toybox.views import look_from
from tests.priors.conftest import prompts_of, some_views

LIKE = torch.zeros(1, 1)


def camera(azimuth: float, elevation: float, distance: float = 2.6) -> torch.Tensor:
    return look_from(math.radians(azimuth), math.radians(elevation), distance)[None]


# MVDream --------------------------------------------------------------------------------------------------------------


def test_mvdream_is_told_of_a_camera_in_front():
    told = camera_matrix(camera(0, 0), LIKE).view(4, 4)
    by_hand = torch.tensor([[0.0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(told, by_hand, atol=1e-6, rtol=0)


def test_mvdream_is_told_of_a_camera_at_the_side_from_above():
    """Azimuth 90, elevation 30: at (0, cos 30, sin 30), looking back along -y and down, its right along -x."""
    told = camera_matrix(camera(90, 30), LIKE).view(4, 4)
    c, s = math.sqrt(3) / 2, 0.5
    by_hand = torch.tensor([[-1.0, 0, 0, 0], [0, -s, c, c], [0, c, s, s], [0, 0, 0, 1]])
    torch.testing.assert_close(told, by_hand, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 15), (90, 15), (180, 15), (270, 15), (37, -20), (211, 60)])
def test_mvdream_is_told_of_cameras_as_its_authors_make_them(azimuth: float, elevation: float):
    """``get_camera``: a camera at (cos e cos a, cos e sin a, sin e) that looks at the origin, +z up."""
    a, e = math.radians(azimuth), math.radians(elevation)
    place = torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = F.normalize(torch.linalg.cross(-place, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    up = torch.linalg.cross(right, -place)
    told = camera_matrix(camera(azimuth, elevation), LIKE).view(4, 4)
    torch.testing.assert_close(told[:3], torch.stack([right, up, place, place], 1), atol=1e-6, rtol=0)
    assert torch.linalg.det(told[:3, :3]) == pytest.approx(1.0, abs=1e-5)  # a turn, no mirror


def test_no_camera_is_zeros():
    assert not camera_matrix(None, LIKE).any() and not camera_matrix(torch.zeros(1, 4, 4), LIKE).any()


def test_mvdreams_null_branch_is_told_the_camera_too(prior_of: Callable[[str], DiffusersPrior]):
    prior, views = prior_of("multiview"), some_views(4)
    condition = prompts_of(prior, "off").condition(views)
    noisy, t = prior.encode(views.images).detach(), torch.full((4,), 400)
    (null,) = predict_branches(prior, noisy, t, condition, ("null",))
    told = prior.predict_noise(noisy, t, condition.null, views.pose)
    assert torch.equal(null, told)
    assert not torch.equal(null, prior.predict_noise(noisy, t, condition.null, None))


def test_the_views_of_a_group_stand_a_quarter_turn_apart_at_one_height(prior_of: Callable[[str], DiffusersPrior]):
    """As ``get_camera`` spreads four of them, and MVDream's 3D code; two groups in a step."""
    cameras, _ = Orbit(views=8).draw(prior_of("multiview").hints, torch.Generator().manual_seed(0))
    azimuth, elevation = viewing_angles(cameras.pose)
    for group in (slice(0, 4), slice(4, 8)):
        steps = azimuth[group].diff().remainder(360)
        torch.testing.assert_close(steps, torch.full((3,), 90.0), atol=1e-3, rtol=0)
        assert elevation[group].std() < 1e-3
    assert abs(elevation[0] - elevation[4]) > 1


@pytest.mark.parametrize(("asked", "seen"), [(None, (0.0, 30.0)), ((-40.0, 80.0), (-40.0, 80.0))])
def test_cameras_stand_where_the_prior_was_trained_unless_something_is_said(asked, seen):
    """MVDream's own elevations where a request is silent; what it says is never put aside."""
    hints = default_hints()
    hints["elevations"] = (0.0, 30.0)
    cameras, _ = Orbit(views=64, elevation=asked).draw(hints, torch.Generator().manual_seed(0))
    elevation = viewing_angles(cameras.pose)[1]
    low, high = seen
    assert low <= elevation.min() < low + 0.1 * (high - low) and high - 0.1 * (high - low) < elevation.max() <= high


# Zero123 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("azimuth", "elevation", "pictured", "by_hand"),
    [
        (0, 0, 0, (0.0, 0.0, 1.0, 0.0)),
        (90, 30, 0, (-math.pi / 6, 1.0, 0.0, 0.0)),  # higher than the picture: nearer to the zenith
        (-90, 0, 20, (math.pi / 9, -1.0, 0.0, 0.0)),
        (180, -30, 0, (math.pi / 6, 0.0, -1.0, 0.0)),
    ],
)
def test_zero123_is_told_where_a_camera_stands(azimuth, elevation, pictured, by_hand):
    told = relative_pose(camera(azimuth, elevation), pictured, LIKE)
    torch.testing.assert_close(told, torch.tensor([by_hand]), atol=1e-6, rtol=0)


def test_stable_zero123_is_told_the_pictures_polar_angle_last():
    told = relative_pose(camera(90, 30), 20.0, LIKE, "elevation")
    by_hand = torch.tensor([[-math.pi / 18, 1.0, 0.0, math.radians(70)]])
    torch.testing.assert_close(told, by_hand, atol=1e-6, rtol=0)


def test_azimuth_grows_against_the_clock_seen_from_above():
    """As the authors' ``arctan2(y, x)`` about +z: from our +z, the front, it grows towards +x, since z cross x is y."""
    front, side = camera(0, 0)[0, :3, 3], camera(90, 0)[0, :3, 3]
    assert torch.linalg.cross(front, side)[1] > 0
    assert relative_pose(camera(90, 0), 0.0, LIKE)[0, 1] == pytest.approx(1.0)


def test_zero123_sees_the_picture_unscaled_and_nothing_in_its_null_branch(prior_of: Callable[[str], DiffusersPrior]):
    prior = prior_of("zero123")
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    vae, encoder = prior.parts.modules["vae"], prior.parts.modules["image_encoder"]
    seen = prior.see(picture)
    assert vae.config.scaling_factor != 1
    torch.testing.assert_close(seen["image_latents"], vae.encode(picture * 2 - 1).latent_dist.mode())
    mean, spread = (torch.tensor(v)[None, :, None, None] for v in (
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))  # fmt: skip
    small = F.interpolate(picture, (16, 16), mode="bicubic", align_corners=True)
    torch.testing.assert_close(seen["image_embedding"], encoder((small - mean) / spread).image_embeds)

    views = some_views(1)
    condition = prompts_of(prior).condition(views)
    noisy, t = prior.encode(views.images).detach(), torch.tensor([400])
    (null,) = predict_branches(prior, noisy, t, condition, ("null",))
    z = torch.cat([noisy, torch.zeros_like(noisy)], 1)
    expected = prior.network(z, t, torch.zeros(1, 1, 32)).sample
    torch.testing.assert_close(null, expected, atol=1e-5, rtol=1e-4)


def test_a_picture_that_is_no_square_gets_white_beside_it():
    wide = squared(torch.zeros(1, 3, 2, 5))
    assert wide.shape == (1, 3, 5, 5)
    assert wide[0, 0].tolist() == [[1.0] * 5, [0.0] * 5, [0.0] * 5, [1.0] * 5, [1.0] * 5]
    assert squared(torch.zeros(1, 3, 4, 1))[0, 0, 0].tolist() == [1.0, 0.0, 1.0, 1.0]


# ControlNet -----------------------------------------------------------------------------------------------------------


def test_the_nearest_is_brightest_and_nothing_is_black():
    depth = torch.tensor([1.0, 2.0, 4.0, 0.0]).view(1, 1, 2, 2)
    shown = nearness(depth, solidity(depth, None))
    torch.testing.assert_close(shown.flatten(), torch.tensor([1.0, 0.4, 0.1, 0.0]))


@pytest.mark.parametrize("opacity", [1.0, 0.4])
def test_halos_fade_into_nothing_and_move_neither_near_nor_far(opacity: float):
    """Surfaces 1, 2 and 4 away, an edge that covers half a pixel, halos behind and before them, and nothing."""
    depth = torch.tensor([1.0, 2.0, 4.0, 2.0, 8.0, 0.5, 0.0, 0.0]).view(1, 1, 2, 4)
    alpha = opacity * torch.tensor([1.0, 1.0, 1.0, 0.5, 0.04, 0.04, 0.0, 0.0]).view(1, 1, 2, 4)
    shown = nearness(depth, solidity(depth, alpha))
    torch.testing.assert_close(shown.flatten(), torch.tensor([1.0, 0.4, 0.1, 0.2, 0.004, 0.04, 0.0, 0.0]))


def test_a_picture_that_is_faint_all_over_fades_as_a_whole():
    depth = torch.tensor([1.0, 4.0]).view(1, 1, 1, 2)
    shown = nearness(depth, solidity(depth, torch.full_like(depth, 0.02)))
    assert shown.max() <= 0.2


def test_halos_have_no_normals(prior_of: Callable[[str], DiffusersPrior]):
    """A wall that faces left, in a halo of the same wall: outside of it all faces the viewer."""
    size, network = 32, prior_of("controlnet_normal").parts.network
    depth = wall((-C, 0.0, 0.5), size)
    alpha = torch.full_like(depth, 0.03)
    alpha[..., 8:24, 8:24] = 0.9
    extra = {"depth": depth, "alpha": alpha}
    asked = Asked(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, 1, 1), extra=extra)
    shown = network._picture(asked)  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(shown[0, :, 4, 4], torch.tensor([0.5, 0.5, 1.0]))
    torch.testing.assert_close(shown[0, :, 16, 16], torch.tensor([0.933, 0.5, 0.75]), atol=2e-3, rtol=0)
    assert (shown[0, 0] > 0.6).sum() == 16 * 16


def wall(normal: tuple[float, float, float], size: int = 9, field_of_view: float = 40.0) -> torch.Tensor:
    """Distances along rays to a plane through (0, 0, -2) with that normal, from a camera that looks along -z."""
    focal = size / 2 / math.tan(math.radians(field_of_view) / 2)
    rows = []
    for y in range(size):
        for x in range(size):
            ray = torch.tensor([(x + 0.5 - size / 2) / focal, (size / 2 - y - 0.5) / focal, -1.0], dtype=torch.float64)
            ray = ray / ray.norm()
            rows.append(-2 * normal[2] / (ray * torch.tensor(normal, dtype=torch.float64)).sum())
    return torch.stack(rows).float().view(1, 1, size, size)


C = math.sqrt(3) / 2


@pytest.mark.parametrize(
    ("normal", "colour"),
    [
        ((0.0, 0.0, 1.0), (0.5, 0.5, 1.0)),
        ((-C, 0.0, 0.5), (0.933, 0.5, 0.75)),  # to the left: red
        ((C, 0.0, 0.5), (0.067, 0.5, 0.75)),
        ((0.0, C, 0.5), (0.5, 0.933, 0.75)),  # up: green
        ((0.0, -C, 0.5), (0.5, 0.067, 0.75)),
    ],
)
def test_normals_are_blue_in_front_red_to_the_left_green_on_top(normal, colour):
    depth = wall(normal)
    if normal[0] < 0:
        assert depth[..., -1].mean() < depth[..., 0].mean()  # what faces left comes nearer to the right
    shown = normal_colours(normals_of_depth(depth, 40.0), depth > 1e-3)
    torch.testing.assert_close(shown, torch.tensor(colour)[None, :, None, None].expand_as(shown), atol=1e-3, rtol=0)


def test_nothing_looks_like_a_wall_that_faces_the_viewer_and_bends_no_border():
    depth = wall((-C, 0.0, 0.5))
    depth[..., :4, :] = 0
    depth[..., 6, 6] = 0
    there = depth > 1e-3
    shown = normal_colours(normals_of_depth(depth, 40.0), there)
    tilted, facing = (torch.tensor(c)[:, None] for c in ((0.933, 0.5, 0.75), (0.5, 0.5, 1.0)))
    torch.testing.assert_close(shown[0][:, there[0, 0]], tilted.expand(3, int(there.sum())), atol=1e-3, rtol=0)
    torch.testing.assert_close(shown[0][:, ~there[0, 0]], facing.expand(3, int((~there).sum())), atol=1e-6, rtol=0)


def test_without_depth_normals_see_a_wall_and_depth_sees_nothing(prior_of: Callable[[str], DiffusersPrior]):
    for family, colour in (("controlnet_normal", (0.5, 0.5, 1.0)), ("controlnet_depth", (0.0, 0.0, 0.0))):
        asked = Asked(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, 1, 1))
        shown = prior_of(family).parts.network._picture(asked)  # pyright: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(shown.mean((0, 2, 3)), torch.tensor(colour))
