"""Hostile prompts are data: through requests, the store, names of folders, commands, and the page in a browser."""

import contextlib
import dataclasses
import json
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from studio.app import panels
from studio.app.service import Run, Service
from studio.app.shell import generate_command
from studio.codec import decode, encode
from studio.folder import free_name, slug
from studio.jobs.progress import Progress
from studio.jobs.store import Item, Store
from studio.options import Generate, build_request
from studio.recipes import RECIPES
from studio.request import LONGEST_PROMPT, Request, check
from studio.restore import restore
from studio.templates import expand
from tests.security.conftest import Site

PROMPTS = {
    "configuration language": "a cat ${oc.env:HOME}",
    "shell": "$(touch pwned) `touch pwned`; touch pwned && touch pwned",
    "SQL": "'; DROP TABLE jobs; --",
    "more SQL": 'a" OR 1=1; DELETE FROM jobs WHERE ("1"="1',
    "a wildcard": "100% _ % \\ [a-z]* ?",
    "script": "<script>window.pwned = 1</script>",
    "an attribute": "\" onmouseover='window.pwned=1' x=\"",
    "a picture": "<img src=x onerror=window.pwned=1>",
    "a template of a page": "${window.pwned=1} {{constructor.constructor('window.pwned=1')()}} {% raw %}",
    "a template literal": "`+(window.pwned=1)+`",
    "an entity": "&lt;script&gt; &#x3c;b&#x3e;",
    "a comment": "--><!-- ]]> */ //",
    "a link": "[click](javascript:window.pwned=1) ![x](http://evil.example/x.png)",
    "a path": "../../../../etc/passwd",
    "a home": "~root/.ssh/id_ed25519",
    "a Windows path": "..\\..\\windows\\con.txt: nul",
    "an option": "--out=/etc/passwd -rf",
    "formats": "%s %n %x {0.__class__} {prompt!r} %(a)s",
    "control characters": "a\0b\x07c\x1b[31md\x7f\r\n\te",
    "right to left": "a \u202egpj.exe\u202c \u2066mug\u2069",
    "no width": "a\u200bmug\ufeff\u00ad",
    "many marks": "a" + "\u0301" * 200,
    "letters that look alike": "\u0430 \u043cug",
    "emoji": "\U0001f9d1\u200d\U0001f680" * 20,
    "JSON": '{"is": "Request", "prompt": 1}',
    "a formula": '=HYPERLINK("http://evil.example", "x")',
    "only dots": "....",
    "only spaces of other kinds": "\u2003\u3000a\u00a0",
}


@pytest.fixture(params=PROMPTS)
def prompt(request: pytest.FixtureRequest) -> str:
    """Each of them."""
    return PROMPTS[request.param]


def asking(prompt: str) -> Request:
    """The draft of a prompt."""
    return RECIPES["draft"](prompt, True)


def test_a_request_keeps_it(prompt: str, tmp_path: Path) -> None:
    assert build_request(Generate(prompt), []).prompt == prompt
    text = json.dumps(encode(asking(prompt)))
    assert decode(Request, json.loads(text)).prompt == prompt
    (tmp_path / "request.json").write_text(text)
    assert restore(tmp_path / "request.json").request.prompt == prompt
    assert not [p for p in check(asking(prompt)) if p.severity == "error"]


def test_a_template_without_choices_keeps_it(prompt: str) -> None:
    braces = "{" in prompt or "}" in prompt
    if not braces or prompt == PROMPTS["configuration language"]:
        assert expand(prompt) == [prompt]


def test_the_store_keeps_it(prompt: str, runs: Path) -> None:
    store = Store(runs)
    (other,) = store.submit(asking("x"), [Item("a red mug", 0)])
    (job,) = store.submit(asking("x"), [Item(prompt, 3)], batch=prompt[:50], folders=True)
    assert store.job(job).prompt == prompt
    assert store.request(store.job(job)).prompt == prompt
    assert job in [found.id for found in store.jobs(search=prompt)]
    assert store.jobs(search="red mug")[0].id == other
    assert store.counts()["queued"] == 2


def test_a_folder_is_named_harmlessly(prompt: str, runs: Path) -> None:
    for folder in (
        free_name(runs, prompt),
        Store(runs).job(Store(runs).submit(asking(""), [Item(prompt, 0)])[0]).folder,
    ):
        assert folder.parent == runs
        assert set(folder.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert not folder.name.startswith("-")
    assert 0 < len(slug(prompt)) <= 48


def test_a_command_quotes_it(prompt: str) -> None:
    words = shlex.split(generate_command(dataclasses.replace(asking(prompt), negative=prompt)))
    assert words[2] == (f" {prompt}" if prompt.startswith("-") else prompt)  # or it would be taken for an option
    assert f"--negative={prompt}" in words or words[words.index("--negative") + 1] == prompt


class Tags(HTMLParser):
    """What a piece of HTML consists of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> Tags:
    """A piece of HTML, read."""
    tags = Tags()
    tags.feed(html)
    tags.close()
    return tags


def test_the_page_shows_it_as_text(prompt: str, runs: Path) -> None:
    service = Service(runs, {"toybox-64": "toybox-64"})
    (job,) = service.store.submit(asking("x"), [Item(prompt, 0)], folders=True)
    run = service.find(job)
    assert run is not None
    folder = Run("name", runs / "name", None)

    def pieces(words: str) -> list[str]:
        progress = Progress()
        progress.warnings.append(words)
        return [
            panels.strip(run, words, progress, 1, False, words),
            panels.history([(run, words, 0), (folder, words, 1)], words),
            panels.history([], words),
            panels.welcome([(run, words, 0)]),
        ]

    for hostile, plain in zip(pieces(prompt), pieces("abc"), strict=True):
        assert parsed(hostile).tags == parsed(plain).tags
    shown = parsed(pieces(prompt)[0]).text
    assert prompt.replace("\0", "").replace("\r", "")[:4] in shown.replace("\0", "").replace("\r", "")


# Ten megabytes --------------------------------------------------------------------------------------------------------


def test_ten_megabytes_are_refused_in_few_words(tmp_path: Path) -> None:
    huge = "a" * 10**7
    (problem, *_) = check(asking(huge))
    assert f"10000000 characters; shorten it to {LONGEST_PROMPT}" in problem.text
    assert len(slug(huge)) <= 48
    (tmp_path / "request.json").write_text(json.dumps(encode(asking(huge))))
    with pytest.raises(ValueError, match="at most 1,048,576 bytes"):
        restore(tmp_path / "request.json")


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium here")
def test_a_browser_runs_none_of_them_and_asks_nobody_else(studio_site: Site) -> None:
    from playwright.sync_api import sync_playwright

    shown = {name: text for name, text in PROMPTS.items() if name not in ("many marks", "control characters")}
    store = Store(studio_site.home)
    jobs = dict(zip(shown, store.submit(asking("x"), [Item(text, 0) for text in shown.values()]), strict=True))
    elsewhere: list[str] = []
    with sync_playwright() as playwright, contextlib.ExitStack() as end:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        end.callback(browser.close)
        page = browser.new_page()
        page.on(
            "request",
            lambda r: None if r.url.startswith((studio_site.url, "data:", "blob:")) else elsewhere.append(r.url),
        )
        page.on("dialog", lambda dialog: elsewhere.append(dialog.message))
        for name in ("script", "a picture", "a template of a page", "an attribute"):
            page.goto(f"{studio_site.url}?job={jobs[name]}")
            page.wait_for_selector(".dk-strip h2", timeout=60_000)
            assert page.inner_text(".dk-strip h2") == " ".join(shown[name].split())
        for text in shown.values():
            assert " ".join(text.split()) in " ".join(page.inner_text("body").split()) or text.startswith("\u2003")
        assert page.evaluate("window.pwned") is None
    assert not elsewhere
    for job in jobs.values():
        store.cancel(job)
