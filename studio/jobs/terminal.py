"""Jobs and a terminal: its signals as a question that work asks at every step, and texts that it can show."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def asked_to_stop(words: str = "") -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came; another Ctrl-C interrupts at once.

    Args:
        words: said on the standard error when one comes.
    """
    asked: list[bool] = []

    def ask(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(True)
        sys.stderr.write(words)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def printable(text: str) -> str:
    """A text that cannot move a terminal's cursor or change its colours."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
