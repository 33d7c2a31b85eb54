"""Training of the bundled prior at the smallest size: resumes bit-equal, learns, and is released as it was trained."""

import dataclasses
import json

import pytest
import torch

from guidance.diffusers_prior import DiffusersPrior
from guidance.prior_folder import save_prior
from studio.checkpoints import Checkpoints
from studio.cli import BAD_USAGE, OK
from studio.toybox import release as release_module
from studio.toybox.command import TrainPriorOptions, main
from studio.toybox.language import WORDS
from studio.toybox.model import Network, noise_schedule
from studio.toybox.training import Trainee, TrainPrior, train

TINY = TrainPrior(
    images=12, batch=2, views_per_kind=1, checkpoint_every=3, network=Network(channels=(16, 16), text_layers=1)
)
CPU = torch.device("cpu")


def weights(folder):
    state, _ = Checkpoints(folder / "checkpoints").newest()
    assert state is not None
    return [*state["weights"], *state["average"]]


def test_a_resumed_training_is_bit_equal(tmp_path):
    list(train(TINY, tmp_path / "whole", CPU))
    for progress in train(TINY, tmp_path / "cut", CPU, every=1):
        if progress.step == 5:  # after the checkpoint of step 3
            break
    assert [p.step for p in train(TINY, tmp_path / "cut", CPU, every=1)] == [4, 5, 6]
    assert all(map(torch.equal, weights(tmp_path / "whole"), weights(tmp_path / "cut")))


def test_it_learns(tmp_path):
    settings = dataclasses.replace(TINY, images=480, batch=8, checkpoint_every=1000)
    losses = [p.loss for p in train(settings, tmp_path, CPU, every=20)]
    assert losses[-1] < 0.8 * losses[0]


def test_rates_warm_up_stay_and_descend():
    settings = TrainPrior(images=16_000, batch=16, descent=0.3)
    assert settings.steps == 1000 and settings.rate(0) == pytest.approx(1e-5)
    assert settings.rate(500) == pytest.approx(1e-3) and settings.rate(999) < 1e-5


def test_the_command_trains_releases_and_refuses_other_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(release_module, "SHOWN", ("a red cube",))
    options = TrainPriorOptions(settings=TINY, work=tmp_path / "work", out=tmp_path / "prior", device="cpu", note="Hm.")
    assert main(options) == OK
    assert {"README.md", "samples.png", "training.json", "unet", "dreamkiln.json"} <= {
        p.name for p in (tmp_path / "prior").iterdir()
    }
    assert "Hm." in (tmp_path / "prior" / "README.md").read_text()
    said = json.loads((tmp_path / "prior" / "training.json").read_text())
    assert said["measured"]["images"] == 12 and set(said["measured"]["held_out"]) == {"low", "middle", "high"}
    other = dataclasses.replace(options, settings=dataclasses.replace(TINY, seed=4))
    assert main(other) == BAD_USAGE
    assert "seed was 0, now 4" in capsys.readouterr().err.replace("\n", " ")


def test_release_without_a_training_is_refused(tmp_path, capsys):
    options = TrainPriorOptions(
        settings=TINY, work=tmp_path / "work", out=tmp_path / "p", device="cpu", release_only=True
    )
    assert main(options) == BAD_USAGE
    assert "no checkpoint" in capsys.readouterr().err


def test_what_is_released_is_what_was_trained(tmp_path):
    trainee = Trainee(TINY, CPU)
    hints = {"pixel_shuffle": 2, "camera": "harmonics", "words": WORDS}
    parts = (trainee.unet, trainee.text_encoder, trainee.tokenizer, noise_schedule())
    save_prior(tmp_path / "prior", *parts, hints)
    prior = DiffusersPrior.load(tmp_path / "prior", CPU)
    with torch.no_grad():
        torch.testing.assert_close(prior.embed(["a red cube"]), trainee.embed(["a red cube"]), atol=2e-2, rtol=1e-2)
