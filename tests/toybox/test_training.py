"""Training of the bundled prior at the smallest size: resumes bit-equal, learns, and is released as it was trained."""

import dataclasses
import json

import pytest
import torch

from guidance.diffusers_prior import DiffusersPrior
from guidance.prior_folder import read_hints
from studio.checkpoints import Checkpoints
from studio.cli import BAD_USAGE, FAILED, OK
from studio.toybox import command, training
from studio.toybox import release as release_module
from studio.toybox.command import (
    _RELEASED,
    Refused,
    Resumed,
    TrainPriorOptions,
    history,
    keep_settings,
    main,
    train_prior,
)
from studio.toybox.language import WORDS
from studio.toybox.model import Network, noise_schedule
from studio.toybox.release import History
from studio.toybox.training import Trainee, TrainingProgress, TrainPrior, _learn, camera_angles, train
from studio.toybox.views import look_from

TINY = TrainPrior(
    images=12, batch=2, views_per_kind=2, checkpoint_every=3, network=Network(channels=(16, 16), text_layers=1)
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    """A quarter of the pixels: the network does not mind, and the tracer has less to do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "RESOLUTION", 32)
        patch.setattr(release_module, "SHOWN", ("a red cube",))
        patch.setattr(release_module, "_STEPS", 3)
        training._layers.cache_clear()
        yield
    training._layers.cache_clear()


def weights(folder):
    state, _ = Checkpoints(folder / "checkpoints").newest()
    assert state is not None
    return [*state["weights"], *state["average"]]


def test_a_resumed_training_is_bit_equal(tmp_path):
    # Weights are channels-last: moments that came back in another memory order would show here.
    list(train(TINY, tmp_path / "whole", CPU))
    for progress in train(TINY, tmp_path / "cut", CPU, every=1):
        if progress.step == 5:  # after the checkpoint of step 3
            break
    assert [p.step for p in train(TINY, tmp_path / "cut", CPU, every=1)] == [4, 5, 6]
    assert all(map(torch.equal, weights(tmp_path / "whole"), weights(tmp_path / "cut")))


def test_it_learns_what_it_sees_again_and_again():
    settings = dataclasses.replace(TINY, images=10_000)
    trainee, levels = Trainee(settings, CPU), noise_schedule().alphas_cumprod
    trainee.step = 100  # the same batch each time, at the full learning rate
    losses = [_learn(trainee, settings, levels).item() for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def test_rates_warm_up_stay_and_descend():
    settings = TrainPrior(images=16_000, batch=16, descent=0.3)
    assert settings.steps == 1000 and settings.rate(0) == pytest.approx(1e-5)
    assert settings.rate(49) == pytest.approx(5e-4)
    assert settings.rate(100) == settings.rate(699) == pytest.approx(1e-3)
    assert settings.rate(850) == pytest.approx(5e-4) and 0 < settings.rate(999) < 1e-5


def test_cameras_of_the_held_out_views_are_new():
    for n in (TINY.views_per_kind, TrainPrior().views_per_kind):
        seen = {camera_angles(3, view, n) for view in range(n)}
        assert not seen & {camera_angles(3, view, n + 1) for view in range(n + 1)}


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def options(tmp_path):
    return TrainPriorOptions(settings=TINY, work=tmp_path / "work", out=tmp_path / "prior", device="cpu", note="Hm.")


def with_settings(options, **changes):
    return dataclasses.replace(options, settings=dataclasses.replace(options.settings, **changes))


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_the_command_trains_releases_and_refuses_other_settings(options, capsys):
    assert main(dataclasses.replace(options, samples_every=3)) == OK
    out = options.out
    assert {p.name for p in out.iterdir()} == _RELEASED
    assert sum(p.stat().st_size for p in out.rglob("*")) < 25e6
    card, noted = (out / "README.md").read_text(), json.loads((out / "training.json").read_text())
    assert "Hm." in card and "not recorded" not in card and "license: apache-2.0" in card
    measured = noted["measured"]
    assert (measured["steps"], measured["images"], measured["device"]) == (6, 12, "cpu")
    assert set(measured["held_out"]) == {"low", "middle", "high"} and noted["settings"]["seed"] == 0
    hints = read_hints(out)
    assert (hints["words"], hints["elevations"], hints["pixel_shuffle"]) == (WORDS, (-20.0, 75.0), 2)
    assert main(with_settings(options, seed=4)) == BAD_USAGE
    assert "seed was 0, now 4" in said(capsys)


def test_the_same_command_goes_on_and_more_images_are_welcome(options, capsys):
    list(train(TINY, options.work, CPU))
    more = with_settings(options, images=16)
    reports = list(train_prior(more))
    assert [type(r).__name__ for r in reports] == ["Resumed", "TrainingProgress", "Released"]
    assert reports[0] == Resumed(6, None)
    assert isinstance(reports[1], TrainingProgress) and reports[1].step == 8
    keep_settings(TINY, options.work)
    assert keep_settings(more.settings, options.work) == 12
    with pytest.raises(Refused, match="network was"):
        keep_settings(with_settings(options, network=Network()).settings, options.work)


def test_an_interrupted_command_says_how_to_go_on(options, capsys, monkeypatch):
    def interrupted(*arguments, **named):
        list(train(*arguments, **named))
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(command, "train", interrupted)
    assert main(options) == FAILED
    assert "The same command goes on from step 6" in said(capsys)


def test_checkpoints_of_another_network_are_refused(options, capsys):
    list(train(dataclasses.replace(TINY, images=2), options.work, CPU))  # no note of the settings lies beside them
    assert main(with_settings(options, network=Network(channels=(16, 32), text_layers=1))) == BAD_USAGE
    assert "are of another network" in said(capsys)


def test_a_new_training_can_begin_with_a_released_prior(options, capsys):
    assert main(options) == OK
    again = dataclasses.replace(options, work=options.work / "second", begin_with=options.out, out=options.out / "new")
    trainee = Trainee(TINY, CPU)
    trainee.begin_with(options.out)
    shipped = DiffusersPrior.load(options.out, CPU).network.state_dict()
    assert all(torch.equal(shipped[name], value) for name, value in trainee.unet.state_dict().items())
    assert all(map(torch.equal, trainee.average, trainee.parameters))
    assert main(with_settings(again, network=Network(channels=(16, 32), text_layers=1))) == BAD_USAGE
    assert "is of another network" in said(capsys) and not again.work.exists()
    assert main(dataclasses.replace(again, begin_with=options.out / "nowhere")) == BAD_USAGE
    assert "no prior can be loaded" in said(capsys)


def test_half_precision_keeps_its_weights_whole():
    settings = dataclasses.replace(TINY, images=10_000, precision="bf16")
    trainee, levels = Trainee(settings, CPU), noise_schedule().alphas_cumprod
    trainee.step = 100
    losses = [_learn(trainee, settings, levels).item() for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    assert {p.dtype for p in (*trainee.parameters, *trainee.average)} == {torch.float32}


def test_release_without_a_training_is_refused(options, capsys):
    assert main(dataclasses.replace(options, release_only=True)) == BAD_USAGE
    assert "no checkpoint" in said(capsys)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"batch": 0}, "--batch must be above 0"), ({"text_dropout": 1.5}, "--text-dropout must be from 0 to 1")],
)
def test_settings_that_make_no_sense_are_refused(changes, complaint, options, capsys):
    assert main(with_settings(options, **changes)) == BAD_USAGE
    assert complaint in said(capsys)


def test_a_folder_with_other_things_is_not_replaced(options, capsys):
    options.out.mkdir()
    (options.out / "thesis.tex").write_text("years of work")
    assert main(options) == BAD_USAGE
    assert "'thesis.tex'" in said(capsys) and (options.out / "thesis.tex").exists()
    assert main(dataclasses.replace(options, out=options.work)) == BAD_USAGE
    assert "would replace the training" in said(capsys)


def test_history_bears_a_line_cut_short(tmp_path):
    line = '{"step": 50, "loss": 0.5, "seconds": 2.0, "device": "cpu"}\n'
    (tmp_path / "log.jsonl").write_text(line + line.replace("0.5", "0.25") + line[:20])
    assert history(tmp_path) == History(loss=0.25, seconds=4.0, device="cpu")
    assert history(tmp_path / "nowhere") == History()


# What ships -----------------------------------------------------------------------------------------------------------


def test_what_is_released_is_the_average(tmp_path):
    trainee = Trainee(TINY, CPU)
    for average in trainee.average:
        average.add_(0.05 * torch.randn_like(average))  # far from the weights
    before = [p.detach().clone() for p in trainee.parameters]
    release_module.release(trainee, TINY, tmp_path / "prior")
    assert all(map(torch.equal, before, trainee.parameters))

    prior = DiffusersPrior.load(tmp_path / "prior", CPU)
    ours = release_module.in_memory(release_module.trainee_average(trainee), TINY)
    t, noisy = torch.tensor([20, 500, 980]), torch.randn(3, 12, 32, 32)
    prompts = ["a red cube", "", "a house with a zebra"]
    pose = torch.stack([look_from(angle, 0.3) for angle in (0.0, 2.0, 4.0)])
    torch.testing.assert_close(prior.embed(prompts), ours.embed(prompts), atol=5e-3, rtol=5e-3)
    theirs, mine = (p.predict_noise(noisy, t, p.embed(prompts), pose=pose) for p in (prior, ours))
    torch.testing.assert_close(theirs, mine, atol=5e-3, rtol=5e-3)
    for mine, average in zip(release_module.trainee_average(trainee).parameters, trainee.average, strict=True):
        assert torch.equal(mine, average)


def test_the_default_network_is_small_enough_to_ship():
    networks = Network().unet(), Network().text_encoder()
    assert sum(p.numel() for network in networks for p in network.parameters()) * 2 < 20e6
