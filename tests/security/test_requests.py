"""Requests: nothing is fetched for anybody, and only the app's own pages, under its own names, are answered."""

import base64
import contextlib
import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.security.conftest import Site

FILE = "/gradio_api/file="


class Listener:
    """A server inside, which should never hear of anything."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(302)
                self.send_header("Location", "/again")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.authority = f"127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="session")
def inside() -> Iterator[Listener]:
    """Something that only this machine can reach."""
    listener = Listener()
    thread = threading.Thread(target=listener.server.serve_forever)
    thread.start()
    yield listener
    listener.server.shutdown()
    listener.server.server_close()
    thread.join()


# Nothing is fetched ---------------------------------------------------------------------------------------------------

ADDRESSES = {
    "loopback": "http://{inside}/secret",
    "loopback's name": "http://localhost:{port}/secret",
    "loopback in decimal": "http://2130706433:{port}/secret",
    "loopback in IPv6": "http://[::ffff:127.0.0.1]:{port}/secret",
    "an address of a cloud": "http://169.254.169.254/latest/meta-data/",
    "a name that leads inside": "http://127.0.0.1.nip.io:{port}/secret",
    "upper case": "HTTP://{inside}/secret",
    "a user's name": "http://example.org@{inside}/secret",
    "a space of Gradio's": "https://abidlabs-whisper.hf.space/file=x",
    "no scheme": "//{inside}/secret",
}


def written(address: str, listener: Listener) -> str:
    """An address of the listener's."""
    return address.format(inside=listener.authority, port=listener.server.server_port)


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize("route", ["/gradio_api/proxy=", "/proxy=", FILE, "/gradio_api/file/"])
def test_no_route_fetches(name: str, route: str, site: Site, inside: Listener) -> None:
    assert site.ask(route + written(ADDRESSES[name], inside)).status in (403, 404)
    assert not inside.asked


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize("place", ["path", "url", "both", "nested"])
def test_no_call_fetches(name: str, place: str, small_site: Site, inside: Listener) -> None:
    address, meta = written(ADDRESSES[name], inside), {"_type": "gradio.FileData"}
    value = {
        "path": {"path": address, "meta": meta},
        "url": {"path": small_site.published, "url": address, "meta": meta},
        "both": {"path": address, "url": address, "meta": meta, "orig_name": "a.png"},
        "nested": [{"image": {"path": address, "meta": meta}}],
    }[place]
    before = len(small_site.called)
    for endpoint in ("take", "look"):
        assert "nothing is fetched" in small_site.call(endpoint, value)
    assert len(small_site.called) == before
    assert not inside.asked


def test_no_picture_comes_in_the_place_of_an_address(small_site: Site) -> None:
    bomb = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
    assert "nothing is fetched" in small_site.call("look", {"path": "", "url": bomb})


def test_a_file_of_this_site_may_be_named(small_site: Site) -> None:
    (name,) = json.loads(small_site.upload("a.txt", b"words").body)
    for url in (None, f"{FILE}{name}", f"{small_site.url.rstrip('/')}{FILE}{name}"):
        answer = small_site.call("take", {"path": name, "url": url, "meta": {"_type": "gradio.FileData"}})
        assert "complete" in answer and "a.txt" in answer


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/stream/a/b/1/playlist.m3u8", "/gradio_api/custom_component/a/client/b/c", "/monitoring"),
        *("/gradio_api/vibe-code", "/gradio_api/openapi.json", "/gradio_api/dev/reload", "/gradio_api/deep_link"),
        *("/gradio_api/mcp/sse", "/gradio_api/runs", "/gradio_api/run-history/buckets", "/docs", "/openapi.json"),
        *("/gradio_api/component_server", "/gradio_api/profiling/traces", "/gradio_api/process_recording"),
        *("/%2e%2e/config", "//config", "/config%00", "/CONFIG", "/gradio_api/", "/nothing"),
    ],
)
def test_what_the_app_does_not_need_is_closed(path: str, site: Site) -> None:
    for method in ("GET", "POST"):
        answer = site.ask(path, method, b"{}" if method == "POST" else None, {"Content-Type": "application/json"})
        assert answer.status in (403, 404)


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/app_id"])
def test_what_the_app_needs_is_open(path: str, site: Site) -> None:
    assert site.ask(path).status == 200


# Own names and own pages ----------------------------------------------------------------------------------------------

HOSTS = {
    "evil": "evil.example",
    "evil, our port": "evil.example:{port}",
    "rebinding": "127.0.0.1.evil.example:{port}",
    "begins as ours": "localhost.evil.example",
    "ends as ours": "evil-localhost",
    "a dot more": "localhost.:{port}",
    "a user": "localhost@evil.example",
    "two": "localhost, evil.example",
    "no address of ours": "10.0.0.1:{port}",
    "any address": "0.0.0.0:{port}",
    "decimal": "2130706433:{port}",
    "no port": "localhost:evil",
    "nothing": "",
    "a path": "localhost/evil",
}


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", FILE, "/gradio_api/queue/data?session_hash=a"])
def test_another_name_is_not_answered(name: str, path: str, site: Site) -> None:
    host = HOSTS[name].format(port=site.authority.partition(":")[2])
    headers = {"Host": host, "Origin": f"http://{host}"}
    for answer in (site.ask(path, headers=headers), site.ask(path, headers={"Host": host})):
        assert answer.status in (400, 403)
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9000", "[::1]", "[::1]:7860"])
def test_our_own_names_are(host: str, site: Site) -> None:
    assert site.ask("/config", headers={"Host": host}).status == 200


ORIGINS = {
    "evil": "http://evil.example",
    "null": "null",
    "another port": "http://127.0.0.1:1",
    "the other name": "http://localhost:{port}",
    "ends as ours": "http://evil.example/127.0.0.1:{port}",
    "begins as ours": "http://127.0.0.1:{port}.evil.example",
    "a file": "file://",
    "an extension": "chrome-extension://abcdef",
    "nothing": "",
}


@pytest.mark.parametrize("name", ORIGINS)
def test_another_page_may_ask_for_nothing(name: str, site: Site) -> None:
    origin = ORIGINS[name].format(port=site.authority.partition(":")[2])
    before = len(site.called)
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for answer in (
        site.post("/gradio_api/call/say", {"data": ["hello"]}, {"Origin": origin}),
        site.post(
            "/gradio_api/queue/join", {"data": ["hello"], "fn_index": 0, "session_hash": "a"}, {"Origin": origin}
        ),
        site.upload("a.txt", b"words", {"Origin": origin}),
        site.ask("/config", headers={"Origin": origin}),
        site.ask("/gradio_api/queue/data?session_hash=a", headers={"Origin": origin}),
        site.ask("/gradio_api/call/say", "OPTIONS", headers=preflight),
    ):
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers
    assert len(site.called) == before


def test_our_own_page_may(small_site: Site) -> None:
    for host in (small_site.authority, f"localhost:{small_site.authority.partition(':')[2]}"):
        own = {"Host": host, "Origin": f"http://{host}"}
        assert small_site.post("/gradio_api/call/say", {"data": ["hello"]}, own).status == 200


@pytest.mark.parametrize("mode", ["no-cors", "cors", "websocket", ""])
@pytest.mark.parametrize("relation", ["cross-site", "same-site"])
def test_another_page_may_not_embed_us(mode: str, relation: str, site: Site) -> None:
    headers = {"Sec-Fetch-Site": relation, "Sec-Fetch-Mode": mode}
    assert site.ask(FILE + site.published, headers=headers).status == 403
    assert site.ask("/", headers=headers).status == 403


def test_a_link_to_us_works_and_no_frame_holds_us(site: Site) -> None:
    answer = site.ask("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
    assert answer.status == 200
    assert answer.headers["x-frame-options"] == "DENY"
    policy = answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy and "*" not in policy  # no other place is named


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-For", "X-Gradio-Server", "Forwarded", "X-Forwarded-Prefix"],
)
def test_nobody_else_says_where_we_are(header: str, site: Site) -> None:
    answer = site.ask("/", headers={header: "evil.example"})
    assert answer.status == 200
    assert b"evil.example" not in answer.body


@pytest.mark.parametrize("path", ["/", "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/heartbeat/a"])
def test_no_websocket(path: str, site: Site) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
    }
    if path.endswith(("data", "a")):
        headers["Origin"] = "http://evil.example"
    assert site.ask(path, headers=headers).status != 101


# Broken and huge ------------------------------------------------------------------------------------------------------


def raw(site: Site, text: bytes) -> bytes:
    """The first bytes of the answer to what is no proper request."""
    name, _, port = site.authority.partition(":")
    with contextlib.closing(socket.create_connection((name, int(port)), timeout=20)) as connection:
        connection.sendall(text)
        return connection.recv(100)


@pytest.mark.parametrize(
    "text",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"POST /gradio_api/call/say HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /gradio_api/call/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /gradio_api/call/say HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
    ids=range(13),
)
def test_a_broken_request_is_refused(text: bytes, site: Site) -> None:
    answer = raw(site, text + (b"\r\n\r\n" if text.startswith(b"\x16") else b""))
    assert answer == b"" or answer.split()[1][:1] == b"4"
    assert site.ask("/config").status == 200


@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000 + b"]" * 200_000, b"{", b"\xff\xfe", b'{"data": ' + b"9" * 5000 + b"}", b'{"data": NaN'],
    ids=["deep", "cut", "no text", "digits", "not a number"],
)
def test_a_body_that_is_no_json_is_refused(body: bytes, site: Site) -> None:
    assert site.post("/gradio_api/call/say", body).status == 400


def test_ten_megabytes_of_text_are_refused(site: Site) -> None:
    answer = site.post("/gradio_api/call/say", {"data": ["a" * 10**7]})
    assert answer.status == 413
    assert b"2,097,152 bytes" in answer.body
