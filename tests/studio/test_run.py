"""Runs from end to end on a tiny prior: files, resume, damage, NaN, stop."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from guidance.diffusers_prior import DiffusersPrior
from studio.checkpoints import Checkpoints, read_state
from studio.codec import encode
from studio.events import Checkpointed, Exported, Failed, Finished, Stepped, Stopped, Warned
from studio.export.glb import read_settings
from studio.folder import RunFolder
from studio.run import RunError, read_request, resume_run, run_request, work_in


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def final_parameters(folder: Path) -> dict[str, torch.Tensor]:
    return read_state(Checkpoints(folder / "checkpoints").all()[-1])["representation"]


def die_at(events, done: int) -> None:
    with pytest.raises(Killed):
        for event in events:
            if isinstance(event, Stepped) and event.done == done:
                events.throw(Killed())


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """An uninterrupted run and its events."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, list(run_request(tiny, folder, "cpu"))


def test_a_run_leaves_everything_it_promises(tiny, whole):
    folder, events = whole
    for name in ("request.json", "events.jsonl", "result.glb", "report.json", "turntable.webp", "contact_sheet.png"):
        assert (folder / name).stat().st_size > 0
    assert [e.done for e in events if isinstance(e, Stepped)] == list(range(1, 10))
    assert sorted(p.name for p in (folder / "previews").iterdir()) == ["000004.png", "000009.png"]
    assert isinstance(events[-1], Finished) and isinstance(events[-2], Exported)
    report = json.loads((folder / "report.json").read_text())
    promised = {
        "faces", "vertices", "watertight", "texture_size", "uv_fill", "validator", "seconds", "seconds_per_iteration",
        "prior_share", "peak_memory_mb", "render_to_asset_psnr", "silhouette_iou", "prompt_match", "seed", "versions",
    }  # fmt: skip
    assert promised <= set(report) and 0 < report["prior_share"] < 1 and report["faces"] > 0
    assert read_request(folder) == tiny
    assert read_settings(folder / "result.glb") == encode(tiny)


@pytest.mark.parametrize("done", [1, 3, 5, 6, 9])
def test_a_killed_run_resumes_bit_equal(tiny, whole, tmp_path, done):
    folder = tmp_path / "killed"
    die_at(run_request(tiny, folder, "cpu"), done)
    events = list(resume_run(folder, "cpu"))
    assert isinstance(events[-1], Finished)
    expected, found = final_parameters(whole[0]), final_parameters(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (folder / "result.glb").read_bytes() == (whole[0] / "result.glb").read_bytes()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tiny, whole, tmp_path):
    folder = tmp_path / "damaged"
    die_at(run_request(tiny, folder, "cpu"), 8)
    newest = Checkpoints(folder / "checkpoints").all()[-1]
    tensors = newest / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-7])
    events = list(resume_run(folder, "cpu"))
    assert any(isinstance(e, Warned) and "damaged" in e.text for e in events)
    assert all(torch.equal(a, final_parameters(folder)[n]) for n, a in final_parameters(whole[0]).items())


def test_a_stopped_run_goes_on(tiny, whole, tmp_path):
    folder, asked = tmp_path / "stopped", []
    for event in run_request(tiny, folder, "cpu", stop=lambda: bool(asked)):
        if isinstance(event, Stepped) and event.done == 3:
            asked.append(True)
    assert isinstance(event, Stopped) and event.step == 3  # pyright: ignore[reportPossiblyUnboundVariable]
    assert isinstance(list(resume_run(folder, "cpu"))[-1], Finished)
    assert all(torch.equal(a, final_parameters(folder)[n]) for n, a in final_parameters(whole[0]).items())


def poisoned(monkeypatch, bad):
    """Predictions are NaN in the calls that ``bad`` picks."""
    calls, honest = [], DiffusersPrior.predict_noise

    def predict(self, *arguments, **named):
        calls.append(None)
        answer = honest(self, *arguments, **named)
        return answer * float("nan") if bad(len(calls)) else answer

    monkeypatch.setattr(DiffusersPrior, "predict_noise", predict)


def test_one_nan_is_skipped_and_counted(tiny, tmp_path, monkeypatch):
    poisoned(monkeypatch, lambda call: call == 3)
    events = list(run_request(tiny, tmp_path / "run", "cpu"))
    steps = [e for e in events if isinstance(e, Stepped)]
    assert isinstance(events[-1], Finished)
    assert [int(s.diagnostics["skipped"]) for s in steps[:5]] == [0, 0, 1, 1, 1]
    assert all(p.isfinite().all() for p in final_parameters(tmp_path / "run").values())


def test_passing_nans_roll_back_once(tiny, tmp_path, monkeypatch):
    poisoned(monkeypatch, lambda call: call in (3, 4, 5))
    one_stage = dataclasses.replace(tiny, stages=(dataclasses.replace(tiny.stages[0], steps=8),))
    events = list(run_request(one_stage, tmp_path / "run", "cpu"))
    assert any(isinstance(e, Warned) and "Going back" in e.text for e in events) and isinstance(events[-1], Finished)


def test_lasting_nans_stop_with_the_step_and_the_name(tiny, tmp_path, monkeypatch):
    poisoned(monkeypatch, lambda call: call >= 3)
    one_stage = dataclasses.replace(tiny, stages=(dataclasses.replace(tiny.stages[0], steps=12),))
    events = []
    with pytest.raises(RunError, match=r"step \d+.*table"):
        for event in run_request(one_stage, tmp_path / "run", "cpu"):
            events.append(event)
    assert isinstance(events[-1], Failed) and not (tmp_path / "run" / "result.glb").exists()
    assert [e.step for e in events if isinstance(e, Checkpointed)]


def test_what_exists_is_not_overwritten(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("mine")
    with pytest.raises(FileExistsError, match="--out"):
        next(run_request(tiny, tmp_path / "run", "cpu"))
    assert (tmp_path / "run" / "precious").read_text() == "mine"


def test_two_processes_cannot_share_a_run(tiny, tmp_path):
    first = run_request(tiny, tmp_path / "run", "cpu")
    next(first)
    with pytest.raises(BlockingIOError, match="Another process"):
        next(resume_run(tmp_path / "run", "cpu"))
    first.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "  "}, "empty"),
        ({"prompt": "red " * 300}, "shorten"),
        ({"prompt": "red " * 15}, "15 tokens and this prior reads 14"),
        ({"prior": "/nowhere/at/all"}, "no prior"),
        ({"stages": ()}, "representation"),
    ],
)
def test_wrong_requests_are_refused_before_a_folder_is_made(tiny, tmp_path, change, words):
    with pytest.raises(RunError, match=words):
        next(run_request(dataclasses.replace(tiny, **change), tmp_path / "run", "cpu"))
    assert not (tmp_path / "run").exists()


def test_a_job_of_a_prompt_that_would_be_cut_fails_before_its_prior_is_loaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("studio.run.loaded_prior", lambda *_: pytest.fail("it was loaded"))
    request = dataclasses.replace(tiny, prompt="red " * 15)
    with RunFolder.create(tmp_path / "run", request) as home, pytest.raises(RunError, match=r"15 tokens.*14"):
        list(work_in(home, request, torch.device("cpu"), lambda: False))


def test_unknown_words_are_named(tiny, tmp_path):
    events = run_request(dataclasses.replace(tiny, prompt="a red fox"), tmp_path / "run", "cpu")
    first = next(events)
    events.close()
    assert isinstance(first, Warned) and "'fox'" in first.text and "mushroom" in first.text and "--prior" in first.text


def test_a_missing_device_is_refused_with_what_there_is(tiny, tmp_path):
    with pytest.raises(RunError, match=r"no device 'cuda:77'.*cpu"):
        next(run_request(tiny, tmp_path / "run", "cuda:77"))
    with pytest.raises(RunError, match="no device 'gpuu'"):
        next(run_request(tiny, tmp_path / "run", "gpuu"))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="not a run"):
        next(resume_run(tmp_path, "cpu"))
    (tmp_path / "request.json").write_text('{"prompt": 3}')
    with pytest.raises(RunError, match="cannot be read"):
        next(resume_run(tmp_path, "cpu"))
