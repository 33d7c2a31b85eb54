"""The History tab: finished results, to look at, to compare, and to make again."""

import gradio as gr

from studio.app import panels
from studio.app.service import Service
from studio.app.viewing import entry
from studio.app.widgets import QUIET, html


def build_archive(service: Service, tab: gr.Tab) -> gr.HTML:
    """Draw the tab; returns its cards, which are looked up whenever it is opened."""
    search = gr.Textbox(
        show_label=False,
        placeholder="Search prompts",
        max_lines=1,
        elem_id="dk-search",
        container=False,
        max_length=200,
    )
    cards = html("", "dk-history")

    def draw(words: str | None) -> str:
        found = service.finished(words or "")
        return panels.history([entry(service, run) for run in found], words or "")

    # One event for both: the last answer is then that to the last question.
    gr.on([tab.select, search.change], draw, search, cards, trigger_mode="always_last", **QUIET)
    return cards
