"""Workers as processes: begun, begun anew when they die, stopped in the end; and gone when their parent is."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from studio.jobs import supervisor
from studio.jobs.store import Item, Store
from studio.jobs.supervisor import Workers
from studio.request import Request

HOLD = """
import sys, time
from pathlib import Path
from studio.jobs.supervisor import Workers
with Workers(Path(sys.argv[1]), ["cpu"]) as workers:
    print(*workers.pids(), flush=True)
    time.sleep(100)
"""

HANG = """
import os, subprocess, sys, time
from pathlib import Path
from studio.jobs.store import Store
claim = Store(Path(sys.argv[1])).claim(f"cpu-{os.getpid()}")
if claim is not None and claim.job.prompt == "it hangs":
    child = subprocess.Popen(["sleep", "100"])
    (claim.job.folder / "child").write_text(str(child.pid))
time.sleep(100)
"""


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z" if Path("/proc").is_dir() else True


def test_a_worker_that_dies_is_begun_anew_and_all_stop_in_the_end(runs: Path) -> None:
    store = Store(runs)
    with Workers(runs, ["cpu"]) as workers:
        (first,) = workers.pids()
        until(lambda: [worker.pid for worker in store.workers()] == [first])
        os.kill(first, signal.SIGKILL)
        until(lambda: workers.pids() not in ([], [first]))
        (second,) = workers.pids()
        until(lambda: second in [worker.pid for worker in store.workers()])
    assert not lives(second)
    assert second not in [worker.pid for worker in store.workers()]  # it had the time to say so
    assert (runs / "worker-cpu.log").is_file()


def test_workers_go_when_their_parent_is_killed(runs: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", HOLD, str(runs)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    until(lambda: Store(runs).workers())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not lives(pid))


def test_a_cancelled_job_that_hangs_is_ended_with_its_process_and_what_that_began(
    runs: Path, template: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "GRACE", 0.5)
    monkeypatch.setattr(supervisor, "_command", lambda home, *_: [sys.executable, "-c", HANG, str(home)])
    store = Store(runs)
    stuck, other = store.submit(template, [Item("it hangs", 0), Item("another", 0)])
    with Workers(runs, ["cpu"], patience=0.1) as workers:
        until((store.job(stuck).folder / "child").is_file)
        (first,) = workers.pids()
        child = int((store.job(stuck).folder / "child").read_text())
        store.pause(stuck)
        time.sleep(1.0)
        assert (workers.pids(), store.job(stuck).state) == ([first], "running"), "a pause may wait for its step"
        store.cancel(stuck)
        until(lambda: store.job(stuck).state == "cancelled")
        assert not lives(first)
        until(lambda: not lives(child), 5)
        until(lambda: store.job(other).state == "running")  # with another process


def test_logs_stay_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_LARGEST_LOG", 1000)
    log = tmp_path / "worker.log"
    with log.open("ab", buffering=0) as file:
        file.write(b"a" * 900 + b"b" * 400)
        supervisor._halve(log)
        file.write(b"c")
    assert log.read_bytes() == b"a" * 100 + b"b" * 400 + b"c"


def test_every_gpu_gets_a_worker_or_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert supervisor.all_devices() == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert supervisor.all_devices() == ["cpu"]
