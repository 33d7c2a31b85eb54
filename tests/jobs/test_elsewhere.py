"""Paths that a request names, from one folder, serve a worker that was started in another."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from studio.anchoring import anchored
from studio.codec import encode
from studio.folder import read_request
from studio.jobs.store import Item, Store
from studio.jobs.worker import work
from studio.loaded import forget_prior
from studio.options import Generate, build_request
from studio.prior_options import PriorOptions
from tests.jobs.tiny import tiny_request
from tests.priors.one_file import write_one_file
from tests.priors.tiny import unet, write_family

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of pipelines that diffusers builds itself


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with a Stable Diffusion of one file, a LoRA for it and a new word."""
    from diffusers import StableDiffusionPipeline

    home = tmp_path / "models"
    home.mkdir()
    whole = write_family("stable_diffusion", tmp_path / "whole")
    write_one_file(whole, home / "model.safetensors")
    shutil.copytree(whole, home / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    network = unet()
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers: Any = get_peft_model_state_dict(network)
    StableDiffusionPipeline.save_lora_weights(home, unet_lora_layers=layers, weight_name="style.safetensors")
    save_file({"emb_params": torch.randn(2, 32)}, home / "toy.safetensors")
    return home


def test_a_worker_started_in_another_folder_finds_every_file(
    models: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(models)
    files = PriorOptions(lora=("style.safetensors:0.5",), textual_inversion=("toy.safetensors",))
    request = dataclasses.replace(tiny_request(Path("model.safetensors"), steps=2), prior_options=files)
    (id,) = Store(runs).submit(request, [Item("a toy", 0)])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    forget_prior()
    list(work(runs, "cpu", until_empty=True))
    job = Store(runs).job(id)
    assert (job.state, job.error) == ("done", "")
    made = read_request(job.folder)
    assert made.prior == str(models / "model.safetensors")
    assert made.prior_options.lora == (f"{models}/style.safetensors:0.5",)
    assert made.prior_options.textual_inversion == (f"{models}/toy.safetensors",)


def test_the_command_line_names_whole_paths_wherever_they_are_given(models: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(models)
    knobs = ["--prior-options.textual-inversion", "toy.safetensors"]
    request = build_request(Generate("a toy", prior="model.safetensors", lora=("style.safetensors",)), knobs)
    assert request.prior == str(models / "model.safetensors")
    assert request.prior_options.lora == (str(models / "style.safetensors"),)
    assert request.prior_options.textual_inversion == (str(models / "toy.safetensors"),)
    assert build_request(Generate("a toy"), []).prior == "toybox-64"
    own = dataclasses.replace(request, prior_options=dataclasses.replace(request.prior_options, image="own"))
    assert anchored(own) == own  # a word, not a file
    assert str(models) not in str(encode(build_request(Generate("a toy"), [])))
