"""The loop: steps that rest, methods with memory and its seed, particles in turn."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import SDS
from guidance.conditioning import Prompts
from guidance.contract import Stateless
from guidance.diffusers_prior import DiffusersPrior
from representations.hash_field import HashField
from representations.particles import ParticleCloud, Particles
from representations.splats import Densify, Splats
from studio.cameras import Orbit
from studio.events import Finished, Stepped, Warned
from studio.optimize import Run, Setting, Timing, make_optimiser, optimize, step_rng, step_seed
from studio.request import Request, Stage
from studio.run import run_request

CLOUD = Splats(
    count=80, most=120, initial_opacity=0.3, opacity_rate=0.02, densify=Densify(begin=1, every=1, faint=0.02)
)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Resting(SDS):
    """SDS that rests in the first steps of a run, whatever it finds."""

    until: float = 0.5
    broken: bool = False

    def loss(self, state, prior, views, condition, progress, rng):
        """SDS, but resting."""
        found = super().loss(state, prior, views, condition, progress, rng)
        if progress >= self.until:
            return found
        return dataclasses.replace(found, value=found.value * float("nan" if self.broken else 1), resting=True)


def begun(kind: Any, method: Any, prior: DiffusersPrior, steps: int = 6) -> tuple[Run, Setting]:
    stage = Stage(kind, method, steps, Orbit(views=2, size=16))
    prompts = Prompts.embed(prior, "a red cube", view_dependent="off")
    representation = kind.build(step_rng(0, 0, -1), CPU)
    run = Run(0, 0, representation, make_optimiser(representation), method.init(prior))
    return run, Setting(stage, prior, prompts, prior.hints, seed=0)


def copied(run: Run) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value).clone() for name, value in run.representation.state_dict().items()}


def unchanged(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def prior(tiny_prior: Path) -> DiffusersPrior:
    return DiffusersPrior.load(tiny_prior, CPU)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("kind", [HashField(levels=(4, 8), occupancy_cells=4, occupancy_every=1), CLOUD])
def test_resting_steps_leave_everything_unchanged(kind: Any, broken: bool, prior: DiffusersPrior):
    run, setting = begun(kind, Resting(broken=broken), prior)
    before = copied(run)
    for step in optimize(run, setting, Timing(), lambda: False):
        assert step.event.diagnostics["skipped"] == 0
        moments = [m for state in run.optimiser.state.values() for m in state.values()]
        assert unchanged(before, copied(run)) == (run.step <= 3)
        assert any(bool(moment.any()) for moment in moments) == (run.step > 3)
    assert run.step == 6


def test_a_rest_neither_adds_to_bad_steps_nor_forgives_them(prior: DiffusersPrior):
    run, setting = begun(HashField(levels=(4, 8), occupancy_cells=4), Resting(until=0.4), prior, steps=10)
    for step in optimize(run, setting, Timing(), lambda: False):
        assert step.loss.resting == (run.step <= 4)
    assert run.optimiser.state[run.optimiser.param_groups[0]["params"][0]]["step"] == 6


def test_a_method_begins_from_a_seed_of_run_and_stage(tiny: Request, tmp_path: Path, monkeypatch):
    seeds: list[int] = []
    monkeypatch.setattr(SDS, "init", lambda self, prior, seed=0: seeds.append(seed) or Stateless())
    for seed, name in ((5, "a"), (5, "b"), (6, "c")):
        events = run_request(dataclasses.replace(tiny, seed=seed), tmp_path / name, "cpu")
        assert any(isinstance(event, Stepped) and event.stage == 1 for event in events)
        events.close()
    assert seeds[:2] == seeds[2:4] == [step_seed(5, 0, -2), step_seed(5, 1, -2)]
    assert len({*seeds}) == 4


# Particles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [HashField(levels=(4, 8), occupancy_cells=4, occupancy_every=1, rate=1e-3), CLOUD])
def test_each_particle_moves_in_its_turn_alone(kind: Any, prior: DiffusersPrior):
    run, setting = begun(Particles(kind, 3), SDS(scale=2.0), prior, steps=7)
    assert run.representation.variants == 3
    before = copied(run)
    for step in optimize(run, setting, Timing(), lambda: False):
        after = copied(run)
        assert {name.split(".")[1] for name in after if not _equal(after[name], before[name])} == {
            str((step.event.step - 1) % 3)
        }
        before = after


def test_particles_begin_differently(prior: DiffusersPrior):
    for kind in (HashField(levels=(4, 8), occupancy_cells=4), CLOUD):
        run, _ = begun(Particles(kind, 2), SDS(), prior)
        looks = [dict(module.state_dict()) for module in run.representation.children().__next__().children()]
        name = "table" if isinstance(kind, HashField) else "means"
        assert not torch.equal(looks[0][name], looks[1][name])


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def test_density_control_counts_each_particles_own_steps(prior: DiffusersPrior):
    rounds = dataclasses.replace(CLOUD, densify=Densify(begin=2, every=2, until=2, faint=0.02))
    run, setting = begun(Particles(rounds, 2), SDS(scale=2.0), prior, steps=5)
    counts = []
    for _ in optimize(run, setting, Timing(), lambda: False):
        counts.append([len(run.representation.scene(variant=i).means) for i in range(2)])  # pyright: ignore[reportAttributeAccessIssue]
    (first, second) = zip(*counts, strict=True)
    assert first[0] == first[1] == 80 != first[2] == first[4]  # its second step is the run's third
    assert second[0] == second[2] == 80 != second[3] == second[4]


def test_each_particle_leaves_an_asset(tiny: Request, tmp_path: Path):
    kind = Particles(HashField(levels=(4, 8, 16), occupancy_cells=8, rate=1e-3), 2)
    stage = dataclasses.replace(tiny.stages[0], representation=kind, steps=2)
    assert isinstance(list(run_request(dataclasses.replace(tiny, stages=(stage,)), tmp_path, "cpu"))[-1], Finished)
    first, second = tmp_path, tmp_path / "particles" / "1"
    for name in ("result.glb", "contact_sheet.png", "turntable.webp"):
        assert (first / name).read_bytes() != (second / name).read_bytes()


def test_a_particle_without_a_surface_is_said_and_spares_the_others(tiny: Request, tmp_path: Path, monkeypatch):
    kind = Particles(HashField(levels=(4, 8, 16), occupancy_cells=8, rate=1e-3), 3)
    stage = dataclasses.replace(tiny.stages[0], representation=kind, steps=3)
    honest = ParticleCloud.scene

    def scene(self, text=None, variant=0):
        made = honest(self, text, variant)
        return dataclasses.replace(made, table=made.table - 40) if variant == 1 else made  # pyright: ignore

    monkeypatch.setattr(ParticleCloud, "scene", scene)
    events = list(run_request(dataclasses.replace(tiny, stages=(stage,)), tmp_path, "cpu"))
    assert isinstance(events[-1], Finished)
    assert [e.text for e in events if isinstance(e, Warned) and e.text.startswith("Particle 1 leaves no asset: ")]
    assert [(tmp_path / "particles" / name / "result.glb").exists() for name in ("1", "2")] == [False, True]


def test_particles_need_a_number():
    with pytest.raises(ValueError, match="count of particles must be 1 or more, got 0"):
        Particles(CLOUD, 0).build(torch.Generator(), CPU)
