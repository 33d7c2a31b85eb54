"""A tiny prior, a home with one finished run, the studio behind a page over it, and the whole app as users start it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from representations.hash_field import HashField
from studio.app.service import Service
from studio.app.shelf import Shelf
from studio.cameras import Orbit
from studio.jobs.store import Item, Store
from studio.jobs.worker import work
from studio.request import Export, Request, Stage
from tests.jobs.tiny import save_tiny_prior


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of few random weights."""
    return save_tiny_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture(scope="session")
def small(tiny_prior: Path) -> Request:
    """A run of about a second; its ball stays a ball."""
    field = HashField(levels=(4, 8, 16), occupancy_cells=8, rate=1e-3)
    stage = Stage(field, steps=6, cameras=Orbit(views=2, size=24))
    export = Export(faces=200, texture=64, grid=24, picture=32)
    return Request("", (stage,), prior=str(tiny_prior), export=export, checkpoint_every=2, preview_every=2)


@pytest.fixture(scope="session")
def made(small: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finished job."""
    home = tmp_path_factory.mktemp("made")
    Store(home).submit(small, [Item("a red cube", 7)], folders=True)
    for _ in work(home, "cpu", until_empty=True):
        pass
    return home


@pytest.fixture
def priors(tiny_prior: Path) -> dict[str, str]:
    """What may be named."""
    return {"toybox-64": "toybox-64", "tiny": str(tiny_prior)}


@pytest.fixture
def service(runs: Path, priors: dict[str, str]) -> Service:
    """The studio over an empty home."""
    return Service(runs, priors)


@pytest.fixture
def studio(made: Path, priors: dict[str, str]) -> Service:
    """The studio over the home with a finished job; only to be read."""
    return Service(made, priors)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """An empty one."""
    return Shelf(tmp_path / "shelf")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Address and process of the app, with its worker and the bundled prior; its runs lie in ``runs`` beside it."""
    home = tmp_path_factory.mktemp("app") / "runs"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "studio.cli", "ui", "--port", str(port), "--runs", str(home), "--device", "cpu"]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(command, cwd=home.parent, env=environment, stdout=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(url, process)
        yield url, process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        if process.stdout is not None:
            process.stdout.close()


def _wait_for(url: str, process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, "the app ended at once"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"no answer from {url}")
