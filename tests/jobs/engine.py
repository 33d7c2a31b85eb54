"""A make-believe engine for tests of workers: what happens in a run is said by its prompt, and takes no time."""

import errno
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from studio.checkpoints import Checkpoints
from studio.events import Checkpointed, Event, Failed, Finished, Started, Stepped, Stopped, Working
from studio.folder import RunError, RunFolder
from studio.request import Request

STEPS = 4
release = threading.Event()
"""Lets a run go on whose prompt has the word hangs."""


def pretend(home: RunFolder, request: Request, device: torch.device, stop: Callable[[], bool]) -> Iterator[Event]:
    """Like ``studio.run.work_in``: its events, recorded, with a checkpoint at every step."""
    for event in _events(home, request, stop):
        home.record(event)
        yield event


def _events(home: RunFolder, request: Request, stop: Callable[[], bool]) -> Iterator[Event]:
    words = request.prompt.split()
    yield Working("loading the prior")
    if "fails" in words:
        yield Failed("The prior gave up.")
        raise RunError("The prior gave up.")
    if "breaks" in words:
        raise KeyError("no such tensor")
    if "full" in words:
        raise OSError(errno.ENOSPC, "No space left on device")
    saved = Checkpoints(home.path / "checkpoints")
    done = int(saved.all()[-1].name) if saved.all() else 0
    steps = 10_000 if "slow" in words else STEPS
    yield Started(request.prompt, home.path, "cpu", done, steps)
    while done < steps and not stop():
        time.sleep(0.01 if "slow" in words else 0)
        done += 1
        yield Stepped(0, done, done, steps, torch.zeros(()))
        if done % 2 == 0 and done < 20:
            yield Checkpointed(done, saved.save(done, {"stage": 0}))
    if done < steps:
        yield Checkpointed(done, saved.save(done, {"stage": 0}))
        yield Stopped(done, home.path)
        return
    if "hangs" in words:
        release.wait(20)
    for phase in range(1000 if "exports" in words else 1):
        yield Working(f"export: phase {phase}")
        time.sleep(0.01 if "exports" in words else 0)
    yield Finished(home.path, 0.0)


def events(folder: Path) -> list[dict[str, Any]]:
    """What a run's record says."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def counted(folder: Path) -> Counter[str]:
    """How often each event is in a run's record."""
    return Counter(event["event"] for event in events(folder))
