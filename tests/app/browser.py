"""A real Chromium for tests of the page, and what is asked of it again and again."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
_HARMLESS = ("WebGPU", "GPU stall", "No available adapters")
"""Said by a browser without a GPU."""
_ABORTED = ("AbortError", "Unexpected error Connection errored out")
"""Said by a page that is left while its server is answering it."""


def chromium() -> str:
    """The machine's browser; skips where there is none, fails where there must be one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    missing = "a Chromium is needed to test the page, e.g. apt-get install chromium"
    if os.environ.get("DREAMKILN_REQUIRE_BROWSER"):
        pytest.fail(missing)
    pytest.skip(missing)


@contextmanager
def browser() -> "Iterator[Browser]":
    """A running one."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        try:
            yield running
        finally:
            running.close()


@dataclass
class Visit:
    """A page, and everything on it that should not have happened."""

    page: "Page"
    strangers: list[str] = field(default_factory=list)
    """Requests to another host."""
    complaints: list[str] = field(default_factory=list)
    """Errors of scripts, and answers that are errors."""

    def reload(self) -> None:
        """Load the page anew; that requests which were under way then are aborted is no fault of it."""
        before = len(self.complaints)
        self.page.reload()
        self.complaints[before:] = [c for c in self.complaints[before:] if not c.startswith(_ABORTED)]

    def viewer(self) -> None:
        """Wait until the viewer of meshes has begun to draw: left before that, it complains of its own absence."""
        self.page.wait_for_function("![300, undefined].includes(document.querySelector('#dk-mesh canvas')?.width)")

    def flawless(self) -> None:
        """Fail if anything went wrong on the page."""
        assert self.strangers == [] and self.complaints == []


def visit(running: "Browser", url: str, size: tuple[int, int] = (1280, 900), scheme: str = "light") -> Visit:
    """Open a page in a window of its own and wait until it can be used."""
    context = running.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,  # type: ignore[arg-type]
        accept_downloads=True,
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    seen = Visit(page)
    own = url.split("?")[0]

    def ask(request) -> None:  # type: ignore[no-untyped-def]
        if not request.url.startswith((own, "data:", "blob:")):
            seen.strangers.append(request.url)

    def answer(response) -> None:  # type: ignore[no-untyped-def]
        if response.status >= 400:
            seen.complaints.append(f"{response.status} {response.url}")

    def say(message) -> None:  # type: ignore[no-untyped-def]
        if message.type == "error" and not any(word in message.text for word in _HARMLESS):
            seen.complaints.append(message.text)

    page.on("request", ask)
    page.on("response", answer)
    page.on("console", say)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.goto(url)
    page.locator("#dk-generate").wait_for()
    return seen


def coloured(picture: Path | bytes, sample: tuple[int, int, int], tolerance: int = 90) -> float:
    """Share of a picture's pixels that are about this colour."""
    import io

    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return float((np.abs(pixels - np.array(sample)).max(-1) < tolerance).mean())
