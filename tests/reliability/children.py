"""What runs in processes that tests kill."""

import os
import sys
from pathlib import Path

import torch

from studio.checkpoints import Checkpoints
from studio.cli import run


def worker(home: str, *options: str) -> int:
    """``studio worker``; what it says goes to a file beside the home."""
    log = os.open(f"{home}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    return run(["worker", "--runs", home, "--device", "cpu", "--parent", str(os.getppid()), *options])


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
