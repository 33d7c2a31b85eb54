"""``studio generate --prior FOLDER`` with every family, through the command line's own functions."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from guidance.diffusers_prior import DiffusersPrior
from studio.cli import run
from studio.codec import decode
from studio.options import Generate, build_request
from studio.prior_options import PriorOptions
from studio.request import Request, check
from studio.restore import restore
from tests.priors.tiny import FAMILIES

SMALL = [
    "--stages.0.cameras.size", "16", "--stages.0.cameras.views", "2", "--export.faces", "100", "--export.texture", "64",
    "--export.grid", "24", "--export.picture", "32", "--representation", "HashField",
    "--stages.0.representation.levels", "4", "8", "--stages.0.representation.rate", "0.001",
    "--stages.0.representation.occupancy-cells", "8", "--preview-every", "0",
]  # fmt: skip
"""A run of seconds."""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGBA", (40, 30), (200, 30, 30, 128)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("family", FAMILIES)
def test_generate(family: str, folder_of: Callable[[str], Path], tmp_path: Path, picture: Path):
    folder, out = folder_of(family), tmp_path / "run"
    small = [w if w != "2" or family != "multiview" else "4" for w in SMALL]
    words = ["generate", "a fox", "--prior", str(folder), "--steps", "2", "--out", str(out), "--json", *small]
    words += ["--image", str(picture)] if family in ("zero123", "ip_adapter") else []
    assert run(words) == 0
    assert (out / "result.glb").read_bytes()[:4] == b"glTF"
    stamp = json.loads((out / "prior.json").read_text())
    assert stamp["place"] == str(folder.resolve()) and stamp["revision"] is None
    weights = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*.safetensors")}
    assert {name: entry["size"] for name, entry in stamp["weights"].items()} == weights and len(weights) > 1
    assert all(len(entry["sha256"]) == 64 for entry in stamp["weights"].values())
    assert set(stamp["further"]) == ({str(picture)} if "--image" in words else set())


def test_views_come_in_groups_unless_somebody_insists(folder_of: Callable[[str], Path]):
    options = Generate("a fox", prior=str(folder_of("multiview")))
    request = build_request(options, [])
    assert [s.cameras.views for s in request.stages] == [4] * len(request.stages)
    assert all(s.guidance.controls.group for s in request.stages) and check(request) == []
    (problem,) = check(build_request(options, ["--stages.0.cameras.views", "6"]))
    assert "cameras.views must be 4, 8" in problem.text and "not 6" in problem.text
    cameras, _ = request.stages[0].cameras.draw(
        DiffusersPrior.load(folder_of("multiview"), "cpu").hints, torch.Generator()
    )
    assert cameras.pose[:, 1, 3].std() < 1e-6  # one height


def test_a_novel_view_prior_asks_for_its_picture(folder_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]):
    assert run(["generate", "a fox", "--prior", str(folder_of("zero123")), "--steps", "2"]) == 2
    assert "name one with --image FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--lora", "nowhere.safetensors"], "there is no file"),
        (["--lora", "x.safetensors:much"], "with a number for the weight"),
        (["--textual-inversion", __file__], "is no safetensors file"),
        (["--image", "nowhere.png"], "There is no picture"),
    ],
)
def test_files_that_are_not_right_are_named_before_anything_loads(option, words, capsys: pytest.CaptureFixture[str]):
    assert run(["generate", "a red mug", "--steps", "2", *option]) == 2
    assert words in capsys.readouterr().err


def test_old_requests_are_read_and_a_stranger_names_no_files(folder_of: Callable[[str], Path], tmp_path: Path):
    from studio.codec import encode

    request = build_request(Generate("a red mug"), [])
    old = {name: value for name, value in encode(request).items() if name != "prior_options"}
    assert decode(Request, old) == request
    evil = encode(request) | {"prior_options": encode(PriorOptions(lora=("/etc/passwd.safetensors",)))}
    (tmp_path / "request.json").write_text(json.dumps(evil))
    restored = restore(tmp_path / "request.json")
    assert restored.request.prior_options == PriorOptions() and "left out" in restored.remarks[0]
