"""What a batch file says: prompts, one a line, or with columns as CSV or JSON lines. Everything in it is data."""

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from studio.codec import nearest

KINDS = (".txt", ".csv", ".jsonl")
SETTINGS = ("negative", "recipe", "method", "representation", "steps")
"""Columns that mean what the options of these names mean, for their row alone."""
COLUMNS = ("prompt", "seed", "name", *SETTINGS)
_WHOLE = ("seed", "steps")
_LARGEST = 1 << 28
"""Bytes of a file; 100,000 prompts of the greatest length have 50 million."""
_LONGEST = 20_000
"""Characters of a prompt, wildcards and all. What becomes of it is limited as every prompt is."""
_LONGEST_NAME = 80


class UnreadableFile(ValueError):
    """A batch file that cannot be used; the message names the file, the line and what is wrong there."""


@dataclass(frozen=True)
class Entry:
    """A line of the file."""

    where: str
    """File and line, for messages."""
    prompt: str
    """As it stands there, wildcards and all."""
    seed: int | None = None
    """Its own seed, or none."""
    name: str = ""
    """Name for the folder of its run; "": made of the prompt."""
    settings: tuple[tuple[str, str | int], ...] = ()
    """(column, value) of the ``SETTINGS`` that it sets, in their order."""


def read_entries(file: str) -> list[Entry]:
    """The entries of a file, or of the standard input (``-``: a prompt a line).

    Raises:
        UnreadableFile: in words, with file and line.
        OSError: it cannot be read.
    """
    if file == "-":
        return parse("standard input", ".txt", sys.stdin.buffer.read(_LARGEST + 1))
    path = Path(file)
    if path.suffix.lower() not in KINDS:
        raise UnreadableFile(f"{file} is none of {', '.join('*' + kind for kind in KINDS)}; rename it to what it is.")
    with path.open("rb") as opened:
        return parse(file, path.suffix.lower(), opened.read(_LARGEST + 1))


def parse(name: str, kind: str, content: bytes) -> list[Entry]:
    """The entries of a file's content.

    Args:
        name: what messages call it.
        kind: one of ``KINDS``.
        content: UTF-8, with or without a byte order mark.

    Raises:
        UnreadableFile: in words, with file and line.
    """
    if len(content) > _LARGEST:
        raise UnreadableFile(f"{name} is larger than {_LARGEST >> 20} MiB; split it.")
    text = _decoded(name, content)
    entries = list({".txt": _text, ".csv": _csv, ".jsonl": _json}[kind](name, text))
    if not entries:
        raise UnreadableFile(f"{name} holds no prompt.")
    return entries


def _decoded(name: str, content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnreadableFile(f"{name} is UTF-16; save it as UTF-8.")
    try:
        return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise UnreadableFile(f"{name}, line {line}: not UTF-8; save the file as UTF-8.") from problem


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Not str.splitlines, which also parts at characters that may stand in a prompt.
    return enumerate(re.split(r"\r\n|\n|\r", text), 1)


def _text(name: str, text: str) -> Iterator[Entry]:
    for number, line in _lines(text):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _entry(f"{name}, line {number}", {"prompt": line})


def _csv(name: str, text: str) -> Iterator[Entry]:
    header = text.lstrip().partition("\n")[0]
    delimiter = next((d for d in (",", ";", "\t") if d in header), ",")  # some spreadsheets write the others
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            raise UnreadableFile(f"{name}, line {reader.line_num}: {problem}") from problem
        where = f"{name}, line {reader.line_num}"
        if not any(cell.strip() for cell in row):
            continue
        if columns is None:
            columns = [cell.strip() for cell in row]
            _check_columns(where, columns)
        elif len(row) > len(columns):
            _refuse(where, f"{len(row)} values under {len(columns)} columns; put quotes around a prompt with commas")
        else:
            yield _entry(where, dict(zip(columns, row, strict=False)))


def _json(name: str, text: str) -> Iterator[Entry]:
    for number, line in _lines(text):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            said = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise UnreadableFile(f"{where}: no JSON ({problem})") from problem
        if not isinstance(said, dict):
            _refuse(where, 'wanted an object, such as {"prompt": "a red mushroom", "seed": 1}')
        _check_columns(where, list(said))
        yield _entry(where, said)


def _check_columns(where: str, columns: list[str]) -> None:
    for column in columns:
        if column not in COLUMNS:
            _refuse(where, f"no column {column!r}; {nearest(column, COLUMNS)}")
        if columns.count(column) > 1:
            _refuse(where, f"the column {column!r} is there twice")
    if "prompt" not in columns:
        _refuse(where, "there is no column 'prompt'")


def _entry(where: str, said: Mapping[str, Any]) -> Entry:
    values: dict[str, Any] = {column: _value(where, column, value) for column, value in said.items()}
    values = {column: value for column, value in values.items() if value not in (None, "")}
    prompt = values.pop("prompt", "")
    if not prompt:
        _refuse(where, "the prompt is empty")
    name = values.pop("name", "")
    if len(name) > _LONGEST_NAME or name.startswith(".") or re.search(r"[/\\]", name):
        _refuse(where, f"{name[:_LONGEST_NAME]!r} is no name for a folder of a run")
    seed = values.pop("seed", None)
    return Entry(where, prompt, seed, name, tuple((key, values[key]) for key in SETTINGS if key in values))


def _value(where: str, column: str, value: Any) -> str | int | None:
    if value is None:
        return None
    if column in _WHOLE:
        return _whole(where, column, value)
    if not isinstance(value, str):
        _refuse(where, f"{column} must be text, not {str(value)[:40]}")
    if len(value) > _LONGEST:
        _refuse(where, f"{column} has {len(value):,} characters; {_LONGEST:,} are read")
    if found := re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", value):
        _refuse(where, f"{column} holds the control character {found[0]!r}")
    return " ".join(value.split()) if column == "prompt" else value.strip()


def _whole(where: str, column: str, value: Any) -> int | None:
    text = value.strip() if isinstance(value, str) else value
    if text == "":
        return None
    if isinstance(text, bool) or not re.fullmatch(r"-?[0-9]{1,19}", str(text)):
        _refuse(where, f"{column} must be a whole number, not {str(value)[:40]!r}")
    return int(text)


def _refuse(where: str, problem: str) -> NoReturn:
    raise UnreadableFile(f"{where}: {problem}" + ("" if problem.endswith("?") else "."))
