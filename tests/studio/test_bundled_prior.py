"""The prior in the box: whole, small, and knowing its colours."""

import pytest
import torch

from guidance.conditioning import Prompts
from guidance.diffusers_prior import DiffusersPrior
from guidance.distillation import Distillation, measure
from guidance.one_pass import one_pass_notes
from studio.distillation.training import chooser, toys
from studio.folder import free_name, slug
from studio.paths import assets_folder, bundled_prior
from studio.prior_options import ONE_PASS
from studio.recipes import draft
from studio.request import check
from studio.toybox.language import WORDS
from studio.toybox.release import sampled
from studio.toybox.world import COLOURS


@pytest.fixture(scope="module")
def prior() -> DiffusersPrior:
    return DiffusersPrior.load(bundled_prior(), "cpu")


def test_it_is_small_and_describes_itself():
    folder = bundled_prior()
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= 25 * 2**20
    assert {"README.md", "samples.png", "dreamkiln.json", "training.json"} <= {p.name for p in folder.iterdir()}


def test_it_knows_its_words(prior):
    assert prior.hints["words"] == WORDS
    prompts = (assets_folder() / "prompts" / "ten.txt").read_text().splitlines()
    assert len(prompts) == 10
    for prompt in prompts:
        assert check(draft(prompt)) == [] and prior.count_tokens(prompt) <= prior.most_tokens


@pytest.mark.parametrize("colour", ["red", "blue", "yellow"])
def test_samples_have_the_colour_asked_for(prior, colour):
    picture = sampled(prior, f"a {colour} cube").mean(0)[:, 24:40, 24:40].mean((1, 2))
    names = ("red", "green", "blue", "yellow", "white", "purple", "pink")
    # Shading scales a colour, so its direction is what can be compared.
    likeness = torch.cosine_similarity(torch.tensor([COLOURS[name] for name in names]), picture[None])
    assert names[likeness.argmax()] == colour and likeness.max() > 0.98


def test_text_and_camera_matter(prior):
    prompts = [Prompts.embed(prior, p, view_dependent="off").text for p in ("a red cube", "a green tree")]
    assert (prompts[0] - prompts[1]).abs().max() > 0.1


def test_names_of_runs(tmp_path):
    assert slug("A red, red Mushroom!") == "a-red-red-mushroom" and slug("..") == "run"
    (tmp_path / "a-mug").mkdir()
    assert free_name(tmp_path, "a mug").name == "a-mug-2"


def test_it_answers_twice_in_one_pass_as_its_file_says(prior):
    """Made for these very weights: a prior that is trained anew needs an adapter of its own."""
    file = bundled_prior() / ONE_PASS
    notes, knobs = one_pass_notes(file), Distillation(seed=5)
    assert notes["fingerprint"] == prior.fingerprint()
    faster = DiffusersPrior.load(bundled_prior(), "cpu", one_pass=file)
    found = measure(prior, faster, chooser(prior, toys), knobs, 8, 12)
    # Twelve touches see less of the end, where the prompt makes little difference, than the file's twenty-four.
    assert found["high"] < 1.25 * notes["error"]["high"] < 0.65 and found["middle"] < notes["error"]["middle"]
