"""A page in a real headless Chromium, with what it complains about and what it asks of others."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.app.browser import browser


class Tab:
    """A page, through what its tests need."""

    def __init__(self, page: Any):
        self._page = page
        self.problems: list[str] = []
        """Errors of scripts, and refusals of the page's own policy."""
        self.strangers: list[str] = []
        """Requests that did not stay on this machine's files."""
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: said.type == "error" and self.problems.append(said.text))
        page.on("request", lambda asked: asked.url.startswith("file:") or self.strangers.append(asked.url))

    def open(self, path: Path) -> None:
        self._page.goto(path.as_uri())

    def title(self) -> str:
        return self._page.title()

    def run(self, script: str) -> Any:
        return self._page.evaluate(script)

    def wait(self, script: str) -> None:
        until = time.monotonic() + 30
        while not self.run(script):  # Playwright's own way to wait is what the page's policy forbids
            assert time.monotonic() < until, script
            self._page.wait_for_timeout(50)

    def hover(self, selector: str) -> None:
        self._page.locator(selector).first.hover()

    def fill(self, selector: str, text: str) -> None:
        self._page.fill(selector, text)

    def reload(self) -> None:
        self._page.reload()


@contextlib.contextmanager
def opened(path: Path, width: int) -> Iterator[Tab]:
    """A file in a tab of ``width`` pixels; skips where there is no Chromium."""
    with browser() as running:
        tab = Tab(running.new_page(viewport={"width": width, "height": 800}))
        tab.open(path)
        yield tab
