"""The store made anew from folders and plans, and runs of the command line taken into it."""

import os
import shutil
import time
from pathlib import Path

import pytest

from studio.events import Failed, Finished, Started
from studio.folder import RunFolder
from studio.jobs.database import NAME
from studio.jobs.folders import read_card
from studio.jobs.plan import Plan, read_plan, write_plan
from studio.jobs.rebuild import adopt, rebuild
from studio.jobs.store import Item, Job, Store
from studio.jobs.worker import work
from studio.request import Request

pytestmark = pytest.mark.usefixtures("pretend")


def drop(home: Path) -> None:
    """Delete the file of the store, and what belongs to it."""
    for path in home.glob(f"{NAME}*"):
        path.unlink()


def told(job: Job) -> tuple[object, ...]:
    """What a rebuilt store must know of a job."""
    place = (job.priority, job.position, job.batch, job.created, job.limit, job.timeout)
    return (job.id, job.state, job.prompt, job.seed, job.folder, job.settings, *place)


def finished(home: Path, name: str, request: Request, *events: object) -> Path:
    """A run of the command line, made a while ago."""
    with RunFolder.create(home / name, request) as folder:
        for event in events:
            folder.record(event)  # pyright: ignore[reportArgumentType]
    old = time.time() - 3600
    os.utime(home / name / "request.json", (old, old))
    return home / name


def test_jobs_of_every_state_come_back(store: Store, template: Request) -> None:
    def one(prompt: str, **given: object) -> str:
        return store.submit(template, [Item(prompt, 1)], folders=True, **given)[0]  # pyright: ignore[reportArgumentType]

    one("a cube")
    one("it fails", limit=2, batch="some")
    for _ in work(store.home, "cpu", until_empty=True):
        pass
    store.pause(one("a paused cone", timeout=9.0))
    store.cancel(one("a cancelled ball"))
    waits = one("a waiting cup", priority=4)
    lost = one("a lost mug", priority=5)
    claim = store.claim("dies")
    assert claim is not None and claim.job.id == lost
    before = {job.id: job for job in store.jobs()}
    assert sorted(job.state for job in before.values()) == "cancelled done failed paused queued running".split()

    drop(store.home)
    assert rebuild(store.home) == 6
    after = {job.id: job for job in Store(store.home).jobs()}
    assert {id: told(job) for id, job in after.items()} == {id: told(job) for id, job in before.items()}
    failed = next(job for job in after.values() if job.state == "failed")
    assert failed.error == "The prior gave up."
    claim.home.__exit__(None, None, None)
    claim = Store(store.home).claim("next")
    assert claim is not None and claim.job.id == lost  # nobody holds it any more
    claim.home.__exit__(None, None, None)
    assert Store(store.home).position(waits) == 1


def test_what_was_never_begun_comes_back_from_the_plan(store: Store, template: Request) -> None:
    items = tuple(Item(f"cube {i}", i, f"cube-{i}") for i in range(5))
    other = Item("cube 0", 0, "cube-0-more")
    import dataclasses

    more = dataclasses.replace(template, negative="fog")
    write_plan(store.home, Plan("b", template, (*items, other), 2, 60.0, (more,), (0, 0, 0, 0, 0, 1)))
    ids = store.submit(template, items, batch="b", limit=2, timeout=60.0)
    ids += store.submit(more, [other], batch="b", limit=2, timeout=60.0)
    claim = store.claim("w")
    assert claim is not None
    claim.done()
    claim.home.record(Finished(claim.job.folder, 1.0))
    claim.home.__exit__(None, None, None)
    store.prioritize(ids[1], 1)
    claim = store.claim("w")
    assert claim is not None and claim.job.id == ids[1]
    claim.stopped()
    claim.home.__exit__(None, None, None)
    store.move(ids[2], ids[1])
    claim = store.claim("w")
    assert claim is not None and claim.job.id == ids[2]
    claim.stopped()
    claim.home.__exit__(None, None, None)
    store.clear(ids[2])
    before = [(job.prompt, job.seed, job.settings, job.folder, job.limit, job.timeout) for job in store.jobs()]

    drop(store.home)
    assert rebuild(store.home) == rebuild(store.home) == 5  # and again, from a whole store: nothing twice
    jobs = Store(store.home).jobs(batch="b")
    after = [(job.prompt, job.seed, job.settings, job.folder, job.limit, job.timeout) for job in jobs]
    assert sorted(after, key=str) == sorted(before, key=str)
    assert Store(store.home).counts("b") == {**dict.fromkeys(Store(store.home).counts(), 0), "done": 1, "queued": 4}


def test_a_plan_reads_back_and_is_refused_in_words(runs: Path, template: Request) -> None:
    assert read_plan(runs) is None
    plan = Plan("b", template, (Item("a", 1), Item("b", 2, "x")), 3, None)
    write_plan(runs, plan)
    assert read_plan(runs) == plan
    (runs / "batch.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="no plan of a batch that this version"):
        read_plan(runs)
    (runs / "batch.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        rebuild(runs)


def test_a_rebuilt_store_keeps_what_waits_without_a_folder(store: Store, template: Request) -> None:
    a, b = store.submit(template, [Item("a", 1), Item("b", 2)])
    store.pause(b)
    assert rebuild(store.home) == 2
    assert [(job.id, job.state) for job in store.jobs()] == [(a, "queued"), (b, "paused")]


@pytest.mark.parametrize("damage", ["all", "middle"])
def test_a_damaged_store_is_set_aside(store: Store, template: Request, damage: str) -> None:
    store.submit(template, [Item(f"cube {i}", i) for i in range(300)])
    store.submit(template, [Item("a cube", 1)], folders=True)
    store.database.read().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.database.read().close()
    file = store.home / NAME
    content = file.read_bytes()
    file.write_bytes(b"x" * 8192 if damage == "all" else content[:8192] + b"x" * 16384 + content[24576:])
    assert rebuild(store.home) == 1
    assert [job.prompt for job in Store(store.home).jobs()] == ["a cube"]
    assert (store.home / f"{NAME}.damaged").is_file()


def test_runs_of_the_command_line_are_jobs_too(store: Store, template: Request) -> None:
    import dataclasses

    cube = dataclasses.replace(template, prompt="a cube", seed=5)
    done = finished(store.home, "cube", cube, Started("a cube", store.home, "cpu", 0, 9), Finished(store.home, 1.0))
    finished(store.home, "failed", cube, Failed("It went wrong."))
    finished(store.home, "stopped", cube, Started("a cube", store.home, "cpu", 0, 9))
    RunFolder.create(store.home / "begun a moment ago", cube)
    (store.home / "no run").mkdir()
    (store.home / "damaged").mkdir()
    (store.home / "damaged" / "request.json").write_text("{")
    assert (adopt(store.home), adopt(store.home)) == (3, 0)
    jobs = {job.folder.name: job for job in store.jobs()}
    assert {name: job.state for name, job in jobs.items()} == {"cube": "done", "failed": "failed", "stopped": "paused"}
    assert store.request(jobs["cube"]) == cube
    assert (jobs["failed"].error, jobs["failed"].seed) == ("It went wrong.", 5)
    assert jobs["cube"].created < time.time() - 3000
    before = {job.id for job in jobs.values()}
    drop(store.home)
    rebuild(store.home)
    assert {job.id for job in Store(store.home).jobs()} == before

    Store(store.home).resume(jobs["stopped"].id)
    for _ in work(store.home, "cpu", until_empty=True):
        pass
    assert Store(store.home).job(jobs["stopped"].id).state == "done"
    assert (store.home / "stopped" / "events.jsonl").is_file()  # in its own folder
    assert done.is_dir()


def test_a_run_at_work_on_the_command_line_is_left_alone(store: Store, template: Request) -> None:
    folder = finished(store.home, "cube", template)
    with RunFolder(folder):
        assert adopt(store.home) == 0
    assert adopt(store.home) == 1


def test_a_job_finished_by_other_means_is_done(store: Store, template: Request) -> None:
    (id,) = store.submit(template, [Item("a cube", 1)], folders=True)
    store.pause(id)
    with RunFolder(store.job(id).folder) as folder:
        folder.record(Finished(folder.path, 1.0))
    adopt(store.home)
    assert store.job(id).state == "done"


def test_a_copied_folder_is_a_job_of_its_own(store: Store, template: Request) -> None:
    (id,) = store.submit(template, [Item("a cube", 1)], folders=True)
    for _ in work(store.home, "cpu", until_empty=True):
        pass
    copy = shutil.copytree(store.job(id).folder, store.home / "copy")
    assert adopt(store.home) == 1
    assert {job.state for job in store.jobs()} == {"done"}
    assert len({job.id for job in store.jobs()}) == 2
    assert read_card(copy).id != id  # pyright: ignore[reportOptionalMemberAccess]


def test_cleared_jobs_do_not_come_back(store: Store, template: Request) -> None:
    (id,) = store.submit(template, [Item("a cube", 1)], folders=True)
    finished(store.home, "plain", template, Finished(store.home, 1.0))
    adopt(store.home)
    for job in store.jobs():
        store.clear(job.id)
    assert (adopt(store.home), rebuild(store.home)) == (0, 0)
    assert (store.home / "plain" / "request.json").is_file()
    assert id
