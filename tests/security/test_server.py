"""The server: a password before other machines get in, its own folders, and words for what it cannot do."""

import fcntl
import os
import socket
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest

from studio.app.guard import Refused, Rules, _check_host
from studio.app.server import (
    Account,
    AddressError,
    _clear_abandoned,
    _listen,
    _names,
    _own_folders,
    account,
    is_loopback,
    require_safe,
)
from tests.security.conftest import Answer, Site, furnish, running

WHO = Account("ann", "correct horse")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.9.10"])
def test_this_machine_alone_needs_no_password(host: str) -> None:
    assert is_loopback(host)
    require_safe(host, None)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "", "::", "192.168.1.5", "10.0.0.1", "example.org", "localhost.evil.org", "fe80::1"]
)
def test_any_other_address_needs_one(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(AddressError, match="DREAMKILN_AUTH=NAME:PASSWORD"):
        require_safe(host, None)
    with pytest.raises(AddressError, match="8 characters or more"):
        require_safe(host, Account("ann", "short"))
    require_safe(host, WHO)


def test_the_password_comes_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DREAMKILN_AUTH", raising=False)
    assert account(None) is None
    monkeypatch.setenv("DREAMKILN_AUTH", "ann:correct: horse")
    assert account(None) == Account("ann", "correct: horse")
    assert account("bob:secret") == Account("bob", "secret")


@pytest.mark.parametrize("text", ["ann", "ann:", ":secret", ":", " :x"])
def test_half_an_account_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match="NAME:PASSWORD"):
        account(text)


@pytest.mark.parametrize(
    ("name", "password", "right"),
    [
        ("ann", "correct horse", True),
        ("ann", "correct hors", False),
        ("ann", "correct horse ", False),
        ("Ann", "correct horse", False),
        ("", "", False),
        ("ann", "", False),
        ("änn", "corréct", False),
        ("ann\0", "correct horse", False),
    ],
)
def test_an_account_admits_its_owner(name: str, password: str, right: bool) -> None:
    assert WHO.admits(name, password) is right


def test_an_account_does_not_show_its_password() -> None:
    assert "horse" not in repr(WHO)


def test_a_port_that_is_taken_is_said_so() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(AddressError, match="cannot be used: Address already in use"):
            _listen("127.0.0.1", other.getsockname()[1])
    with _listen("127.0.0.1", None) as one, _listen("127.0.0.1", None) as two:
        assert one.getsockname()[1] != two.getsockname()[1]
    for host, port in (("no.such.host.invalid", 0), ("127.0.0.1", 70_000), ("203.0.113.1", 0)):
        with pytest.raises(AddressError):
            _listen(host, port)


@pytest.mark.parametrize(
    ("bound", "asked", "answered"),
    [
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "192.168.1.5", False),
        ("192.168.1.5", "192.168.1.5:7860", True),
        ("192.168.1.5", "192.168.1.6", False),
        ("studio.lan", "studio.lan", True),
        ("0.0.0.0", "192.168.1.5:7860", True),
        ("0.0.0.0", "[fe80::1]:7860", True),
        ("0.0.0.0", "evil.example", False),
        ("::", "evil.example", False),
    ],
)
def test_names_that_are_answered(bound: str, asked: str, answered: bool) -> None:
    wide = bound in ("0.0.0.0", "::")
    rules = Rules(_names(bound), Path("/a"), Path("/b"), any_address=wide)
    if answered:
        _check_host({"host": asked}, rules)
    else:
        with pytest.raises(Refused):
            _check_host({"host": asked}, rules)


# Folders --------------------------------------------------------------------------------------------------------------


def test_folders_are_ours_alone_and_go(runs: Path) -> None:
    with _own_folders(runs) as (served, uploads):
        assert served.parent == uploads.parent
        assert served.is_relative_to(runs.resolve() / ".app")
        assert oct(served.parent.stat().st_mode)[-3:] == "700"
        with _own_folders(runs) as (other, _):  # a second server removes nothing of the first
            assert other != served
            assert served.is_dir() and uploads.is_dir()
    assert not list((runs / ".app").iterdir())


def test_what_a_killed_server_left_goes_at_the_next_start(runs: Path) -> None:
    left, used = runs / ".app" / "left", runs / ".app" / "used"
    for folder in (left, used):
        (folder / "uploads").mkdir(parents=True)
        (folder / ".lock").touch()
    with (used / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _clear_abandoned(runs / ".app")
        assert not left.exists() and used.exists()


def test_the_folders_of_a_server_are_gone_after_it(tmp_path: Path) -> None:
    furnish(tmp_path / "runs")
    with running(tmp_path / "runs", "small") as site:
        assert site.served.is_dir()
    assert not list((tmp_path / "runs" / ".app").iterdir())
    assert (tmp_path / "runs" / "notes.txt").is_file()


# A password -----------------------------------------------------------------------------------------------------------


def login(site: Site, name: str, password: str) -> Answer:
    """Send the form of the login page."""
    body = urlencode({"username": name, "password": password}).encode()
    return site.ask("/login", "POST", body, {"Content-Type": "application/x-www-form-urlencoded"})


def test_with_a_password_nobody_else_gets_in(tmp_path: Path) -> None:
    furnish(tmp_path / "runs")
    os.environ["DREAMKILN_AUTH"] = "ann:correct horse"
    try:
        with running(tmp_path / "runs", "small") as site:
            assert_closed(site, {})
            assert_closed(site, {"Cookie": "access-token-unsecure-x=guess"})
            assert_closed(site, {"Authorization": "Basic YW5uOmNvcnJlY3QgaG9yc2U="})
            began = time.perf_counter()
            assert login(site, "ann", "wrong horse").status == 400
            assert time.perf_counter() - began > 0.9  # guessing is slow
            answer = login(site, "ann", "correct horse")
            assert answer.status == 200
            cookie = {"Cookie": answer.headers["set-cookie"].partition(";")[0]}
            assert site.ask("/config", headers=cookie).status == 200
            assert site.ask(f"/gradio_api/file={site.published}", headers=cookie).body == b"published"
            log = (tmp_path / "small.log").read_text()
            assert "horse" not in log
    finally:
        del os.environ["DREAMKILN_AUTH"]


def assert_closed(site: Site, headers: dict[str, str]) -> None:
    """Nothing but the login page is to be had."""
    for path in ("/config", "/gradio_api/info", f"/gradio_api/file={site.published}", "/gradio_api/queue/status"):
        assert site.ask(path, headers=headers).status == 401
    assert site.post("/gradio_api/call/say", {"data": ["x"]}, headers).status == 401
    assert site.upload("a.txt", b"x", headers).status == 401
    page = site.ask("/", headers=headers)
    assert b'"auth_required":true' in page.body and b'"components":[],"dependencies":[]' in page.body
    assert not site.called
