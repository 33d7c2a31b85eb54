"""Guidance distillation: the questions, the loss, and that a student learns the difference that a prompt makes."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from guidance.classifier_free import Ask, combine, predict
from guidance.diffusers_prior import DiffusersPrior
from guidance.distillation import (
    Distillation,
    Errors,
    Sketches,
    Subjects,
    answer_gain,
    blobs,
    draw_timesteps,
    measure,
    refuse_other_priors,
    teach,
    touch,
)
from guidance.noising import add_noise, clean_estimate
from guidance.one_pass import OnePassAdapter
from tests.guidance.learning import rng

KNOBS = Distillation(steps=60, batch=4, rank=4, learning_rate=5e-3)


def choose_for(prior: DiffusersPrior):
    def choose(count: int, generator: torch.Generator) -> Subjects:
        pose = torch.eye(4).repeat(count, 1, 1)
        pose[:, :3, 3] = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator)) * 2.6
        prompts = ["a red mug", "a tree", "a blue cube"]
        text = prior.embed([prompts[i % 3] for i in range(count)])
        return Subjects(text, pose if "pose" in prior.takes else None, torch.rand(count, 3, generator=generator))

    return choose


def begun(prior: DiffusersPrior, knobs: Distillation = KNOBS, seed: int = 0) -> Sketches:
    return Sketches.begin(prior, choose_for(prior), knobs.batch, knobs, rng(seed))


def test_blobs_are_the_background_at_the_corners():
    background = torch.rand(5, 3, generator=rng(1))
    made = blobs(background, 32, rng(2))
    assert made.shape == (5, 3, 32, 32) and 0 <= made.min() and made.max() <= 1
    assert (made[:, :, 0, 0] - background).abs().max() < 0.01
    assert (made[:, :, 16, 16] - background).abs().max() > 0.2


def test_timesteps_descend_while_a_picture_is_drawn():
    early, late = (draw_timesteps(torch.full((4000,), p), 1000, rng()).float() for p in (0.0, 1.0))
    anywhere = 0.3
    assert early.mean() == pytest.approx(1000 * ((1 - anywhere) * 0.74 + anywhere * 0.5), abs=10)
    assert late.mean() == pytest.approx(1000 * ((1 - anywhere) * 0.29 + anywhere * 0.5), abs=10)
    assert early.min() >= 0 and early.max() <= 999


def test_a_touch_goes_the_way_of_the_guided_estimate(diffusion_prior: DiffusersPrior):
    """Written out by hand: a latent prior's estimate is bounded by its spread alone."""
    prior = diffusion_prior
    sketches = begun(prior)
    before = sketches.clean.clone()
    t = torch.tensor([100, 400, 600, 900])
    noisy = add_noise(prior, before, torch.randn(before.shape, generator=rng(3)), t)
    told, null = predict(prior, sketches.condition(prior), Ask(noisy, t, "text"), Ask(noisy, t, "null"))
    touch(prior, sketches, noisy, t, told, null)
    guided = clean_estimate(prior, noisy, combine(told, null, sketches.scale[:, None, None, None]), t)
    plain = clean_estimate(prior, noisy, told, t)
    half = 0.5 * guided * (plain.std((1, 2, 3)) / guided.std((1, 2, 3)))[:, None, None, None] + 0.5 * guided
    pull = sketches.pull[:, None, None, None]
    assert torch.allclose(sketches.clean, before + pull * (half - before), atol=2e-3 * float(half.abs().max()))
    assert sketches.age.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_the_gain_of_an_answer_is_its_derivative(kind: Any, toy_prior: DiffusersPrior, monkeypatch: pytest.MonkeyPatch):
    from guidance.priors.process import noise_of

    monkeypatch.setattr(toy_prior, "prediction_type", kind)
    z, t = torch.randn(3, 12, 4, 4, generator=rng()), torch.tensor([50, 500, 900])
    one, two = (noise_of(toy_prior, kind, z, t, lambda *_, c=c: torch.full_like(z, c)) for c in (0.0, 1.0))
    gain = answer_gain(toy_prior, t, z).abs()
    assert torch.allclose((two - one).abs(), gain.expand_as(z), rtol=1e-3)


def test_a_student_that_knows_nothing_is_wrong_by_all_of_the_difference(toy_prior: DiffusersPrior):
    student = OnePassAdapter(toy_prior.network, 2, 0).requires_grad_(False)
    assert set(measure(toy_prior, student, choose_for(toy_prior), KNOBS, 4, 6).values()) == {1.0}


def test_errors_are_told_by_level_of_noise():
    errors, truth = Errors(), torch.ones(4, 1, 2, 2)
    guess = torch.tensor([0.5, 1.0, 0.0, 3.0])[:, None, None, None] * truth
    errors.add(torch.tensor([100, 500, 800, 900]), 1000, guess, truth)
    assert errors.relative() == {"low": 0.5, "middle": 0.0, "high": round(math.sqrt((1 + 4) / 2), 4)}


def test_a_student_learns(toy_prior: DiffusersPrior):
    """Asked the same questions again and again, it comes to know both answers; the teacher stays as it is."""
    before, losses = toy_prior.fingerprint(), []
    student = OnePassAdapter(toy_prior.network, KNOBS.rank, 0)
    optimiser = torch.optim.Adam(student.parameters(), 1e-2)
    start = begun(toy_prior).state()
    for _ in range(40):
        sketches = Sketches.of({name: value.clone() for name, value in start.items()})
        optimiser.zero_grad()
        loss = teach(toy_prior, student, sketches, KNOBS, rng(1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert toy_prior.fingerprint() == before


def test_sketches_are_told_apart_by_their_numbers_alone(toy_prior: DiffusersPrior):
    sketches = begun(toy_prior)
    again = Sketches.of({name: value.clone() for name, value in sketches.state().items()})
    losses = [
        float(teach(toy_prior, OnePassAdapter(toy_prior.network, 2, 0), s, KNOBS, rng(5)).detach())
        for s in (sketches, again)
    ]
    assert losses[0] == losses[1] and torch.equal(sketches.clean, again.clean)


def test_others_take_the_place_of_those_that_are_done(toy_prior: DiffusersPrior):
    sketches, fresh = begun(toy_prior), begun(toy_prior, dataclasses.replace(KNOBS, batch=2), seed=8)
    kept = sketches.clean[[0, 2]].clone()
    sketches.age += 9
    sketches.replace(torch.tensor([False, True, False, True]), fresh)
    assert torch.equal(sketches.clean[[1, 3]], fresh.clean) and torch.equal(sketches.clean[[0, 2]], kept)
    assert sketches.age.tolist() == [9, 0, 9, 0]


def test_other_priors_are_refused(toy_prior: DiffusersPrior, monkeypatch: pytest.MonkeyPatch):
    refuse_other_priors(toy_prior)
    monkeypatch.setattr(toy_prior, "takes", frozenset({"depth"}))
    with pytest.raises(ValueError, match="words and a camera"):
        refuse_other_priors(toy_prior)
    monkeypatch.setattr(toy_prior, "takes", frozenset({"both"}))
    with pytest.raises(ValueError, match="already"):
        refuse_other_priors(toy_prior)


@pytest.mark.parametrize("wrong", [{"scales": (0.5, 3.0)}, {"pulls": (0.5, 0.1)}, {"steps": 0}, {"blind": 1.0}])
def test_knobs_that_make_no_sense_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError):
        Distillation(**wrong)


@pytest.fixture(scope="module")
def diffusion_prior(diffusion_folder: Any) -> DiffusersPrior:
    return DiffusersPrior.load(diffusion_folder, "cpu")
