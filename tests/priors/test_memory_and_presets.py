"""Presets, what fetches them, and what a run records of its weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from studio import presets, prior_stamp
from studio.cli import run
from studio.paths import UnknownPrior, resolve_prior
from studio.prior_options import PriorOptions
from tests.priors.tiny import FAMILIES

# Presets --------------------------------------------------------------------------------------------------------------


def test_a_missing_preset_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(presets.VARIABLE, str(tmp_path))
    with pytest.raises(UnknownPrior) as problem:
        resolve_prior("sd35-medium")
    words = str(problem.value)
    for word in ("stabilityai/stable-diffusion-3.5-medium", str(tmp_path / "sd35-medium"), "--download", "licence"):
        assert word in words
    assert not list(tmp_path.iterdir())


def test_a_preset_that_is_there_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(presets.VARIABLE, str(tmp_path))
    FAMILIES["stable_diffusion"](tmp_path / "sd15")
    assert resolve_prior("sd15") == tmp_path / "sd15"


def test_presets_are_alive_and_apart():
    names = [preset.name for preset in presets.PRESETS]
    assert len(set(names)) == len(names)
    for preset in presets.PRESETS:
        assert not preset.repository.startswith(("runwayml/", "stabilityai/stable-diffusion-2"))
        assert preset.licence and preset.repository.count("/") == 1


def test_a_download_asks_for_weights_and_settings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(presets.VARIABLE, str(tmp_path))
    asked: dict[str, Any] = {}

    def fetch(**given: Any) -> None:
        asked.update(given)
        FAMILIES["stable_diffusion_xl"](Path(given["local_dir"]))
        note = Path(given["local_dir"]) / ".cache" / "huggingface" / "download" / "model_index.json.metadata"
        note.parent.mkdir(parents=True)
        note.write_text(f"{'a1' * 20}\netag\n1.0\n")

    preset = presets.preset_of("sdxl-turbo")
    assert preset is not None
    folder = presets.download(preset, fetch)
    assert folder == tmp_path / "sdxl-turbo" == resolve_prior("sdxl-turbo")
    assert asked["repo_id"] == "stabilityai/sdxl-turbo"
    ends = {pattern.rsplit(".", 1)[1] for pattern in asked["allow_patterns"]}
    assert ends == {"safetensors", "json", "txt", "model"}
    assert json.loads((folder / "dreamkiln.json").read_text())["resolution"] == 512
    assert prior_stamp.revision(folder) == "a1" * 20

    def refuse(**given: Any) -> None:
        raise OSError("no network")

    with pytest.raises(ValueError, match=r"could not be fetched: no network.*put the files of stabilityai/sdxl-turbo"):
        presets.download(preset, refuse)


def test_nothing_is_fetched_unless_it_is_asked_for(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv(presets.VARIABLE, str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda **_: pytest.fail("fetched"))
    assert run(["generate", "a fox", "--prior", "sdxl"]) == 2
    assert run(["doctor", "--prior", "sdxl"]) == 2
    assert "not on this machine" in capsys.readouterr().err


# Hashes ---------------------------------------------------------------------------------------------------------------


def test_hashes_of_large_weights_are_kept_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    FAMILIES["stable_diffusion"](tmp_path / "prior")
    monkeypatch.setattr(prior_stamp, "_LARGE", 1)
    first = prior_stamp.stamp("prior", tmp_path / "prior", PriorOptions())
    assert (tmp_path / "prior" / prior_stamp.CACHE).is_file()
    read: list[Path] = []
    hashed = prior_stamp._hashed
    monkeypatch.setattr(prior_stamp, "_hashed", lambda file: read.append(file) or hashed(file))
    assert prior_stamp.stamp("prior", tmp_path / "prior", PriorOptions()) == first and not read
    weights = tmp_path / "prior" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    changed = prior_stamp.stamp("prior", tmp_path / "prior", PriorOptions())
    assert read == [weights] and changed["weights"] != first["weights"]


def test_a_snapshot_of_the_hub_tells_its_revision(tmp_path: Path):
    place = tmp_path / "snapshots" / ("0f" * 20)
    place.mkdir(parents=True)
    assert prior_stamp.revision(place) == "0f" * 20 and prior_stamp.revision(tmp_path) is None
