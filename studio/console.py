"""Events on a terminal: a progress bar for people, JSON lines for machines."""

import json
import sys
import time
from collections.abc import Iterator
from itertools import chain

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from studio.cli import FAILED, OK
from studio.events import (
    Event,
    Exported,
    Failed,
    Finished,
    StageStarted,
    Started,
    Stepped,
    Stopped,
    Warned,
    Working,
)
from studio.folder import plain
from studio.jobs.terminal import printable

_READ_EVERY = 0.5
"""Seconds between readings of the loss: each makes the host wait for the device."""
_LINE_EVERY = 30.0
"""Seconds between lines on the steps where there is no terminal to draw a bar on."""


class Pace:
    """Iterations a second and time left, measured over this process's steps."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._first = 0

    def text(self, done: int, total: int) -> str:
        """Words for the pace after ``done`` of ``total`` steps."""
        now = time.monotonic()
        if self._began is None:
            self._began, self._first = now, done
            return ""
        rate = (done - self._first) / max(now - self._began, 1e-9)
        left = int((total - done) / max(rate, 1e-9))
        return f"{rate:.1f} it/s, {_clock(left)} left"


class _Elapsed(ProgressColumn):
    """The time since the start; rich's own stands still once the last step is done, while the export goes on."""

    def render(self, task: Task) -> Text:
        """Hours if there are any, minutes and seconds."""
        return Text(_clock(int(task.elapsed or 0)), style="progress.elapsed")


def _clock(seconds: int) -> str:
    minutes = f"{seconds // 60 % 60:02d}" if seconds >= 3600 else str(seconds // 60)
    return f"{seconds // 3600}:{minutes}:{seconds % 60:02d}" if seconds >= 3600 else f"{minutes}:{seconds % 60:02d}"


def show(events: Iterator[Event], console: Console | None = None) -> int:
    """A progress bar with the step, iterations a second, the time left, the loss and what is being done.

    Where there is no terminal, a line now and then says the same.
    """
    console = console or Console(stderr=True)
    first = next(events, None)  # a refusal comes before the first event, and before any bar
    if first is None:
        return OK
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TextColumn("{task.fields[loss]}"),
        _Elapsed(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=None, pace="", loss="")
        pace, read_at, said_at, status = Pace(), 0.0, time.monotonic(), OK
        for event in chain([first], events):
            if isinstance(event, Stepped):
                if time.monotonic() - read_at >= _READ_EVERY or event.done == event.total:
                    read_at = time.monotonic()
                    loss = event.diagnostics.get("value", event.loss).item()
                    left = pace.text(event.done, event.total)
                    progress.update(task, completed=event.done, pace=left, loss=f"loss {loss:.4g}")
                    if not console.is_terminal and read_at - said_at >= _LINE_EVERY:
                        said_at = read_at
                        console.print(f"step {event.done} of {event.total}, {left}, loss {loss:.4g}", highlight=False)
            else:
                status = max(status, _announce(event, progress, task))
    return status


def _announce(event: Event, progress: Progress, task: TaskID) -> int:
    console = progress.console
    match event:
        case Started(prompt=prompt, folder=folder, device=device, step=step, steps=steps):
            what, where = _escaped(printable(prompt)), _escaped(str(folder))
            console.print(f"[bold]{what}[/] on {device}, in {where}", soft_wrap=True)
            progress.update(task, description="optimising", total=steps, completed=step)
        case StageStarted(index=index, count=count, representation=representation, guidance=guidance):
            progress.update(task, description=f"stage {index + 1}/{count}: {representation} under {guidance}")
        case Working(what=what):
            progress.update(task, description=what, pace="", loss="")
        case Warned(text=text):
            console.print(f"[yellow]Note:[/] {_escaped(text)}")
        case Stopped(step=step, folder=folder):
            console.print(f"Stopped at step {step}. Go on with: studio resume {_escaped(str(folder))}", soft_wrap=True)
            return FAILED
        case Failed():
            progress.update(task, description="[red]failed[/]", pace="", loss="")
        case Exported(path=path, report=report):
            _summarise(console, str(path), report)
        case Finished(seconds=seconds):
            progress.update(task, description="done", pace="", loss="")
            console.print(f"Done in {seconds:.0f} s.")
        case _:
            pass
    return OK


def _summarise(console: Console, path: str, report: dict) -> None:
    console.print(f"[green]{_escaped(path)}[/]", soft_wrap=True)  # a path stays whole, to be copied
    tight = "watertight" if report["watertight"] else "not watertight"
    console.print(f"  {report['faces']:,} faces, {tight}, {report['texture_size']} px texture", highlight=False)
    likeness = f"{report['render_to_asset_psnr']:.1f} dB, silhouettes to {report['silhouette_iou']:.0%}"
    console.print(f"  like its render to {likeness}", highlight=False)
    console.print("  beside it: turntable.webp, contact_sheet.png, report.json", highlight=False)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def show_json(events: Iterator[Event]) -> int:
    """One JSON object a line on standard output."""
    status = OK
    for event in events:
        sys.stdout.write(json.dumps(plain(event)) + "\n")
        sys.stdout.flush()
        if isinstance(event, Failed | Stopped):
            status = FAILED
    return status
