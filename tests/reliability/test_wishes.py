"""Pause and cancel of real runs: bit-equal when they go on, and obeyed within a step."""

import time
from pathlib import Path

import pytest

from studio.events import Stepped
from studio.jobs.store import Item, Store
from studio.jobs.worker import work
from studio.request import Request
from tests.jobs.tiny import tiny_request
from tests.reliability.nursery import Nursery
from tests.reliability.records import named, results, until


def test_a_paused_run_ends_bit_equal(undisturbed: Store, tiny: Request, tmp_path: Path) -> None:
    paused = Store(tmp_path / "paused")
    (id,) = paused.submit(tiny, [Item("a red cube", 1)])
    for done in (3, 4):  # beside a checkpoint, and at one
        for _, event in work(paused.home, "cpu", until_empty=True):
            if isinstance(event, Stepped) and event.done == done:
                paused.pause(id)
                time.sleep(0.3)  # long enough to be heard before the next step
        assert paused.job(id).state == "paused"
        paused.resume(id)
    for _ in work(paused.home, "cpu", until_empty=True):
        pass
    assert [event["step"] for event in named(paused.job(id).folder, "Started")] == [0, 3, 4]
    assert results(paused.jobs()) == results(undisturbed.jobs()[1:])


@pytest.mark.parametrize("cancels", [4, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_cancelled_runs_stop_within_a_step(nursery: Nursery, tiny_prior: Path, tmp_path: Path, cancels: int) -> None:
    store = Store(tmp_path / "runs")
    ids = store.submit(tiny_request(tiny_prior, steps=100_000), [Item("a red cube", i) for i in range(cancels)])
    pid = nursery.begin("worker", store.home)
    took, pace = [], []
    for id in ids:
        until(lambda id=id: store.job(id).folder.is_dir() and len(named(store.job(id).folder, "Checkpointed")) > 2)
        stamps = [event["time"] for event in named(store.job(id).folder, "Checkpointed")[-3:]]
        pace.append((stamps[-1] - stamps[0]) / 4)
        began = time.monotonic()
        store.cancel(id)
        until(lambda id=id: store.job(id).state == "cancelled")
        took.append(time.monotonic() - began)
        assert named(store.job(id).folder, "Stopped")
    nursery.kill(pid)
    slowest = sorted(took)[max(0, round(0.95 * cancels) - 1)]
    print(f"\ncancel: median {sorted(took)[cancels // 2]:.2f} s, p95 {slowest:.2f} s; a step {max(pace):.2f} s")  # noqa: T201
    assert slowest < 1.0 + 3 * max(pace)  # the pace allows for a machine with other work to do
