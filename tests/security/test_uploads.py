"""Uploads: by kind, size and decoded size; what is refused leaves nothing behind."""

import json
import struct
import zlib
from pathlib import Path

import pytest

from studio.app.uploads import KINDS, LARGEST_UPLOAD, MOST_PIXELS, check_upload
from tests.security.conftest import Site


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims to be of this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def glb(content: bytes, claim: int | None = None, whole: int | None = None) -> bytes:
    """A GLB of this JSON, or one that claims another length."""
    content += b" " * (-len(content) % 4)
    whole = 20 + len(content) if whole is None else whole
    return struct.pack("<4sIIII", b"glTF", 2, whole, len(content) if claim is None else claim, 0x4E4F534A) + content


BOMB = zlib.compress(bytes(10**7), 9)  # ten megabytes of nothing in ten kilobytes

HOSTILE = {
    "a page": ("page.html", b"<script>alert(1)</script>", "can be uploaded"),
    "a drawing with a script": ("a.svg", b"<svg onload='alert(1)'/>", "can be uploaded"),
    "a program": ("a.py", b"import os", "can be uploaded"),
    "no ending": ("Makefile", b"all:", "can be uploaded"),
    "a pickle": ("model.pt", b"\x80\x04", "can be uploaded"),
    "another kind named .glb": ("a.glb", png(4, 4), "neither a GLB"),
    "a page named .glb": ("a.glb", b"<html></html>", "neither a GLB"),
    "a request named .glb": ("a.glb", b"{}", "this is no GLB"),
    "a page named .png": ("a.png", b"<html></html>", "this is no PNG"),
    "a GLB named .png": ("a.png", glb(b"{}"), "this is no PNG"),
    "a JPEG named .png": ("a.png", b"\xff\xd8\xff\xe0" + bytes(99), "this is no PNG"),
    "a picture named .txt": ("a.txt", png(4, 4), "no text"),
    "text with nothing in it": ("a.csv", b"a\0b", "no text"),
    "a GLB that claims 4 GB of JSON": ("a.glb", glb(b"{}", claim=2**32 - 1), "4,294,967,295 of them JSON"),
    "a GLB that claims to have 4 GB": ("a.glb", glb(b"{}", whole=2**32 - 1), "says that it has 4,294,967,295"),
    "a GLB of nested JSON": ("a.glb", glb(b"[" * 100_000), "nested too deeply"),
    "a GLB of much JSON": ("a.glb", glb(b"[" + b"0," * 2**20 + b"0]"), "bytes of JSON"),
    "a GLB that calls home": (
        "a.glb",
        glb(b'{"images": [{"uri": "http://evil.example/x.png"}]}'),
        "files outside of it",
    ),
    "a picture of 4 gigapixels": ("a.png", png(65_535, 65_535, BOMB), "pixels"),
    "a picture just too large": ("a.png", png(4096, 4097, BOMB), "4096 x 4097 pixels are too many"),
    "a long, thin picture": ("a.png", png(2**30, 1, BOMB), "pixels"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_refused_and_leaves_nothing(name: str, site: Site) -> None:
    file, content, words = HOSTILE[name]
    before = {path for path in site.uploads.rglob("*") if path.is_file()}
    answer = site.upload(file, content)
    assert answer.status == 415
    assert words in answer.body.decode()
    assert {path for path in site.uploads.rglob("*") if path.is_file()} == before


NAMES = [
    "../../../../escaped.txt",
    "..%2f..%2fescaped.txt",
    "/etc/escaped.txt",
    "..\\\\..\\\\escaped.txt",
    "C:\\\\escaped.txt",
    "~/escaped.txt",
    "....//escaped.txt",
    "a/../../escaped.txt",
    ".escaped.txt",
    "escaped\x7f.txt",
    "-rf escaped.txt",
    "$(touch escaped).txt",
    "escaped;touch x.txt",
    "e" * 400 + ".txt",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_leads_nowhere_else(name: str, site: Site) -> None:
    above = site.home.parent
    before = {path for path in above.rglob("*") if site.uploads not in path.parents and path.is_file()}
    answer = site.upload(name, b"words")
    if answer.status == 200:
        (stored,) = json.loads(answer.body)
        assert Path(stored).resolve().is_relative_to(site.uploads)
        assert Path(stored).parent.parent == site.uploads
    else:
        assert answer.status in (400, 403, 415)
    assert {path for path in above.rglob("*") if site.uploads not in path.parents and path.is_file()} == before


def test_one_bad_file_takes_the_others_with_it(site: Site) -> None:
    boundary = '--frontier\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n\r\n{}\r\n'
    body = (boundary.format("good.txt", "unlike any other") + boundary.format("bad.html", "<p>")).encode()
    kind = {"Content-Type": "multipart/form-data; boundary=frontier"}
    assert site.ask("/gradio_api/upload", "POST", body + b"--frontier--\r\n", kind).status == 415
    assert not list(site.uploads.rglob("good.txt"))


def test_too_large_a_file_is_refused_before_it_is_sent(site: Site) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=frontier", "Content-Length": str(2 * LARGEST_UPLOAD)}
    answer = site.ask("/gradio_api/upload", "POST", b"", kind)
    assert answer.status == 413
    assert b"268,435,456 bytes" in answer.body


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data", ""])
def test_only_forms_are_uploads(kind: str, site: Site) -> None:
    assert site.ask("/gradio_api/upload", "POST", b"words", {"Content-Type": kind}).status == 400


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.glb", glb(b'{"asset": {"version": "2.0"}}')),
        ("a.png", png(4096, 4096, BOMB)),
        ("prompts.txt", "a red mug\nein roter Becher, größer\n".encode()),
        ("prompts.csv", b"prompt,seed\na mug,1\n"),
        ("prompts.jsonl", b'{"prompt": "a mug"}\n'),
        ("request.json", b"{}"),
    ],
)
def test_what_the_app_is_for_can_be_uploaded(name: str, content: bytes, site: Site) -> None:
    answer = site.upload(name, content)
    assert answer.status == 200
    (stored,) = json.loads(answer.body)
    assert Path(stored).read_bytes() == content
    assert site.ask(f"/gradio_api/file={stored}").body == content


def test_the_limits_are_those_of_what_is_decoded(tmp_path: Path) -> None:
    assert 4096 * 4096 == MOST_PIXELS
    assert not {".html", ".svg", ".js", ".pt", ".pkl", ".zip", ".py"} & set(KINDS)
    file = tmp_path / "huge.txt"
    with file.open("wb") as opened:
        opened.truncate(2**25)
    with pytest.raises(ValueError, match="33,554,432 bytes are too many"):
        check_upload(file)
