"""Prompts per view: directions, suffixes, and what reaches which prior."""

import math

import pytest
import torch

from guidance.conditioning import (
    DIRECTIONS,
    Prompts,
    direction_seen,
    direction_shares,
    repelled_directions,
    viewing_angles,
)
from guidance.contract import Views
from guidance.testing import GaussianPrior
from studio.toybox.views import look_from
from studio.toybox.world import view_word

FACES = {"a cup, front view": (1, 1), "a cup, side view": (2, 1), "a cup, back view": (3, 1), "bad": (-5, 1)}


def poses(*angles: tuple[float, float]) -> torch.Tensor:
    return torch.stack([look_from(math.radians(azimuth), math.radians(elevation)) for azimuth, elevation in angles])


def views(*angles: tuple[float, float]) -> Views:
    return Views(torch.rand(len(angles), 3, 8, 8), poses(*angles), torch.rand(len(angles), 3))


def prior(takes: frozenset[str] = frozenset()) -> GaussianPrior:
    made = GaussianPrior({**FACES, "a cup": (7, 1), "a cup, overhead view": (4, 1)})
    made.takes = takes
    return made


def test_azimuth_grows_from_the_front_to_the_right():
    azimuth, elevation = viewing_angles(poses((0, 0), (90, 30), (180, -20), (-90, 80)))
    assert azimuth.abs().tolist() == pytest.approx([0, 90, 180, 90], abs=1e-4) and azimuth[1] > 0 > azimuth[3]
    assert elevation.tolist() == pytest.approx([0, 30, -20, 80], abs=1e-4)
    x, y, z = poses((90, 0))[0, :3, 3].tolist()
    assert x > 2 and abs(y) < 1e-6 and abs(z) < 1e-6


def test_directions_are_the_ones_the_captions_of_the_toybox_use():
    angles = [(a, e) for a in range(-180, 180, 7) for e in (-19, 0, 59, 61, 74)]
    seen = [DIRECTIONS[i] for i in direction_seen(poses(*angles)).tolist()]
    assert seen == [view_word(math.radians(a), math.radians(e)) for a, e in angles]


@pytest.mark.parametrize(
    ("angles", "word"),
    [((44.9, 0), "front"), ((45, 0), "side"), ((-135, 0), "side"), ((-135.1, 0), "back"), ((0, 60), "front")],
)
def test_boundaries(angles: tuple[float, float], word: str):
    assert DIRECTIONS[int(direction_seen(poses(angles)))] == word


def test_bucketed_prompts_name_the_direction():
    made = Prompts.embed(prior(), "a cup", "bad", "bucketed").condition(views((0, 0), (90, 0), (180, 0), (0, 80)))
    assert made.text[:, 0, 0].tolist() == [1, 2, 3, 4]
    assert made.negative[:, 0, 0].tolist() == [-5] * 4 and made.null[:, 0, 0].tolist() == [0] * 4
    assert made.pose is None and made.extra == {}


def test_interpolated_prompts_pass_smoothly():
    made = Prompts.embed(prior(), "a cup", view_dependent="interpolated")
    condition = made.condition(views((0, 0), (-45, 0), (90, 0), (135, 0), (180, 0), (135, 70)))
    assert condition.text[:, 0, 0].tolist() == pytest.approx([1, 1.5, 2, 2.5, 3, 4], abs=1e-5)
    shares = direction_shares(poses(*[(a, 10) for a in range(-180, 180, 5)]))
    torch.testing.assert_close(shares.sum(1), torch.ones(72))
    assert shares.min() > -1e-6 and (shares - shares.roll(1, 0)).abs().max() < 5 / 90 + 1e-5


def test_prompts_without_directions():
    made = Prompts.embed(prior(), "a cup", "bad", "off", negative_as_null=True).condition(views((0, 0), (180, 0)))
    assert made.text[:, 0, 0].tolist() == [7, 7] and made.null[:, 0, 0].tolist() == [-5, -5]


def test_a_prior_gets_what_it_takes_and_no_more():
    seen = views((0, 0), (180, 0))
    made = Prompts.embed(prior(frozenset({"pose", "background", "depth"})), "a cup").condition(seen)
    assert made.pose is seen.pose and list(made.extra) == ["background"]


# Perp-Neg -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("azimuth", "directions", "weights"),
    [
        (0, ("front", "side"), (-0.0001, -1.574)),  # r = 1: -f_fs(1), -f_sf(0)
        (89.999, ("front", "side"), (-1.574, -0.0001)),
        (-90.001, ("side", "front"), (-0.0005, -1.5735)),  # r = 1 again
        (180, ("side", "front"), (-0.394, -1.967)),
    ],
)
def test_what_perp_neg_keeps_away(azimuth: float, directions: tuple[str, str], weights: tuple[float, float]):
    found, weight = repelled_directions(poses((azimuth, 10)))
    assert tuple(DIRECTIONS[i] for i in found[0].tolist()) == directions
    assert weight[0].tolist() == pytest.approx(weights, abs=1e-3)


def test_perp_neg_fills_the_condition_and_leaves_overhead_alone():
    made = Prompts.embed(prior(), "a cup", view_dependent="perp_neg").condition(views((30, 0), (-150, 0), (30, 70)))
    assert made.repelled is not None and made.repelled_weight is not None
    assert made.repelled[:, :, 0, 0].tolist() == [[1, 2], [2, 1], [1, 2]]
    assert made.text[:, 0, 0].tolist() == pytest.approx([4 / 3, 2 + 2 / 3, 4], abs=1e-5)
    assert (made.repelled_weight[:2] < 0).all() and (made.repelled_weight[2] == 0).all()
    assert made.plain is not None and made.plain[:, 0, 0].tolist() == [7, 7, 7]


def test_perp_neg_and_a_negative_null_prompt_are_refused_together():
    with pytest.raises(ValueError, match="leave one of the two out"):
        Prompts.embed(prior(), "a cup", "bad", "perp_neg", negative_as_null=True)


# Edits and critics ----------------------------------------------------------------------------------------------------


def test_the_source_is_seen_from_the_same_direction():
    known = prior()
    known._prompts.update({"a mug, front view": (11, 1), "a mug, back view": (13, 1)})
    made = Prompts.embed(known, "a cup", source="a mug").condition(views((0, 0), (180, 0)))
    assert made.source is not None and made.source[:, 0, 0].tolist() == [11, 13]
    plain = Prompts.embed(known, "a cup", view_dependent="off", source="a mug, back view").condition(views((0, 0)))
    assert plain.source is not None and plain.source[:, 0, 0].tolist() == [13]
    assert Prompts.embed(known, "a cup").condition(views((0, 0))).source is None


def test_critics_get_the_camera_whatever_the_prior_takes():
    seen = views((0, 0), (180, 0))
    made = Prompts.embed(prior(), "a cup").condition(seen)
    assert made.pose is None and made.camera is seen.pose
