"""The command line as people meet it: help, wrong names, wrong folders, and a whole run."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.progress import Task, TaskID

from guidance.diffusers_prior import DiffusersPrior
from studio.cli import BAD_USAGE, FAILED, OK, VERBS, main, run
from studio.console import _Elapsed, show
from studio.events import Finished, Started, Stepped
from studio.folder import FolderTaken, RunFolder, read_request

SMALL = [
    "--stages.0.cameras.size", "16", "--stages.0.cameras.views", "2", "--export.faces", "100", "--export.texture", "64",
    "--export.grid", "24", "--export.picture", "32", "--steps", "4", "--representation", "HashField",
    "--stages.0.representation.levels", "4", "8", "16", "--stages.0.representation.rate", "0.001",
]  # fmt: skip


def test_bare_help_names_every_verb(capsys):
    assert run([]) == OK
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert run([verb, "--help"]) == OK
    assert "usage: studio" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_no_default_that_says_nothing(verb, capsys):
    assert run([verb, "--help"]) == OK
    shown = capsys.readouterr().out
    assert not any(noise in shown for noise in ("{None}", "(default: )", "default: None"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["genrate", "a mug"], "Did you mean `studio generate`"),
        (["generate", "a mug", "--recipe", "drafft"], "did you mean 'draft'"),
        (["generate", "a mug", "--method", "SJCC"], "did you mean 'SJC'"),
        (["generate", "a mug", "--representation", "HashFeild"], "did you mean 'HashField'"),
        (["generate", "a mug", "--stages.0.guidance.scael", "3"], "scale"),
        (["generate", "a mug", "--sede", "3"], "seed"),
        (["generate", "a mug", "--steps", "0"], "--steps must be 1 or more"),
        (["generate", "a mug", "--seed", str(2**63)], "seed must be a number of 64 bits"),
        (["generate", "a m\udcfcg"], "not UTF-8"),
        (["generate", " "], "empty"),
        (["generate"], "PROMPT"),
        (["generate", "a mug", "--prior", "/nowhere"], "no prior '/nowhere'"),
        (["evaluate", "--seeds"], "nothing to compare"),
        (["evaluate", "--prompts", "none.txt"], "none.txt cannot be read: no such file"),
        (["doctor", "--download"], "--prior"),
    ],
)
def test_wrong_usage_names_the_nearest_right(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == BAD_USAGE
    shown = capsys.readouterr()
    assert words.lower() in (shown.err + shown.out).lower()
    assert not (tmp_path / "runs").exists()


def test_generate_and_resume_refuse_in_words(tiny_prior, tmp_path, capsys):
    prior = ["--prior", str(tiny_prior)]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    cases = [
        (["generate", "a mug", *prior, "--out", str(tmp_path / "full")], "exists already"),
        (["generate", "a mug", *prior, "--out", str(tmp_path / "file" / "run")], str(tmp_path / "file")),
        (["generate", "a mug", *prior, "--device", "cuda:9", "--out", str(tmp_path / "new")], "no device"),
        (["resume", str(tmp_path / "full")], "not a run"),
    ]
    for arguments, words in cases:
        assert run(arguments) == FAILED
        assert words in capsys.readouterr().err


def test_generate_makes_an_asset_and_says_so_in_json(tiny_prior, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["generate", "a red cube", "--prior", str(tiny_prior), "--out", str(folder), "--json", *SMALL]
    assert run(arguments) == OK
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "Finished" and (folder / "result.glb").is_file()
    assert json.loads((folder / "request.json").read_text())["stages"][0]["steps"] == 4


def test_the_progress_bar_shows_what_is_promised(tiny_prior, tmp_path, capsys):
    arguments = ["generate", "a [red] cube", "--prior", str(tiny_prior), "--out", str(tmp_path / "run"), *SMALL]
    assert run(arguments) == OK
    shown = capsys.readouterr().err
    assert all(words in shown for words in ("a [red] cube", "4/4", "result.glb", "faces", "Done in"))


def test_ctrl_c_stops_with_a_checkpoint_and_resume_finishes(tiny_prior, tmp_path):
    import signal

    folder = tmp_path / "run"
    command = [sys.executable, "-m", "studio.cli", "generate", "a red cube", "--prior", str(tiny_prior), "--json"]
    small = [a if a != "4" or i != SMALL.index("--steps") + 1 else "400" for i, a in enumerate(SMALL)]
    with subprocess.Popen([*command, "--out", str(folder), *small], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if '"Stepped"' in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == FAILED and '"Stopped"' in rest
    assert list((folder / "checkpoints").iterdir())


def test_waiting_threads_do_not_hold_cores_unless_asked_to(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    run(["doctor", "--help"])
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    run(["doctor", "--help"])
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    run(["doctor", "--help"])
    assert "GOMP_SPINCOUNT" not in os.environ


def test_of_runs_that_begin_at_once_each_has_a_folder_of_its_own(tiny, tmp_path, monkeypatch):
    """The name is looked for before a run begins; another process may take it meanwhile."""

    def quick(request, folder, *_):
        RunFolder.create(folder, request)
        yield Finished(folder, 0.0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("studio.run.run_request", quick)
    names = iter([Path("runs/a-mug"), Path("runs/a-mug-2")])
    monkeypatch.setattr("studio.verbs.free_name", lambda *_: next(names))
    RunFolder.create(tmp_path / "runs" / "a-mug", tiny)
    assert run(["generate", "a mug"]) == OK
    assert json.loads((tmp_path / "runs/a-mug-2/request.json").read_text())["prompt"] == "a mug"
    assert json.loads((tmp_path / "runs/a-mug/request.json").read_text())["prompt"] == tiny.prompt


def test_of_many_that_want_a_folder_one_has_it(tiny, tmp_path):
    def ask(seed: int) -> int | None:
        together.wait()
        try:
            RunFolder.create(tmp_path / "run", dataclasses.replace(tiny, seed=seed))
        except FolderTaken:
            return None
        return seed

    together = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        (winner,) = [seed for seed in pool.map(ask, range(8)) if seed is not None]
    assert read_request(tmp_path / "run").seed == winner


def shown(events, **terminal) -> str:
    file = io.StringIO()
    show(iter(events), Console(file=file, width=80, **terminal))
    return file.getvalue()


def test_a_log_without_a_terminal_says_how_far_a_run_is(tmp_path, monkeypatch):
    step = Stepped(0, 30, 30, 90, torch.tensor(2.5), {})
    events = [Started("a mug", tmp_path, "cpu", 0, 90), step, dataclasses.replace(step, step=31, done=31)]
    monkeypatch.setattr("studio.console._READ_EVERY", 0.0)
    assert "step" not in shown(events)
    monkeypatch.setattr("studio.console._LINE_EVERY", 0.0)
    assert "step 30 of 90" in shown(events) and "loss 2.5" in shown(events)
    assert "step 30 of 90" not in shown(events, force_terminal=True)


def test_a_prompt_cannot_move_the_cursor(tmp_path):
    assert "\x1b" not in shown([Started("a \x1b[2Jmug", tmp_path, "cpu", 0, 90)])


def test_the_clock_goes_on_while_the_asset_is_made():
    task = Task(TaskID(0), "export", total=9, completed=9, _get_time=lambda: 3725.0, finished_time=5.0)
    task.start_time = 0.0
    assert _Elapsed().render(task).plain == "1:02:05"


def test_a_path_that_is_no_folder_is_said_in_words(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(["evaluate", "--methods", "SDS", "--evaluations", "1", "--out", str(tmp_path / "file")]) == FAILED
    said = capsys.readouterr().err
    assert "File exists: " in said and "Errno" not in said


def test_a_terminal_without_unicode_shows_what_it_can(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr("studio.cli._help", lambda: "a m\u00fcg \u2026")
    with pytest.raises(SystemExit) as end:
        main([])
    sys.stdout.flush()
    assert end.value.code == OK and written.getvalue() == b"a m\\xfcg \\u2026\n"


def test_counting_the_tokens_of_a_long_prompt_warns_of_no_indexing_errors(tiny_prior, monkeypatch):
    said = []
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", lambda *words: said.append(words))
    assert DiffusersPrior.load(tiny_prior, "cpu").count_tokens("a " * 200) == 200 and not said


def test_a_clock_that_is_set_back_does_not_silence_the_record(tiny, tmp_path, monkeypatch):
    home, step = RunFolder.create(tmp_path / "run", tiny), Stepped(0, 1, 1, 9, torch.tensor(1.0), {})
    monkeypatch.setattr("studio.folder._RECORD_EVERY", 0.0)
    home.record(step)
    monkeypatch.setattr("studio.folder.time.time", lambda: 1.0)
    home.record(step)
    assert (home.path / "events.jsonl").read_text().count("Stepped") == 2
