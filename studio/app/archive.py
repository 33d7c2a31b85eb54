"""The History tab: finished results, to look at, to compare, and to make again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio.app import panels
from studio.app.service import Service
from studio.app.viewing import entry
from studio.app.widgets import QUIET, html


@dataclass(frozen=True)
class Archive:
    """The parts that the page wires."""

    cards: gr.HTML
    load: tuple[Callable[..., Any], list[Any], list[Any]]
    """Function, inputs and outputs that draw the cards."""


def build_archive(service: Service) -> Archive:
    """Draw the tab."""
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

    search.change(draw, search, cards, trigger_mode="always_last", **QUIET)
    return Archive(cards, (draw, [search], [cards]))
