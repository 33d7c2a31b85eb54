"""What is left of a batch: tables, a contact sheet, and a page that runs nothing which came from a file."""

import csv
import dataclasses
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from studio.batch.page import page
from studio.batch.results import Result, Results, make_thumbnail, working_seconds, write_tables
from studio.batch.sheet import MOST, contact_sheet
from studio.jobs.job import Job
from tests.batch.browser import opened

NASTY = '"><script>document.title="owned"</script><img src=x onerror="document.title=1">'
ROWS = [
    Result("a red mug", 0, "done", "a-red-mug", 31.4, 11_998, True, 28.25, 0.97),
    Result(NASTY, 1, "done", "b &#'\"%2e <x>", 12.0, 60, False, 19.4, 0.9, settings="negative </p>"),
    Result("javascript:alert(1)", 2, "failed", "javascript:alert(1)", 3.0, attempts=3, error=f"no\nway {NASTY}"),
    Result("a mug that is on its way, with a prompt of so many words that two lines do not hold it", 3, "running", "r"),
    Result("中文 “quoted” \u202e", 4, "queued", "q"),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Folders as runs leave them."""
    for row, colour in zip(ROWS, ("red", "blue", "", "", ""), strict=True):
        run = tmp_path / row.folder
        (run / "previews").mkdir(parents=True)
        if row.state == "done":
            frames = [Image.new("RGB", (300, 300), colour), Image.new("RGB", (300, 300), "white")]
            frames[0].save(run / "turntable.webp", save_all=True, append_images=frames[1:], duration=50)
            make_thumbnail(run, tmp_path / "thumbnails")
            for name in ("result.glb", "report.json", "contact_sheet.png"):
                (run / name).write_bytes(b"{}")
    (tmp_path / ROWS[2].folder / "error.txt").write_text("Traceback")
    strip = Image.new("RGB", (384, 96), "white")
    strip.paste("lime", (0, 0, 96, 96))
    strip.save(tmp_path / "r" / "previews" / "000050.png")
    return tmp_path


class Tags(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_what_came_from_the_file_is_text_alone(home: Path) -> None:
    text = page("x <b>", home, ROWS, going_on=True).decode()
    found = Tags(text)
    assert found.tags.count("script") == 1
    assert found.tags.count("b") == found.tags.count("x") == 0
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    links = [value for name, value in found.attributes if name in ("href", "src")]
    own = {"summary.csv", "summary.json", "contact_sheet.png"}
    assert all(link in own or (link or "").startswith("./") for link in links)
    files = [home / _unquoted(link) for link in links if link not in own]
    assert len(files) == 2 * 3 + 2 * 3 + 1 + 1  # pictures, links of results, the error, the preview
    assert all(file.is_file() for file in files)
    assert 'http-equiv="refresh"' in text
    assert 'http-equiv="refresh"' not in page("x", home, ROWS, going_on=False).decode()


def _unquoted(link: str | None) -> str:
    from urllib.parse import unquote

    return unquote(link or "")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(home: Path, width: int) -> None:
    (home / "index.html").write_bytes(page("mugs: 2 of 5", home, ROWS, going_on=False))
    with opened(home / "index.html", width) as tab:
        assert tab.title() == "mugs: 2 of 5"
        assert tab.problems == []
        assert tab.strangers == []
        pictures = "[...document.querySelectorAll('.picture > img:not(.turn)')]"
        tab.wait(f"{pictures}.length == 3 && {pictures}.every(i => i.complete && i.naturalWidth > 0)")
        assert tab.run("document.documentElement.scrollWidth") <= width
        turning = "document.querySelector('.turn')"
        assert tab.run(f"getComputedStyle({turning}).display") == "none"
        tab.hover(".picture")
        tab.wait(f"getComputedStyle({turning}).display == 'block' && {turning}.naturalWidth == 300")
        shown = "[...document.querySelectorAll('article')].filter(a => !a.hidden).length"
        tab.fill("input", "DONE mug")
        assert tab.run(shown) == 1
        tab.reload()
        assert (tab.run("document.querySelector('input').value"), tab.run(shown)) == ("DONE mug", 1)
        tab.fill("input", "nothing like it")
        assert tab.run("[document.querySelector('.nothing').hidden, " + shown + "]") == [False, 0]
        tab.fill("input", "")
        assert tab.run(shown) == 5


def test_the_sheet_has_a_picture_for_each(home: Path) -> None:
    sheet = Image.open(io.BytesIO(contact_sheet("mugs", home, ROWS))).convert("RGB")
    colours: set[Any] = {colour for _, colour in sheet.getcolors(1 << 20) or []}
    assert {(0, 255, 0), (255, 255, 255)} <= colours
    assert any(r > 240 and g < 20 for r, g, _ in colours), "the red mug"
    many = [dataclasses.replace(ROWS[4], prompt="x" * 500, seed=i) for i in range(MOST + 50)]
    large = Image.open(io.BytesIO(contact_sheet("t" * 500, home, many)))
    assert large.width < 1700
    assert Image.open(io.BytesIO(contact_sheet("none", home, []))).width > 0


def test_tables_keep_every_letter(tmp_path: Path) -> None:
    write_tables(tmp_path, "mugs.txt", ROWS)
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == [row.prompt for row in ROWS]
    assert list(rows[0])[:10] == [
        *("prompt", "seed", "state", "folder", "seconds", "faces", "watertight", "psnr", "silhouette_iou", "attempts"),
    ]
    assert (rows[0]["watertight"], rows[3]["faces"], rows[2]["error"]) == ("True", "", ROWS[2].error)
    said = json.loads((tmp_path / "summary.json").read_text())
    assert (said["batch"], said["counts"]["done"]) == ("mugs.txt", 2)
    assert said["rows"] == [dataclasses.asdict(row) for row in ROWS]


def test_seconds_are_those_of_work_and_not_of_waiting(tmp_path: Path) -> None:
    loading = {"event": "Working", "what": "loading the prior"}
    lines = [(100, loading), (103, {"event": "Stepped"}), (900, loading), (901, {"event": "Finished"})]
    text = "\n".join(json.dumps({"time": time, **event}) for time, event in lines[:2])
    text += '\n{"time": 104, "ev\n' + "\n".join(json.dumps({"time": time, **event}) for time, event in lines[2:])
    (tmp_path / "events.jsonl").write_text(text)
    assert working_seconds(tmp_path) == 4.0
    assert working_seconds(tmp_path / "nothing") is None


def test_damaged_files_of_a_run_are_no_reason_to_stop(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("report.json", "turntable.webp", "events.jsonl"):
        (run / name).write_bytes(b"\xff{")
    job = Job("0" * 12, "done", "a", 0, run, "", 0, 0.0, "", 0, 3, None, "", "", 0.0, 1.0, 2.0, "")
    assert Results(tmp_path, {}).read([job]) == [Result("a", 0, "done", "run")]
