"""Edits: they begin as their source, keep what they need of it, resume bit-equal, and refuse in words."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import DDS, PDS, SDS
from guidance.priors.resources import Resources
from guidance.schedules import Schedule
from representations.hash_field import HashField
from representations.particles import Particles
from representations.splats import Densify, Splats
from studio.checkpoints import Checkpoints, read_state
from studio.cli import BAD_USAGE, OK, run
from studio.codec import decode, encode
from studio.edit import edit, finished
from studio.events import Checkpointed, Exported, Finished, Stepped
from studio.optimize import optimize
from studio.options import Edit as EditOptions
from studio.options import build_edit
from studio.prior_options import PriorOptions
from studio.request import Edit, Regularizers, Request, Stage, check
from studio.run import RunError, read_request, resume_run, run_request


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def small(request: Request, **stage: Any) -> Request:
    """A few steps of an edit."""
    return dataclasses.replace(request, stages=(dataclasses.replace(request.stages[0], steps=4, **stage),))


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return read_state(Checkpoints(folder / "checkpoints").all()[-1])["representation"]


def to_the_last_checkpoint(request: Request, folder: Path) -> dict[str, torch.Tensor]:
    """The parameters that a run ends with, without its export."""
    events = run_request(request, folder, "cpu")
    for event in events:
        if isinstance(event, Checkpointed) and event.step == request.steps:
            events.close()
    return parameters(folder)


@pytest.fixture(scope="module")
def source(tiny: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "source"
    list(run_request(tiny, folder, "cpu"))
    return folder


@pytest.fixture(scope="module")
def cloud(tiny: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of gaussians, without its export; density control never rests."""
    knobs = Splats(count=80, most=400, initial_opacity=0.3, opacity_rate=0.02, densify=Densify(begin=1, every=1))
    folder = tmp_path_factory.mktemp("runs") / "cloud"
    stage = dataclasses.replace(tiny.stages[0], representation=knobs, steps=2)
    to_the_last_checkpoint(dataclasses.replace(tiny, stages=(stage,)), folder)
    return folder


def test_an_edit_takes_over_what_its_source_had(source: Path, tiny: Request):
    request = edit(source, "a blue cube", PDS())
    assert request.prompt == "a blue cube" and (request.prior, request.export) == (tiny.prior, tiny.export)
    (stage,) = request.stages
    assert stage.representation == tiny.stages[0].representation  # the last that the source named
    assert (stage.guidance, stage.cameras) == (PDS(), tiny.stages[1].cameras)
    weights = Regularizers()
    assert stage.regularizers == Regularizers(Schedule(weights.opacity(1.0)), Schedule(weights.binary(1.0)))
    assert request.task == Edit(source) and not check(request)
    assert edit(source, "a blue cube").stages[0].guidance == DDS()
    assert decode(Request, json.loads(json.dumps(encode(request)))) == request


def test_a_request_from_before_there_were_edits_still_reads(tiny: Request):
    data = encode(tiny)
    del data["task"], data["debug_every"]
    assert decode(Request, data) == tiny


def test_it_begins_bit_for_bit_where_its_source_ended(source: Path, cloud: Path):
    for place in (source, cloud):
        begun = finished(place).begin(edit(place, "a blue cube").representation(0), torch.device("cpu")).state_dict()
        ended = parameters(place)
        assert begun.keys() == ended.keys() and all(torch.equal(begun[name], ended[name]) for name in ended)


def test_killed_and_without_its_source_it_ends_bit_equal(source: Path, tmp_path: Path):
    movable = tmp_path / "source"
    shutil.copytree(source, movable)
    request = small(edit(movable, "a blue cube"))
    events = list(run_request(request, tmp_path / "whole", "cpu"))
    assert isinstance(events[-1], Finished) and isinstance(events[-2], Exported)
    assert not torch.equal(parameters(tmp_path / "whole")["table"], parameters(source)["table"])
    interrupted = run_request(request, tmp_path / "killed", "cpu")
    with pytest.raises(Killed):
        for event in interrupted:
            if isinstance(event, Stepped) and event.done == 3:
                interrupted.throw(Killed())
    shutil.rmtree(movable)
    assert isinstance(list(resume_run(tmp_path / "killed", "cpu"))[-1], Finished)
    expected, found = parameters(tmp_path / "whole"), parameters(tmp_path / "killed")
    assert expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in expected)
    assert (tmp_path / "whole" / "result.glb").read_bytes() == (tmp_path / "killed" / "result.glb").read_bytes()
    again = edit(tmp_path / "killed", "a green cube")  # an edit's run is itself a source
    assert again.representation(0) == request.representation(0) and again.task == Edit(tmp_path / "killed")


def test_the_prior_sees_the_source_from_the_same_cameras_with_its_prompt(source: Path, tmp_path: Path, monkeypatch):
    seen, honest = [], DDS.gradient

    def gradient(self, state, prior, latents, condition, draw, progress):
        seen.append((latents, condition, prior))
        return honest(self, state, prior, latents, condition, draw, progress)

    monkeypatch.setattr(DDS, "gradient", gradient)
    to_the_last_checkpoint(small(edit(source, "a blue cube")), tmp_path / "run")
    first, condition, prior = seen[0]
    assert condition.source_latents.shape == first.shape
    # At first both show the same; samples along rays are jittered in one and not in the other.
    assert (first - condition.source_latents).abs().mean() < 0.01
    later, moved, _ = seen[-1]
    assert (later - moved.source_latents).abs().mean() > (first - condition.source_latents).abs().mean()
    assert torch.equal(condition.source[0], prior.embed(["a red cube"])[0])
    assert torch.equal(condition.text[0], prior.embed(["a blue cube"])[0])


@pytest.mark.parametrize("keep", [("means",), ("sh", "quaternions")])
def test_what_is_kept_does_not_move_and_the_rest_does(cloud: Path, tmp_path: Path, keep: tuple[str, ...]):
    before = parameters(cloud)
    after = to_the_last_checkpoint(small(edit(cloud, "a blue cube", SDS(), keep)), tmp_path / "run")
    for name in ("means", "log_scales", "quaternions", "logit_opacities", "sh"):
        assert torch.equal(before[name], after[name]) == (name in keep)
    free = to_the_last_checkpoint(small(edit(cloud, "a blue cube", SDS())), tmp_path / "free")
    assert len(free["means"]) != len(before["means"])  # density control rests only where something is kept


def test_learning_rates_enter_where_the_task_says(source: Path, tmp_path: Path, monkeypatch):
    rates = []

    def noting(run, *rest):
        for step in optimize(run, *rest):
            rates.append(run.optimiser.param_groups[0]["lr"])
            yield step

    monkeypatch.setattr("studio.engine.optimize", noting)
    to_the_last_checkpoint(small(edit(source, "a blue cube")), tmp_path / "run")
    assert rates == pytest.approx([1e-3 * 0.1**p for p in (0.5, 0.625, 0.75, 0.875)])


def test_particles_are_each_compared_with_what_they_were(tiny: Request, tmp_path: Path, monkeypatch):
    stage = dataclasses.replace(tiny.stages[0], representation=Particles(Splats(count=60, most=60), 2), steps=2)
    to_the_last_checkpoint(dataclasses.replace(tiny, stages=(stage,)), tmp_path / "source")
    found, honest = [], DDS.gradient

    def gradient(self, state, prior, latents, condition, draw, progress):
        found.append((latents - condition.source_latents).abs().max().item())
        return honest(self, state, prior, latents, condition, draw, progress)

    monkeypatch.setattr(DDS, "gradient", gradient)
    to_the_last_checkpoint(small(edit(tmp_path / "source", "a blue cube")), tmp_path / "run")
    assert found[:2] == [0.0, 0.0] and all(found[2:])


# Refusals -------------------------------------------------------------------------------------------------------------


def unfinished(tiny: Request, folder: Path, steps: int) -> Path:
    events = run_request(tiny, folder, "cpu")
    for event in events:
        if isinstance(event, Stepped) and event.done == steps:
            events.close()
    return folder


def test_sources_that_are_no_finished_run_are_refused(tiny: Request, tmp_path: Path):
    with pytest.raises(RunError, match="not a run"):
        edit(tmp_path, "a blue cube")
    for steps, words in ((1, r"0 of 9 steps.*studio resume"), (3, r"2 of 9 steps.*studio resume")):
        with pytest.raises(RunError, match=words):
            edit(unfinished(tiny, tmp_path / str(steps), steps), "a blue cube")


def test_an_edit_of_another_shape_is_refused_before_a_folder_is_made(source: Path, tmp_path: Path):
    for other in (HashField(levels=(4, 8), occupancy_cells=8), Splats(count=50, most=50)):
        request = small(edit(source, "a blue cube"), representation=other)
        with pytest.raises(RunError, match="exactly as its source, a HashField"):
            next(run_request(request, tmp_path / "run", "cpu"))
    assert not (tmp_path / "run").exists()


def test_a_source_that_vanished_before_the_run_began_is_refused(source: Path, tmp_path: Path):
    shutil.copytree(source, tmp_path / "gone")
    request = small(edit(tmp_path / "gone", "a blue cube"))
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(RunError, match="not a run"):
        next(run_request(request, tmp_path / "run", "cpu"))


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"keep": ("meens",)}, "task.keep: no 'meens'; did you mean 'means'?"),
        (
            {"keep": ("means", "log_scales", "quaternions", "logit_opacities", "sh")},
            "task.keep names all there is, so nothing would be left to change.",
        ),
        ({"begin": 1.5}, "task.begin must be between 0 and 1, not 1.5."),
    ],
)
def test_wrong_tasks_are_named(cloud: Path, task: dict[str, Any], words: str):
    request = edit(cloud, "a blue cube")
    assert request.task is not None
    wrong = dataclasses.replace(request, task=dataclasses.replace(request.task, **task))
    assert words in [p.text for p in check(wrong)]


@pytest.mark.parametrize("method", [DDS(), PDS()])
def test_methods_that_edit_need_something_to_edit(tiny: Request, method: Any):
    request = dataclasses.replace(tiny, stages=(Stage(HashField(), method),))
    name = type(method).__name__
    assert [p.text for p in check(request)] == [
        f"{name} changes an object that is there already; use `studio edit RUN PROMPT --method {name}`."
    ]


def test_the_command_line_refuses_in_words(source: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [
        (["edit", str(tmp_path), "a blue cube"], "not a run"),
        (["edit", str(source), "a blue cube", "--method", "DDSS"], "did you mean 'DDS'"),
        (["edit", str(source), "a blue cube", "--keep", "tabel"], "did you mean 'table'"),
        (["edit", str(source), "x", "--stages.0.representation.levels", "4", "8"], "exactly as its source"),
        (["edit", str(source), "x", "--stages.0.representation.table", "9"], "table"),
        (["edit", str(source), " "], "The prompt is empty"),
        (["edit", str(source)], "PROMPT"),
        (["edit", str(source), "a blue cube", "--task.begn", "0.3"], "--task.begin"),
        (["generate", "a blue cube", "--method", "PDS"], "studio edit RUN PROMPT --method PDS"),
    ]
    for arguments, words in cases:
        assert run(arguments) == BAD_USAGE
        shown = capsys.readouterr()
        assert words in shown.err + shown.out
    assert not list(tmp_path.iterdir())


def test_the_command_line_edits(source: Path, tmp_path: Path, capsys):
    folder = tmp_path / "run"
    knobs = ["--stages.0.guidance.scale", "3", "--task.begin", "0.2", "--method", "pds", "--seed", "4", "--steps", "2"]
    assert run(["edit", str(source), "a blue cube", "--out", str(folder), "--json", *knobs]) == OK
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "Finished" and (folder / "result.glb").is_file()
    made = read_request(folder)
    assert (made.stages[0].guidance, made.steps, made.seed) == (PDS(scale=3.0), 2, 4)
    assert made.task == Edit(source, (), 0.2)


def test_files_on_top_of_the_prior_are_the_sources_unless_others_are_named(source: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resources = Resources(vae_slicing=True)
    files = PriorOptions(("/old.safetensors:0.5",), ("/word.safetensors",), "/cat.png", 24, resources)
    shutil.copytree(source, tmp_path / "run")
    request = dataclasses.replace(read_request(source), prior_options=files)
    (tmp_path / "run" / "request.json").write_text(json.dumps(encode(request)))
    assert build_edit(EditOptions(Path("run"), "a blue cube"), []).prior_options == files
    named = EditOptions(Path("run"), "a blue cube", lora=("new.safetensors", "b.safetensors:2"), image="dog.png")
    made = build_edit(named, [])
    expected = (str(tmp_path / "new.safetensors"), str(tmp_path / "b.safetensors:2"))
    assert made.prior_options == dataclasses.replace(files, lora=expected, image=str(tmp_path / "dog.png"))
    word = dataclasses.replace(named, lora=(), image="", textual_inversion=("new.safetensors",))
    assert build_edit(word, []).prior_options.textual_inversion == (str(tmp_path / "new.safetensors"),)
    # Files of one prior do not fit another.
    other = build_edit(dataclasses.replace(named, prior="toybox-64", lora=()), [])
    assert other.prior_options == PriorOptions(image=str(tmp_path / "dog.png"), resources=resources)


def test_a_prior_that_sees_several_views_as_one_gets_them(source: Path, tmp_path: Path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / "dreamkiln.json").write_text('{"views": 4}')
    (stage,) = build_edit(EditOptions(source, "a blue cube", prior=str(tmp_path)), []).stages
    assert stage.cameras.views == 4 and stage.guidance.controls.group


def test_the_command_line_names_files_on_top(source: Path, capsys):
    words = ["edit", str(source), "a blue cube", "--lora", "nowhere.safetensors:0.5", "other.safetensors"]
    assert run([*words, "--textual-inversion", __file__, "--image", "nowhere.png"]) == BAD_USAGE
    shown = capsys.readouterr().err
    assert "there is no file" in shown and "There is no picture" in shown
