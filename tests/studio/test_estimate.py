"""Estimates: out of earlier runs where there are any, else counted and priced; at once, and never with an error."""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from guidance.methods import AnyGuidance
from guidance.priors.resources import Resources
from guidance.schedules import Schedule
from guidance.sds import SDS
from guidance.vsd import VSD
from representations.splats import Splats
from studio.cameras import Orbit
from studio.codec import encode, members
from studio.estimate import LEARNERS, ONE_PASS_LEARNERS, Estimate, estimate, kind_of
from studio.evaluate.cost import work_of
from studio.prior_options import PriorOptions
from studio.recipes import RECIPES
from studio.request import Request, Stage
from studio.run import run_request
from studio.tuning import suited
from tests.priors.tiny import FAMILIES

DRAFT = RECIPES["draft"]("a mug", True)


def past(home: Path, name: str, request: Request, **changes: Any) -> None:
    """A finished run in a folder: 0.05 s a step, 3 s of loading, 6 s of export, 900 MiB."""
    folder = home / name
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps(encode(request)))
    report = {
        "seconds": {"optimise": 0.05 * request.steps + 3, "samples": 2.0, "write": 4.0},
        "seconds_per_iteration": 0.05,
        "peak_memory_mb": {"host": 900},
    }
    (folder / "report.json").write_text(json.dumps(report | changes))


def with_stage(request: Request, **changes: Any) -> Request:
    """The request with its first stage changed."""
    first, *rest = request.stages
    return dataclasses.replace(request, stages=(dataclasses.replace(first, **changes), *rest))


def test_a_run_of_the_same_kind_decides(runs: Path) -> None:
    past(runs, "a", DRAFT)
    assert estimate(DRAFT, runs) == Estimate(0.05 * 900 + 3 + 6, 900.0, "from an earlier run of this kind here")


def test_steps_are_scaled_and_several_runs_give_their_median(runs: Path) -> None:
    for i, speed in enumerate((0.04, 0.05, 0.9)):
        past(runs, str(i), DRAFT, seconds_per_iteration=speed)
    found = estimate(with_stage(DRAFT, steps=90), runs)
    assert found.basis == "from 3 earlier runs of this kind here"
    assert found.seconds == pytest.approx(0.05 * 90 + 3 + 6)


def test_on_a_gpu_its_memory_counts(runs: Path) -> None:
    past(runs, "a", DRAFT, peak_memory_mb={"host": 3000, "device": 5000})
    assert estimate(DRAFT, runs).memory_mb == 5000


def test_another_export_is_priced_anew(runs: Path) -> None:
    past(runs, "a", DRAFT)
    finer = dataclasses.replace(DRAFT, export=dataclasses.replace(DRAFT.export, faces=100_000))
    assert estimate(finer, runs).seconds > estimate(DRAFT, runs).seconds + 10


@pytest.mark.parametrize(
    "other",
    [
        RECIPES["standard"]("a mug", True),
        with_stage(DRAFT, guidance=VSD()),
        with_stage(DRAFT, cameras=Orbit(views=8)),
        with_stage(DRAFT, cameras=Orbit(size=96)),
        with_stage(DRAFT, representation=Splats(most=50_000)),
        dataclasses.replace(DRAFT, prior="/elsewhere"),
        with_stage(DRAFT, at_once=1),
        dataclasses.replace(DRAFT, prior_options=PriorOptions(one_pass="own")),
        dataclasses.replace(DRAFT, prior_options=PriorOptions(resolution=32)),
        dataclasses.replace(DRAFT, prior_options=PriorOptions(resources=Resources(offload="text"))),
        dataclasses.replace(DRAFT, stages=DRAFT.stages * 2),
    ],
)
def test_runs_of_another_kind_say_nothing(other: Request, runs: Path) -> None:
    past(runs, "a", DRAFT)
    assert "here" not in estimate(other, runs).basis.split(";")[0]
    assert kind_of(other) != kind_of(DRAFT)


def test_prompt_seed_and_rates_change_no_kind() -> None:
    assert kind_of(dataclasses.replace(DRAFT, prompt="b", seed=9, negative="c", preview_every=1)) == kind_of(DRAFT)
    assert kind_of(with_stage(DRAFT, guidance=SDS(3.0, t_min=Schedule(0.1)), steps=7)) == kind_of(DRAFT)


@pytest.mark.parametrize("report", ["", "{}", "[]", '{"seconds": 1}', '{"seconds": {}, "peak_memory_mb": null}', "{"])
def test_a_report_that_says_nothing_is_passed_over(report: str, runs: Path) -> None:
    past(runs, "a", DRAFT)
    past(runs, "b", DRAFT, seconds_per_iteration=None)
    past(runs, "c", DRAFT)
    (runs / "c" / "report.json").write_text(report)
    past(runs, "d", DRAFT)
    (runs / "d" / "request.json").unlink()
    (runs / "e").write_text("a file")
    assert estimate(DRAFT, runs).basis == "from an earlier run of this kind here"


def test_a_real_run_can_be_learnt_from(tiny: Request, runs: Path) -> None:
    longer = dataclasses.replace(tiny, stages=(dataclasses.replace(tiny.stages[0], steps=12),))
    for _ in run_request(longer, runs / "a", "cpu"):
        pass
    report = json.loads((runs / "a" / "report.json").read_text())
    found = estimate(longer, runs)
    assert found.basis == "from an earlier run of this kind here"
    assert found.seconds == pytest.approx(sum(report["seconds"].values()), rel=0.05, abs=0.2)
    assert found.memory_mb == report["peak_memory_mb"]["host"]


# Figures --------------------------------------------------------------------------------------------------------------


def test_the_draft_takes_what_it_took_when_it_was_measured(runs: Path) -> None:
    found = estimate(DRAFT, runs / "nowhere")
    assert 40 < found.seconds < 50  # 42 to 44 s on two idle cores
    assert 750 < found.memory_mb < 950  # 806 to 871 MiB
    assert found.basis == "from figures measured on two cores; your machine may differ"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_an_estimate_at_once(name: str, runs: Path) -> None:
    began = time.process_time()
    found = estimate(RECIPES[name]("a mug", True), runs)
    assert time.process_time() - began < 2  # 0.1 to 0.2 s without checked types
    assert 10 < found.seconds < 1000
    assert 800 < found.memory_mb < 2000


def test_a_papers_own_settings_take_hours_on_a_processor(runs: Path) -> None:
    assert estimate(RECIPES["dreamfusion"]("a mug", False), runs).seconds > 5000


def test_a_method_that_asks_more_takes_longer(runs: Path) -> None:
    more = with_stage(DRAFT, guidance=VSD())
    assert estimate(more, runs).seconds > 1.5 * estimate(DRAFT, runs).seconds
    assert work_of(Stage(None, VSD(), 4)).learnt == 4 * 4
    assert work_of(Stage(None, SDS(), 4)).pictures == 4 * 8


@pytest.mark.parametrize("one_pass", [False, True], ids=["", "one-pass"])
@pytest.mark.parametrize("name", members(AnyGuidance))
def test_what_methods_ask_is_known_or_counted(name: str, one_pass: bool) -> None:
    known = ONE_PASS_LEARNERS if one_pass else LEARNERS
    work = work_of(Stage(None, suited(members(AnyGuidance)[name]), 40), one_pass=one_pass)
    assert (work.learnt > 0) == (name in known)
    if name in known:
        assert (work.pictures / 160, work.learnt / 160) == pytest.approx(known[name], rel=0.4)


def test_guidance_in_one_pass_asks_half_as_much(runs: Path) -> None:
    """Plain guidance asks twice of each view, VSD a third time about its critic's answer."""
    sds, vsd = (work_of(Stage(None, method, 4), one_pass=True) for method in (SDS(), VSD()))
    assert (sds.pictures, sds.widest) == (4 * 4, 4)
    assert (vsd.pictures, vsd.learnt, vsd.widest) == (4 * 8, 4 * 4, 4)
    own = dataclasses.replace(DRAFT, prior_options=PriorOptions(one_pass="own"))
    saved = estimate(DRAFT, runs).seconds - estimate(own, runs).seconds
    assert saved == pytest.approx((900 * 4 + 160) * 0.0042)


def test_twice_the_steps_take_twice_as_long_without_loading_and_export(runs: Path) -> None:
    one, two, three = (estimate(with_stage(DRAFT, steps=steps), runs).seconds for steps in (1000, 2000, 3000))
    assert two - one == pytest.approx(three - two)
    assert two - one > 30


@pytest.mark.parametrize(
    "request_",
    [
        dataclasses.replace(DRAFT, stages=()),
        with_stage(DRAFT, representation=None),
        with_stage(DRAFT, steps=0),
        with_stage(DRAFT, steps=-5),
        with_stage(DRAFT, cameras=Orbit(views=1, size=-1)),
        with_stage(DRAFT, cameras=Orbit(views=10**9, size=10**6), steps=10**9),
        dataclasses.replace(DRAFT, export=dataclasses.replace(DRAFT.export, faces=-1, texture=-1)),
        dataclasses.replace(DRAFT, prior="/no/such/folder"),
        dataclasses.replace(DRAFT, prompt=""),
    ],
)
def test_a_request_that_would_be_refused_has_an_estimate_too(request_: Request, runs: Path) -> None:
    found = estimate(request_, runs)
    assert found.seconds >= 0 and found.memory_mb >= 0


def test_ten_thousand_runs_do_not_slow_it_down(runs: Path) -> None:
    past(runs, "a", DRAFT)
    for i in range(2000):
        (runs / f"run-{i}").mkdir()
    estimate(DRAFT, runs)
    began = time.process_time()
    estimate(DRAFT, runs)
    assert time.process_time() - began < 0.2


# Other priors ---------------------------------------------------------------------------------------------------------


def foreign(folder: Path, millions: int) -> Path:
    """A latent prior of so many million weights, in 16 and in 32 bits."""
    for part, share in (("unet", 0.8), ("text_encoder", 0.1), ("vae", 0.1)):
        (folder / part).mkdir(parents=True)
        rows = round(millions * share * 1000)
        save_file({"w": torch.zeros(rows, 1000, dtype=torch.float16)}, folder / part / "model.fp16.safetensors")
    save_file({"w": torch.zeros(rows, 1000)}, folder / "vae" / "model.safetensors")
    (folder / "unet" / "config.json").write_text(json.dumps({"sample_size": 64}))
    return folder


def test_a_foreign_prior_is_judged_by_its_weights(tmp_path: Path) -> None:
    small, large = foreign(tmp_path / "small", 1), foreign(tmp_path / "large", 4)
    latent = RECIPES["draft"]("a mug", False)
    one, four = (estimate(dataclasses.replace(latent, prior=str(folder)), tmp_path) for folder in (small, large))
    assert "rough guess from the size of the prior's weights" in one.basis
    # 4 views of 512 pixels kept for the gradient of the encoder: 12.3 kB a pixel in 32 bits.
    assert one.memory_mb == pytest.approx(860 + 4 * 512**2 * 12.3e3 / 2**20 + 4e6 / 2**20, rel=1e-3)
    assert four.memory_mb - one.memory_mb == pytest.approx(12e6 / 2**20, rel=1e-3)
    assert four.seconds > one.seconds


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder of Stable Diffusion, of few random weights."""
    folder = tmp_path_factory.mktemp("priors") / "latent"
    FAMILIES["stable_diffusion"](folder)
    return folder


@pytest.mark.parametrize(
    "changes", [{"cameras": Orbit(views=10**9)}, {"cameras": Orbit(views=0)}, {"steps": 0}, {"guidance": VSD()}]
)
def test_a_strange_request_of_a_foreign_prior_has_an_estimate(changes: Any, latent: Path, tmp_path: Path) -> None:
    strange = with_stage(dataclasses.replace(DRAFT, prior=str(latent)), **changes)
    found = estimate(strange, tmp_path)
    assert found.seconds >= 0 and found.memory_mb > 0


def test_a_single_file_has_an_estimate(latent: Path, tmp_path: Path) -> None:
    shutil.copytree(latent, tmp_path / "one", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copyfile(latent / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "one.safetensors")
    file, folder = (
        estimate(dataclasses.replace(DRAFT, prior=str(prior)), tmp_path)
        for prior in (tmp_path / "one.safetensors", latent)
    )
    assert file.memory_mb == pytest.approx(folder.memory_mb, rel=1e-3) and file.seconds > 0


def test_a_damaged_prior_has_an_estimate(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "prior", 1)
    (folder / "unet" / "model.fp16.safetensors").write_bytes(b"\xff" * 100)
    (folder / "unet" / "config.json").write_text("[")
    assert estimate(dataclasses.replace(DRAFT, prior=str(folder)), tmp_path).seconds > 0


@pytest.mark.parametrize(
    ("seconds", "memory", "words"),
    [
        (0.2, 512, "about 1 s, 0.5 GB"),
        (46, 860, "about 46 s, 0.8 GB"),
        (120, 1434, "about 2 min, 1.4 GB"),
        (9000, 12_288, "about 2.5 h, 12.0 GB"),
    ],
)
def test_words(seconds: float, memory: float, words: str) -> None:
    assert Estimate(seconds, memory, "").words() == words
