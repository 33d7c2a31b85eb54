"""The truth of a prompt and how like it a scene is: exact for the truth itself, worse for anything else."""

import math

import pytest
import torch

from representations.cameras import Cameras
from representations.scene import RenderOutput, Scene
from studio.evaluate import truth
from studio.evaluate.truth import Likeness, likeness, recoloured, toy_of
from studio.toybox.views import trace
from studio.toybox.world import COLOURS, DEFAULT_SECOND, KINDS, SECOND_WORD, Toy


class Shown(Scene):
    """A scene that can only be looked at."""

    def to_mesh(self, resolution):
        raise NotImplementedError

    def surface_colour(self, points, normals):
        raise NotImplementedError

    def detach(self):
        return self


class Traced(Shown):
    """A scene that shows a toy, turned by ``yaw`` degrees together with its light."""

    def __init__(self, toy: Toy, yaw: float = 0.0):
        self.toy, self.yaw = toy, yaw

    def render(self, cameras: Cameras, background: torch.Tensor) -> RenderOutput:
        angle = math.radians(-self.yaw)
        turn = torch.eye(4)
        turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = (
            math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle),
        )  # fmt: skip
        layers = [trace(self.toy.kind, turn @ pose, cameras.size[0]) for pose in cameras.pose]
        alpha = torch.stack([one.alpha for one in layers])[:, None]
        return RenderOutput(
            torch.stack([one.painted(self.toy, b) for one, b in zip(layers, background, strict=True)]), alpha, 0 * alpha
        )


class Nothing(Shown):
    """An empty scene."""

    def render(self, cameras: Cameras, background: torch.Tensor) -> RenderOutput:
        rgb = background[:, :, None, None].expand(-1, -1, *cameras.size)
        return RenderOutput(rgb, torch.zeros_like(rgb[:, :1]), torch.zeros_like(rgb[:, :1]))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fewer and smaller views, which is enough to tell right from wrong."""
    monkeypatch.setattr(truth, "SIZE", 32)
    monkeypatch.setattr(truth, "AZIMUTHS", (0, 90, 180, 270))
    monkeypatch.setattr(truth, "TURN", 45)


CAR = Toy("car", "orange")
PAIRS = [(a, e) for a in (0, 90, 180, 270) for e in truth.ELEVATIONS]


def test_the_truth_itself_is_perfect():
    found = likeness(Traced(CAR), CAR)
    assert (found.iou, found.yaw) == (1.0, 0) and found.colour_error == pytest.approx(0, abs=1e-6)
    assert found.quality == pytest.approx(1)


@pytest.mark.parametrize("yaw", [45, 135, 315])
def test_an_object_that_is_turned_is_found(yaw):
    found = likeness(Traced(CAR, yaw), CAR)
    assert found.yaw == yaw and found.iou > 0.98 and found.colour_error < 0.01
    straight = truth._compared(*truth.seen(Traced(CAR, yaw), *_angles(), 32, "cpu"), CAR, PAIRS, 0)
    assert straight.quality < 0.9


def test_wrong_colours_and_wrong_shapes_score_worse():
    right = likeness(Traced(CAR), CAR)
    blue = likeness(Traced(Toy("car", "blue")), CAR)
    mug = likeness(Traced(Toy("mug", "orange")), CAR)
    assert blue.iou == 1 and 0.1 < blue.colour_error < 0.6
    assert mug.iou < 0.8
    assert right.quality > blue.quality > 0 and right.quality > mug.quality > 0


def test_colour_error_is_the_mean_difference_where_either_is_seen():
    found = likeness(Nothing(), CAR)
    rgb, cover = truth.pictures(CAR, *_angles(found.yaw), 32)
    by_hand = sum((1 - c).mean(0)[a > 0.5].sum() for c, a in zip(rgb, cover, strict=True)) / (cover > 0.5).sum()
    assert found.iou == 0 and not found.solid and found.quality == 0
    assert found.colour_error == pytest.approx(float(by_hand), rel=1e-5)


def _angles(yaw: float = 0) -> tuple[list[float], list[float]]:
    pairs = [(a - yaw, e) for a in truth.AZIMUTHS for e in truth.ELEVATIONS]
    return [a for a, _ in pairs], [e for _, e in pairs]


def test_quality_joins_both():
    assert Likeness(0.8, 0.25, 0).quality == pytest.approx(0.6)


# The prompt -----------------------------------------------------------------------------------------------------------


def every_toy() -> list[Toy]:
    seconds = {kind: (None, "blue", DEFAULT_SECOND[kind]) for kind in SECOND_WORD}
    return [Toy(kind, colour, s) for kind in KINDS for colour in COLOURS for s in seconds.get(kind, (None,))]


def test_every_caption_is_understood():
    assert all(toy_of(toy.caption) == toy for toy in every_toy())


@pytest.mark.parametrize(
    ("prompt", "toy"),
    [
        ("red ball", Toy("sphere", "red")),
        ("A Blue Cup", Toy("mug", "blue")),
        ("a yellow box", Toy("cube", "yellow")),
        ("doughnut with pink icing", Toy("donut", "pink")),
        ("a purple snowman", Toy("snowman", "purple")),
    ],
)
def test_synonyms_and_missing_articles_are_understood(prompt, toy):
    assert toy_of(prompt) == toy


def test_edits_ask_for_another_colour_of_the_same_object():
    for toy in every_toy():
        other = recoloured(toy)
        assert other.first != toy.first and (other.kind, other.second) == (toy.kind, toy.second)
        assert toy_of(other.caption) == other


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red mushrom", "did you mean 'mushroom' for 'mushrom'"),
        ("a rad table", "did you mean 'red'"),
        ("a red giraffe", "does not know 'giraffe'"),
        ("a red table with a blue roof", "Write a colour and a kind"),
        ("a mug", "Write a colour and a kind"),
        ("", "Kinds: sphere"),
    ],
)
def test_what_is_no_caption_is_refused_in_words(prompt, words):
    with pytest.raises(ValueError, match="names no object") as refused:
        toy_of(prompt)
    assert words in str(refused.value)
