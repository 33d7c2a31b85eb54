"""The command line as people meet it: help, wrong names, wrong folders, and a whole run."""

import json
import os
import subprocess
import sys

import pytest

from studio.cli import BAD_USAGE, FAILED, OK, VERBS, run

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
        (["generate", " "], "empty"),
        (["generate"], "PROMPT"),
        (["generate", "a mug", "--prior", "/nowhere"], "no prior '/nowhere'"),
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
