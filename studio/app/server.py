"""The app's server: who may reach it, what it serves, and that Gradio never listens by itself.

``launch`` makes two folders below home for this process, one of what the page publishes and one of what is uploaded;
nothing else is ever served, above all not home itself, which holds the store and all runs. Whoever builds the page gets
the first of them, and publishes a file by linking or copying it there (see ``shelf``). Both go when the server does;
those of a server that was killed go at the next start.
"""

import contextlib
import fcntl
import hmac
import ipaddress
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.app.guard import Guard, Rules
from studio.app.uploads import LARGEST_UPLOAD, MOST_PIXELS

LOOPBACK = "127.0.0.1"
FIRST_PORT, PORTS = 7860, 100
"""Where a free port is looked for, and how many are tried."""
_AUTH_VARIABLE = "DREAMKILN_AUTH"
_SHORTEST_PASSWORD = 8
_SLOW = 1.0
"""Seconds that a wrong password costs."""
_UPLOADS_KEPT = 24 * 3600
"""Seconds."""
_SESSIONS = 64
"""Visitors whose state is kept."""


class AddressError(ValueError):
    """The app cannot, or must not, listen where it was told to; in words."""


@dataclass(frozen=True)
class Account:
    """Who may use the app."""

    name: str
    password: str

    def __repr__(self) -> str:
        """Without the password."""
        return f"Account({self.name!r})"

    def admits(self, name: str, password: str) -> bool:
        """Whether this is the name and the password, in a time that tells nothing about either."""
        right = hmac.compare_digest(name.encode(), self.name.encode())
        return hmac.compare_digest(password.encode(), self.password.encode()) and right


def account(option: str | None) -> Account | None:
    """The account of ``--auth NAME:PASSWORD``, else of the environment's DREAMKILN_AUTH, which lists of processes hide.

    Raises:
        AddressError: not of this form.
    """
    text = option or os.environ.get(_AUTH_VARIABLE)
    if not text:
        return None
    name, colon, password = text.partition(":")
    if not (name.strip() and colon and password):
        raise AddressError(f"--auth and {_AUTH_VARIABLE} are of the form NAME:PASSWORD.")
    return Account(name.strip(), password)


def require_safe(host: str, who: Account | None) -> None:
    """Refuse to listen to other machines without a password.

    Raises:
        AddressError: with what to do.
    """
    if is_loopback(host):
        return
    if who is None:
        raise AddressError(
            f"Listening on {host} lets other machines in, so a password is needed: set {_AUTH_VARIABLE}=NAME:PASSWORD "
            f"(or --auth NAME:PASSWORD). Without one, listen on {LOOPBACK} and reach it by "
            f"`ssh -L {FIRST_PORT}:{LOOPBACK}:{FIRST_PORT} THIS_MACHINE`."
        )
    if len(who.password) < _SHORTEST_PASSWORD:
        raise AddressError(f"For other machines the password needs {_SHORTEST_PASSWORD} characters or more.")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def launch(
    build: Callable[[Path], Any],
    home: Path,
    host: str = LOOPBACK,
    port: int | None = None,
    auth: str | None = None,
    ready: Callable[[str], None] = lambda url: None,
    looks: Callable[[], dict[str, Any]] = dict,
    **page: Any,
) -> None:
    """Serve the page until the process is asked to end.

    Args:
        build: makes the ``gr.Blocks``, given the folder whose files are served. Gradio must not be imported before.
        home: folder of runs.
        host: to listen on; anything but this machine alone needs ``auth``.
        port: to listen on; the first free one from 7860 without it.
        auth: NAME:PASSWORD; the environment's DREAMKILN_AUTH without it.
        ready: is told the page's address once it answers.
        looks: gives more of ``page``, for what needs Gradio imported.
        page: theme, css, js, head and what else ``gr.mount_gradio_app`` makes of a page.

    Raises:
        AddressError: where to listen is refused or not possible; in words.
    """
    with _prepared(build, home, host, port, auth, looks, page) as (server, listening, url):
        with contextlib.ExitStack() as end:
            done = threading.Event()
            teller = threading.Thread(target=_tell, args=(server, done, ready, url), daemon=True)
            teller.start()
            end.callback(teller.join, 2)
            end.callback(done.set)
            server.run(sockets=[listening])


@contextlib.contextmanager
def serving(
    build: Callable[[Path], Any],
    home: Path,
    host: str = LOOPBACK,
    port: int | None = None,
    auth: str | None = None,
    looks: Callable[[], dict[str, Any]] = dict,
    **page: Any,
) -> Iterator[str]:
    """The same in a thread of its own, for as long as the context lasts; gives the page's address.

    Raises:
        AddressError: where to listen is refused or not possible; in words.
    """
    with _prepared(build, home, host, port, auth, looks, page) as (server, listening, url):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="app")
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise AddressError(f"The page at {url} did not come up; what was written above says why.")
                time.sleep(0.02)
            yield url
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def _prepared(
    build: Callable[[Path], Any],
    home: Path,
    host: str,
    port: int | None,
    auth: str | None,
    looks: Callable[[], dict[str, Any]],
    page: dict[str, Any],
) -> Iterator[tuple[Any, socket.socket, str]]:
    """A server that need only be run, its socket and its address."""
    who = account(auth)
    require_safe(host, who)
    with contextlib.ExitStack() as end:
        listening = end.enter_context(contextlib.closing(_listen(host, port)))
        shown = LOOPBACK if host in ("", "0.0.0.0") else "[::1]" if host == "::" else _bracketed(host)
        url = f"http://{shown}:{listening.getsockname()[1]}/"
        served, uploads = end.enter_context(_own_folders(home))
        _set_environment(uploads)
        application = _application(build(served), served, uploads, who, {**looks(), **page})
        pages = frozenset(f"/{name}" for name, *_ in application.state.pages if name)
        wide = not is_loopback(host)
        rules = Rules(_names(host), served, uploads, any_address=wide and _is_any(host), pages=pages)
        yield _server(Guard(application, rules)), listening, url


def _set_environment(uploads: Path) -> None:
    """What Gradio reads out of the environment when it is imported or a page is built."""
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_TEMP_DIR=str(uploads),
        GRADIO_EXAMPLES_CACHE=str(uploads / "examples"),
        GRADIO_MCP_SERVER="False",
        GRADIO_SSR_MODE="False",
        GRADIO_VIBE_MODE="",
    )
    os.environ.pop("GRADIO_LOCAL_DEV_MODE", None)


def _application(blocks: Any, served: Path, uploads: Path, who: Account | None, page: dict[str, Any]) -> Any:
    """Gradio's page in an application of ours."""
    import gradio as gr
    from fastapi import FastAPI
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    # A value of a component that lies in the served folder is served from there, not copied into a cache.
    gr.set_static_paths([served])
    blocks.delete_cache = (3600, _UPLOADS_KEPT)
    # Gradio keeps a quarter of a megabyte for each of its last 10,000 visitors, and every call of the API is a new one.
    # The page's state is in the browser, so those who are forgotten miss nothing.
    blocks.state_session_capacity = _SESSIONS
    application = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        auth=None if who is None else _doorkeeper(who),
        allowed_paths=[str(served)],
        show_error=True,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        **{"footer_links": ["api"], **page},
    )
    blocks.has_launched = True  # Gradio judges paths only then, and mounting leaves it out
    application.state.pages = blocks.pages
    return application


def _doorkeeper(who: Account) -> Callable[[str, str], Any]:
    async def admits(name: str, password: str) -> bool:
        import anyio

        if who.admits(name, password):
            return True
        await anyio.sleep(_SLOW)
        return False

    return admits


def _server(application: Any) -> Any:
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            application,
            lifespan="on",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
    )


def _tell(server: Any, done: threading.Event, ready: Callable[[str], None], url: str) -> None:
    while not done.wait(0.02):
        if server.started:
            ready(url)
            return


# Addresses ------------------------------------------------------------------------------------------------------------


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens.

    Raises:
        AddressError: there is no such address here, or no free port.
    """
    if port is not None and not 0 <= port <= 65_535:  # some systems would take what is left of it
        raise AddressError(f"A port is a number from 0 to 65,535, not {port}.")
    wanted = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else (port,)
    for number in wanted:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host.strip("[]") or None, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listening = socket.socket(family, kind, protocol)
        except OSError as problem:
            raise AddressError(f"There is no address {host!r} here: {problem}.") from problem
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(128)
            return listening
        except OSError as problem:
            listening.close()
            if port is not None:
                raise AddressError(f"Port {port} of {host} cannot be used: {problem.strerror}.") from problem
    raise AddressError(f"No port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free; name another with --port.")


def _is_any(host: str) -> bool:
    return host.strip("[]") in ("", "0.0.0.0", "::")


def _bracketed(host: str) -> str:
    return f"[{host.strip('[]')}]" if ":" in host else host


def _names(host: str) -> frozenset[str]:
    """Names that a request may call this machine."""
    names = {"localhost", LOOPBACK, "[::1]"}
    if _is_any(host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    else:
        names.add(_bracketed(host).lower())
    return frozenset(names)


# Folders --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _own_folders(home: Path) -> Iterator[tuple[Path, Path]]:
    """Folders of this process for what is served and what is uploaded, on home's file system, readable by us alone."""
    above = home.absolute() / ".app"
    above.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(above)
    own = Path(tempfile.mkdtemp(dir=above))
    served, uploads = own / "served", own / "uploads"
    served.mkdir()
    uploads.mkdir()
    with (own / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield served.resolve(), uploads.resolve()
        finally:
            shutil.rmtree(own, ignore_errors=True)


def _clear_abandoned(above: Path) -> None:
    """Remove the folders of servers that are no more: nobody holds their lock."""
    for lock in above.glob("*/.lock"):
        with contextlib.suppress(OSError), lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
