"""``studio distill-guidance``: a training that can be killed, what it writes, and what a run makes of that."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance.diffusers_prior import DiffusersPrior
from guidance.distillation import Distillation
from guidance.one_pass import one_pass_notes
from guidance.prior_folder import save_prior
from studio.cli import BAD_USAGE, OK, run
from studio.distillation import command as distillation
from studio.distillation import training
from studio.distillation.training import Student, any_of, chooser, toys, train
from studio.prior_options import ONE_PASS, PriorOptions, option_problems
from studio.prior_stamp import stamp
from studio.run import loaded_prior
from tests.guidance.conftest import TOY_HINTS, toy_parts

KNOBS = Distillation(steps=6, batch=3, rank=2)
PROMPTS = ["a red mug", "a tree"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("toy") / "prior"
    save_prior(home, *toy_parts(), TOY_HINTS)
    return home


@pytest.fixture(scope="module")
def prior(folder: Path) -> DiffusersPrior:
    return DiffusersPrior.load(folder, "cpu")


def student_of(prior: DiffusersPrior) -> Student:
    return Student(prior, chooser(prior, any_of(PROMPTS)), KNOBS)


def test_a_training_that_was_killed_ends_as_if_it_had_not_been(
    prior: DiffusersPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "_CHECKPOINT_EVERY", 2)
    whole = student_of(prior)
    reports = list(train(whole, tmp_path / "whole", every=3))
    assert [report.step for report in reports] == [3, 6] and all(report.loss > 0 for report in reports)
    for report in train(student_of(prior), tmp_path / "killed", every=1):
        if report.step == 5:  # after the checkpoint of step 4
            break
    resumed = student_of(prior)
    assert [report.step for report in train(resumed, tmp_path / "killed", every=1)] == [5, 6]
    assert all(torch.equal(a, b) for a, b in zip(whole.average, resumed.average, strict=True))
    assert torch.equal(whole.sketches.clean, resumed.sketches.clean)


def test_subjects_are_seen_as_a_run_sees_them(prior: DiffusersPrior):
    subjects = chooser(prior, toys)(8, torch.Generator().manual_seed(0))
    assert subjects.pose is not None and subjects.pose.shape == (8, 4, 4) and subjects.background.shape == (8, 3)
    distance = subjects.pose[:, :3, 3].norm(dim=1)
    assert torch.allclose(distance, torch.full_like(distance, prior.hints["distance"]), atol=1e-4)
    assert len({tuple(row.flatten().tolist()) for row in subjects.text}) > 4


@pytest.fixture(autouse=True, scope="module")
def measured_shortly() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "measure", functools.partial(distillation.measure, count=4, touches=6))
        yield


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes."""
    home = tmp_path_factory.mktemp("made")
    (home / "prompts.txt").write_text("\n".join(PROMPTS))
    assert run(asked(folder, home)) == OK
    return home


def asked(folder: Path, home: Path, *more: str) -> list[str]:
    prompts = ("--prompts", str(home / "prompts.txt"))
    where = ("--work", str(home / "work"), "--out", str(home / "one.safetensors"))
    knobs = ("--steps", "3", "--batch", "2", "--rank", "2")
    return ["distill-guidance", "--prior", str(folder), *prompts, *where, *knobs, *more]


def test_its_file_says_what_it_is(made: Path, folder: Path, prior: DiffusersPrior):
    notes = one_pass_notes(made / "one.safetensors")
    assert notes["fingerprint"] == prior.fingerprint() and notes["settings"]["steps"] == 3
    assert set(notes["error"]) == {"low", "middle", "high"} and notes["parameters"] < notes["of"]
    options = PriorOptions(one_pass=str(made / "one.safetensors"))
    assert option_problems(options, folder) == []
    (hashed,) = stamp(str(folder), folder, options)["further"].values()
    assert len(hashed["sha256"]) == 64


def test_the_same_command_again_measures_anew_and_another_one_is_refused(
    made: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    before = (made / "one.safetensors").read_bytes()
    assert run(asked(folder, made)) == OK
    assert (made / "one.safetensors").read_bytes() == before
    assert run(asked(folder, made, "--batch", "3")) == BAD_USAGE
    assert "batch was 2, now 3" in " ".join(capsys.readouterr().err.split())


def test_a_training_begins_with_an_adapter_that_there_is(made: Path, folder: Path, tmp_path: Path, capsys: Any):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    first = made / "one.safetensors"
    begun = ["--begin-with", str(first)]
    assert run(asked(folder, tmp_path, *begun, "--steps", "1", "--learning-rate", "1e-12")) == OK
    before, notes = one_pass_notes(first), one_pass_notes(tmp_path / "one.safetensors")
    assert notes["begun_with"] == before and notes["error"] == pytest.approx(before["error"])
    assert run([*asked(folder, tmp_path, *begun, "--rank", "3"), "--work", str(tmp_path / "other")]) == BAD_USAGE
    assert "is of another network or rank" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "other").exists()


def test_a_run_loads_it(made: Path, folder: Path):
    options = PriorOptions(one_pass=str(made / "one.safetensors"))
    assert "both" in loaded_prior(str(folder), torch.device("cpu"), options).takes
    assert "both" not in loaded_prior(str(folder), torch.device("cpu")).takes


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--prompts", "missing.txt"], "missing.txt cannot be read"),
        (["--scales", "5", "2"], "the lesser one first"),
        (["--device", "cuda:77"], "There is no device 'cuda:77'"),
        (["--prior", "nowhere"], "nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(
    more: list[str], words: str, made: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run([*asked(folder, made), "--work", str(tmp_path / "work"), *more]) == BAD_USAGE
    assert words in " ".join(capsys.readouterr().err.split())


def test_other_priors_need_prompts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["distill-guidance", "--prior", str(folder), "--work", str(tmp_path)]) == BAD_USAGE
    assert "--prompts" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_said_before_anything_loads(folder: Path, tmp_path: Path, capsys: Any):
    wrong = ["--one-pass", str(tmp_path / "none.safetensors")]
    assert run(["generate", "a red mug", "--prior", str(folder), *wrong]) == BAD_USAGE
    assert "there is no file" in capsys.readouterr().err
    assert option_problems(PriorOptions(one_pass="own"), folder) == [f"there is no file {folder / ONE_PASS}."]
