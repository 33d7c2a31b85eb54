"""What stands between the network and Gradio: an ASGI application around it, which lets through what the app needs.

Gradio is made to be shared; this app is not. So: only our own names as Host (a page elsewhere that points its name at
this machine gets nothing, and no permissive CORS header either), only our own pages as Origin, only the routes that
the page uses (no proxy, no fetching of addresses, no streams, no editor of the app's own code), only files from two
folders, bodies of limited size, and no file named in a body that was not uploaded here.
"""

import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.app.uploads import LARGEST_UPLOAD, check_upload
from studio.jobs.quota import size_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

LARGEST_BODY = 2 * 2**20
"""Bytes of a request that is no upload."""
LARGEST_STORE = 2 * 2**30
"""Bytes of all uploads together."""

_FILE = "/gradio_api/file="
_UPLOAD = "/gradio_api/upload"
_PLAIN = {"/", "/config", "/favicon.ico", "/login", "/logout", "/manifest.json", "/robots.txt", "/theme.css"}
_FOLDERS = ("/assets/", "/static/", "/svelte/")
_API = re.compile(
    r"/gradio_api/(app_id|cancel|heartbeat/\w+|info|login_check|queue/(data|join|status)|reset|startup-events|theme\.css"
    r"|token|upload|upload_progress|user|(api|call|run)/[\w-]+(/\w+)?)/?"
)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?")
_DROPPED = (b"forwarded", b"x-forwarded-", b"x-gradio-server", b"x-real-ip")
"""Headers in which a proxy says who it is: believed, they would let anybody name the address of this page."""
_POLICY = "; ".join(
    (
        "default-src 'self' blob: data:",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "frame-ancestors 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
"""The page talks to this machine alone, whatever a file that it shows refers to."""
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_FILE_HEADERS = {**_HEADERS, "content-security-policy": "default-src 'none'; sandbox allow-downloads"}


class Refused(Exception):
    """A request that is not let through: a status and a sentence."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text


@dataclass(frozen=True)
class Rules:
    """What is let through."""

    hosts: frozenset[str]
    """Names of this machine, lower case, addresses of version 6 in brackets; with any port."""
    served: Path
    """Folder of what may be fetched."""
    uploads: Path
    """Folder of what was uploaded, which may be fetched and named too."""
    any_address: bool = False
    """Let through any Host that is an address: to lead a visitor's browser here by a name needs a name."""
    pages: frozenset[str] = frozenset()
    """Paths of further pages."""


class Guard:
    """An ASGI application that asks ``rules`` before it asks ``app``."""

    def __init__(self, app: Application, rules: Rules):
        self.app, self.rules = app, rules

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            if scope["type"] != "http":
                raise Refused(403, "Only HTTP is spoken here.")
            await self._serve(scope, receive, send)
        except Refused as refusal:
            await _answer(send, refusal.status, refusal.text, websocket=scope["type"] == "websocket")

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        _check_host(headers, self.rules)
        _check_origin(headers)
        path = scope["path"]
        _check_path(path, self.rules)
        _check_length(scope["method"], headers, path.rstrip("/") == _UPLOAD)
        scope = {**scope, "headers": [h for h in scope["headers"] if not h[0].lower().startswith(_DROPPED)]}
        if path.startswith(_FILE):
            _check_file(path, self.rules)
            await self.app(scope, receive, _with_headers(send, _FILE_HEADERS))
        elif path.rstrip("/") == _UPLOAD:
            await self._upload(scope, receive, send, headers)
        elif scope["method"] == "POST":
            body = await _whole(receive)
            _check_body(body, headers, self.rules)
            await self.app(scope, _replayed(body, receive), _with_headers(send, _HEADERS))
        else:
            await self.app(scope, receive, _with_headers(send, _HEADERS))

    async def _upload(self, scope: Message, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        """Let Gradio store the files, look at them, and only then say where they are."""
        import anyio.to_thread

        kept = await anyio.to_thread.run_sync(size_of, self.rules.uploads)
        if kept + int(headers["content-length"]) > LARGEST_STORE:
            raise Refused(507, "There is no room for further uploads; start the app again to clear them away.")
        messages: list[Message] = []

        async def hold(message: Message) -> None:
            messages.append(message)

        await self.app(scope, receive, hold)
        await anyio.to_thread.run_sync(_check_uploaded, messages, self.rules.uploads)
        for message in messages:
            await _with_headers(send, _HEADERS)(message)


# Rules ----------------------------------------------------------------------------------------------------------------


def _check_host(headers: dict[str, str], rules: Rules) -> None:
    match = _HOST.fullmatch(headers.get("host", "").lower())
    name = match[1] if match else ""
    if name not in rules.hosts and not (rules.any_address and _is_address(name)):
        raise Refused(
            403, "This address does not answer to that name. Open it by the one that was printed at its start."
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _check_origin(headers: dict[str, str]) -> None:
    """Refuse what another page's script, form or picture asks for; following a link to this page is fine."""
    origin = headers.get("origin")
    if origin is not None and origin.lower().partition("://")[2] != headers["host"].lower():
        raise Refused(403, "Only this app's own pages may ask for this.")
    foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if foreign and headers.get("sec-fetch-mode") != "navigate":
        raise Refused(403, "Only this app's own pages may ask for this.")


def _check_path(path: str, rules: Rules) -> None:
    strange = any(ord(c) < 32 or ord(c) == 127 or c in "\\%" for c in path)  # a % is left if it was encoded twice
    if strange or ".." in path.split("/"):
        raise Refused(403, "There is no such place.")
    known = path in _PLAIN or path.startswith((*_FOLDERS, _FILE)) or _API.fullmatch(path) or path in rules.pages
    if not known:
        raise Refused(404, "There is no such place.")


def _check_file(path: str, rules: Rules) -> None:
    if not _is_within(path.removeprefix(_FILE), (rules.served, rules.uploads)):
        raise Refused(403, "There is no such file.")


def _is_within(name: str, folders: Collection[Path]) -> bool:
    """Whether an absolute path, links followed, is that of a file in one of the folders."""
    try:
        file = Path(name).resolve(strict=True) if name.startswith("/") else None
        return file is not None and file.is_file() and any(file.is_relative_to(f.resolve()) for f in folders)
    except (OSError, RuntimeError, ValueError):
        return False


def _check_length(method: str, headers: dict[str, str], upload: bool) -> None:
    if method not in ("GET", "HEAD", "OPTIONS", "POST"):
        raise Refused(405, f"{method} is not used here.")
    length = headers.get("content-length", "0" if method != "POST" or upload else "")
    if "transfer-encoding" in headers or (upload and "content-length" not in headers):
        raise Refused(411, "The length has to be said beforehand.")
    if not re.fullmatch(r"\d{0,12}", length):
        raise Refused(400, "That is no length.")
    most = LARGEST_UPLOAD if upload else LARGEST_BODY
    if int(length or 0) > most + 2**16:
        raise Refused(413, f"At most {most:,} bytes can be sent.")


def _check_body(body: bytes, headers: dict[str, str], rules: Rules) -> None:
    """Refuse JSON that names a file which is not here, or an address from which it would have to be fetched."""
    if not body or headers.get("content-type", "").startswith(("application/x-www-form-urlencoded", "multipart/")):
        return
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise Refused(400, "The body is no JSON that can be read.") from problem
    for value in _objects(tree):
        path, url = value.get("path"), value.get("url")
        if isinstance(path, str) and path and not _is_within(path, (rules.served, rules.uploads)):
            raise Refused(403, "Files are uploaded; nothing is fetched, and nothing else on this machine is read.")
        if "path" in value and isinstance(url, str) and not _is_own(url, headers["host"]):
            raise Refused(403, "Files are uploaded; nothing is fetched.")


def _is_own(url: str, host: str) -> bool:
    place = re.sub(r"^https?://", "", url) if url.lower().startswith(("http://", "https://")) else host + url
    return not url or (place.startswith(f"{host}/") and not url.startswith("//"))


def _objects(tree: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object, without recursion."""
    rest = [tree]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            yield value
            rest += value.values()
        elif isinstance(value, list):
            rest += value


def _check_uploaded(messages: list[Message], uploads: Path) -> None:
    """Look at the files that Gradio says it stored; all go if one is refused."""
    status = messages[0].get("status") if messages else 500
    if status != 200:
        return
    names = json.loads(b"".join(m.get("body", b"") for m in messages))
    files = [Path(name) for name in names]
    try:
        for file in files:
            if not _is_within(str(file), (uploads,)):
                raise ValueError("that is no name for a file")
            check_upload(file)
    except (OSError, ValueError) as problem:
        for file in files:
            file.unlink(missing_ok=True)
        raise Refused(415, str(problem)) from problem


# Plumbing -------------------------------------------------------------------------------------------------------------


def _headers(scope: Message) -> dict[str, str]:
    """Headers by lower-case name.

    Raises:
        Refused: one of those that decide is there twice.
    """
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in found and key in ("host", "origin", "content-length"):
            raise Refused(400, f"There are two headers {key}.")
        found[key] = value.decode("latin-1")
    return found


def _with_headers(send: Send, headers: dict[str, str]) -> Send:
    """``send`` that sets these headers of a response."""
    ours = {name.encode(): value.encode() for name, value in headers.items()}

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            rest = [pair for pair in message.get("headers", []) if pair[0].lower() not in ours]
            message = {**message, "headers": [*rest, *ours.items()]}
        await send(message)

    return sending


async def _whole(receive: Receive) -> bytes:
    """The body; its length was checked before, and the server holds the sender to it."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """``receive`` that gives the body once more, then whatever comes."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return first.pop() if first else await receive()

    return receiving


async def _answer(send: Send, status: int, text: str, websocket: bool = False) -> None:
    if websocket:
        await send({"type": "websocket.close", "code": 1008, "reason": text})
        return
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": status, "headers": headers}
    await _with_headers(send, _HEADERS)(start)
    await send({"type": "http.response.body", "body": body})
