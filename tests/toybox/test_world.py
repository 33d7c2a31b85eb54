"""The objects of the toybox: inside their ball, in their colours, named in words that are one token each."""

import math
import random
from collections import Counter

import pytest
import torch

from representations.cameras import look_at_origin
from studio.toybox import views
from studio.toybox.language import MAX_TOKENS, WORDS, tokenizer_files
from studio.toybox.model import tokenizer
from studio.toybox.training import HIGHEST, LOWEST, camera_angles
from studio.toybox.views import FIELD_OF_VIEW, REACH, look_from, trace
from studio.toybox.world import COLOURS, KINDS, SECOND_WORD, Toy, distances, phrase, random_toy, view_word


def test_there_is_what_was_promised():
    asked = {"mug", "table", "chair", "mushroom", "tree", "house", "rocket", "car", "snowman", "donut"}
    assert asked <= set(KINDS) and len(COLOURS) >= 8 and len(SECOND_WORD) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_toy_lies_inside_its_ball(kind):
    direction = torch.nn.functional.normalize(torch.randn(4000, 3), dim=1)
    for radius in (REACH, 1.1, 1.5, 2.6):
        assert distances(kind, direction * radius).amin() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_camera_cuts_the_toy_at_the_border(kind):
    axis = torch.linspace(-REACH, REACH, 61)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    inside = grid[distances(kind, grid).amin(0) <= 0]
    angles = [camera_angles(KINDS.index(kind), view, 96) for view in range(96)]
    edge = math.tan(math.radians(FIELD_OF_VIEW / 2))
    for pose in [look_from(*a) for a in (*angles, (0.0, LOWEST), (math.pi / 2, LOWEST), (0.8, HIGHEST))]:
        x, y, z = ((inside - pose[:3, 3]) @ pose[:3, :3]).unbind(1)
        assert torch.maximum(x.abs(), y.abs()).div(-z * edge).max() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_side_of_a_toy_is_seen(kind):
    for azimuth, elevation in ((0.0, LOWEST), (math.pi / 2, 0.3), (2.5, HIGHEST)):
        assert trace(kind, look_from(azimuth, elevation), 16, supersampling=1).alpha.mean() > 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_captions_fit_and_are_known_words(kind):
    words, rng = tokenizer(), random.Random(0)
    for colour in COLOURS:
        toy = Toy(kind, colour, "red" if kind in SECOND_WORD else None)
        for text in (toy.caption, phrase(toy, 1.0, 0.3, rng)):
            assert set(text.replace(",", "").split()) <= set(WORDS)
            assert len(words(text).input_ids) <= MAX_TOKENS


def test_every_word_is_one_token():
    words = tokenizer()
    assert len(set(WORDS)) == len(WORDS)
    assert all(len(words(word).input_ids) == 3 for word in WORDS)
    assert len({words(word).input_ids[1] for word in WORDS}) == len(WORDS)


@pytest.mark.parametrize("text", ["zebra", "Zebra!", "", "a red\nmug", "naïve 猫 🚀", "x" * 500])
def test_strangers_fall_apart_and_do_not_crash(text):
    words = tokenizer()
    ids = words(text, padding="max_length", truncation=True).input_ids
    assert len(ids) == MAX_TOKENS and max(ids) < len(words)


def test_tokenizer_files_round_trip(tmp_path):
    from transformers import CLIPTokenizer

    words = tokenizer()
    words.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    vocabulary, _ = tokenizer_files()
    assert loaded.get_vocab() == words.get_vocab() == vocabulary
    for text in (*WORDS, "a zebra", "a white house with a red roof, side view"):
        assert loaded(text).input_ids == words(text).input_ids


def test_articles():
    assert Toy("cube", "orange").caption == "an orange cube" and Toy("cube", "red").caption == "a red cube"
    assert Toy("donut", "pink").caption == "a donut with pink icing"
    assert Toy("house", "white", "red").caption == "a white house with a red roof"


def test_layers_are_parts_of_a_picture():
    layers = trace("house", look_from(0.7, 0.3), 32)
    assert layers.alpha.min() >= 0 and layers.alpha.max() <= 1
    assert (layers.shade.sum(0) <= layers.alpha + 1e-6).all() and layers.shade.min() >= 0


@pytest.mark.parametrize("colour", COLOURS)
def test_a_pixel_is_its_colour_in_some_light(colour):
    picture = trace("sphere", look_from(0.4, 0.3), 16).painted(Toy("sphere", colour), torch.ones(3))
    light = picture[:, 8, 8] / torch.tensor(COLOURS[colour])
    assert light.max() - light.min() < 1e-4 and 0.4 < light.mean() < 1


@pytest.mark.parametrize("toy", [Toy("rocket", "green", "yellow"), Toy("rocket", "blue"), Toy("snowman", "red")])
def test_painted_layers_are_a_direct_trace(toy):
    pose, background = look_from(0.6, 0.2), torch.tensor([0.2, 0.5, 0.9])
    # Traced by hand: each ray shows the colour of the nearest part, shaded, or the background.
    origin, direction = views._rays(pose, 32)
    picture = background.repeat(len(direction), 1)
    ray, point = views._march(toy.kind, origin, direction)
    colours = torch.tensor([toy.paint(part.paint) for part in toy.parts])
    light = views._shading(views._normals(toy.kind, point), direction[ray])
    picture[ray] = colours[distances(toy.kind, point).argmin(0)] * light[:, None]
    painted = trace(toy.kind, pose, 32, supersampling=1).painted(toy, background)
    torch.testing.assert_close(painted, picture.T.reshape(3, 32, 32))


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


def test_what_is_hard_to_learn_comes_most_often():
    rng = random.Random(0)
    count = Counter(random_toy(rng).kind for _ in range(7200))
    assert set(count) == set(KINDS)
    assert all(140 < count[kind] < 260 for kind in ("sphere", "cube", "cylinder", "cone"))
    assert all(330 < count[kind] < 470 for kind in ("mushroom", "table", "chair", "tree"))
    assert all(700 < count[kind] < 900 for kind in ("mug", "house", "donut", "car", "rocket", "snowman"))
