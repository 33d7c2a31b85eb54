"""kill -9 of workers at any moment: every job finishes, none twice, all equal to runs that nothing interrupted."""

import random
import time
from pathlib import Path

import pytest

from studio.checkpoints import Checkpoints, read_state
from studio.jobs.store import Item, Store
from studio.request import Request
from tests.reliability import children
from tests.reliability.conftest import JOBS
from tests.reliability.nursery import Nursery
from tests.reliability.records import events, named, results, until, whole_checkpoints


@pytest.mark.parametrize(
    ("kills", "jobs", "workers"),
    [(4, JOBS, 1), pytest.param(50, 24, 2, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_killed_workers_lose_nothing_and_do_nothing_twice(
    nursery: Nursery, undisturbed: Store, tiny: Request, tmp_path: Path, kills: int, jobs: int, workers: int
) -> None:
    items = [Item("a red cube", seed) for seed in range(jobs)]
    if jobs > JOBS:
        undisturbed = Store(tmp_path / "undisturbed")
        undisturbed.submit(tiny, items)
        assert nursery.wait(nursery.begin("worker", undisturbed.home, "--until-empty")) == 0
    store = Store(tmp_path / "killed")
    store.submit(tiny, items)
    began = min(job.started for job in undisturbed.jobs() if job.started)
    length = (max(job.ended for job in undisturbed.jobs() if job.ended) - began) / jobs

    rng, alive, killed, whole = random.Random(0), [], 0, 0
    while killed < kills and store.counts()["done"] < jobs:
        while len(alive) < workers:
            alive.append(nursery.begin("worker", store.home))
            until(lambda: {alive[-1]} & {worker.pid for worker in store.workers() if worker.job} or over(store, jobs))
        time.sleep(rng.uniform(0, 1.6 * length))  # ten deaths at one point of a job would mean that it is to blame
        nursery.kill(alive.pop(rng.randrange(len(alive))))
        killed += 1
        whole += whole_checkpoints(store.home)
    for pid in alive:
        nursery.kill(pid)
    assert nursery.wait(nursery.begin("worker", store.home, "--until-empty")) == 0

    made = store.jobs()
    assert [(job.state, job.attempts, job.error) for job in made] == [("done", 0, "")] * jobs
    assert [len(named(job.folder, "Finished")) for job in made] == [1] * jobs
    for job in made:  # where each goes on is where it was, and no step is taken for two
        steps = [event["step"] for event in named(job.folder, "Started")]
        saved = [0, *(event["step"] for event in named(job.folder, "Checkpointed"))]
        assert steps == sorted(steps) and set(steps) <= {*saved, *(step + 2 for step in saved)}
        assert events(job.folder)[-1]["event"] == "Finished"
    assert results(made) == results(undisturbed.jobs())
    assert killed >= min(kills, jobs)  # or too few to say anything
    print(f"\n{killed} kills, {jobs} jobs done, {whole} checkpoints read back whole")  # noqa: T201


def over(store: Store, jobs: int) -> bool:
    return store.counts()["done"] == jobs


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_checkpoints_survive_kills_while_they_are_written(nursery: Nursery, tmp_path: Path, kills: int) -> None:
    rng, newest, read = random.Random(0), 0, 0
    for _ in range(kills):
        pid = nursery.begin("save_forever", tmp_path)
        until(lambda newest=newest: (all := Checkpoints(tmp_path).all()) and int(all[-1].name) > newest)
        time.sleep(rng.uniform(0, 0.1))
        nursery.kill(pid)
        for path in Checkpoints(tmp_path).all():
            saved = read_state(path)
            expected = children.state(saved["step"])
            assert all((saved[name] == expected[name]).all() for name in expected)
            read += 1
        last = int(Checkpoints(tmp_path).all()[-1].name)
        assert last > newest
        newest = last
    print(f"\n{kills} kills while writing, {read} checkpoints read back, none damaged")  # noqa: T201
