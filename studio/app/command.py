"""``studio ui``: the app in a browser, with a worker for each device."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from studio.arguments import Folders, MaybeNumber, MaybeSize, MaybeText
from studio.cli import BAD_USAGE, OK


@dataclass(frozen=True)
class Ui:
    """Open the app: it makes, shows, edits and exports objects in a browser.

    Jobs go on with the page closed. Ctrl-C ends app and workers; a job that was running is queued again, and goes on
    from where it was at the next start.
    """

    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own needs a password."""
    port: MaybeNumber = None
    """Port to listen on; the first free one from 7860 without it."""
    runs: Path = Path("runs")
    """Folder of the runs and of the queue."""
    device: tuple[str, ...] = ("auto",)
    """Devices that work, each with a worker of its own: auto, cpu, cuda, cuda:1, ..."""
    priors: Folders = ()
    """Folders whose folders are priors to choose from, in diffusers' layout."""
    quota: MaybeSize = None
    """Most that the runs may take of the disk, e.g. 20GB; the oldest previews go first, and never an asset."""
    auth: MaybeText = None
    """NAME:PASSWORD that the page asks for; better in the environment as DREAMKILN_AUTH, which no list shows."""


def ui(arguments: list[str]) -> int:
    """``studio ui``."""
    options = tyro.cli(Ui, args=arguments, prog="studio ui")
    from studio.app.server import AddressError, account, require_safe
    from studio.folder import RunError
    from studio.jobs.job import StoreError
    from studio.verbs import complain, in_words

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, and not at once
    try:
        require_safe(options.host, account(options.auth))  # before any process is started
        _serve(options)
    except KeyboardInterrupt:
        _say("Stopped. Unfinished jobs go on at the next start.")
    except OSError as problem:
        return complain(in_words(problem), BAD_USAGE)
    except (AddressError, RunError, StoreError, ValueError) as problem:
        return complain(str(problem), BAD_USAGE)
    finally:
        signal.signal(signal.SIGTERM, before)
    return OK


def _serve(options: Ui) -> None:
    from studio.app.form import listed_priors, require_priors
    from studio.app.server import launch
    from studio.jobs.quota import bytes_of
    from studio.jobs.supervisor import Workers
    from studio.run import choose_device

    for root in options.priors:
        require_priors(root)
    home = options.runs.absolute()
    home.mkdir(parents=True, exist_ok=True)
    for device in options.device:
        choose_device(device)
    devices = None if options.device == ("auto",) else list(options.device)
    quota = None if options.quota is None else bytes_of(options.quota)
    priors = listed_priors(options.priors)

    def build(served: Path) -> Any:
        from studio.app.page import build_page
        from studio.app.service import Service
        from studio.app.shelf import Shelf

        return build_page(Service(home, priors), Shelf(served))

    def looks() -> dict[str, Any]:
        from studio.app.looks import launch_options

        return launch_options()

    def ready(url: str) -> None:
        _say(f"Dreamkiln is at {url}   (runs in {home}; Ctrl-C ends it)")

    _say("Starting ...")
    with Workers(home, devices, quota):
        try:
            launch(build, home, options.host, options.port, options.auth, ready, looks)
        finally:
            _say("Stopping; a job at work is queued again at its next step ...")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
