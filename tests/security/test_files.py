"""Files: what was published is served; nothing else is, however it is asked for."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.security.conftest import SECRET, Site

FILE = "/gradio_api/file="
GRADIO = getattr(importlib.util.find_spec("gradio"), "origin", None)


def every(text: str) -> str:
    """Each character encoded."""
    return "".join(f"%{byte:02x}" for byte in text.encode())


def up(site: Site, step: str = "../") -> str:
    """From the served folder to the file outside of home, by a way of writing ``../``."""
    return f"{site.served}/{step * 4}outside.txt"


TRAVERSALS: dict[str, Callable[[Site], str]] = {
    "absolute, outside of home": lambda s: f"{FILE}{s.home.parent}/outside.txt",
    "absolute, in home": lambda s: f"{FILE}{s.home}/notes.txt",
    "the store": lambda s: f"{FILE}{s.home}/jobs.sqlite3",
    "the store's log": lambda s: f"{FILE}{s.home}/jobs.sqlite3-wal",
    "a run's request": lambda s: f"{FILE}{s.home}/a-run/request.json",
    "a run's events": lambda s: f"{FILE}{s.home}/a-run/events.jsonl",
    "a result that was not published": lambda s: f"{FILE}{s.home}/a-run/result.glb",
    "passwd": lambda s: f"{FILE}/etc/passwd",
    "shadow": lambda s: f"{FILE}/etc/shadow",
    "the environment": lambda s: f"{FILE}/proc/self/environ",
    "open files": lambda s: f"{FILE}/proc/self/fd/0",
    "the root of the process": lambda s: f"{FILE}/proc/self/root/etc/passwd",
    "the folder of the process": lambda s: f"{FILE}/proc/self/cwd/pyproject.toml",
    "keys": lambda s: f"{FILE}~/.ssh/id_ed25519",
    "keys, absolute": lambda s: f"{FILE}{Path.home()}/.ssh/id_ed25519",
    "our code": lambda s: f"{FILE}{Path(__file__).resolve()}",
    "our code, relative": lambda s: f"{FILE}studio/app/server.py",
    "Gradio's code": lambda s: f"{FILE}{GRADIO}",
    "up": lambda s: FILE + up(s),
    "up, relative": lambda s: f"{FILE}../../../../../../../../etc/passwd",
    "up, dots encoded": lambda s: FILE + up(s, "%2e%2e/"),
    "up, slashes encoded": lambda s: FILE + up(s, "..%2f"),
    "up, all encoded": lambda s: FILE + every(up(s)),
    "up, encoded twice": lambda s: FILE + up(s, "%252e%252e%252f"),
    "absolute, encoded twice": lambda s: FILE + quote(quote(f"{s.home.parent}/outside.txt", "")),
    "up, encoded thrice": lambda s: FILE + up(s, "%25252e%25252e%25252f"),
    "up, overlong UTF-8": lambda s: FILE + up(s, "%c0%ae%c0%ae/"),
    "up, backslashes": lambda s: FILE + up(s, "..\\"),
    "up, encoded backslashes": lambda s: FILE + up(s, "..%5c"),
    "up, dots and slashes doubled": lambda s: FILE + up(s, "....//"),
    "up, full-width dots": lambda s: FILE + up(s, quote("\uff0e\uff0e/")),
    "up, with parameters": lambda s: FILE + up(s, "..;/"),
    "a null byte": lambda s: f"{FILE}{s.home.parent}/outside.txt%00.png",
    "a null byte after what is served": lambda s: f"{FILE}{s.published}%00/../../../../outside.txt",
    "a line break": lambda s: f"{FILE}{s.published}%0a/../../../../outside.txt",
    "a link": lambda s: f"{FILE}{s.served}/link.txt",
    "a linked folder": lambda s: f"{FILE}{s.served}/folder/notes.txt",
    "a pipe": lambda s: f"{FILE}{s.served}/pipe.txt",
    "a folder": lambda s: f"{FILE}{s.served}",
    "a name that begins alike": lambda s: f"{FILE}{s.served}/../served-not/../../../../outside.txt",
    "two slashes": lambda s: f"{FILE}/{s.home.parent}/outside.txt",
    "a scheme": lambda s: f"{FILE}file://{s.home.parent}/outside.txt",
    "another name for the route": lambda s: f"/gradio_api/file/{s.home.parent}/outside.txt",
    "the route of old": lambda s: f"/file={s.home.parent}/outside.txt",
    "above the assets": lambda s: "/assets/../../../../../../../../etc/passwd",
    "above the assets, encoded": lambda s: "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "above static files": lambda s: "/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
    "an absolute static file": lambda s: "/static//etc/passwd",
    "above the scripts": lambda s: "/svelte/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "above a component": lambda s: "/gradio_api/custom_component/x/client/..%2f..%2f..%2f/etc/passwd",
    "a link's state": lambda s: f"/?deep_link={every('../../../../a-run')}&x={SECRET[:3]}",
    "a favourite icon": lambda s: "/pwa_icon/..%2f..%2f..%2fetc%2fpasswd",
}


def refused(site: Site, name: str, method: str) -> None:
    """A traversal gives neither the secret nor anything of the system's."""
    answer = site.ask(TRAVERSALS[name](site), method)
    if name == "a link's state":  # the page itself, without the state
        assert answer.status == 200
    else:
        assert answer.status in (400, 403, 404, 405)
    assert SECRET.encode() not in answer.body
    assert b"root:" not in answer.body
    if method == "HEAD":
        assert answer.headers.get("content-length") != str(len(SECRET))


@pytest.mark.parametrize("name", TRAVERSALS)
def test_nothing_but_what_was_published_is_served(name: str, site: Site) -> None:
    refused(site, name, "GET")


@pytest.mark.parametrize("name", TRAVERSALS)
def test_nor_is_its_size_told(name: str, small_site: Site) -> None:
    refused(small_site, name, "HEAD")


def test_there_are_as_many_as_were_asked_for() -> None:
    assert len(TRAVERSALS) >= 40


def test_what_was_published_is_served(site: Site) -> None:
    answer = site.ask(FILE + quote(site.published))
    assert (answer.status, answer.body) == (200, b"published")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert site.ask(FILE + quote(site.published), headers={"Range": "bytes=0-2"}).body == b"pub"


RANGES = ["bytes=-", "bytes=5-2", "bytes=0-99999999999999999999", "bytes=a-b", "bytes=" + "0-1," * 2000, "items=0-1"]


@pytest.mark.parametrize("value", RANGES, ids=range(len(RANGES)))
def test_a_strange_range_gives_no_more_than_the_file(value: str, site: Site) -> None:
    answer = site.ask(FILE + quote(site.published), headers={"Range": value})
    assert len(answer.body) < 1000
    assert SECRET.encode() not in answer.body
    assert site.ask("/config").status == 200


@pytest.mark.parametrize(
    "path",
    ["{home}/notes.txt", "{home}/a-run/request.json", "/etc/passwd", "{served}/link.txt", "../../../../../etc/passwd"],
)
@pytest.mark.parametrize("endpoint", ["take", "look", "say"])
def test_a_call_names_no_file_that_was_not_uploaded(path: str, endpoint: str, small_site: Site) -> None:
    place = path.format(home=small_site.home, served=small_site.served)
    before = len(small_site.called)
    for value in (
        {"path": place, "meta": {"_type": "gradio.FileData"}},
        {"path": place, "meta": {"_type": "gradio.FileData"}, "url": None, "orig_name": "a.png"},
        [{"path": place, "meta": {"_type": "gradio.FileData"}}],
        {"nested": {"path": place}},
    ):
        answer = small_site.call(endpoint, value)
        assert "Files are uploaded" in answer
        assert SECRET not in answer
    assert len(small_site.called) == before
