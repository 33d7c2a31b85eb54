"""The objects of the toybox: inside their ball, in their colours, named in words that are one token each."""

import math
import random

import pytest
import torch

from representations.cameras import look_at_origin
from studio.toybox.language import MAX_TOKENS, WORDS
from studio.toybox.model import tokenizer
from studio.toybox.training import HIGHEST, LOWEST, camera_angles
from studio.toybox.views import REACH, look_from, trace
from studio.toybox.world import COLOURS, KINDS, SECOND_WORD, Toy, distances, phrase, random_toy, view_word


def test_there_is_what_was_promised():
    asked = {"mug", "table", "chair", "mushroom", "tree", "house", "rocket", "car", "snowman", "donut"}
    assert asked <= set(KINDS) and len(COLOURS) >= 8 and len(SECOND_WORD) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_toy_lies_inside_its_ball_and_in_every_picture(kind):
    shell = torch.nn.functional.normalize(torch.randn(4000, 3), dim=1) * REACH
    assert distances(kind, shell).amin() > 0
    for azimuth, elevation in ((0.0, LOWEST), (0.8, 0.3), (2.5, HIGHEST)):
        alpha = trace(kind, look_from(azimuth, elevation), 32).alpha
        border = torch.cat([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert border.max() == 0 and alpha.mean() > 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_captions_fit_and_are_known_words(kind):
    words, rng = tokenizer(), random.Random(0)
    for colour in COLOURS:
        toy = Toy(kind, colour, "red" if kind in SECOND_WORD else None)
        for text in (toy.caption, phrase(toy, 1.0, 0.3, rng)):
            assert set(text.replace(",", "").split()) <= set(WORDS)
            assert len(words(text).input_ids) <= MAX_TOKENS


def test_every_word_is_one_token_and_strangers_are_letters():
    words = tokenizer()
    assert all(len(words(word).input_ids) == 3 for word in WORDS)
    assert len(words("zebra").input_ids) > 3


def test_articles():
    assert Toy("cube", "orange").caption == "an orange cube" and Toy("cube", "red").caption == "a red cube"
    assert Toy("donut", "pink").caption == "a donut with pink icing"
    assert Toy("house", "white", "red").caption == "a white house with a red roof"


def test_layers_are_parts_of_a_picture():
    layers = trace("house", look_from(0.7, 0.3), 32)
    assert layers.alpha.min() >= 0 and layers.alpha.max() <= 1
    assert (layers.shade.sum(0) <= layers.alpha + 1e-6).all() and layers.shade.min() >= 0


def test_paint_goes_where_it_belongs():
    toy = Toy("house", "white", "red")
    picture = trace("house", look_from(0.0, 0.2), 64).painted(toy, torch.tensor([0.0, 0.0, 1.0]))
    roof, wall, sky = picture[:, 24, 32], picture[:, 38, 22], picture[:, 2, 2]
    assert roof[0] > 2 * roof[1] and wall.std() < 0.02 and sky.tolist() == [0.0, 0.0, 1.0]


def test_cameras_are_those_of_the_renderer():
    for azimuth, elevation in ((0.0, 0.0), (1.3, 0.4), (-2.0, -0.3)):
        ours = look_at_origin(torch.tensor([azimuth]), torch.tensor([elevation]), 2.6)[0]
        torch.testing.assert_close(ours, look_from(azimuth, elevation))


@pytest.mark.parametrize(("azimuth", "elevation", "word"), [(0, 0, "front"), (90, 0, "side"), (180, 9, "back")])
def test_view_words(azimuth, elevation, word):
    assert view_word(math.radians(azimuth), math.radians(elevation)) == word
    assert view_word(math.radians(azimuth), math.radians(70)) == "overhead"


def test_training_cameras_cover_the_band_evenly():
    angles = [camera_angles(3, view, 500) for view in range(500)]
    heights = torch.tensor([math.sin(e) for _, e in angles])
    assert heights.min() >= math.sin(LOWEST) and heights.max() <= math.sin(HIGHEST)
    quarters = torch.histc(torch.tensor([a for a, _ in angles]), 4, -math.pi, math.pi)
    assert (quarters - 125).abs().max() < 10


def test_random_toys_are_a_function_of_the_seed():
    assert [random_toy(random.Random(4)) for _ in range(3)] == [random_toy(random.Random(4)) for _ in range(3)]
