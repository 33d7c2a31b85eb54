"""The real thing, in processes of its own: a batch that is killed again and again finishes, with nothing made twice."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from studio.export.glb import load_glb
from studio.jobs.store import Store
from tests.batch.tiny import tiny_options

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
COLOURS, THINGS = ("red", "blue", "green"), ("mug", "car", "table", "house")


def command(file: Path, out: Path, *options: str) -> list[str]:
    """A batch as a process of its own."""
    return [sys.executable, "-m", "studio.cli", "batch", str(file), "--out", str(out), *options]


def events(run: Path) -> Counter[str]:
    """How often each event is in a run's record; a line that a kill cut short is no event."""
    counts: Counter[str] = Counter()
    for line in (run / "events.jsonl").read_text().splitlines():
        try:
            counts[json.loads(line)["event"]] += 1
        except ValueError:
            continue
    return counts


def finished(out: Path) -> int:
    return sum(events(path.parent)["Finished"] for path in out.glob("*/events.jsonl"))


def assert_each_made_once(out: Path, count: int) -> None:
    """Every item has one folder with one whole result, and was finished once."""
    with (out / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done"] * count
    runs = sorted(path.parent for path in out.glob("*/request.json"))
    assert [run.name for run in runs] == sorted(row["folder"] for row in rows)
    assert len({(row["prompt"], row["seed"]) for row in rows}) == count
    for run in runs:
        assert events(run)["Finished"] == 1, run
        assert json.loads((run / "request.json").read_text())["prompt"] in {row["prompt"] for row in rows}
        load_glb(run / "result.glb")
    assert Store(out).counts()["done"] == len(Store(out).jobs()) == count


@pytest.mark.timeout(400)
def test_twelve_prompts_killed_three_times(tmp_path: Path, tiny_prior: Path) -> None:
    file, out = tmp_path / "things.txt", tmp_path / "things"
    file.write_text(f"a {{{'|'.join(COLOURS)}}} {{{'|'.join(THINGS)}}}\n")
    rng, made = random.Random(), []
    for more, wait in ((rng.randint(1, 3), 1.0), (0, 8.0), (rng.randint(1, 2), 1.0)):
        process = subprocess.Popen(command(file, out, *tiny_options(tiny_prior)), env=ENVIRONMENT, cwd=tmp_path)
        until = time.monotonic() + 100
        before = finished(out)
        while finished(out) < before + more and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, wait))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was to be killed in the middle"
        made.append(finished(out))
    assert made == sorted(made)
    assert 2 <= made[-1] < 12
    results = {path: path.stat().st_mtime_ns for path in out.glob("*/report.json")}
    last = subprocess.run(
        command(file, out, *tiny_options(tiny_prior)), env=ENVIRONMENT, cwd=tmp_path, timeout=200, check=False
    )
    assert last.returncode == 0
    assert_each_made_once(out, 12)
    finished_before = {path: time for path, time in results.items() if path.stat().st_mtime_ns == time}
    assert len(finished_before) >= made[-1]


@pytest.mark.timeout(200)
def test_several_devices_have_a_process_each(tmp_path: Path, tiny_prior: Path) -> None:
    file, out = tmp_path / "cars.csv", tmp_path / "cars"
    file.write_text("prompt,seed,name\na red car,1,one\na blue car,2,\n")
    options = ["--workers", "2", "--device", "cpu", *tiny_options(tiny_prior)]
    done = subprocess.run(
        command(file, out, *options), env=ENVIRONMENT, cwd=tmp_path, timeout=150, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert_each_made_once(out, 2)
    assert {path.parent.name for path in out.glob("*/report.json")} == {"one", "a-blue-car"}
    assert Store(out).workers() == []
