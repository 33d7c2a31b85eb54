"""Workers: one job after the other, wishes within a step, attempts, deadlines, a full disk, and who died."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from studio.checkpoints import Checkpoints
from studio.events import Event, Finished, Started, Stepped, Stopped, Working
from studio.folder import RunFolder
from studio.jobs import claims, watch
from studio.jobs.folders import read_card
from studio.jobs.store import Item, Job, Store
from studio.jobs.worker import work
from studio.request import Request
from tests.jobs import engine
from tests.jobs.engine import counted, events

pytestmark = pytest.mark.usefixtures("pretend")


def submitted(store: Store, template: Request, *prompts: str, **given: Any) -> list[str]:
    return store.submit(template, [Item(prompt, seed) for seed, prompt in enumerate(prompts)], **given)


def do_all(store: Store, **given: Any) -> list[tuple[Job, Event]]:
    """What happens until nothing is queued."""
    return list(work(store.home, "cpu", until_empty=True, **given))


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that another thread brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def after(happened: Iterator[tuple[Job, Event]], kind: type[Event], act: Callable[[], object]) -> list[Event]:
    """Follow a worker, and act once, when the first event of a kind comes."""
    seen: list[Event] = []
    for _, event in happened:
        if isinstance(event, kind) and not any(isinstance(e, kind) for e in seen):
            act()
        seen.append(event)
    return seen


def orders(happened: Sequence[tuple[Job, Event]]) -> list[str]:
    return [job.prompt for job, event in happened if isinstance(event, Working) and "prior" in event.what]


# The plain course -----------------------------------------------------------------------------------------------------


def test_jobs_are_done_one_after_the_other(store: Store, template: Request) -> None:
    ids = submitted(store, template, "a cube", "a cone")
    submitted(store, template, "a ball", priority=1)
    assert orders(do_all(store)) == ["a ball", "a cube", "a cone"]
    assert store.counts()["done"] == 3
    job = store.job(ids[0])
    assert job.started is not None and job.ended is not None and job.created <= job.started <= job.ended
    assert (job.worker, job.error, job.attempts) == ("", "", 0)
    assert counted(job.folder)["Finished"] == 1
    assert (job.folder / "request.json").is_file()


def test_a_running_job_and_its_worker_are_seen(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a slow cube")
    seen: list[Any] = []

    def look() -> None:
        until(lambda: any(worker.job == id for worker in store.workers()))
        seen.append((store.job(id), store.workers(), store.position(id)))
        store.cancel(id)

    after(work(store.home, "cpu", until_empty=True, name="me"), Started, look)
    ((job, (me,), position),) = seen
    assert (job.state, job.worker, position) == ("running", "me", None)
    assert (me.name, me.pid, me.device) == ("me", os.getpid(), "cpu")
    assert store.workers() == []


def test_two_workers_never_share_a_job(store: Store, template: Request) -> None:
    submitted(store, template, *[f"cube {i}" for i in range(24)])
    threads = [threading.Thread(target=do_all, args=(store,), kwargs={"name": str(i)}) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jobs = store.jobs()
    assert store.queue_held() is None
    assert {job.state for job in jobs} == {"done"}
    assert [counted(job.folder)["Started"] for job in jobs] == [1] * 24


def test_a_folder_that_someone_works_in_is_left_alone(store: Store, template: Request) -> None:
    a, b = submitted(store, template, "a cube", "a cone", folders=True)
    with RunFolder.open(store.job(a).folder):
        claim = store.claim("w")
        assert claim is not None and claim.job.id == b
        with claim:
            claim.stopped()
    claim = store.claim("w")
    assert claim is not None and claim.job.id == a
    with claim:
        assert store.claim("other").job.id == b  # pyright: ignore[reportOptionalMemberAccess]


def test_a_name_that_was_taken_meanwhile_is_given_up(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a cube")
    (store.home / "a-cube").mkdir()
    (store.home / "a-cube" / "mine.txt").write_text("not yours")
    do_all(store)
    job = store.job(id)
    assert (job.state, job.folder) == ("done", store.home / f"a-cube-{id}")
    assert [path.name for path in (store.home / "a-cube").iterdir()] == ["mine.txt"]


def test_what_the_engine_refuses_fails_in_words(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "  ", limit=1)
    do_all(store)
    assert store.job(id).state == "failed"
    assert store.job(id).error == 'The prompt is empty; say what to make, e.g. "a red mushroom".'


# Wishes ---------------------------------------------------------------------------------------------------------------


def test_a_running_job_is_cancelled_within_a_step(store: Store, template: Request) -> None:
    slow, other = submitted(store, template, "a slow cube", "a cone")
    at: list[float] = []

    def cancel() -> None:
        store.cancel(slow)
        assert store.job(slow).wish == "cancel"
        at.append(time.monotonic())

    seen: list[tuple[Event, float]] = []
    for _, event in work(store.home, "cpu", until_empty=True):
        if isinstance(event, Stepped) and event.done == 5:
            cancel()
        seen.append((event, time.monotonic()))
    stopped = next(when for event, when in seen if isinstance(event, Stopped))
    assert stopped - at[0] < 1.0
    job = store.job(slow)
    assert (job.state, job.wish, job.worker) == ("cancelled", "", "")
    assert job.ended is not None
    assert store.job(other).state == "done"
    store.resume(slow)
    claim = store.claim("w")
    assert claim is not None
    with claim:
        assert claims.steps_saved(claim.job.folder) >= 5  # what it made so far is there


def test_a_paused_job_goes_on_where_it_was(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a slow cube")
    after(work(store.home, "cpu", until_empty=True), Stepped, lambda: store.pause(id))
    assert store.job(id).state == "paused"
    done = claims.steps_saved(store.job(id).folder)
    store.resume(id)
    after(work(store.home, "cpu", until_empty=True), Started, lambda: store.cancel(id))
    assert [event["step"] for event in events(store.job(id).folder) if event["event"] == "Started"] == [0, done]


def test_a_wish_can_be_taken_back(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a cube")

    def change_mind() -> None:
        store.pause(id)
        time.sleep(0.3)  # long enough to be heard
        store.resume(id)

    after(work(store.home, "cpu", until_empty=True), Started, change_mind)
    assert store.job(id).state == "done"


def test_exports_stop_between_their_phases(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a cone exports")
    phases = 0
    for _, event in work(store.home, "cpu", until_empty=True):
        phases += isinstance(event, Working)
        if isinstance(event, Working) and event.what == "export: phase 3":
            store.cancel(id)
    assert 3 < phases < 500  # of a thousand
    assert store.job(id).state == "cancelled"
    assert events(store.job(id).folder)[-1]["event"] == "Stopped"


def test_a_worker_that_is_asked_to_leave_queues_its_job_again(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a slow cube")
    asked: list[bool] = []
    happened = work(store.home, "cpu", stop=lambda: bool(asked))
    seen = after(happened, Stepped, lambda: asked.append(True))
    assert isinstance(seen[-1], Stopped)
    assert (store.job(id).state, store.job(id).attempts, store.job(id).worker) == ("queued", 0, "")


def test_a_listener_that_goes_leaves_the_job_queued_and_its_folder_free(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a slow cube")
    happened = work(store.home, "cpu")
    for _, event in happened:
        if isinstance(event, Stepped):
            happened.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert store.job(id).state == "queued"
    with RunFolder(store.job(id).folder):
        pass
    assert store.workers() == []


# Failures -------------------------------------------------------------------------------------------------------------


def test_failures_go_behind_others_and_stay_failed_in_the_end(store: Store, template: Request) -> None:
    bad, _ = submitted(store, template, "it fails", "a cube")
    assert orders(do_all(store)) == ["it fails", "a cube", "it fails", "it fails"]
    job = store.job(bad)
    assert (job.state, job.attempts, job.error) == ("failed", 3, "The prior gave up.")
    trace = (job.folder / "error.txt").read_text()
    assert trace.startswith("Traceback") and "RunError: The prior gave up." in trace
    assert counted(job.folder)["Failed"] == 3
    store.retry(bad)
    assert (store.job(bad).state, store.job(bad).attempts, store.job(bad).error) == ("queued", 0, "")


def test_mistakes_of_the_program_are_failures_too(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "it breaks", limit=2)
    do_all(store)
    job = store.job(id)
    assert (job.state, job.attempts, job.error) == ("failed", 2, "'no such tensor'")
    assert "KeyError" in (job.folder / "error.txt").read_text()
    assert counted(job.folder)["Failed"] == 2


def test_a_job_that_takes_too_long_is_stopped_and_counted(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a slow cube", timeout=0.2, limit=2)
    do_all(store)
    job = store.job(id)
    assert (job.state, job.attempts) == ("failed", 2)
    assert job.error == "It took longer than the 0.2 s that an attempt may take."
    assert [event["step"] for event in events(job.folder) if event["event"] == "Started"][1] > 0


def test_a_job_that_hangs_takes_its_process_along(
    store: Store, template: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    (id,) = submitted(store, template, "it hangs", timeout=0.2, limit=1)
    ends: list[int] = []

    def end(status: int) -> None:
        ends.append(status)
        engine.release.set()  # a real process would be gone

    monkeypatch.setattr(watch, "GRACE", 0.3)
    monkeypatch.setattr(watch.os, "_exit", end)
    do_all(store)
    assert ends[0] != 0
    job = store.job(id)
    assert (job.state, job.attempts) == ("failed", 1)
    assert job.error.endswith("It hung, so its process was ended.")


def test_a_job_that_hangs_when_it_was_to_pause_is_ended_in_time_too(
    store: Store, template: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    (id,) = submitted(store, template, "it hangs", timeout=0.6)
    ends: list[int] = []

    def end(status: int) -> None:
        ends.append(status)
        engine.release.set()  # a real process would be gone

    monkeypatch.setattr(watch, "GRACE", 0.3)
    monkeypatch.setattr(watch.os, "_exit", end)
    for _, event in work(store.home, "cpu", until_empty=True):
        if isinstance(event, Stepped) and event.done == engine.STEPS:
            threading.Timer(0.2, store.pause, [id]).start()  # once it hangs
    assert ends[0] != 0
    job = store.job(id)
    assert (job.state, job.attempts) == ("paused", 1)
    assert job.error.endswith("It hung, so its process was ended.")


def test_a_claim_that_could_not_be_written_down_lets_go_of_the_folder(
    store: Store, template: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    (id,) = submitted(store, template, "a cube")

    def refuse(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(claims, "_start", refuse)
        with pytest.raises(sqlite3.OperationalError):
            store.claim("w")
    claim = store.claim("w")
    assert claim is not None and claim.job.id == id
    with claim:
        claim.stopped()


def test_a_full_disk_pauses_and_holds(store: Store, template: Request) -> None:
    full, other = submitted(store, template, "the disk is full", "a cube")
    do_all(store)
    job, reason = store.job(full), store.queue_held()
    assert (job.state, job.attempts, store.job(other).state) == ("paused", 0, "queued")
    assert reason == job.error
    assert job.error.startswith("The disk is full. Free some space")
    store.release_queue()
    do_all(store)
    assert store.job(other).state == "done"


def test_a_folder_that_cannot_be_made_holds_the_queue(
    store: Store, template: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    (id,) = submitted(store, template, "a cube")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(claims, "make_folder", refuse)
    do_all(store)
    assert store.job(id).state == "queued"
    assert "could not be made" in (store.queue_held() or "")


# Workers that died ----------------------------------------------------------------------------------------------------


def dead(store: Store) -> None:
    """A worker takes the next job and dies."""
    claim = store.claim("dead")
    assert claim is not None
    claim.home.__exit__(None, None, None)  # as the system does with the locks of a killed process


def test_the_job_of_a_dead_worker_is_taken_first(store: Store, template: Request) -> None:
    (lost,) = submitted(store, template, "a lost cube")
    dead(store)
    submitted(store, template, "an urgent cone", priority=9)
    assert store.job(lost).state == "running"
    assert orders(do_all(store)) == ["a lost cube", "an urgent cone"]
    assert (store.job(lost).state, store.job(lost).attempts) == ("done", 0)


def test_a_job_that_kills_its_workers_is_given_up(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a deadly cube")
    deaths = 0
    while (claim := store.claim("dies") or store.claim("dies")) is not None:  # at every third, others come first
        claim.home.__exit__(None, None, None)  # as the system does with the locks of a killed process
        deaths += 1
    assert deaths == claims.DEATHS
    assert store.job(id).state == "failed"
    assert store.job(id).error == "Its process died 10 times in a row without getting past step 0."
    store.retry(id)
    do_all(store)
    assert store.job(id).state == "done"


def test_a_job_that_kills_its_workers_lets_others_pass(store: Store, template: Request) -> None:
    deadly, other = submitted(store, template, "a deadly cube", "a cone")
    for _ in range(3):
        dead(store)
    claim = store.claim("w")
    assert claim is not None and claim.job.id == other
    with claim:
        assert store.job(deadly).state == "queued"


def test_an_attempt_that_got_further_forgives_deaths(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a cube")
    for phases in [1, 1, 2, 1, 1, 2, 1, 1, 3, 1, 1, 2, 1, 1, 2]:  # a checkpoint is not all that counts
        claim = store.claim("dies") or store.claim("dies")
        assert claim is not None
        for _ in range(phases):
            claim.home.record(Working("export"))
        claim.home.__exit__(None, None, None)
    assert store.claim("w") is not None
    assert store.job(id).state == "running"


def test_progress_forgives_deaths(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a cube")
    for step in range(3 * claims.DEATHS):
        dead(store)
        Checkpoints(store.job(id).folder / "checkpoints").save(step, {})
    assert store.job(id).state == "running"


def test_a_job_whose_worker_died_after_its_last_event_is_done(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a cube")
    claim = store.claim("dead")
    assert claim is not None
    claim.home.record(Finished(claim.job.folder, 1.0))
    claim.home.__exit__(None, None, None)
    assert do_all(store) == []
    assert store.job(id).state == "done"


def test_wishes_of_jobs_whose_worker_died_are_granted(store: Store, template: Request) -> None:
    a, b = submitted(store, template, "a", "b")
    dead(store)
    store.cancel(a)  # nobody holds the folder, so at once
    assert store.job(a).state == "cancelled"
    claim = store.claim("dies with a wish")
    assert claim is not None
    store.pause(b)
    assert (store.job(b).state, store.job(b).wish) == ("running", "pause")
    claim.home.__exit__(None, None, None)
    assert store.claim("w") is None
    assert (store.job(b).state, read_card(store.job(b).folder).held) == ("paused", "paused")  # pyright: ignore[reportOptionalMemberAccess]


def test_a_deleted_folder_is_made_again(store: Store, template: Request, tmp_path: Path) -> None:
    (id,) = submitted(store, template, "a cube", folders=True)
    store.job(id).folder.rename(tmp_path / "away")
    do_all(store)
    assert store.job(id).state == "done"
    assert (store.job(id).folder / "request.json").is_file()
