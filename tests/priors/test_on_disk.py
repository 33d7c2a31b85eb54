"""Priors on the disk: links, what is recorded of them, what is kept in memory of them, and when they change."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from guidance import VSD
from guidance.diffusers_prior import DiffusersPrior
from guidance.prior_folder import MissingPriorError
from guidance.priors.resources import Resources
from studio import loaded, prior_check
from studio.loaded import forget_prior, kept_bytes, loaded_prior
from studio.options import Generate, build_request
from studio.paths import UnknownPrior, resolve_prior
from studio.prior_check import available, examine_prior, memory_warnings
from studio.prior_options import PriorOptions, option_problems, resource_problems
from studio.prior_stamp import as_on_disk, record, stamp, weights_of
from studio.request import Stage
from tests.priors.conftest import Copied
from tests.priors.one_file import write_one_file

SD, CPU = "stable_diffusion", torch.device("cpu")


def alter(folder: Path, part: str = "unet") -> Path:
    """Change a weight; returns the file."""
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    first = min(weights)
    save_file(weights | {first: weights[first] + 1}, file, metadata={"format": "pt"})
    return file


# Kept in memory -------------------------------------------------------------------------------------------------------


def test_a_prior_is_kept_until_its_files_change(copied: Copied):
    folder = copied(SD)
    prior = loaded_prior(str(folder), CPU)
    assert loaded_prior(str(folder), CPU) is prior
    alter(folder)
    other = loaded_prior(str(folder), CPU)
    assert other is not prior and other.fingerprint() != prior.fingerprint()
    shutil.rmtree(folder / "vae")
    with pytest.raises(MissingPriorError, match="its vae/ is missing"):
        loaded_prior(str(folder), CPU)


def test_another_prior_is_loaded_after_the_last_one_is_gone(folder_of, monkeypatch: pytest.MonkeyPatch):
    loaded_prior(str(folder_of(SD)), CPU)
    there, load = [], DiffusersPrior.load
    monkeypatch.setattr(DiffusersPrior, "load", lambda *a, **k: there.append(len(loaded._kept)) or load(*a, **k))
    loaded_prior(str(folder_of("stable_diffusion_v")), CPU)
    assert there == [0] and len(loaded._kept) == 1


def test_what_a_kept_prior_has_is_there_for_the_next_run(folder_of, monkeypatch: pytest.MonkeyPatch):
    forget_prior()
    monkeypatch.setattr(prior_check, "free_memory", lambda: 1000)
    assert kept_bytes() == 0 and available(CPU) == 1000
    prior = loaded_prior(str(folder_of(SD)), CPU)
    held = sum(w.nbytes for m in prior.parts.modules.values() for w in (*m.parameters(), *m.buffers()))
    assert available(CPU) == 1000 + held and held > 10_000
    monkeypatch.setattr(prior_check, "free_memory", lambda: None)
    assert available(CPU) is None


def test_a_file_on_top_that_changes_makes_another_prior(folder_of, tmp_path: Path):
    file = tmp_path / "word.safetensors"
    save_file({"<w>": torch.zeros(32)}, file)
    options = PriorOptions(textual_inversion=(str(file),))
    first = as_on_disk(folder_of(SD), options)
    save_file({"<w>": torch.ones(2, 32)}, file)
    assert as_on_disk(folder_of(SD), options) != first and len(first) > len(as_on_disk(folder_of(SD), PriorOptions()))


# Recorded -------------------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_with_other_weights_says_so(copied: Copied, tmp_path: Path):
    folder, run = copied(SD), tmp_path / "run"
    run.mkdir()
    first = stamp(SD, folder, PriorOptions())
    longer = {**first["weights"], "unet/one_that_is_not_read.safetensors": {"size": 1, "sha256": ""}}
    assert record(run, {**first, "weights": longer}) == []  # as an earlier release listed them
    assert record(run, first) == [] == record(run, stamp(SD, folder, PriorOptions()))
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    assert record(run, stamp(SD, moved, PriorOptions())) == []  # the same files in another place
    name = str(alter(moved).relative_to(moved))
    (words,) = record(run, stamp(SD, moved, PriorOptions()))
    assert f"not the one that this run began with: {name} changed" in words
    assert record(run, stamp(SD, moved, PriorOptions())) == []
    kept = json.loads((run / "prior.json").read_text())
    (earlier,) = kept["earlier"]
    assert earlier["weights"][name] == first["weights"][name] != kept["weights"][name]


def test_weights_are_recorded_that_are_read_and_no_others(copied: Copied, tmp_path: Path):
    folder, linked = copied("ip_adapter"), tmp_path / "linked"
    read = {str(file.relative_to(folder)) for file in folder.rglob("*.safetensors")}
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "whole.safetensors")
    shutil.copy(folder / "whole.safetensors", folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    linked.mkdir()
    for part in folder.iterdir():
        (linked / part.name).symlink_to(part)
    for home in (folder, linked):
        assert {str(file.relative_to(home)) for file in weights_of(home)} == read and len(read) == 5
    assert set(stamp("it", linked, PriorOptions())["weights"]) == read


# Links ----------------------------------------------------------------------------------------------------------------


def test_a_linked_file_has_its_configuration_beside_the_link(copied: Copied, folder_of, tmp_path: Path, prior_of):
    """As the hub's cache has files: links to names without an ending."""
    (tmp_path / "blobs").mkdir()
    write_one_file(folder_of(SD), tmp_path / "blobs" / "0f3a")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "0f3a")
    copied(SD).rename(tmp_path / "model")
    place = resolve_prior(tmp_path / "model.safetensors")
    prior = DiffusersPrior.load(place, "cpu")
    assert torch.equal(prior.embed(["a fox"]), prior_of(SD).embed(["a fox"]))


def test_a_folder_may_end_as_a_file_does(copied: Copied, tmp_path: Path):
    folder = copied(SD).rename(tmp_path / "my.safetensors")
    assert DiffusersPrior.load(resolve_prior(folder), "cpu").resolution == 32


def test_a_folder_of_the_hubs_cache_says_where_the_prior_is(tmp_path: Path):
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(UnknownPrior, match=r"of the hub's cache; the prior is one of the folders in .*snapshots"):
        resolve_prior(tmp_path)


# Said beforehand ------------------------------------------------------------------------------------------------------


def test_pictures_are_looked_at_before_a_run(folder_of, tmp_path: Path):
    picture, broken = tmp_path / "picture.png", tmp_path / "broken.png"
    Image.new("RGB", (4, 4)).save(picture)
    broken.write_bytes(b"no picture at all")
    for family, image, words in (
        (SD, picture, "told by words, not by a picture: leave --image out, or put ip_adapter.safetensors"),
        ("ip_adapter", broken, "cannot be read as a picture"),
        ("zero123", broken, "cannot be read as a picture"),
    ):
        (problem,) = option_problems(PriorOptions(image=str(image)), folder_of(family))
        assert words in problem
    for family in ("ip_adapter", "zero123"):
        assert option_problems(PriorOptions(image=str(picture)), folder_of(family)) == []


def test_options_that_no_run_could_have_are_refused(folder_of, tmp_path: Path):
    (problem,) = option_problems(PriorOptions(resolution=0), folder_of(SD))
    assert "resolution must be 1 or more pixels, not 0" in problem
    write_one_file(folder_of(SD), tmp_path / "one.safetensors")
    (problem,) = option_problems(PriorOptions(), tmp_path / "one.safetensors")
    assert "its configuration is looked for in" in problem
    layers = PriorOptions(resources=Resources(offload="layers"))
    (problem,) = resource_problems((Stage(None), Stage(None, VSD())), layers)
    assert "VSD learns a critic, which needs the network in memory" in problem
    assert resource_problems((Stage(None),), layers) == [] == resource_problems((Stage(None, VSD()),), PriorOptions())


def test_settings_that_do_not_fit_are_found_before_weights_are_read(copied: Copied, monkeypatch: pytest.MonkeyPatch):
    folder = copied(SD)
    request = build_request(Generate("a fox", prior=str(folder)), ["--prior-options.resolution", "30"])
    with pytest.raises(ValueError, match="pixels a side, not 30"):
        memory_warnings(request, CPU)
    monkeypatch.setattr(prior_check, "weightless", lambda *_: 1 / 0)  # what counting cannot do stops nobody
    monkeypatch.setattr(prior_check, "peak_of", lambda *_: 1 / 0)
    assert memory_warnings(request, CPU) == []
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(MissingPriorError, match="its tokenizer/ is missing"):
        memory_warnings(request, CPU)


def test_doctor_looks_for_every_file(folder_of, copied: Copied, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prior_check, "need_of", lambda *_: prior_check.Need(0, 0, 0, 0, 0))
    _, files, *counted = examine_prior(str(folder_of(SD)))
    assert files.verdict == "ok" and files.finding.startswith("all there") and len(counted) == 4
    folder = copied("inpainting")
    shutil.rmtree(folder / "text_encoder")
    _, files, *_ = examine_prior(str(folder))
    assert files.verdict == "failure" and "its text_encoder/ is missing" in files.finding
