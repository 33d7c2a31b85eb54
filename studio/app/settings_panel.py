"""The Advanced panel as HTML: every knob of a request, in groups, with its help."""

import itertools
from collections.abc import Collection
from html import escape

from studio.app.advanced import Knob, knobs
from studio.request import Request


def settings_panel(request: Request, changed: Collection[str], revision: int) -> str:
    """All knobs of a request.

    Args:
        changed: paths of those that were set by hand.
        revision: another number makes the page forget what was typed and not accepted.
    """
    groups = itertools.groupby(knobs(request), lambda knob: knob.heading)
    body = "".join(_group(heading, list(members), changed) for heading, members in groups)
    count = f"{len(changed)} changed" if changed else "as the recipe says"
    reset = '<button type="button" class="dk-text" data-act="reset">Reset</button>' if changed else ""
    return (
        f'<div class="dk-knobs" data-revision="{revision}"><div class="dk-head">'
        f'<input type="search" class="dk-find" placeholder="Find a setting" aria-label="Find a setting">'
        f"<span>{count}</span>{reset}</div>{body}</div>"
    )


def _group(heading: str, members: list[Knob], changed: Collection[str]) -> str:
    touched = any(knob.path in changed for knob in members)
    rows = "".join(_knob(knob, knob.path in changed) for knob in members)
    return (
        f'<details class="dk-group"{" open" * touched}><summary>{escape(heading)}'
        f"<small>{len(members)}</small></summary>{rows}</details>"
    )


def _knob(knob: Knob, changed: bool) -> str:
    return (
        f'<label class="dk-knob{" dk-changed" * changed}" title="{escape(knob.path)}" '
        f'data-words="{escape(f"{knob.path} {knob.label} {knob.help}".lower())}">'
        f"<span>{escape(knob.label)}</span>{_field(knob)}<small>{escape(knob.help)}</small></label>"
    )


def _field(knob: Knob) -> str:
    name = f'data-knob="{escape(knob.path)}"'
    if knob.kind == "switch":
        return f'<input type="checkbox" {name}{" checked" * bool(knob.value)}>'
    if knob.kind in ("choice", "union"):
        options = "".join(
            f"<option{' selected' * (choice == knob.value)}>{escape(choice)}</option>" for choice in knob.choices
        )
        return f"<select {name}>{options}</select>"
    value = "" if knob.value is None else escape(str(knob.value))
    empty = ' placeholder="none"' if knob.optional else ""
    step = {"number": ' inputmode="decimal"', "integer": ' inputmode="numeric"'}.get(knob.kind, "")
    return f'<input type="text" {name} value="{value}"{step}{empty} autocomplete="off" spellcheck="false">'
