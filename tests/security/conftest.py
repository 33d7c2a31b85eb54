"""A real server on loopback over a home with secrets, twice: a small page, and the app's own."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECRET = "the-secret-of-the-house, which is longer than any answer that refuses it could ever be said to be"


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Site:
    """A running server and where its things are."""

    url: str
    home: Path
    served: Path

    @property
    def published(self) -> str:
        """Path of a file that may be fetched."""
        return f"{self.served}/shown.txt"

    @property
    def called(self) -> list[str]:
        """What the small page's functions were called with so far."""
        file = self.home.parent / "called.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def authority(self) -> str:
        """Host and port."""
        return self.url.removeprefix("http://").rstrip("/")

    @property
    def uploads(self) -> Path:
        """Folder of what was uploaded."""
        return self.served.parent / "uploads"

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Ask for a path exactly as it is written; ``headers`` replace those of the same name."""
        given = {"Host": self.authority, **(headers or {})}
        if body is not None:
            given.setdefault("Content-Length", str(len(body)))
        connection = http.client.HTTPConnection(self.authority, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in given.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def post(self, path: str, value: Any, headers: dict[str, str] | None = None) -> Answer:
        """Post JSON."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask(path, "POST", body, {"Content-Type": "application/json", **(headers or {})})

    def call(self, name: str, *arguments: Any) -> str:
        """Call an endpoint of the API; gives its events, or what refused it."""
        answer = self.post(f"/gradio_api/call/{name}", {"data": list(arguments)})
        if answer.status != 200:
            return answer.body.decode()
        event = json.loads(answer.body)["event_id"]
        return self.ask(f"/gradio_api/call/{name}/{event}").body.decode()

    def upload(self, name: str, content: bytes, headers: dict[str, str] | None = None) -> Answer:
        """Upload a file under a name exactly as it is written."""
        head = f'--frontier\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        body = head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--frontier--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=frontier"}
        return self.ask("/gradio_api/upload", "POST", body, kind | (headers or {}))


def furnish(home: Path) -> None:
    """A home as it is in use, each file of it with the secret in it."""
    run = home / "a-run"
    (run / "checkpoints").mkdir(parents=True)
    for file in (home / "notes.txt", run / "events.jsonl", run / "result.glb"):
        file.write_text(SECRET)
    (home.parent / "outside.txt").write_text(SECRET)


@pytest.fixture(scope="session")
def small_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A page of a few components."""
    home = tmp_path_factory.mktemp("small") / "runs"
    furnish(home)
    (home / "jobs.sqlite3").write_text(SECRET)
    (home / "a-run" / "request.json").write_text(SECRET)
    with running(home, "small") as site:
        yield site


@pytest.fixture(scope="session")
def studio_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The app's own page, without workers."""
    home = tmp_path_factory.mktemp("studio") / "runs"
    furnish(home)
    with running(home, "studio") as site:
        yield site


@contextlib.contextmanager
def running(home: Path, kind: str) -> Iterator[Site]:
    """A server in a process of its own."""
    command = [sys.executable, "-m", "tests.security.site", str(home), kind]
    log = home.parent / f"{kind}.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None and process.stdin is not None
        try:
            line = process.stdout.readline()
            assert line, log.read_text()
            told = json.loads(line)
            site = Site(told["url"], home, Path(told["served"]))
            publish(site)
            yield site
        finally:
            process.stdin.close()
            process.wait(30)


@pytest.fixture(params=["small", "studio"])
def site(request: pytest.FixtureRequest) -> Site:
    """Each of the two."""
    return request.getfixturevalue(f"{request.param}_site")


def publish(site: Site) -> None:
    """Publish a file, and put beside it what nobody should have: a link out, a link to a folder, a pipe."""
    Path(site.published).write_text("published")
    (site.served / "link.txt").symlink_to(site.home.parent / "outside.txt")
    (site.served / "folder").symlink_to(site.home)
    os.mkfifo(site.served / "pipe.txt")
