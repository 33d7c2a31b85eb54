"""The page: what is where, and which function answers what. What those functions do lies beside, without Gradio.

The page keeps four small values in the browser (the run it shows, the view, what it has, settings that were changed),
so a reload, a second device or a restarted server lose nothing. A timer asks twice a second for what is new.
"""

from typing import Any

import gradio as gr

from studio.app.api import build_api
from studio.app.archive import build_archive
from studio.app.comparing import Comparing, build_comparing
from studio.app.editing import Editing, build_editing
from studio.app.exporting import Exporting, build_exporting
from studio.app.looks import header
from studio.app.making import Making, build_making
from studio.app.service import Service
from studio.app.shelf import Shelf
from studio.app.showing import Showing, build_showing
from studio.app.widgets import PRIVATE, QUIET, TELLING, html

TICK = 0.5
"""Seconds between a page's questions."""
_ATTACH = "() => [dreamkiln.job(), '', {}]"


def build_page(service: Service, shelf: Shelf) -> gr.Blocks:
    """The whole app; how it looks is ``studio.app.looks``."""
    with gr.Blocks(title="Dreamkiln", analytics_enabled=False, fill_width=True, delete_cache=(3600, 24 * 3600)) as page:
        html(header(), "dk-header", js="")
        with gr.Tabs(elem_id="dk-main") as main:
            with gr.Tab("Studio", id="studio"), gr.Row(elem_id="dk-studio"):
                with gr.Column(scale=4, min_width=320, elem_id="dk-left"), gr.Tabs(elem_id="dk-tools") as tools:
                    with gr.Tab("Make", id="make"):
                        making = build_making(service, page)
                    with gr.Tab("Edit", id="edit"):
                        editing = build_editing(service)
                    with gr.Tab("Export", id="export"):
                        exporting = build_exporting(service, shelf)
                with gr.Column(scale=7, min_width=320, elem_id="dk-right"):
                    showing = build_showing(service, shelf)
            with gr.Tab("Compare", id="compare") as compare_tab:
                comparing = build_comparing(service, shelf)
            with gr.Tab("History", id="history") as history_tab:
                cards = build_archive(service, history_tab)
        _wire(service, showing, making, comparing, cards, main, tools)
        compare_tab.select(comparing.load, None, comparing.picks, **QUIET)
        _load(showing, editing, exporting)
        editing.submitted(showing)
        page.load(showing.attach, showing.asked, [showing.ref, *showing.outputs], js=_ATTACH, **QUIET).success(
            None, js="() => { if (dreamkiln.job()) dreamkiln.reveal(); }", **PRIVATE
        )
        gr.Timer(TICK).tick(showing.tick, showing.asked, showing.outputs, **QUIET)
        build_api(service, shelf)
    return page


def _load(showing: Showing, editing: Editing, exporting: Exporting) -> None:
    """Let the tabs that are of a result follow the one that is shown.

    That is one event, as everywhere here: once an answer is over that had to wait for itself (``always_last``), Gradio
    6.31 asks all answers to its event again. Two of those for one event never come to rest.
    """

    def load(shown: str, before: str) -> dict[Any, Any]:
        if shown == before:  # what was filled in since then stays
            return {editing.fields[0]: gr.skip()}
        return {**editing.load(shown), **exporting.load(shown)}

    outputs = [*editing.outputs, *exporting.outputs]
    showing.result.change(load, [showing.result, editing.fields[0]], outputs, trigger_mode="always_last", **QUIET)


def _wire(
    service: Service,
    showing: Showing,
    making: Making,
    comparing: Comparing,
    cards: gr.HTML,
    main: gr.Tabs,
    tools: gr.Tabs,
) -> None:
    """Buttons whose effect crosses from one part of the page to another."""
    acted = [showing.ref, main, tools, *making.fields, *comparing.picks, making.told]

    def act(event: gr.EventData, first: str | None, second: str | None) -> dict[Any, Any]:
        action, ref = str(event._data["act"]), str(event._data["ref"])
        if action == "show":
            return {showing.ref: ref, main: gr.Tabs(selected="studio")}
        if action == "clone":
            changes = making.restored_from(ref)
            return {main: gr.Tabs(selected="studio"), tools: gr.Tabs(selected="make"), **changes}
        if action == "compare":
            return {main: gr.Tabs(selected="compare"), **comparing.picked(ref, first, second)}
        run = service.find(ref)
        try:
            service.act(action, ref)
        except ValueError as problem:
            gr.Warning(str(problem), title="")
        else:
            if action == "clear" and run is not None:
                showing.shelf.forget(run.folder)
        return {showing.ref: gr.skip()}

    for panel in (showing.strip, showing.queue, showing.welcome, cards):
        panel.click(act, comparing.picks, acted, **TELLING).then(showing.tick, showing.asked, showing.outputs, **QUIET)

    def generate(seen: dict[str, Any], *values: Any) -> dict[Any, Any]:
        try:
            ids = service.submit(making.form(*values))
        except ValueError as problem:
            raise gr.Error(str(problem), title="", print_exception=False) from problem
        return showing.attach(ids[0], "", seen)

    for start in (making.button.click, making.fields[0].submit):
        start(generate, [showing.seen, *making.fields], [showing.ref, *showing.outputs], **QUIET).success(
            None, js="() => dreamkiln.reveal()", **PRIVATE
        )
