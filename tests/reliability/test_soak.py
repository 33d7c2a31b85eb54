"""Hundreds of jobs: no event lost, memory flat; and a hundred thousand queued at once."""

from pathlib import Path

import pytest

from studio.jobs.store import Item, Store
from studio.request import Request
from tests.reliability.nursery import Nursery
from tests.reliability.records import events, until

ONCE = ("Started", "StageStarted", "Exported", "Finished")


def test_jobs_leave_every_event(undisturbed: Store) -> None:
    check_events(undisturbed)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_jobs_leave_every_event_and_no_memory(nursery: Nursery, tiny: Request, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    ids = store.submit(tiny, [Item("a red cube", seed) for seed in range(200)])
    pid = nursery.begin("worker", store.home)
    used = {}
    for done, id in enumerate(ids, 1):
        until(lambda id=id: store.job(id).state == "done", 300)
        used[done] = _memory(pid) / 2**20
    nursery.kill(pid)
    check_events(store)
    growth = used[200] - used[20]
    print(f"\n200 jobs: {used[20]:.0f} MB after 20, {used[100]:.0f} after 100, {used[200]:.0f} in the end")  # noqa: T201
    assert growth < 50


def check_events(store: Store) -> None:
    """Every event of every job is there once, and in order."""
    jobs = store.jobs()
    assert {job.state for job in jobs} == {"done"}
    for job in jobs:
        said = [event["event"] for event in events(job.folder)]
        assert [said.count(name) for name in ONCE] == [1, 1, 1, 1]
        assert said.count("Checkpointed") == 3
        assert said.index("Started") < said.index("StageStarted") < said.index("Exported") < said.index("Finished")
        assert "Failed" not in said


def _memory(pid: int) -> int:
    """Bytes of a process that are in memory."""
    fields = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in fields if line.startswith("VmRSS:")) * 1024


@pytest.mark.soak
def test_a_hundred_thousand_are_queued_in_two_seconds(nursery: Nursery, tmp_path: Path) -> None:
    took = []
    for turn in range(3):
        home = tmp_path / str(turn)
        assert nursery.wait(nursery.begin("submit_many", home, 100_000)) == 0
        assert Store(home).counts()["queued"] == 100_000
        took.append([float(text) for text in (home / "seconds.txt").read_text().split()])
    print(f"\n100,000 jobs queued in {min(took)[0]:.2f} s, of which {min(took)[1]:.2f} s of work")  # noqa: T201
    assert min(work for _, work in took) < 2.0  # by the clock too, if nothing else is going on
