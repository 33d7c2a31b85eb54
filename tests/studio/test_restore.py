"""Settings restored from a file: what was written comes back, what a stranger made is refused in words and at once."""

import dataclasses
import functools
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guidance.dds import DDS
from representations.textured_mesh import TexturedMesh
from studio.codec import encode
from studio.export.glb import glb_bytes
from studio.paths import BUNDLED_NAMES, BUNDLED_PRIOR
from studio.prior_options import PriorOptions
from studio.recipes import RECIPES
from studio.request import Edit, Request, Stage, check
from studio.restore import LARGEST_FILE, LARGEST_JSON, Restored, restore, settings_of

DRAFT = RECIPES["draft"]("a red mushroom", True)


@functools.cache
def asset(request: Request = DRAFT) -> bytes:
    """A GLB of one triangle with the settings of a request."""
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    mesh = TexturedMesh(corners, torch.tensor([[0, 1, 2]]), corners[:, :2].contiguous(), torch.full((3, 4, 4), 0.5))
    return glb_bytes(mesh, encode(request))


def glb(tree: Any, claim: int | None = None, size: int | None = None) -> bytes:
    """A GLB of some JSON; ``claim`` and ``size``: lengths that it says instead of the true ones."""
    content = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    content += b" " * (-len(content) % 4)
    length = len(content) if claim is None else claim
    whole = 20 + len(content) if size is None else size
    return struct.pack("<4sIIII", b"glTF", 2, whole, length, 0x4E4F534A) + content


def ours(extras: Any, **more: Any) -> bytes:
    """A GLB that says it was made here."""
    return glb({"asset": {"version": "2.0", "generator": "Dreamkiln", "extras": extras}, **more})


@pytest.mark.parametrize("name", RECIPES)
def test_an_asset_restores_its_request(name: str, tmp_path: Path) -> None:
    request = dataclasses.replace(RECIPES[name]("a red mushroom", True), seed=7, negative="blue")
    (tmp_path / "a.glb").write_bytes(asset(request))
    assert settings_of(tmp_path / "a.glb") == request
    (tmp_path / "request.json").write_text(json.dumps(encode(request), indent=2))
    assert settings_of(tmp_path / "request.json") == request


def test_only_priors_that_are_offered(tmp_path: Path, tiny_prior: Path) -> None:
    request = dataclasses.replace(DRAFT, prior=str(tiny_prior))
    file = tmp_path / "a.glb"
    file.write_bytes(asset(request))
    assert restore(file, [str(tiny_prior)]).request == request
    restored = restore(file)
    assert restored.request.prior == BUNDLED_PRIOR
    assert str(tiny_prior) in restored.remarks[0]


@pytest.mark.parametrize("prior", ["/etc", "../..", "~root", "https://example.org/prior", "//host/share", "a\0b", ""])
def test_a_path_is_never_followed(prior: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr("studio.request.resolve_prior", lambda name: looked.append(name) or Path("/nowhere"))
    (tmp_path / "a.glb").write_bytes(asset(dataclasses.replace(DRAFT, prior=prior, task=Edit(Path("/etc/passwd")))))
    restored = restore(tmp_path / "a.glb")
    assert looked == [BUNDLED_PRIOR]
    assert "/etc" not in json.dumps(encode(restored.request))
    assert restored.request.task is None


def test_an_edit_begins_anew(tmp_path: Path) -> None:
    stage = Stage(DRAFT.stages[0].representation, DDS(), 300)
    request = dataclasses.replace(DRAFT, stages=(stage,), task=Edit(Path("runs/a-mug")))
    (tmp_path / "a.glb").write_bytes(asset(request))
    restored = restore(tmp_path / "a.glb")
    assert restored.request.stages[0].guidance == DRAFT.stages[0].guidance
    assert restored.request.stages[0].steps == 300
    assert "edit of another object" in restored.remarks[0]
    assert not [p for p in check(restored.request) if p.severity == "error"]


def test_one_pass_guidance_of_the_priors_own_is_restored(tmp_path: Path, tiny_prior: Path) -> None:
    """It is no path; but only where the prior has it, and never a file's."""
    own, file = tmp_path / "own.glb", tmp_path / "file.glb"
    request = dataclasses.replace(DRAFT, prior_options=PriorOptions(one_pass="own"))
    own.write_bytes(asset(request))
    assert restore(own) == Restored(request, ())
    elsewhere = dataclasses.replace(request, prior=str(tiny_prior))
    own.write_bytes(asset(elsewhere))
    for allowed, prior in (([str(tiny_prior)], str(tiny_prior)), ([], BUNDLED_PRIOR)):
        found = restore(own, allowed)
        assert found.request == dataclasses.replace(DRAFT, prior=prior)
        assert found.remarks[-1].startswith("Files on top of its prior")
    file.write_bytes(asset(dataclasses.replace(DRAFT, prior_options=PriorOptions(one_pass="/etc/passwd"))))
    assert restore(file).request == DRAFT


def extras(**changes: Any) -> dict[str, Any]:
    """Settings as they are written, with changes."""
    return {**encode(DRAFT), **changes}


def stage(**changes: Any) -> dict[str, Any]:
    """Settings with changes in their one stage."""
    return extras(stages=[{**encode(DRAFT.stages[0]), **changes}])


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "neither a GLB nor"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "neither a GLB nor"),
    "half a head": (b"glTF\2\0", "ends in its head"),
    "version 1": (struct.pack("<4sIIII", b"glTF", 1, 20, 0, 0x4E4F534A), "no GLB of version 2"),
    "binary first": (struct.pack("<4sIIII", b"glTF", 2, 20, 0, 0x004E4942), "no GLB of version 2"),
    "JSON of 4 GB": (glb({}, claim=2**32 - 1), "4,294,967,295 of them JSON"),
    "file of 4 GB": (glb({}, size=2**32 - 1), "says that it has 4,294,967,295"),
    "much JSON": (glb(b"[" + b"0," * LARGEST_JSON + b"0]"), "more than 1,048,576"),
    "much request.json": (b"{" + b" " * LARGEST_JSON + b"}", "at most 1,048,576"),
    "deep JSON": (glb(b"[" * 100_000 + b"]" * 100_000), "nested too deeply"),
    "no JSON": (glb(b"{not json}"), "damaged"),
    "no UTF-8": (glb(b'{"asset": "\xff\xfe"}'), "damaged"),
    "a list": (glb([]), "describes nothing"),
    "nothing": (glb({}), "not made here"),
    "another maker": (glb({"asset": {"generator": "Blender", "extras": encode(DRAFT)}}), "not made here"),
    "a file outside": (ours(encode(DRAFT), buffers=[{"uri": "../../secret.bin"}]), "files outside of it"),
    "a picture outside": (ours(encode(DRAFT), images=[{"uri": "http://10.0.0.1/x.png"}]), "files outside of it"),
    "an extension's file": (ours(encode(DRAFT), extensions={"X": [{"uri": "a"}]}), "files outside of it"),
    "buffers of nothing": (ours({}, buffers=5), "'prompt' is missing"),
    "no settings": (ours(None), "no settings in it"),
    "settings of a list": (ours([1, 2]), "no settings in it"),
    "empty settings": (ours({}), "'prompt' is missing"),
    "no prompt": (ours(extras(prompt="  ")), "prompt is empty"),
    "a long prompt": (ours(extras(prompt="a" * 501)), "shorten it to 500"),
    "10,000 characters": (ours(extras(negative="a" * 10_000)), "10,000 characters"),
    "a long key": (ours(extras(**{"a" * 100_000: 1})), "100,000 characters"),
    "half a character": (ours(extras(prompt="\ud800")), "no Unicode"),
    "an unknown key": (ours(extras(promt="x")), "did you mean 'prompt'"),
    "an unknown class": (ours(stage(guidance={"is": "os.system"})), "no 'os.system'"),
    "a class of a list": (ours(stage(guidance={"is": ["SDS"]})), "no \"['SDS']\""),
    "text for a number": (ours(stage(steps="many")), "wanted int"),
    "not a number": (ours(stage(guidance={"is": "SDS", "scale": float("nan")})), "NaN is no number"),
    "infinity": (ours(stage(guidance={"is": "SDS", "scale": float("inf")})), "Infinity is no number"),
    "a googol": (ours(stage(steps=10**100)), "a huge number"),
    "1e300": (ours(stage(guidance={"is": "SDS", "scale": 1e300})), "no setting is as large"),
    "5,000 digits": (ours(json.loads("{}") | {"seed": 0}).replace(b'"seed": 0', b'"seed": ' + b"9" * 5000), "bytes"),
    "no stage": (ours(extras(stages=[])), "needs a representation"),
    "100 stages": (ours(extras(stages=[encode(DRAFT.stages[0])] * 100)), "more in it than settings"),
    "17 stages": (ours(extras(stages=[{"representation": {"is": "Splats"}}] * 17)), "17 stages"),
    "no steps": (ours(stage(steps=0)), "steps must be 1 or more"),
    "a huge texture": (ours(extras(export={"texture": 100_000})), "export.texture must be between"),
    "deep settings": (ours(extras(negative=json.loads("[" * 50 + "]" * 50))), "more in it than settings"),
    "many values": (ours(extras(negative=[0] * 50_000)), "more in it than settings"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_words(name: str, tmp_path: Path) -> None:
    content, words = HOSTILE[name]
    file = tmp_path / "dropped.glb"
    file.write_bytes(content)
    began = time.process_time()
    with pytest.raises(ValueError) as refused:
        restore(file)
    assert time.process_time() - began < 1
    assert words in str(refused.value)
    assert str(refused.value).startswith("dropped.glb restores nothing: ")
    assert len(str(refused.value)) < 700


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.glb")
    with (tmp_path / "huge.glb").open("wb") as huge:
        huge.truncate(LARGEST_FILE + 1)
    for name, words in (
        ("pipe.glb", "no file"),
        ("huge.glb", "more than"),
        ("", "a directory"),
        ("missing.glb", "No such file"),
    ):
        began = time.process_time()
        with pytest.raises(ValueError, match=words):
            restore(tmp_path / name)
        assert time.process_time() - began < 1


def refused_or_right(file: Path) -> None:
    """A file gives a request that passes, or words; quickly."""
    began = time.process_time()
    try:
        request = restore(file).request
    except ValueError as problem:
        assert "restores nothing" in str(problem)
    else:
        assert not [p for p in check(request) if p.severity == "error"]
        assert request.prior in BUNDLED_NAMES
    assert time.process_time() - began < 1


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_mutated_assets(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = bytearray(asset())
    head = 20 + struct.unpack_from("<I", content, 12)[0]  # what is read at all
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, head - 1))
        match data.draw(st.sampled_from(["change", "cut", "insert", "repeat"])):
            case "change":
                content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del content[at : at + data.draw(st.integers(1, 40))]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=8) | st.just(b"[" * 3000))
            case "repeat":
                content[at:at] = content[at : at + 60]
    if data.draw(st.booleans()):  # lengths that are right again: so that what comes after them is read
        struct.pack_into("<I", content, 8, len(content)) if len(content) >= 20 else None
    file = tmp_path_factory.getbasetemp() / "mutated.glb"
    file.write_bytes(content)
    refused_or_right(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_settings_with_anything_in_any_place(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = encode(DRAFT)
    for _ in range(data.draw(st.integers(1, 3))):
        owner: Any = tree
        while True:
            keys = sorted(owner) if isinstance(owner, dict) else list(range(len(owner)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if not isinstance(owner[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
                owner[key] = data.draw(JSON)
                break
            owner = owner[key]
    file = tmp_path_factory.getbasetemp() / "anything.glb"
    file.write_bytes(ours(tree))
    refused_or_right(file)


@settings(deadline=None)
@given(content=st.binary(max_size=200) | st.binary(max_size=100).map(glb))
def test_any_bytes(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.glb"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="restores nothing"):
        restore(file)
