"""The page of a batch's results, ``index.html``: one file that asks nobody but its neighbours, for any browser."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from studio.batch.results import THUMBNAILS, Result, counted, newest_preview

MOST = 5_000
"""Results on the page; all are in ``summary.csv``."""
REFRESH = 30
"""Seconds after which the page loads itself anew while the batch goes on."""
_BESIDE = {"CSV": "summary.csv", "JSON": "summary.json", "Sheet": "contact_sheet.png"}
_OF_RESULTS = {"GLB": "result.glb", "Report": "report.json", "Pictures": "contact_sheet.png"}
_HERE = Path(__file__).parent
_ORDER = ("running", "done", "failed", "queued", "paused", "cancelled")


def page(title: str, home: Path, results: Sequence[Result], going_on: bool) -> bytes:
    """The page as HTML. Whatever comes from the batch's file is text in it and nothing else.

    Args:
        title: of the page.
        home: the batch's folder, in which the page is to lie.
        results: the rows.
        going_on: whether the page should look for news by itself.
    """
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("index.css", "index.js"))
    sources = {"style": style, "script": script}
    hashes = {kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for kind, text in sources.items()}
    policy = (
        f"default-src 'none'; img-src 'self' file:; style-src 'sha256-{hashes['style']}'; "
        f"script-src 'sha256-{hashes['script']}'; base-uri 'none'; form-action 'none'"
    )
    counts = counted(results)
    words = ", ".join(f"{counts[state]:,} {state}" for state in _ORDER if state in counts)
    refresh = f'<meta http-equiv="refresh" content="{REFRESH}">\n' if going_on else ""
    more = f'<p class="nothing">The first {MOST:,} of {len(results):,}.</p>\n' if len(results) > MOST else ""
    cards = "\n".join(_card(home, row) for row in results[:MOST])
    files = "".join(f'<a href="{file}">{name}</a>' for name, file in _BESIDE.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
{refresh}<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="counts">{escape(words)}</p>
<input type="search" placeholder="Filter by prompt, seed, state" aria-label="Filter the results" autocomplete="off">
<nav class="files">{files}</nav>
</header>
<main>
{cards}
<p class="nothing" hidden>Nothing here fits the filter.</p>
{more}</main>
<script>{script}</script>
</body>
</html>
""".encode("utf-8", "replace")


def _card(home: Path, row: Result) -> str:
    error = f'<p class="error" title="{escape(row.error)}">{escape(row.error)}</p>\n' if row.error else ""
    links = "".join(f'<a href="{_link(row.folder, file)}">{name}</a>' for name, file in _files(home, row))
    return (
        f"<article>\n{_picture(home, row)}\n"
        f'<div class="words">\n<p class="prompt" dir="auto" title="{escape(row.prompt)}">{escape(row.prompt)}</p>\n'
        f'<p class="facts">{escape(", ".join(_facts(row)))}</p>\n{error}'
        f'<div class="links"><span class="state {row.state}">{row.state}</span>{links}</div>\n</div>\n</article>'
    )


def _picture(home: Path, row: Result) -> str:
    """The thumbnail, which turns while the pointer is on it; of what is not finished, how far it has come."""
    if (home / THUMBNAILS / f"{row.folder}.webp").is_file():
        still, turning = _link(THUMBNAILS, f"{row.folder}.webp"), _link(row.folder, "turntable.webp")
        images = f'<img src="{still}" alt="" loading="lazy"><img class="turn" src="{turning}" alt="" loading="lazy">'
        return f'<a class="picture" href="{turning}" aria-label="Turntable">{images}</a>'
    preview = newest_preview(home / row.folder)
    if preview is not None:
        still = _link(row.folder, f"previews/{preview.name}")
        return f'<div class="picture"><img src="{still}" alt="" loading="lazy"></div>'
    return f'<div class="picture"><span class="none">{row.state}</span></div>'


def _facts(row: Result) -> Iterator[str]:
    yield f"seed {row.seed}"
    if row.settings:
        yield row.settings
    if row.faces is not None:
        yield f"{row.faces:,} faces"
    if row.watertight is False:
        yield "not watertight"
    if row.psnr is not None:
        yield f"{row.psnr:.1f}\N{NO-BREAK SPACE}dB"
    if row.seconds is not None and row.state in ("done", "failed"):
        yield f"{row.seconds:,.0f}\N{NO-BREAK SPACE}s"


def _files(home: Path, row: Result) -> Iterator[tuple[str, str]]:
    """Names of links, and the files in the run's folder that they lead to."""
    files = {"failed": {"Error": "error.txt"}, "done": _OF_RESULTS}.get(row.state, {})
    yield from ((name, file) for name, file in files.items() if (home / row.folder / file).is_file())


def _link(folder: str, file: str) -> str:
    """A relative address, which can neither leave the batch's folder nor be taken for another scheme."""
    return escape(f"./{quote(folder, safe='')}/{quote(file)}")
