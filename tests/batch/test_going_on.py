"""A batch begun again: nothing twice, what is new is added, what is gone is let go, other settings are refused."""

import csv
import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from studio.batch import settling
from studio.checkpoints import Checkpoints
from studio.cli import run
from studio.jobs.plan import read_plan
from studio.jobs.store import Store
from tests.jobs.engine import counted

pytestmark = pytest.mark.usefixtures("pretend")


def batch(lines: str, *options: str) -> int:
    """Write a file and begin, or go on with, the batch of it."""
    Path("mugs.txt").write_text(lines)
    return run(["batch", "mugs.txt", *options])


def home() -> Path:
    return Path("runs/mugs")


def states() -> dict[str, str]:
    return {job.folder.name: job.state for job in Store(home()).jobs()}


def table() -> dict[str, dict[str, str]]:
    with (home() / "summary.csv").open(newline="") as file:
        return {row["folder"]: row for row in csv.DictReader(file)}


def made(name: str) -> Counter[str]:
    return counted(home() / name)


def test_every_line_becomes_a_run_and_nothing_is_made_twice(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch("a red mug\na {red|blue} mug\n") == 0
    assert "2 of 2 made: runs/mugs/index.html" in capsys.readouterr().out
    assert states() == {"a-red-mug": "done", "a-blue-mug": "done"}
    assert batch("a red mug\na {red|blue} mug\n") == 0
    assert made("a-red-mug")["Finished"] == made("a-blue-mug")["Finished"] == 1
    assert [row["prompt"] for row in json.loads((home() / "summary.json").read_text())["rows"]] == [
        "a red mug",
        "a blue mug",
    ]


def test_seeds_have_folders_of_their_own(here: Path) -> None:
    assert batch("a mug", "--seeds", "0", "7") == 0
    assert {job.folder.name: job.seed for job in Store(home()).jobs()} == {"a-mug-seed0": 0, "a-mug-seed7": 7}


def test_failures_are_left_aside_with_their_reason(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch("a mug\nit fails\nit breaks\n", "--attempts", "2") == 3
    said = capsys.readouterr()
    assert "1 of 3 made, 2 failed" in said.out
    assert "failed: it fails, seed 0: runs/mugs/it-fails/error.txt" in said.err
    assert "RunError: The prior gave up." in (home() / "it-fails" / "error.txt").read_text()
    assert (table()["it-breaks"]["state"], table()["it-breaks"]["attempts"]) == ("failed", "2")
    assert "no such tensor" in table()["it-breaks"]["error"]
    assert made("it-fails")["Failed"] == 2
    assert batch("a mug\nit fails\nit breaks\n", "--attempts", "2") == 3  # left aside, so not tried again
    assert made("it-fails")["Failed"] == 2
    assert batch("a mug\nit fails\nit breaks\n", "--attempts", "3") == 3  # more attempts than before
    assert made("it-fails")["Failed"] == 5
    assert batch("a mug\nit fails\nit breaks\n", "--attempts", "1", "--retry-failed") == 3
    assert made("it-fails")["Failed"] == 6
    assert made("a-mug")["Finished"] == 1


def test_all_failed_is_status_1(here: Path) -> None:
    assert batch("it fails", "--attempts", "1") == 1


def test_what_takes_too_long_is_left_aside(here: Path) -> None:
    assert batch("a mug\na slow mug\n", "--timeout", "0.5", "--attempts", "1") == 3
    assert "longer than the 0.5 s" in table()["a-slow-mug"]["error"]


def test_a_changed_file_adds_and_lets_go(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch("a mug\nit fails\na cup\n", "--attempts", "1") == 3
    capsys.readouterr()
    assert batch("a glass\na mug\n", "--attempts", "1") == 0
    said = capsys.readouterr()
    assert "2 items no longer in the file: 1 made earlier, which stay" in said.err
    assert "1 new since the last start." in said.err
    assert "2 of 2 made" in said.out
    assert states() == {"a-mug": "done", "it-fails": "failed", "a-cup": "done", "a-glass": "done"}
    assert batch("a cup\na mug\n", "--attempts", "1") == 0  # it comes back, and is there
    assert made("a-cup")["Finished"] == 1


def test_what_never_began_leaves_no_trace(here: Path) -> None:
    stopped("a slow mug\na cup\na jar\n")
    assert states() == {"a-slow-mug": "queued", "a-cup": "queued", "a-jar": "queued"}
    assert batch("a jar\n") == 0
    assert states() == {"a-slow-mug": "cancelled", "a-jar": "done"}
    plan = read_plan(home())
    assert plan is not None
    assert [item.name for item in plan.items] == ["a-slow-mug", "a-jar"]


def stopped(lines: str) -> int:
    """Ask a batch to stop as soon as its first item runs."""

    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            if any(home().glob("*/checkpoints/*/state.json")):
                break
            time.sleep(0.02)
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        return batch(lines)
    finally:
        over.set()
        thread.join()


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped("a slow mug\na cup\n") == 1
    assert "2 left. Go on with: studio batch mugs.txt" in capsys.readouterr().err
    assert states() == {"a-slow-mug": "queued", "a-cup": "queued"}
    assert Checkpoints(home() / "a-slow-mug" / "checkpoints").all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_settings_are_refused_with_what_differs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch("a mug") == 0
    assert batch("a mug\na cup", "--stages.0.guidance.scale", "21", "--negative", "fog") == 2
    said = capsys.readouterr().err
    assert "runs/mugs was begun with other settings: stages.0.guidance.scale was" in said
    assert "is 21.0; negative was nothing, is fog. Name another folder with --out." in said
    assert states() == {"a-mug": "done"}


def test_another_file_of_the_same_stem_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch("a mug") == 0
    Path("mugs.csv").write_text("prompt\na cup\n")
    assert run(["batch", "mugs.csv"]) == 2
    assert "runs/mugs is the folder of mugs.txt; name another with --out." in capsys.readouterr().err
    assert run(["batch", "mugs.csv", "--out", "cups"]) == 0


def test_a_folder_of_other_runs_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch("a mug", "--out", "mine") == 0
    Path("mine/batch.json").unlink()
    assert batch("a mug", "--out", "mine") == 2
    assert "mine holds runs that are not of a batch" in capsys.readouterr().err


def test_two_at_once_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with settling.held(home()):
        assert batch("a mug") == 2
    assert "Another `studio batch` works in runs/mugs" in capsys.readouterr().err


def test_killed_between_plan_and_store(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "submit", die)
        assert batch("a mug\na cup") == 1
    assert states() == {}
    assert batch("a mug\na cup") == 0
    assert states() == {"a-mug": "done", "a-cup": "done"}


def test_a_lost_store_is_made_anew_from_plan_and_folders(here: Path) -> None:
    assert stopped("a slow mug\na cup\n") == 1
    for path in home().glob("jobs.sqlite3*"):
        path.unlink()
    assert batch("a cup\n") == 0
    assert states() == {"a-slow-mug": "cancelled", "a-cup": "done"}
    assert made("a-cup")["Finished"] == 1


def test_jobs_that_people_changed_stay_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped("a slow mug\na cup\na jar\n") == 1
    store = Store(home())
    slow, cup, jar = store.jobs()
    store.cancel(slow.id)
    store.pause(cup.id)
    store.hold_queue("lunch")
    capsys.readouterr()
    assert batch("a slow mug\na cup\na jar\n") == 3
    said = capsys.readouterr().err
    assert "The queue was held; it goes on. lunch" in said
    assert "1 item cancelled earlier" in said
    assert "1 item paused earlier" in said
    assert states() == {"a-slow-mug": "cancelled", "a-cup": "paused", "a-jar": "done"}
    assert store.job(jar.id).state == "done"


def test_a_full_disk_holds_the_queue_and_the_next_start_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch("disk full\na mug") == 1
    assert "The queue is held. The disk is full." in capsys.readouterr().err
    assert states() == {"disk-full": "paused", "a-mug": "queued"}
    assert batch("a mug") == 0
    assert "The queue was held; it goes on. The disk is full." in capsys.readouterr().err
    assert states() == {"disk-full": "cancelled", "a-mug": "done"}


def test_json_lines_hold_every_event(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch("a mug\nit fails\n", "--json", "--attempts", "2") == 3
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_run = Counter((Path(line["folder"]).name, line["event"]) for line in said if "folder" in line)
    assert by_run["a-mug", "Finished"] == by_run["a-mug", "Started"] == 1
    assert by_run["it-fails", "Failed"] == 2
    last = said[-1]
    assert (last["event"], last["done"], last["failed"], last["left"], last["status"]) == ("BatchEnded", 1, 1, 0, 3)
    standing = [line for line in said if line["event"] == "Batch"]
    assert (standing[0]["left"], standing[-1]["left"], standing[-1]["failed"]) == (2, 0, 1)


def test_a_dry_run_prints_the_plan_and_does_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "\n".join(f"a red mug {i}" for i in range(40))
    assert batch(lines + "\na red mug 3", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "30 more" in said
    assert "a red mug 39" in said
    assert "40 items in runs/mugs: 40 new." in said
    assert "1 said twice" in said
    assert "for the 40 to make; from figures measured on two cores" in said
    assert not Path("runs").exists()
    assert batch("a red mug") == 0
    capsys.readouterr()
    assert batch("a red mug\na blue mug", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["items"], plan["to_make"]) == (2, 1)
    assert [(row["folder"], row["state"]) for row in plan["plan"]] == [("a-red-mug", "done"), ("a-blue-mug", "new")]
    assert states() == {"a-red-mug": "done"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--attempts", "0"), "--attempts must be 1 or more, not 0."),
        (("--workers", "0"), "--workers must be between 1 and 256, not 0."),
        (("--timeout", "0"), "--timeout must be more than 0 seconds"),
        (("--quota", "much"), "'much' is no amount of disk"),
        (("--device", "cuda:9"), "There is no device 'cuda:9' here"),
        (("--recipe", "drft"), "No recipe 'drft'; did you mean 'draft'?"),
        (("--prior", "nowhere"), "no prior 'nowhere'"),
    ],
)
def test_bad_usage_is_status_2(here: Path, options: tuple[str, ...], words: str, capsys: Any) -> None:
    assert batch("a mug", *options) == 2
    assert words in capsys.readouterr().err
    assert not home().exists()


def test_a_file_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["batch", "nothing.txt"]) == 2
    assert "No such file or directory: nothing.txt" in capsys.readouterr().err
