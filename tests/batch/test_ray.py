"""A local Ray cluster of two workers, one of which is killed half-way: every item is made, and none twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from studio.batch import ray_engine
from studio.batch.ray_actor import Where
from studio.folder import RunFolder
from studio.jobs.store import Item, Store
from studio.recipes import RECIPES
from tests.batch.test_killed import ENVIRONMENT, assert_each_made_once, command, events
from tests.batch.tiny import tiny_options


@pytest.mark.timeout(300)
def test_an_actor_killed_half_way(tmp_path: Path, tiny_prior: Path) -> None:
    pytest.importorskip("ray")
    file, out = tmp_path / "cars.txt", tmp_path / "cars"
    file.write_text("a {red|blue|green} car\n")
    options = ["--engine", "ray", "--workers", "2", "--attempts", "1", *tiny_options(tiny_prior, steps=16)]
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        command(file, out, *options), env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            killed = kill_one(out, process)
            said, _ = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == 0, said.decode()
    assert_each_made_once(out, 3)
    assert events(killed)["Started"] == 2, "it was resumed"
    assert [job.attempts for job in Store(out).jobs()] == [0, 0, 0], "a lost worker is nobody's failure"


def kill_one(out: Path, process: subprocess.Popen[bytes]) -> Path:
    """Kill an actor that has a checkpoint behind it; returns the folder that it worked in."""
    until = time.monotonic() + 150
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
        if not (out / "jobs.sqlite3").is_file():
            continue
        store = Store(out)
        running = {job.id: job.folder for job in store.jobs(["running"])}
        for worker in store.workers():
            folder = running.get(worker.job)
            if folder is not None and worker.device.startswith("cpu on ") and any(folder.glob("checkpoints/0*")):
                os.kill(worker.pid, signal.SIGKILL)
                return folder
    raise AssertionError("no actor came to a checkpoint")


def test_without_ray_it_is_said_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "cars.txt").write_text("a car\n")
    code = "import sys; sys.modules['ray'] = None; from studio.cli import main; main()"
    arguments = ["batch", "cars.txt", "--engine", "ray"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr.decode()) == (2, "--engine ray needs Ray: pip install 'dreamkiln[ray]'\n")


def test_a_cancelled_job_whose_actor_hangs_is_given_up(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[object] = []
    exceptions = SimpleNamespace(RayActorError=RuntimeError)
    stand_in = SimpleNamespace(wait=lambda pending, timeout: ([], pending), kill=killed.append, exceptions=exceptions)
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
    monkeypatch.setattr(ray_engine, "_GRACE", 0.2)
    store = Store(runs)
    (id,) = store.submit(RECIPES["draft"]("", True), [Item("a car", 0)])
    asked: list[str] = []
    actor = SimpleNamespace(stop=SimpleNamespace(remote=asked.append))
    seat = ray_engine._Seat(store, "ray-1", "CPU", actor, Where("here", 1, "cpu"), object(), store.claim("ray-1"))
    for wish, seconds in ((store.pause, 0.4), (store.cancel, 0.1)):
        wish(id)
        seat.tend()
        time.sleep(seconds)
        seat.tend()
        assert (killed, asked, store.job(id).state) == ([], [id], "running")
    time.sleep(0.2)
    seat.tend()
    assert (killed, store.job(id).state, seat.busy) == ([actor], "cancelled", False)
    with RunFolder(store.job(id).folder):
        pass
