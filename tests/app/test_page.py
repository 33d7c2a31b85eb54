"""The page and its API over a home with a finished run and a queue that nobody works on."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from studio.app.form import Form
from studio.app.service import Service
from tests.app.browser import browser, coloured, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.timeout(300)
HOSTILE = "<img src=x onerror=window.caught=1> ' \" & a mug"


@pytest.fixture(scope="module")
def address(made: Path, tiny_prior: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Service]]:
    """The page's address, and a studio over the same home."""
    home = tmp_path_factory.mktemp("page") / "runs"
    shutil.copytree(made, home)
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.app.site", str(home), str(tiny_prior)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        yield process.stdout.readline().strip(), Service(home, {"toybox-64": "toybox-64", "tiny": str(tiny_prior)})
        process.stdin.close()
        process.wait(30)


@pytest.fixture(scope="module")
def browsing() -> "Iterator[Browser]":
    """A browser."""
    with browser() as found:
        yield found


@pytest.fixture
def running(browsing: "Browser") -> "Iterator[Browser]":
    """The same, with no page left open: one asks its server for news for as long as it is."""
    yield browsing
    for context in browsing.contexts:
        context.close()


@pytest.fixture
def clean(address: tuple[str, Service]) -> Iterator[tuple[str, Service]]:
    """The same, with an empty queue before and after."""
    yield address
    service = address[1]
    service.act("release", "")
    for job in service.store.jobs(["queued", "paused", "cancelled", "failed"]):
        if job.state in ("queued", "paused"):
            service.act("cancel", job.id)
        service.act("clear", job.id)


# The API --------------------------------------------------------------------------------------------------------------


def test_four_endpoints_are_public(address: tuple[str, Service]) -> None:
    with urllib.request.urlopen(f"{address[0]}gradio_api/info") as answer:
        info = json.load(answer)
    assert set(info["named_endpoints"]) == {"/submit", "/status", "/cancel", "/result"}
    assert info["unnamed_endpoints"] == {}


def test_a_client_submits_asks_cancels_and_fetches(clean: tuple[str, Service], tmp_path: Path) -> None:
    from gradio_client import Client

    url, service = clean
    client = Client(url, verbose=False, download_files=str(tmp_path))
    try:
        ids = client.predict("a {red|blue} mug", prior="tiny", seed=4, steps=9, api_name="/submit")
        assert [service.store.job(id).prompt for id in ids] == ["a red mug", "a blue mug"]
        request = service.store.request(service.store.job(ids[1]))
        assert (request.seed, request.steps) == (4, 9)
        status = client.predict(ids[1], api_name="/status")
        assert (status["state"], status["position"], status["words"]) == ("queued", 2, "2nd in the queue")
        assert client.predict(ids[0], api_name="/cancel")["state"] == "cancelled"
        done = service.finished()[0]
        assert client.predict(done.ref, api_name="/status")["report"]["faces"] == done.report["faces"]
        path = Path(client.predict(done.ref, api_name="/result"))
        assert path.read_bytes() == (done.folder / "result.glb").read_bytes() and path.name == "a-red-cube.glb"
    finally:
        client.close()


@pytest.mark.parametrize(
    ("endpoint", "arguments", "words"),
    [
        ("/submit", [""], "prompt is empty"),
        ("/submit", ["a mug", "draft", "", "/etc"], "No prior"),
        ("/submit", ["a mug", "nonsense"], "No recipe"),
        ("/status", ["../../etc"], "no job"),
        ("/result", ["0" * 12], "no result"),
        ("/cancel", ["0" * 12], "0000"),
    ],
)
def test_a_client_is_refused_in_words(
    endpoint: str, arguments: list[Any], words: str, address: tuple[str, Service]
) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(address[0], verbose=False)
    try:
        with pytest.raises(AppError, match=words):
            client.predict(*arguments, api_name=endpoint)
    finally:
        client.close()


# The page -------------------------------------------------------------------------------------------------------------


def test_no_event_has_two_answers_that_wait_for_each_other(address: tuple[str, Service]) -> None:
    """Gradio asks all answers to an event again once one that had to wait is over: two of them never come to rest."""
    with urllib.request.urlopen(f"{address[0]}config") as answer:
        config = json.load(answer)
    waiting = [
        (target, event)
        for answer in config["dependencies"]
        if answer["trigger_mode"] == "always_last"
        for target, event in answer["targets"]
        if target is not None
    ]
    assert len(waiting) > 10 and len(waiting) == len(set(waiting))


def test_a_page_at_rest_asks_for_news_alone(clean: tuple[str, Service], running: "Browser") -> None:
    url, service = clean
    seen = visit(running, f"{url}?job={service.finished()[0].ref}")
    seen.viewer()
    page = seen.page
    page.get_by_role("tab", name="Edit", exact=True).click()
    page.locator("#dk-inside input").check()
    page.locator("#dk-box-views img").wait_for()
    _comes_to_rest(page)
    page.get_by_role("tab", name="History").click()
    page.locator(".dk-card").hover()
    page.locator(".dk-card [data-act=compare]").click()
    page.locator("#dk-compare img").first.wait_for()
    page.locator("#dk-compare-view").get_by_text("Mesh").click()
    page.locator("#dk-compare canvas").wait_for()
    _comes_to_rest(page)
    seen.flawless()


def _comes_to_rest(page: "Page") -> None:
    """Wait until a page asks its server for one thing alone for a while, which has several of its questions."""
    asked: set[int] = set()
    page.on("request", lambda request: asked.add(json.loads(request.post_data or "{}").get("fn_index", -1)))
    for _ in range(20):
        asked.clear()
        page.wait_for_timeout(1200)
        if len(asked - {-1}) == 1:
            return
    pytest.fail(f"The page still asks for {asked}.")


def test_the_page_on_a_phone_is_as_wide_as_the_phone(clean: tuple[str, Service], running: "Browser") -> None:
    url, service = clean
    done = service.finished()[0].ref
    waiting = service.submit(Form("a snowman with a purple hat and a long name " * 3, prior="tiny"))[0]
    for ref in ("", waiting, done):
        seen = visit(running, f"{url}?job={ref}", size=(390, 844))
        page = seen.page
        page.locator(f".dk-strip[data-job='{ref}']").wait_for(state="attached")
        if ref == done:
            seen.viewer()
        for tab in ("Edit", "Export", "Make", "Compare", "History"):
            page.get_by_role("tab", name=tab, exact=True).click()
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") == 390, (ref, tab)
        seen.flawless()
        page.context.close()


def test_buttons_of_the_queue(clean: tuple[str, Service], running: "Browser") -> None:
    url, service = clean
    first, second = service.submit(Form("a {red|blue} mug", prior="tiny"))
    seen = visit(running, url)
    page = seen.page
    page.locator(f".dk-row[data-ref='{second}'] [data-act=pause]").wait_for()
    for act, state in (("pause", "paused"), ("resume", "queued")):  # two clicks at once: neither is lost
        page.evaluate("act => document.querySelectorAll(`.dk-row [data-act=${act}]`).forEach(b => b.click())", act)
        for ref in (first, second):
            page.locator(f".dk-row[data-ref='{ref}'][data-state={state}]").wait_for()
    page.locator(f".dk-row[data-ref='{second}'] [data-act=up]").click()
    page.locator(f".dk-row[data-ref='{second}'] small", has_text="next in the queue").wait_for()
    page.locator(f".dk-row[data-ref='{first}'] [data-act=pause]").click()
    page.locator(f".dk-row[data-ref='{first}'][data-state=paused] [data-act=resume]").click()
    page.locator(f".dk-row[data-ref='{first}'][data-state=queued]").wait_for()
    page.get_by_text("Hold the queue").click()
    page.get_by_text("Nothing new begins").wait_for()
    page.get_by_text("Release the queue").click()
    page.get_by_text("Hold the queue").wait_for()
    page.locator(f".dk-row[data-ref='{first}'] [data-act=cancel]").click()
    page.locator(f".dk-row[data-ref='{first}'][data-state=cancelled] [data-act=retry]").click()
    page.locator(f".dk-row[data-ref='{first}'] .dk-open").click()
    page.locator(f".dk-strip[data-job='{first}'] [data-act=cancel]").click()
    page.locator(f".dk-strip[data-job='{first}'][data-state=cancelled]").wait_for()
    assert page.url.endswith(f"?job={first}")
    service.act("cancel", second)  # from elsewhere: the page notices
    page.locator(f".dk-row[data-ref='{second}'][data-state=cancelled]").wait_for()
    seen.flawless()


def test_templates_warnings_and_settings_before_the_start(clean: tuple[str, Service], running: "Browser") -> None:
    url, service = clean
    seen = visit(running, url)
    page = seen.page
    page.get_by_role("button", name="a red mushroom").click()
    assert page.locator("#dk-prompt textarea").input_value() == "a red mushroom"
    page.locator("#dk-prompt textarea").fill("zork and")
    page.get_by_role("button", name="{red|blue|green}").click()
    page.locator(".dk-note", has_text="3 jobs").wait_for()
    page.locator(".dk-note", has_text="does not know").wait_for()
    page.locator(".dk-shell-box summary").first.click()
    assert (page.locator(".dk-shell-box pre").first.text_content() or "").count("studio generate") == 3
    before = page.locator(".dk-plan b").first.text_content()
    page.get_by_label("Recipe").click()
    page.get_by_role("option", name="fine").click()
    page.wait_for_function("text => document.querySelector('.dk-plan b').textContent !== text", arg=before)
    page.get_by_role("button", name="Advanced").click()
    page.locator(".dk-find").fill("scale")
    knob = page.locator("[data-knob='stages.0.guidance.scale']")
    knob.fill("many")
    knob.blur()
    page.get_by_text("stages.0.guidance.scale").first.wait_for()  # the objection
    page.wait_for_function("document.querySelector(\"[data-knob='stages.0.guidance.scale']\").value !== 'many'")
    page.locator("#dk-prompt textarea").fill("a {mug")
    page.locator(".dk-bad", has_text="never closed").wait_for()
    page.locator("#dk-generate").click()
    page.wait_for_timeout(500)
    assert service.store.jobs() == service.store.jobs(["done"])


def test_settings_that_are_changed_at_once_are_all_kept(clean: tuple[str, Service], running: "Browser") -> None:
    seen = visit(running, clean[0])
    page = seen.page
    page.get_by_role("button", name="Advanced").click()
    wished = {"preview_every": "12", "export.faces": "1500", "export.texture": "256", "export.picture": "96"}
    page.locator("[data-knob='export.picture']").wait_for(state="attached")
    change = """wished => { for (const [path, value] of Object.entries(wished)) {
        const field = document.querySelector(`[data-knob='${path}']`);
        field.value = value;
        field.dispatchEvent(new Event('change', {bubbles: true}));
    } }"""
    page.evaluate(change, wished)
    page.locator("#dk-prompt textarea").fill("a mug")
    for path, value in wished.items():
        page.locator(f".dk-changed [data-knob='{path}'][value='{value}']").wait_for(state="attached")
        page.locator(".dk-shell-box pre", has_text=f"{path.replace('_', '-')} {value}").first.wait_for(state="attached")
    seen.flawless()


def test_a_result_is_compared_edited_searched_and_made_again(clean: tuple[str, Service], running: "Browser") -> None:
    url, service = clean
    done = service.finished()[0]
    seen = visit(running, f"{url}?job={done.ref}")
    page = seen.page
    page.locator("#dk-mesh canvas").wait_for()
    for tab, piece in (("Turntable", "img"), ("Maps", "img"), ("Contact sheet", "img"), ("Report", ".dk-report")):
        page.get_by_role("tab", name=tab).click()
        page.locator(f"#dk-views {piece}:visible").first.wait_for()
    assert not page.get_by_role("tab", name="Splats").is_visible()

    page.get_by_role("tab", name="Edit", exact=True).click()
    page.locator("#dk-edit-prompt textarea").fill("a blue cube")
    page.locator("#dk-inside input").check()
    box = page.locator("#dk-box-views img")
    box.wait_for()
    assert coloured(box.screenshot(), (234, 88, 12), 40) > 0.01
    page.locator("pre", has_text="--box -0.5 -0.5 -0.5 0.5 0.5 0.5").wait_for(state="attached")
    page.locator("#dk-edit").click()
    page.locator(".dk-strip h2", has_text="a blue cube").wait_for()
    edit = service.store.jobs(["queued"])[0]
    task = service.store.request(edit).task
    assert task is not None and task.region is not None and page.url.endswith(edit.id)

    page.get_by_role("tab", name="History").click()
    page.locator(".dk-card").wait_for()
    page.locator("#dk-search input, #dk-search textarea").first.fill("zebra")
    page.get_by_text("No result matches").wait_for()
    page.locator("#dk-search input, #dk-search textarea").first.fill("cube")
    page.locator(".dk-card").hover()
    page.locator(".dk-card [data-act=compare]").click()
    page.locator("#dk-compare img").first.wait_for()
    page.get_by_role("tab", name="History").click()
    page.locator(".dk-card").hover()
    page.locator(".dk-card [data-act=clone]").click()
    page.locator(".dk-told p", has_text="Settings of").wait_for()
    assert page.locator("#dk-prompt textarea").input_value() == "a red cube"
    assert page.get_by_label("Seed").input_value() == "7"
    page.locator(".dk-shell-box pre", has_text="--seed 7").first.wait_for(state="attached")
    seen.flawless()


def test_a_hostile_prompt_is_text(clean: tuple[str, Service], running: "Browser") -> None:
    url, service = clean
    (job,) = service.submit(Form(HOSTILE, prior="tiny"))
    seen = visit(running, f"{url}?job={job}", scheme="dark")
    heading = seen.page.locator(".dk-strip h2")
    heading.wait_for()
    assert heading.text_content() == HOSTILE
    assert seen.page.evaluate("window.caught") is None
    assert seen.page.evaluate("document.body.classList.contains('dark')")
    seen.page.get_by_label("Light or dark").click()
    seen.reload()
    heading.wait_for()
    assert not seen.page.evaluate("document.body.classList.contains('dark')")
    seen.flawless()
