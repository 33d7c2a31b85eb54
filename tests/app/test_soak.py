"""Many users at once: tabs that are closed, and programs that ask on and on. No job is lost, and no memory."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.app.browser import browser, visit

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:playwright"),
]
CLIENTS = 20
GROWTH = 50
"""MiB that the server may take on."""


def home_of(process: "subprocess.Popen[str]") -> Path:
    """Where the app keeps its runs."""
    assert isinstance(process.args, list)
    return Path(str(process.args[process.args.index("--runs") + 1]))


def endings(home: Path) -> dict[str, int]:
    """How often each run in ``home`` says that it finished."""
    told = {file.parent.name: file.read_text(encoding="utf-8") for file in home.glob("*/events.jsonl")}
    return {name: text.count('"event": "Finished"') for name, text in told.items()}


def resident(pid: int) -> int:
    """MiB of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def call(url: str, name: str, *values: Any) -> Any:
    """Ask the HTTP API as any program would."""
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"data": values}).encode()
    asked = urllib.request.Request(f"{url}gradio_api/call/{name}", body, headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}gradio_api/call/{name}/{event}", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    assert lines[0] == "event: complete", lines
    return json.loads(lines[1].removeprefix("data: "))[0]


def client(url: str, number: int, jobs: int) -> int:
    """One user's program: submits a job, asks how it is until it is done, and again; returns how often it asked."""
    asked = 0
    for index in range(jobs):
        (job,) = call(url, "submit", "a red mushroom", "draft", "", "toybox-64", "", 100 * number + index, 2, 1)
        state = ""
        while state != "done":
            time.sleep(1.0)
            state, asked = call(url, "status", job)["state"], asked + 1
            assert state in ("queued", "running", "done")
    return asked


def test_jobs_finish_with_their_tabs_closed(app: "tuple[str, subprocess.Popen[str]]") -> None:
    url, process = app
    before = len(endings(home_of(process)))
    with browser() as running:
        for number in range(CLIENTS):
            page = visit(running, url).page
            page.locator("#dk-prompt textarea").fill("a red mushroom")
            page.get_by_label("Seed").fill(str(number))
            page.get_by_label("Steps").fill("4")
            page.locator("#dk-generate").click()
            page.wait_for_url("**/?job=*")
            page.context.close()
    until = time.monotonic() + 3000
    while sum(endings(home_of(process)).values()) < before + CLIENTS and time.monotonic() < until:
        time.sleep(1)
    ends = endings(home_of(process))
    assert len(ends) == before + CLIENTS and set(ends.values()) == {1}


@pytest.mark.parametrize("jobs", [1, 10], ids=["20 jobs", "200 jobs"])
def test_twenty_clients_at_once(app: "tuple[str, subprocess.Popen[str]]", jobs: int) -> None:
    url, process = app
    before = len(endings(home_of(process)))
    call(url, "status", call(url, "submit", "a red mushroom", "draft", "", "toybox-64", "", 0, 2, 1)[0])
    start = resident(process.pid)
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = sum(pool.map(lambda number: client(url, number + 1, jobs), range(CLIENTS)))
    ends, grown = endings(home_of(process)), resident(process.pid) - start
    sys.stderr.write(f"{CLIENTS * jobs} jobs, asked {asked} times, {start} MiB and {grown:+} MiB\n")
    assert len(ends) == before + 1 + CLIENTS * jobs and set(ends.values()) == {1}
    assert grown < GROWTH
