"""The store: submission in one transaction, order, searches, and what people ask of jobs that nobody works on."""

import dataclasses
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from studio.codec import encode
from studio.folder import read_request
from studio.jobs.database import NAME
from studio.jobs.folders import read_card
from studio.jobs.store import STATES, Item, Store, StoreError, UnknownJob, WrongState
from studio.prior_options import PriorOptions
from studio.request import Request

HOSTILE = (
    "a cat ${oc.env:HOME}",
    "'; DROP TABLE jobs; --",
    'a "quoted" \\ mug {a|b} %s %(x)s {0}',
    "../../etc/passwd",
    "100% _wool_\nin two lines\x00 and a zero",
    "eine Tasse, 茶碗, \N{TEACUP WITHOUT HANDLE}",
)


def submitted(store: Store, template: Request, *prompts: str, **given) -> list[str]:
    return store.submit(template, [Item(prompt, seed) for seed, prompt in enumerate(prompts)], **given)


def queue(store: Store) -> list[str]:
    return [job.prompt for job in store.jobs(["queued"])]


# Submission -----------------------------------------------------------------------------------------------------------


def test_a_job_is_the_template_with_its_own_prompt_and_seed(store: Store, template: Request) -> None:
    (id,) = store.submit(template, [Item("a red mug", 7)], priority=2, batch="cups", limit=5, timeout=60.0)
    job = store.job(id)
    assert (job.state, job.prompt, job.seed, job.priority, job.batch) == ("queued", "a red mug", 7, 2, "cups")
    assert (job.limit, job.timeout, job.attempts, job.wish, job.error, job.worker) == (5, 60.0, 0, "", "", "")
    assert (job.folder, job.started, job.ended) == (store.home / "a-red-mug", None, None)
    assert abs(job.created - time.time()) < 60
    assert store.request(job) == dataclasses.replace(template, prompt="a red mug", seed=7)
    assert not job.folder.exists()


@pytest.mark.parametrize("prompt", HOSTILE)
def test_prompts_are_kept_to_the_letter(store: Store, template: Request, prompt: str) -> None:
    (id,) = submitted(store, template, prompt, folders=True)
    job = Store(store.home).job(id)
    assert job.prompt == prompt == store.request(job).prompt == read_request(job.folder).prompt
    assert job.folder.parent == store.home
    assert [found.id for found in store.jobs(search=prompt)] == [id]


def test_templates_are_stored_once(store: Store, template: Request) -> None:
    submitted(store, template, "a", "b")
    submitted(store, dataclasses.replace(template, prompt="whatever", seed=9), "c")
    submitted(store, dataclasses.replace(template, negative="fog"), "d")
    assert len({job.settings for job in store.jobs()}) == 2


def test_a_hundred_thousand_are_queued_at_once(store: Store, template: Request) -> None:
    items = [Item(f"a red mushroom, number {i}", i) for i in range(100_000)]
    began = time.process_time()
    ids = store.submit(template, items, batch="many")
    assert time.process_time() - began < 10  # one second on an idle machine; `make soak` measures it
    assert store.counts()["queued"] == len(set(ids)) == 100_000
    assert store.position(ids[-1]) == 100_000
    assert store.job(ids[41_999]).prompt == "a red mushroom, number 41999"


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a\\b", "a\nb", "x" * 101, "a\0"])
def test_names_that_are_no_folder_are_refused(store: Store, template: Request, name: str) -> None:
    with pytest.raises(ValueError, match="no name for a folder"):
        store.submit(template, [Item("a mug", 0), Item("a mug", 0, name)])
    assert store.jobs() == []  # all or nothing


def test_what_cannot_be_kept_is_refused_in_words(store: Store, template: Request) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        store.submit(template, [Item("a mug", 2**64)])
    with pytest.raises(ValueError, match="surrogate"):
        store.submit(template, [Item("a \ud800 mug", 0)])
    assert store.jobs(search="\ud800") == []


def test_names_are_free_in_the_store_and_on_the_disk(store: Store, template: Request) -> None:
    (store.home / "a-mug-2").mkdir()
    ids = submitted(store, template, "a mug", "A mug!", "a mug")
    assert [store.job(id).folder.name for id in ids] == ["a-mug", "a-mug-3", "a-mug-4"]
    store.submit(template, [Item("a cup", 0, "cup"), Item("a mug", 0, "a-mug-5")])
    assert store.job(submitted(store, template, "a mug")[0]).folder.name == "a-mug-6"
    with pytest.raises(ValueError, match="There is a run 'cup' already"):
        store.submit(template, [Item("another cup", 0, "cup")])


def test_a_folder_made_on_submission_says_all(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a mug", folders=True, priority=3, batch="cups", timeout=9.0)
    folder = store.job(id).folder
    assert encode(read_request(folder)) == encode(store.request(store.job(id)))
    card = read_card(folder)
    assert card is not None
    assert (card.id, card.priority, card.batch, card.limit, card.timeout, card.held) == (id, 3, "cups", 3, 9.0, None)


def test_paths_are_whole_so_that_workers_may_start_anywhere(
    store: Store, template: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-prior" / "unet").mkdir(parents=True)
    (tmp_path / "my-prior" / "unet" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    options = PriorOptions(lora=("style.safetensors:0.5", "~/other.safetensors"), image="/pictures/cat.png")
    (id,) = submitted(store, dataclasses.replace(template, prior="my-prior", prior_options=options), "a mug")
    request = store.request(store.job(id))
    assert request.prior == str(tmp_path / "my-prior")
    assert request.prior_options.lora == (f"{tmp_path}/style.safetensors:0.5", "~/other.safetensors")
    assert request.prior_options.image == "/pictures/cat.png"
    (tmp_path / "toybox-64").mkdir()  # no prior
    (id,) = submitted(store, template, "a mug")
    assert store.request(store.job(id)).prior == "toybox-64"


def test_many_threads_submit_at_once(store: Store, template: Request) -> None:
    def some(number: int) -> None:
        for _ in range(5):
            submitted(store, template, "a mug", folders=True)

    threads = [threading.Thread(target=some, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jobs = store.jobs()
    assert len({job.folder for job in jobs}) == len({job.position for job in jobs}) == 30
    assert all(read_card(job.folder).id == job.id for job in jobs)  # pyright: ignore[reportOptionalMemberAccess]


# Order and searches ---------------------------------------------------------------------------------------------------


def test_higher_priority_first_then_first_come(store: Store, template: Request) -> None:
    submitted(store, template, "a", "b")
    submitted(store, template, "c", priority=1)
    assert queue(store) == ["c", "a", "b"]
    assert [store.position(job.id) for job in store.jobs()] == [1, 2, 3]
    store.prioritize(store.jobs()[-1].id, 2)
    assert queue(store) == ["b", "c", "a"]
    assert [job.prompt for job in store.jobs(newest_first=True)] == ["c", "b", "a"]


def test_jobs_are_moved_before_others(store: Store, template: Request) -> None:
    a, b, c = submitted(store, template, "a", "b", "c")
    store.move(c, a)
    assert queue(store) == ["c", "a", "b"]
    store.move(c, None)
    assert queue(store) == ["a", "b", "c"]
    store.prioritize(a, 5)
    store.move(c, a)  # takes over the priority, or it would not be before it
    assert queue(store) == ["c", "a", "b"]
    store.move(b, b)
    assert queue(store) == ["c", "a", "b"]


def test_moving_never_runs_out_of_room(store: Store, template: Request) -> None:
    ids = submitted(store, template, *"abcd")
    for turn in range(150):  # a float has room for about 50 halvings
        store.move(ids[turn % 2], ids[2])
        assert queue(store) == (["b", "a", "c", "d"] if turn % 2 == 0 else ["a", "b", "c", "d"])


def test_searches_take_every_letter_for_itself(store: Store, template: Request) -> None:
    submitted(store, template, "100% wool", "100 wool", "snake_case", "snakes case", "back\\slash")
    submitted(store, template, "a cup", batch="wool-cups")

    def found(text: str) -> list[str]:
        return [job.prompt for job in store.jobs(search=text)]

    assert found("100%") == ["100% wool"]
    assert found("snake_") == ["snake_case"]
    assert found("back\\") == ["back\\slash"]
    assert found("WOOL 100") == ["100% wool", "100 wool"]
    assert found("wool-c") == ["a cup"]
    assert found("' OR 1=1 --") == found("nothing like it") == found("x" * 100_000) == []
    assert len(found("")) == 6
    assert [job.prompt for job in store.jobs(search=store.jobs()[2].id)] == ["snake_case"]


def test_lists_and_counts_by_state_and_batch(store: Store, template: Request) -> None:
    a, *_ = submitted(store, template, "a", "b", batch="one")
    submitted(store, template, "c")
    store.pause(a)
    assert store.counts() == {**dict.fromkeys(STATES, 0), "queued": 2, "paused": 1}
    assert store.counts("one")["queued"] == 1
    assert [job.prompt for job in store.jobs(batch="")] == ["c"]
    assert [job.prompt for job in store.jobs(["paused", "done"])] == ["a"]
    assert store.jobs([]) == []
    assert len(store.jobs(limit=2)) == 2


# What people ask for --------------------------------------------------------------------------------------------------


def test_waiting_jobs_rest_at_once_and_come_back_where_they_were(store: Store, template: Request) -> None:
    a, b = submitted(store, template, "a", "b", folders=True)
    store.pause(a)
    assert (store.job(a).state, store.position(a), store.position(b)) == ("paused", None, 1)
    assert read_card(store.job(a).folder).held == "paused"  # pyright: ignore[reportOptionalMemberAccess]
    store.pause(a)
    store.resume(a)
    assert (store.position(a), read_card(store.job(a).folder).held) == (1, None)  # pyright: ignore[reportOptionalMemberAccess]
    store.cancel(b)
    assert store.job(b).state == "cancelled"
    assert store.job(b).ended is not None
    store.retry(b)
    assert (store.job(b).state, store.job(b).ended) == ("queued", None)


def test_what_does_not_fit_the_state_is_refused(store: Store, template: Request) -> None:
    (a,) = submitted(store, template, "a")
    with pytest.raises(WrongState, match="queued; there is nothing to retry"):
        store.retry(a)
    store.cancel(a)
    with pytest.raises(WrongState, match="cancelled; there is nothing to pause"):
        store.pause(a)
    for ask in (store.pause, store.resume, store.cancel, store.retry, store.clear, store.job, store.position):
        with pytest.raises(UnknownJob, match=r"^There is no job 'nope'; `studio jobs` lists them.$"):
            ask("nope")


def test_cleared_jobs_leave_the_list_and_not_the_disk(store: Store, template: Request) -> None:
    a, b = submitted(store, template, "a", "b", folders=True)
    folder = store.job(a).folder
    store.clear(a)
    assert [job.id for job in store.jobs()] == [b]
    assert read_request(folder).prompt == "a"


def test_a_held_queue_gives_nothing_away(store: Store, template: Request) -> None:
    submitted(store, template, "a")
    assert store.queue_held() is None
    store.hold_queue("The disk is full.")
    assert (store.queue_held(), store.claim("w")) == ("The disk is full.", None)
    store.release_queue()
    claim = store.claim("w")
    assert claim is not None
    with claim:
        assert claim.job.prompt == "a"


def test_every_change_is_counted_and_readings_are_not(store: Store, template: Request) -> None:
    before = store.changed()
    (id,) = submitted(store, template, "a")
    after = store.changed()
    assert after > before
    assert (len(store.jobs()), store.position(id), store.queue_held()) == (1, 1, None)
    assert Store(store.home).changed() == after
    store.hold_queue()
    assert store.changed() > after


# The file -------------------------------------------------------------------------------------------------------------


def test_many_make_the_file_at_once(tmp_path: Path) -> None:
    for turn in range(10):
        stores = [Store(tmp_path / str(turn)) for _ in range(8)]
        start, problems = threading.Barrier(len(stores)), []

        def open_it(store: Store, start: threading.Barrier, problems: list[Exception]) -> None:
            start.wait()
            try:
                store.hold_queue()
            except Exception as problem:
                problems.append(problem)

        threads = [threading.Thread(target=open_it, args=(store, start, problems)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert stores[0].changed() == len(stores)


def test_the_file_has_a_log_and_a_version(store: Store) -> None:
    store.counts()
    other = sqlite3.connect(store.home / NAME)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StoreError, match="another version of the studio"):
        Store(store.home).counts()


def test_a_damaged_file_is_said_with_the_way_out(runs: Path) -> None:
    (runs / NAME).write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="studio jobs rebuild"):
        Store(runs).counts()


def test_settings_that_cannot_be_read_fail_the_job_in_words(store: Store, template: Request) -> None:
    (id,) = submitted(store, template, "a")
    with store.database.write() as db:
        db.execute("""UPDATE settings SET request = replace(request, '"negative"', '"negatif"')""")
    assert store.claim("w") is None
    assert (store.job(id).state, store.job(id).error) == ("failed", "request: no 'negatif'; did you mean 'negative'?")


def test_limits_of_a_batch_can_change_until_a_job_is_done(store: Store, template: Request) -> None:
    ours, other = submitted(store, template, "a", batch="one"), submitted(store, template, "b", batch="two")
    store.set_limits("one", 7, 30.0)
    assert [(store.job(id).limit, store.job(id).timeout) for id in (*ours, *other)] == [(7, 30.0), (3, None)]
