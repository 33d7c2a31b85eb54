"""``studio ui`` refuses in words what it must not or cannot do, before it starts anything."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.cli import BAD_USAGE, run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "a password is needed"),
        (["--host", "0.0.0.0", "--auth", "me:short"], "8 characters"),
        (["--auth", "nobody"], "NAME:PASSWORD"),
        (["--quota", "plenty"], "no amount of disk"),
        (["--device", "gpu7"], "no device 'gpu7'"),
        (["--priors", "nowhere"], "nowhere holds no folder that is a prior"),
    ],
)
def test_refusals(
    arguments: list[str],
    words: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("DREAMKILN_AUTH", raising=False)
    assert run(["ui", "--runs", str(runs), *arguments]) == BAD_USAGE
    assert words in capsys.readouterr().err
    assert not list(runs.glob("worker*"))


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ui", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--host", "--port", "--runs", "--device", "--priors", "--quota", "--auth"):
        assert option in shown


def test_sigterm_ends_it_as_ctrl_c_does(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[bool] = []

    def launch(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    @contextlib.contextmanager
    def workers(*_: object) -> Iterator[None]:
        try:
            yield
        finally:
            ended.append(True)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: None)  # so that a failure does not take the tests along
    try:
        monkeypatch.setattr("studio.app.server.launch", launch)
        monkeypatch.setattr("studio.jobs.supervisor.Workers", workers)
        assert run(["ui", "--runs", str(runs), "--device", "cpu"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().out.splitlines()
    assert ended == [True] and [line.partition(";")[0].partition(".")[0] for line in said] == [
        "Starting ",
        "Stopping",
        "Stopped",
    ]
