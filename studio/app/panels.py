"""Pieces of the page as HTML. Whatever comes from a prompt, a file or a run is escaped where it is put into one."""

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from studio.app.pictures import newest_previews, preview_uri, thumbnail, view_uri
from studio.app.plot import loss_plot
from studio.app.service import Plan, Run
from studio.app.words import checks, duration, memory, result_words, score, state_line
from studio.jobs.progress import Progress

_ICONS = {
    "pause": "M8 5v14M16 5v14",
    "resume": "M7 5l12 7-12 7z",
    "cancel": "M6 6l12 12M18 6L6 18",
    "retry": "M20 11a8 8 0 1 0-2 6M20 4v7h-7",
    "clone": "M9 9h11v11H9zM5 15H4V4h11v1",
    "up": "M12 19V5M6 11l6-6 6 6",
    "down": "M12 5v14M6 13l6 6 6-6",
    "clear": "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
    "compare": "M12 3v18M4 7h5v10H4zM15 7h5v10h-5z",
}
_TITLES = {
    "pause": "Pause",
    "resume": "Resume",
    "cancel": "Cancel",
    "retry": "Try again",
    "clone": "Use these settings",
    "up": "Earlier",
    "down": "Later",
    "clear": "Take off the list",
    "compare": "Compare",
}
_ACTIONS = {
    "queued": ("up", "down", "pause", "cancel"),
    "running": ("pause", "cancel"),
    "paused": ("resume", "cancel"),
    "failed": ("retry", "clear"),
    "cancelled": ("retry", "clear"),
    "done": ("compare",),
    "stopped": (),
}
_NAMES = {"queued": "Waiting", "stopped": "Unfinished"}


def strip(run: Run | None, prompt: str, progress: Progress, position: int | None, held: bool, told: str) -> str:
    """The head of the page's right side: what is shown, how far it is, how well it goes, and what can be done."""
    if run is None:
        return '<div class="dk-strip dk-empty" data-job=""></div>'
    state = run.state
    numbers = result_words(run.report) if state == "done" else []
    chips = (
        "".join(_chip(words, "good" if well else "bad") for well, words in progress.health()) if _live(state) else ""
    )
    buttons = "".join(
        _button(action, run.ref, label=True) for action in ("clone", *_ACTIONS[state]) if action != "clear"
    )
    notes = "".join(f'<p class="dk-note">{escape(text)}</p>' for text in progress.warnings)
    error = progress.error or (run.job.error if run.job else "")
    notes += f'<p class="dk-note dk-bad">{escape(error)}</p>' if state == "failed" and error else ""
    detail = " · ".join(escape(text) for text in (told, progress.stage, progress.device) if text)
    line = " · ".join([state_line(run, progress, position, held), *numbers])
    return (
        f'<div class="dk-strip" data-job="{escape(run.ref)}" data-state="{escape(state)}">'
        f'<div class="dk-head"><h2 title="{escape(prompt)}">{escape(prompt)}</h2>{_badge(state)}</div>'
        f'{_bar(progress, state)}<div class="dk-line"><span>{escape(line)}</span>{chips}</div>'
        f'<div class="dk-detail">{detail}</div>{notes}<div class="dk-actions">{buttons}</div></div>'
    )


def live(run: Run, progress: Progress) -> str:
    """The newest preview, the way there, and the loss."""
    previews = newest_previews(run.folder, 400)
    if not previews:
        text = "The first preview comes in a moment." if run.state == "running" else "No preview yet."
        text = text if run.state in ("running", "queued", "paused") else "This run left no previews."
        return (
            f'<div class="dk-live"><div class="dk-wait">{text}</div>{loss_plot(progress.losses, progress.steps)}</div>'
        )
    newest, earlier = previews[-1], _spread(previews[:-1], 8)
    film = "".join(
        f'<figure><img src="{view_uri(path)}" alt="Preview at step {int(path.stem)}" loading="lazy">'
        f"<figcaption>{int(path.stem):,}</figcaption></figure>"
        for path in earlier
    )
    return (
        f'<div class="dk-live"><img class="dk-preview" src="{preview_uri(newest)}" data-step="{int(newest.stem)}" '
        f'alt="Four views of the object at step {int(newest.stem)}">'
        f'<div class="dk-film">{film}</div>{loss_plot(progress.losses, progress.steps)}</div>'
    )


def queue(rows: Sequence[tuple[Run, Progress, int | None]], held: str | None, shown: str) -> str:
    """The list of jobs, with the switch that holds the queue."""
    waiting = sum(run.state == "queued" for run, _, _ in rows)
    hold = "release" if held is not None else "hold"
    title = "Release the queue" if held is not None else "Hold the queue"
    note = (
        f'<p class="dk-note">Nothing new begins until the queue is released{_why(held)}.</p>'
        if held is not None
        else ""
    )
    body = "".join(_row(run, progress, position, held is not None, shown) for run, progress, position in rows)
    body = (
        body
        or '<p class="dk-quiet">Nothing waits. What you generate appears here and goes on with this page closed.</p>'
    )
    count = f"<span>{waiting} waiting</span>" if waiting else ""
    return (
        f'<div class="dk-queue"><div class="dk-head"><h3>Jobs</h3>{count}'
        f'<button type="button" class="dk-text" data-act="{hold}" data-ref="">{title}</button></div>'
        f"{note}<div>{body}</div></div>"
    )


def history(entries: Sequence[tuple[Run, str, int]], search: str) -> str:
    """Finished runs as cards."""
    if not entries:
        text = f"No result matches “{escape(search)}”." if search.strip() else "Finished results are kept here."
        return f'<p class="dk-quiet">{text}</p>'
    return f'<div class="dk-cards">{"".join(_card(*entry) for entry in entries)}</div>'


def welcome(entries: Sequence[tuple[Run, str, int]]) -> str:
    """What the right side shows before anything is chosen."""
    recent = f'<h3>Lately</h3><div class="dk-cards">{"".join(_card(*e) for e in entries)}</div>' if entries else ""
    return (
        '<div class="dk-welcome"><h2>Say what to make</h2><p>Write a prompt or take an example, and press Generate. '
        f"The object takes shape here, and is yours as a textured GLB.</p>{recent}</div>"
    )


def planned(plan: Plan) -> str:
    """The estimate before the start, what a template becomes, and objections in words."""
    parts = []
    if plan.estimate is not None:
        many = f" each, {duration(plan.estimate.seconds * plan.jobs)} in all" if plan.jobs > 1 else ""
        counting = "; its memory is being counted" if plan.counting else ""
        parts.append(
            f'<div class="dk-plan"><b>about {duration(plan.estimate.seconds)}{many}</b>'
            f"<b>{memory(plan.estimate.memory_mb)}</b><span>{escape(plan.estimate.basis)}{counting}</span></div>"
        )
    if len(plan.prompts) > 1:
        some = "".join(f"<li>{escape(prompt)}</li>" for prompt in plan.prompts[:6])
        more = f"<li>and {len(plan.prompts) - 6} more</li>" if len(plan.prompts) > 6 else ""
        parts.append(f'<div class="dk-note"><b>{plan.jobs} jobs</b><ul>{some}{more}</ul></div>')
    for problem in plan.problems:
        parts.append(f'<p class="dk-note{" dk-bad" * (problem.severity == "error")}">{escape(problem.text)}</p>')
    return f'<div class="dk-planned">{"".join(parts)}</div>'


def report(run: Run) -> str:
    """The checks of a finished asset, in words."""
    found = run.report
    if not found:
        return '<p class="dk-quiet">The report is written when the asset is.</p>'
    marks = {True: ("good", "✓"), False: ("bad", "!"), None: ("plain", "·")}
    rows = "".join(
        f'<li class="dk-{marks[well][0]}"><i>{marks[well][1]}</i>'
        f"<div><b>{escape(title)}</b><p>{escape(words)}</p></div></li>"
        for title, well, words in checks(found)
    )
    return f'<ul class="dk-report">{rows}</ul>'


def _row(run: Run, progress: Progress, position: int | None, held: bool, shown: str) -> str:
    prompt = run.job.prompt if run.job else run.ref
    state, picture = run.state, thumbnail(run.folder, 96)
    image = f'<img src="{picture}" alt="">' if picture else '<span class="dk-blank"></span>'
    buttons = "".join(_button(action, run.ref) for action in (*_ACTIONS[state], "clone") if action != "compare")
    health = "".join(_chip(words, "bad") for well, words in progress.health() if not well) if _live(state) else ""
    kind = "dk-row dk-shown" if run.ref == shown else "dk-row"
    return (
        f'<div class="{kind}" data-ref="{escape(run.ref)}" data-state="{escape(state)}">'
        f'<button type="button" class="dk-open" data-act="show" data-ref="{escape(run.ref)}">{image}'
        f'<span class="dk-what"><b>{escape(prompt)}</b>'
        f"<small>{escape(state_line(run, progress, position, held))}</small></span></button>"
        f'{health}<span class="dk-buttons">{buttons}</span>{_bar(progress, state) if state == "running" else ""}</div>'
    )


def _card(run: Run, prompt: str, seed: int) -> str:
    report, picture = run.report, thumbnail(run.folder, 192)
    ended = run.job.ended if run.job and run.job.ended else _modified(run.folder / "report.json")
    when = time.strftime("%d %b %H:%M", time.localtime(ended))
    seconds = sum(report.get("seconds", {}).values())
    facts = " · ".join(
        word for word in (f"seed {seed}", duration(seconds) if seconds else "", when, score(report)) if word
    )
    image = f'<img src="{picture}" alt="" loading="lazy">' if picture else '<span class="dk-blank"></span>'
    buttons = _button("clone", run.ref) + _button("compare", run.ref)
    return (
        f'<div class="dk-card" data-ref="{escape(run.ref)}"><button type="button" class="dk-open" data-act="show" '
        f'data-ref="{escape(run.ref)}">{image}<b>{escape(prompt)}</b><small>{escape(facts)}</small></button>'
        f'<span class="dk-buttons">{buttons}</span></div>'
    )


def _button(action: str, ref: str, label: bool = False) -> str:
    title = _TITLES[action]
    icon = f'<svg viewBox="0 0 24 24" aria-hidden="true"><path d="{_ICONS[action]}"/></svg>'
    text = f"<span>{title}</span>" if label else ""
    return (
        f'<button type="button" data-act="{action}" data-ref="{escape(ref)}" title="{title}" aria-label="{title}">'
        f"{icon}{text}</button>"
    )


def _bar(progress: Progress, state: str) -> str:
    share = 1.0 if state == "done" else progress.share
    busy = " dk-busy" * (state == "running" and bool(progress.phase))
    return (
        f'<div class="dk-bar dk-{state}{busy}" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{share * 100:.0f}"><i style="width:{share * 100:.2f}%"></i></div>'
    )


def _badge(state: str) -> str:
    return f'<span class="dk-badge dk-{state}">{_NAMES.get(state, state.capitalize())}</span>'


def _chip(words: str, kind: str) -> str:
    return f'<span class="dk-chip dk-{kind}">{escape(words)}</span>'


def _live(state: str) -> bool:
    return state in ("running", "paused")


def _why(held: str | None) -> str:
    return f" ({escape(held)})" if held else ""


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` of them, evenly spread, the last always among them."""
    if len(paths) <= count:
        return list(paths)
    return [paths[round((i + 1) * len(paths) / count) - 1] for i in range(count)]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
