"""What tests of reliability look for in the folders of runs, and how they wait."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from studio.checkpoints import Checkpoints, read_state
from studio.jobs.store import Job


def events(folder: Path) -> list[dict[str, Any]]:
    """A run's record; every line of it is whole, or this fails."""
    file = folder / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def named(folder: Path, name: str) -> list[dict[str, Any]]:
    """The events of a name in a run's record."""
    return [event for event in events(folder) if event["event"] == name]


def whole_checkpoints(home: Path) -> int:
    """How many checkpoints there are below a home; every one must read back whole."""
    found = [path for folder in home.glob("*/checkpoints") for path in Checkpoints(folder).all()]
    for path in found:
        read_state(path)
    return len(found)


def results(jobs: Iterable[Job]) -> dict[tuple[str, int], tuple[bytes, bytes]]:
    """The asset and the last tensors of each job, to the bit."""
    made = {}
    for job in jobs:
        last = Checkpoints(job.folder / "checkpoints").all()[-1]
        tensors = (last / "tensors.safetensors").read_bytes()
        made[job.prompt, job.seed] = ((job.folder / "result.glb").read_bytes(), tensors)
    return made


def until(condition: Callable[[], Any], seconds: float = 100.0) -> Any:
    """Wait for what another process brings about; returns what the condition says."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
    return found
