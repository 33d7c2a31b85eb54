"""Density control: who goes, who grows, and that doubling does not change the picture's opacity."""

import math

import pytest
import torch

from representations.densify import Densify, children, rotations, to_grow, worth_keeping

KNOBS = Densify(begin=10, every=5, until=20, growth=0.5, split_above=0.1, faint=0.1, largest=0.3)


def rows(n: int = 6) -> dict[str, torch.Tensor]:
    """Small opaque gaussians in the cube."""
    generator = torch.Generator().manual_seed(1)
    return {
        "means": torch.rand(n, 3, generator=generator) - 0.5,
        "log_scales": torch.full((n, 3), math.log(0.05)),
        "quaternions": torch.randn(n, 4, generator=generator),
        "logit_opacities": torch.full((n,), 2.0),
        "sh": torch.rand(n, 1, 3, generator=generator),
    }


def kept(given: dict[str, torch.Tensor]) -> list[bool]:
    return worth_keeping(given["means"], given["log_scales"], given["logit_opacities"], KNOBS, 1.0).tolist()


def test_rounds_are_counted_from_begin_to_until():
    assert [KNOBS.round(step) for step in (9, 10, 12, 15, 20, 25)] == [None, 1, None, 2, 3, None]


def test_faint_large_and_far_ones_go():
    given = rows()
    given["logit_opacities"][0] = -3.0
    given["log_scales"][1, 2] = math.log(0.4)
    given["means"][2, 1] = -1.2
    assert kept(given) == [False, False, False, True, True, True]


def test_the_most_opaque_one_always_stays():
    given = rows()
    given["logit_opacities"] = torch.tensor([-9.0, -8.0, -5.0, -9.0, -8.0, -7.0])
    assert kept(given) == [False, False, True, False, False, False]


def test_a_share_grows_and_the_cap_holds():
    pull = torch.tensor([1.0, 6.0, 3.0, 5.0, 4.0, math.nan])
    keep = torch.tensor([True, True, True, False, True, True])
    assert to_grow(pull, keep, KNOBS, most=100).tolist() == [1, 4]  # half of five kept, rounded to even
    assert to_grow(pull, keep, KNOBS, most=6).tolist() == [1]
    assert to_grow(pull, keep, KNOBS, most=3).tolist() == []
    assert to_grow(torch.zeros(6), keep, KNOBS, most=100).tolist() == []


def test_small_ones_double_and_look_the_same_together():
    given = rows()
    made = children(given, KNOBS, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(made["means"][:6], given["means"]) and not torch.equal(made["means"][6:], given["means"])
    assert torch.equal(made["log_scales"], given["log_scales"].repeat(2, 1))
    through = (1 - made["logit_opacities"].sigmoid()).view(2, 6).prod(0)
    torch.testing.assert_close(through, 1 - given["logit_opacities"].sigmoid())
    assert torch.equal(made["sh"], given["sh"].repeat(2, 1, 1))


def test_large_ones_split_within_their_own_distribution():
    n = 4000
    given = {name: value[:1].expand(n, *value.shape[1:]).clone() for name, value in rows().items()}
    given["log_scales"] = torch.tensor([0.2, 0.1, 0.02]).log().expand(n, 3).clone()
    made = children(given, KNOBS, 1.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(made["log_scales"].exp() * 1.6, given["log_scales"].exp().repeat(2, 1))
    assert torch.equal(made["logit_opacities"], given["logit_opacities"].repeat(2))
    local = (made["means"] - given["means"].repeat(2, 1)) @ rotations(given["quaternions"][:1])[0]
    torch.testing.assert_close(local.std(0), torch.tensor([0.2, 0.1, 0.02]), rtol=0.05, atol=0)
    assert local.mean(0).abs().max() < 0.01


def test_throws_depend_on_the_generator_alone():
    first, again = (children(rows(), KNOBS, 1.0, torch.Generator().manual_seed(3)) for _ in range(2))
    other = children(rows(), KNOBS, 1.0, torch.Generator().manual_seed(4))
    assert torch.equal(first["means"], again["means"]) and not torch.equal(first["means"], other["means"])


@pytest.mark.parametrize(
    ("quaternion", "axis"),
    [([1.0, 0, 0, 0], [0.0, 0, 1]), ([2.0, 2, 0, 0], [0, -1.0, 0]), ([1.0, 0, 1, 0], [1.0, 0, 0])],
)
def test_rotations_turn_z_as_quaternions_say(quaternion: list[float], axis: list[float]):
    turned = rotations(torch.tensor([quaternion]))[0] @ torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(turned, torch.tensor(axis), atol=1e-6, rtol=0)
