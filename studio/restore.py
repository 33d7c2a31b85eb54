"""Settings out of a file that anybody may have made: a GLB of ours, or the request.json of a run.

What is read is data from a stranger. Only the head of the file is looked at, within limits; nothing is followed, so a
path in it is never opened: a prior must be one that is offered here, and the object that an edit began from is left
out.
"""

import dataclasses
import json
import os
import stat
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from guidance.jsd import JSD
from guidance.sds import SDS
from studio.codec import decode
from studio.export.glb import GENERATOR
from studio.paths import BUNDLED_NAMES, BUNDLED_PRIOR
from studio.prior_options import PriorOptions, offers_one_pass
from studio.request import Request, Stage, check
from studio.second_prior import second_prior_of
from studio.tuning import suited

LARGEST_FILE = 256 * 2**20
"""Bytes of a GLB."""
LARGEST_JSON = 2**20
"""Bytes of the JSON in it; ours has a few thousand."""
LONGEST_TEXT = 4000
"""Characters of any text among the settings."""
LARGEST_NUMBER = 1e9
"""Largest absolute value of any number among the settings."""
_DEEPEST, _MOST_VALUES, _MOST_STAGES = 24, 10_000, 16
_HEAD = struct.Struct("<4sIIII")
"""Magic, version, length of the file; length and kind of the first chunk."""
_JSON_CHUNK = 0x4E4F534A


@dataclass(frozen=True)
class Restored:
    """Settings, and what could not be restored."""

    request: Request
    """Passes ``studio.request.check``; its prior is the bundled one or an allowed one, and it has no task."""
    remarks: tuple[str, ...]
    """In words; usually none."""


def settings_of(file: Path, allowed: Collection[str] = ()) -> Request:
    """The request in a GLB or a request.json; see ``restore``.

    Raises:
        ValueError: there is none that can be used; the message says why.
    """
    return restore(file, allowed).request


def restore(file: Path, allowed: Collection[str] = ()) -> Restored:
    """The request in a GLB or a request.json, with remarks on what had to be changed.

    Args:
        file: from anywhere.
        allowed: priors that may be used besides the bundled one, as a request names them.

    Raises:
        ValueError: there is none that can be used; the message says why.
    """
    try:
        settings = _settings(file)
        require_modest(settings)
        return _usable(decode(Request, settings, "settings"), allowed)
    except (OSError, ValueError, RecursionError) as problem:
        raise ValueError(f"{file.name} restores nothing: {_in_short(problem)}") from problem


def read_tree(file: Path) -> dict[str, Any]:
    """The JSON of a GLB that anybody may have made: within limits, and of one that refers to nothing outside.

    Raises:
        ValueError: it is no such GLB.
        OSError: it cannot be read.
    """
    tree = _read(file)
    if not isinstance(tree, _Tree):
        raise ValueError("this is no GLB")
    return tree.content


# Reading --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tree:
    """The JSON of a GLB."""

    content: dict[str, Any]


def _settings(file: Path) -> Any:
    """What the file holds in the place of settings."""
    found = _read(file)
    if not isinstance(found, _Tree):
        return found
    asset = found.content.get("asset")
    if not isinstance(asset, dict) or asset.get("generator") != GENERATOR:
        raise ValueError("the GLB was not made here, so there are no settings in it")
    return asset.get("extras")


def _read(file: Path) -> Any:
    """The JSON of a file, or a tree if the file is a GLB."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not make us wait
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no file")
        if status.st_size > LARGEST_FILE:
            raise ValueError(f"it has {status.st_size:,} bytes, more than {LARGEST_FILE:,}")
        head = opened.read(_HEAD.size)
        if head.startswith(b"glTF"):
            return _tree(opened, head, status.st_size)
        if not head.lstrip().startswith(b"{"):
            raise ValueError("it is neither a GLB nor a request.json")
        if status.st_size > LARGEST_JSON:
            raise ValueError(f"a request.json has at most {LARGEST_JSON:,} bytes")
        return _parsed(head + opened.read(LARGEST_JSON))


def _tree(opened: BinaryIO, head: bytes, size: int) -> _Tree:
    """The JSON of a GLB, after its head."""
    if len(head) < _HEAD.size:
        raise ValueError("the GLB ends in its head")
    _, version, whole, length, kind = _HEAD.unpack(head)
    if version != 2 or kind != _JSON_CHUNK:
        raise ValueError("it is no GLB of version 2")
    if whole != size or length > size - _HEAD.size:
        raise ValueError(f"the GLB says that it has {whole:,} bytes, {length:,} of them JSON, and it has {size:,}")
    if length > LARGEST_JSON:
        raise ValueError(f"the GLB has {length:,} bytes of JSON, more than {LARGEST_JSON:,}")
    tree = _parsed(opened.read(length))
    if not isinstance(tree, dict):
        raise ValueError("the JSON of the GLB describes nothing")
    if any("uri" in value for value, _ in _values(tree) if isinstance(value, dict)):
        raise ValueError("the GLB refers to files outside of it")
    return _Tree(tree)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as problem:
        raise ValueError("the JSON in it is nested too deeply") from problem
    except ValueError as problem:
        raise ValueError(f"the JSON in it is damaged ({problem})") from problem


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


# Judging --------------------------------------------------------------------------------------------------------------


def require_modest(settings: Any) -> None:
    """Refuse settings that are no settings by their sheer size, before anything reads them.

    Raises:
        ValueError: in words.
    """
    if not isinstance(settings, dict):
        raise ValueError("there are no settings in it")
    for count, (value, depth) in enumerate(_values(settings)):
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise ValueError("there is far more in it than settings")
        if isinstance(value, str):
            _require_modest_text(value)
        elif isinstance(value, int | float) and abs(value) > LARGEST_NUMBER:
            raise ValueError(f"no setting is as large as {value:.3g}" if isinstance(value, float) else "a huge number")
    if isinstance(stages := settings.get("stages"), list) and len(stages) > _MOST_STAGES:
        raise ValueError(f"it has {len(stages)} stages; at most {_MOST_STAGES} make sense")


def _require_modest_text(text: str) -> None:
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"a text in it has {len(text):,} characters, more than {LONGEST_TEXT:,}")
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise ValueError("a text in it is no Unicode") from problem


def _values(tree: Any) -> Iterator[tuple[Any, int]]:
    """Every key and value of parsed JSON with its depth, without recursion."""
    rest = [(tree, 0)]
    while rest:
        value, depth = rest.pop()
        yield value, depth
        if isinstance(value, dict):
            rest += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            rest += [(part, depth + 1) for part in value]


def _usable(request: Request, allowed: Collection[str]) -> Restored:
    """The request as it can be run here, on its own.

    Raises:
        ValueError: it cannot.
    """
    found = without_paths(request, allowed)
    errors = [problem.text for problem in check(found.request) if problem.severity == "error"]
    if errors:
        raise ValueError(" ".join(errors))
    return found


def without_paths(request: Request, allowed: Collection[str]) -> Restored:
    """The request without whatever names a place on this machine, save for priors that are allowed."""
    remarks = []
    if request.prior not in BUNDLED_NAMES and request.prior not in allowed:
        remarks.append(
            f"It was made with the prior {request.prior!r}, which is not among those offered here; {BUNDLED_PRIOR} is "
            "set instead, for which its knobs may not be right."
        )
        request = dataclasses.replace(request, prior=BUNDLED_PRIOR)
    own = request.prior_options.one_pass == "own" and not remarks and offers_one_pass(request.prior)
    kept = PriorOptions(one_pass="own" if own else "")
    if request.prior_options != kept:
        remarks.append("Files on top of its prior and settings of the machine it ran on are left out.")
        request = dataclasses.replace(request, prior_options=kept)
    if any(second_prior_of(stage) for stage in request.stages):
        remarks.append("The second prior of its method is left out; its own plays both parts.")
        alone = (dataclasses.replace(s, guidance=_without_second(s.guidance)) for s in request.stages)
        request = dataclasses.replace(request, stages=tuple(alone))
    if request.task is not None:
        remarks.append("It is an edit of another object, which is not in the file; the settings begin anew.")
        stages = tuple(_from_nothing(stage, request.prior) for stage in request.stages)
        request = dataclasses.replace(request, task=None, stages=stages)
    return Restored(request, tuple(remarks))


def _from_nothing(stage: Stage, prior: str) -> Stage:
    """A stage of an edit without what it compares with: by SDS, if its method cannot do without."""
    needs = "source" in stage.guidance.requires
    return dataclasses.replace(stage, guidance=suited(SDS, prior)) if needs else stage


def _without_second(method: Any) -> Any:
    return dataclasses.replace(method, multi_view=None) if isinstance(method, JSD) else method


def _in_short(problem: Exception) -> str:
    if isinstance(problem, OSError):
        return problem.strerror or "it cannot be read"
    text = str(problem) or "it is nested too deeply"
    return text if len(text) < 600 else f"{text[:600]} ..."
