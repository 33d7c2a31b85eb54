"""What runs in processes that tests kill."""

import os
import sys
import time
from pathlib import Path

import torch

from studio.checkpoints import Checkpoints
from studio.cli import run
from studio.jobs.store import Item, Store
from studio.recipes import RECIPES


def worker(home: str, *options: str) -> int:
    """``studio worker``; what it says goes to a file beside the home."""
    log = os.open(f"{home}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    return run(["worker", "--runs", home, "--device", "cpu", "--parent", str(os.getppid()), *options])


def submit_many(home: str, number: str) -> int:
    """Queue many jobs at once; the seconds that took, by the clock and of work, go to a file."""
    store, template = Store(Path(home)), RECIPES["draft"]("", True)
    items = [Item(f"a red mushroom, number {i}", i) for i in range(int(number))]
    began, worked = time.perf_counter(), time.process_time()
    store.submit(template, items)
    took = (time.perf_counter() - began, time.process_time() - worked)
    (Path(home) / "seconds.txt").write_text("{} {}".format(*took))
    return 0


def save_forever(folder: str) -> None:
    """Checkpoints of a few megabytes, one after the other; each is a function of its step."""
    checkpoints = Checkpoints(Path(folder))
    step = max((int(path.name) for path in checkpoints.all()), default=0)
    mother = os.getppid()
    while os.getppid() == mother:
        step += 1
        checkpoints.save(step, state(step))


def state(step: int) -> dict[str, torch.Tensor]:
    """What is saved of a step."""
    return {name: torch.full((400_000,), float(step + i)) for i, name in enumerate("abc")}
