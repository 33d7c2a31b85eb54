"""``studio worker`` and ``studio jobs``: what they print, and their exit statuses."""

import json
import os
import signal
from pathlib import Path

import pytest

from studio.cli import run
from studio.events import Finished, Started, Stepped
from studio.folder import RunFolder
from studio.jobs import worker as workers
from studio.jobs.store import Item, Store
from studio.request import Request
from tests.jobs import engine


@pytest.fixture
def said(runs: Path, capsys: pytest.CaptureFixture[str]):
    """Runs a command line on the home; its exit status, output and complaints."""

    def say(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run([*arguments, "--runs", str(runs)])
        out, complaint = capsys.readouterr()
        return status, out, complaint

    return say


def test_the_list_shows_what_there_is(store: Store, template: Request, said) -> None:
    assert said("jobs") == (0, f"No jobs in {store.home} yet.\n", "")
    a, b = store.submit(template, [Item("a [red]cube[/]\x1b[2J", 1), Item("a cone", 2)])
    store.pause(b)
    status, out, _ = said("jobs")
    line = next(line for line in out.splitlines() if a in line)
    assert (status, line.split()[:3]) == (0, ["1", a, "queued"])
    assert "a [red]cube[/] [2J" in line  # neither markup nor a terminal's codes
    assert out.endswith("1 queued, 1 paused\n")
    assert "cone" not in said("jobs", "--state", "queued")[1]
    assert "cube" not in said("jobs", "list", "--search", "cone")[1]
    assert "and 1 more; --limit 0 lists all." in said("jobs", "--limit", "1")[1]
    (found,) = [json.loads(line) for line in said("jobs", "--json", "--search", "cone")[1].splitlines()]
    assert (found["id"], found["state"], found["folder"]) == (b, "paused", str(store.home / "a-cone"))


def test_every_action_says_what_became_of_the_job(store: Store, template: Request, said) -> None:
    a, b = store.submit(template, [Item("a cube", 1), Item("a cone", 2)], folders=True)
    assert said("jobs", "first", b) == (0, f"Job {b} is queued, number 1.\n", "")
    assert said("jobs", "pause", b) == (0, f"Job {b} is paused.\n", "")
    assert said("jobs", "resume", b) == (0, f"Job {b} is queued, number 1.\n", "")
    assert said("jobs", "cancel", b) == (0, f"Job {b} is cancelled.\n", "")
    assert said("jobs", "retry", b) == (0, f"Job {b} is queued, number 1.\n", "")
    assert said("jobs", "hold")[0] == 0
    assert store.queue_held() == ""
    assert "The queue is held." in said("jobs")[1]
    assert said("jobs", "release")[0] == 0
    assert store.queue_held() is None
    assert said("jobs", "cancel", b[:7])[1] == f"Job {b} is cancelled.\n"
    assert said("jobs", "clear")[1] == "1 job off the list; their folders stay.\n"
    assert said("jobs", "clear", a)[1] == f"Job {a} is off the list; its folder stays.\n"
    assert said("jobs", "rebuild") == (0, f"0 jobs in {store.home}.\n", "")
    assert (store.home / "a-cube").is_dir()


def test_wrong_usage_is_said_in_words(store: Store, template: Request, said, tmp_path: Path) -> None:
    (a,) = store.submit(template, [Item("a cube", 1)])
    assert said("jobs", "cancel", "f00d") == (2, "", "There is no job 'f00d'; `studio jobs` lists them.\n")
    assert said("jobs", "pause") == (2, "", "Which job? `studio jobs pause ID`; `studio jobs` lists them.\n")
    assert said("jobs", "pauze", a) == (2, "", "No action 'pauze'; did you mean 'pause'?\n")
    assert said("jobs", "hold", a) == (2, "", "`studio jobs hold` takes no id of a job.\n")
    assert said("jobs", "retry", a)[::2] == (2, f"Job {a} is queued; there is nothing to retry.\n")
    missing = tmp_path / "missing"
    assert run(["jobs", "--runs", str(missing)]) == 2
    assert not missing.exists()
    assert said("worker", "--quota", "much")[0] == 2
    assert said("worker", "--device", "cuda:77")[0] == 2


def test_running_jobs_say_how_far_they_are(store: Store, template: Request, said) -> None:
    (a, b) = store.submit(template, [Item("a cube", 1), Item("a cone", 2)])
    claim = store.claim("w")
    assert claim is not None
    with claim:
        claim.home.record(Started("a cube", claim.job.folder, "cpu", 4, 9))
        assert "step 4 of 9" in said("jobs")[1]
    store.cancel(b)
    lines = said("jobs")[1].splitlines()
    assert [i for i, line in enumerate(lines) if a in line] < [i for i, line in enumerate(lines) if b in line]


def test_an_id_that_fits_several_is_refused(store: Store, template: Request, said) -> None:
    ids = store.submit(template, [Item("a cube", i) for i in range(40)])
    beginning = next(id[0] for id in ids if [other[0] for other in ids].count(id[0]) > 1)
    status, _, complaint = said("jobs", "cancel", beginning)
    assert status == 2
    assert "say more of the id" in complaint
    assert store.counts()["cancelled"] == 0


def test_runs_of_the_command_line_are_listed(store: Store, template: Request, said) -> None:
    with RunFolder.create(store.home / "cube", template) as folder:
        folder.record(Finished(folder.path, 1.0))
    assert "done" in said("jobs")[1]


def test_a_damaged_store_is_said_and_mended(store: Store, template: Request, said) -> None:
    store.submit(template, [Item("a cube", 1)], folders=True)
    store.database.read().close()
    (store.home / "jobs.sqlite3").write_bytes(b"?" * 9999)
    status, _, complaint = said("jobs")
    assert (status, "studio jobs rebuild --runs" in complaint) == (1, True)
    assert said("jobs", "rebuild")[1] == f"1 job in {store.home}.\n"
    assert said("jobs")[0] == 0


def test_a_worker_says_what_it_does(store: Store, template: Request, said, pretend) -> None:
    (a, b) = store.submit(template, [Item("a cube", 1), Item("it fails", 2)], limit=1)
    status, out, _ = said("worker", "--until-empty", "--device", "cpu", "--quota", "1GB")
    assert status == 0
    lines = [line.split(" ", 3)[2:] for line in out.splitlines()]
    assert lines[0] == [a, "begins on cpu at step 0 of 4: a cube"]
    assert lines[1:] == [[a, "done in 0 s"], [b, "failed: The prior gave up."]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_stop_queues_its_job_again(
    store: Store, template: Request, said, pretend, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def with_signal(*arguments):
        for event in engine.pretend(*arguments):
            if isinstance(event, Stepped) and event.done == 3:
                os.kill(os.getpid(), number)
            yield event

    monkeypatch.setattr(workers, "work_in", with_signal)
    (id,) = store.submit(template, [Item("a slow cube", 1)])
    assert said("worker", "--device", "cpu")[0] == 0
    assert store.job(id).state == "queued"


def test_a_worker_whose_parent_is_gone_ends(store: Store, template: Request, said, pretend) -> None:
    (id,) = store.submit(template, [Item("a slow cube", 1)])
    assert said("worker", "--device", "cpu", "--parent", "1")[0] == 0
    assert store.job(id).state == "queued"
