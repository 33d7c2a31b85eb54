"""Memory told beforehand against memory measured; presets, what fetches them, and what a run records of its weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance.diffusers_prior import DiffusersPrior
from guidance.priors.latents import Autoencoder
from guidance.priors.memory import Need, encoding, native_pixels, need_of, predicting, weight_bytes
from guidance.priors.resources import Resources
from studio import presets, prior_check, prior_stamp
from studio.cli import run
from studio.options import Generate, build_request
from studio.paths import UnknownPrior, resolve_prior
from studio.prior_options import PriorOptions
from tests.priors.tiny import FAMILIES, PIXELS, unet, vae

# Memory ---------------------------------------------------------------------------------------------------------------


def measured(step: Any) -> int:
    """Most bytes that torch's own allocator has out at once."""
    from torch.profiler import ProfilerActivity, profile

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    now = peak = 0
    for event in found.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            now += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            peak = max(peak, now)
    return peak


def meta(build: Any) -> Any:
    with torch.device("meta"):
        return build().eval()


def test_an_evaluation_takes_what_was_told():
    wide: dict[str, Any] = {"block_out_channels": (32, 64), "norm_num_groups": 8, "cross_attention_dim": 32}
    network = unet(**wide).eval()

    def step() -> None:
        with torch.no_grad():
            network(torch.randn(2, 4, 32, 32), torch.ones(2), torch.randn(2, 16, 32))

    assert predicting(meta(lambda: unet(**wide)), 2, 32, 16) == pytest.approx(measured(step), rel=0.02)


def test_an_encoding_takes_what_was_told():
    real = Autoencoder(vae().requires_grad_(False))

    def step() -> None:
        images = torch.rand(2, 3, 64, 64, requires_grad=True)
        real.encode(images * 2 - 1).sum().backward()

    kept, most = encoding(meta(vae), 2, 64)
    assert most == pytest.approx(measured(step), rel=0.05) and 0.5 * most < kept < most


@pytest.mark.parametrize("family", FAMILIES)
def test_every_folder_tells_what_it_needs(family: str, folder_of, prior_of):
    folder, network = folder_of(family), prior_of(family).network
    need = need_of(folder, 2, 2, PIXELS, torch.float32)
    parts = ("unet", "transformer", "vae", "controlnet", "image_encoder")
    weights = sum(weight_bytes(folder / name, 4) for name in parts if (folder / name).is_dir())
    assert need.weights == weights and need.predicting > 0
    counted = weight_bytes(folder / ("transformer" if (folder / "transformer").is_dir() else "unet"), 4)
    own = {n: w for n, w in network.state_dict().items() if "_ip" not in n and "encoder_hid_proj" not in n}
    assert counted == pytest.approx(4 * sum(w.numel() for w in own.values()), rel=0.05)
    assert native_pixels(folder) == PIXELS
    larger = need_of(folder, 2, 2, 2 * PIXELS, torch.float32)
    assert larger.predicting > need.predicting and larger.weights == need.weights


def test_the_peak_is_the_worst_moment():
    need = Need(weights=100, texts=50, predicting=10, kept=5, encoding=30)
    assert need.peak() == 180 and need.peak(text_waits=True) == 150


def test_doctor_tells_of_a_prior(folder_of, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["doctor", "--prior", str(folder_of("multiview"))]) in (0, 1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "StableDiffusionPipeline, 4 views as one" in shown and "memory at 32 px" in shown
    assert run(["doctor", "--prior", "sdlx"]) == 2
    assert "did you mean 'sdxl'" in capsys.readouterr().err


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


def test_a_run_is_told_before_that_its_prior_will_not_fit(folder_of, monkeypatch: pytest.MonkeyPatch):
    request = build_request(Generate("a fox", prior=str(folder_of("stable_diffusion_3"))), [])
    assert prior_check.memory_warnings(request, torch.device("cpu")) == []
    monkeypatch.setattr(prior_check, "free_memory", lambda: 1000)
    (words,) = prior_check.memory_warnings(request, torch.device("cpu"))
    assert f"views of {PIXELS} px" in words and "--prior-options.resolution 16" in words
    assert prior_check.memory_warnings(build_request(Generate("a red mug"), []), torch.device("cpu")) == []


def test_the_autoencoder_of_xl_stays_in_32_bits(folder_of):
    sixteen = Resources("float16")
    for family, dtype in (("stable_diffusion_xl", torch.float32), ("stable_diffusion", torch.float16)):
        prior = DiffusersPrior.load(folder_of(family), "cpu", resources=sixteen)
        assert prior.parts.modules["vae"].dtype == dtype and prior.network.dtype == torch.float16
        kept = need_of(folder_of(family), 1, 2, PIXELS, torch.float16).kept
        assert kept == pytest.approx(encoding(meta(vae).to(dtype), 1, PIXELS)[0], rel=1e-3)
