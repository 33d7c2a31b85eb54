"""The disk quota: what goes, in which order, and what never goes."""

import os
import time
from pathlib import Path

import pytest

from studio.events import Finished
from studio.folder import RunFolder
from studio.jobs.quota import Quota, bytes_of, in_words, make_room, size_of
from studio.jobs.store import Item, Store
from studio.jobs.worker import work
from studio.request import Request

KILO = 1000


def put(path: Path, age: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * KILO)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def filled(home: Path, name: str, request: Request, age: float, done: bool) -> Path:
    """A run with a kilobyte in each of its files."""
    with RunFolder.create(home / name, request) as folder:
        for step in (1, 2, 3):
            put(folder.path / "previews" / f"{step:06d}.png", age - step)
            put(folder.path / "debug" / f"{step:06d}.png", age - step)
            put(folder.path / "checkpoints" / f"{step:07d}" / "tensors.safetensors", age - step)
        for name in ("result.glb", "report.json", "turntable.webp", "contact_sheet.png"):
            put(folder.path / name, age)
        put(folder.path / ".result.glb.1.part", age)
        if done:
            folder.record(Finished(folder.path, 1.0))
    return folder.path


def test_what_is_least_missed_goes_first(runs: Path, template: Request) -> None:
    old, new = filled(runs, "old", template, 9e4, True), filled(runs, "new", template, 50.0, False)
    gone: list[str] = []
    there = {path for path in runs.rglob("*") if path.is_file()}
    while True:
        total = size_of(runs)
        assert make_room(runs, total) == total  # what fits stays
        left = make_room(runs, total - 1)
        now = {path for path in runs.rglob("*") if path.is_file()}
        gone += sorted(str(path.relative_to(runs)) for path in there - now)
        if now == there:
            assert left == total
            break
        there = now
    assert gone == [
        "old/.result.glb.1.part",
        *("old/previews/000001.png", "old/previews/000002.png"),
        *("new/previews/000001.png", "new/previews/000002.png"),
        *(f"old/debug/00000{i}.png" for i in (1, 2, 3)),
        *(f"new/debug/00000{i}.png" for i in (1, 2, 3)),
        *(f"old/checkpoints/000000{i}/tensors.safetensors" for i in (1, 2)),
    ]
    for run in (old, new):
        kept = {path.name for path in run.iterdir()}
        assert {"request.json", "result.glb", "report.json", "turntable.webp", "contact_sheet.png"} <= kept
    assert (old / "events.jsonl").is_file()
    assert len(list(new.glob("checkpoints/*"))) == 3  # it is not finished and may go on
    assert (new / ".result.glb.1.part").exists()  # perhaps somebody is writing it


def test_links_are_not_followed(runs: Path, template: Request, tmp_path: Path) -> None:
    folder = filled(runs, "run", template, 9e4, True)
    precious = put(tmp_path / "precious.png", 9e9)
    (folder / "debug" / "link.png").symlink_to(precious)
    make_room(runs, 0)
    assert precious.read_bytes() == b"x" * KILO


@pytest.mark.usefixtures("pretend")
def test_the_queue_is_held_when_nothing_more_can_go(store: Store, template: Request) -> None:
    filled(store.home, "old", template, 9e4, True)
    a, b = store.submit(template, [Item("a cube", 1), Item("a cone", 2)])
    for _ in work(store.home, "cpu", until_empty=True, quota=6 * KILO):
        pass
    assert (store.job(a).state, store.job(b).state) == ("done", "queued")
    reason = store.queue_held() or ""
    assert reason.startswith("The disk quota of 6 KB is used up")
    assert not list(store.home.glob("old/debug/*"))
    quota = Quota(store.home, 10**9)
    quota.keep(store, at_once=True)
    assert store.queue_held() is None


@pytest.mark.usefixtures("pretend")
def test_who_holds_the_queue_for_another_reason_is_respected(store: Store) -> None:
    store.hold_queue("I said so.")
    Quota(store.home, 10**9).keep(store)
    assert store.queue_held() == "I said so."


@pytest.mark.parametrize(
    ("text", "size"), [("20GB", 20 * 10**9), ("1.5 tb", 1.5e12), ("500MB", 5e8), ("7", 7), ("3kb", 3000), ("9B", 9)]
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "lots", "1PB", "nan", "inf", "1GBB"])
def test_sizes_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no amount of disk"):
        bytes_of(text)


def test_sizes_are_said() -> None:
    assert [in_words(n) for n in (0, 999, 1500, 20 * 10**9)] == ["0 B", "999 B", "1.5 KB", "20 GB"]


def test_a_file_of_two_names_takes_its_room_once(tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    os.link(put(tmp_path / "result.glb", 0.0), tmp_path / "shown" / "a-mug.glb")
    assert size_of(tmp_path) == KILO
    put(tmp_path / "other.glb", 0.0)
    assert size_of(tmp_path) == 2 * KILO
