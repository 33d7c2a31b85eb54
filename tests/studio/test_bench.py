"""``studio bench``: medians, ratios and gates on cases of known cost, and one real case of each operation."""

import json
import time

import pytest
import torch

from studio import bench
from studio.bench_cases import Case, blob, gaussian_cases, hash_cases, step_cases
from studio.cli import BAD_USAGE, FAILED, OK, run

CPU = torch.device("cpu")


def sleeping(milliseconds, gate=None, why=""):
    """A case whose backends take as long as they are told."""

    def prepare(device):
        return lambda backend: time.sleep(milliseconds[backend] / 1e3)

    return Case("sleep", "of known length", "rasterize_gaussians", prepare, gate=gate, why_no_reference=why)


@pytest.fixture
def two_backends(monkeypatch):
    monkeypatch.setattr(bench, "available", lambda operation, device: ["native", "reference"])


def test_a_row_has_medians_and_their_ratio(two_backends):
    (row,) = bench.measure([sleeping({"native": 2, "reference": 20}, gate=5)], CPU, patience=0.05)
    assert row.milliseconds["native"] == pytest.approx(2, rel=0.6)
    assert row.ratio == pytest.approx(row.milliseconds["reference"] / row.milliseconds["native"], rel=0.05)
    assert not row.broken and row.gate == 5


def test_a_ratio_under_its_gate_is_broken(two_backends):
    (row,) = bench.measure([sleeping({"native": 5, "reference": 6}, gate=5)], CPU, patience=0.05)
    assert row.broken


def test_a_form_that_cannot_run_is_left_out_with_the_reason(two_backends):
    (row,) = bench.measure([sleeping({"native": 1}, gate=5, why="no memory")], CPU, patience=0.02)
    assert set(row.milliseconds) == {"native"} and row.ratio is None and not row.broken
    assert "no memory" in bench._line(row)


def test_the_command_fails_on_a_broken_gate_and_writes_what_it_measured(two_backends, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "gaussian_cases", lambda: [sleeping({"native": 3, "reference": 4}, gate=5)])
    monkeypatch.setattr(bench, "hash_cases", list)
    monkeypatch.setattr(bench, "step_cases", list)
    assert run(["bench", "--only", "known", "--quick", "--json", str(tmp_path / "bench.json")]) == FAILED
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["under_their_gates"] == ["sleep: of known length"] and found["machine"]["torch"] == torch.__version__
    assert "under its gate" in capsys.readouterr().out


def test_cases_cover_what_was_promised():
    splats, grids, steps = gaussian_cases(), hash_cases(), step_cases()
    sizes = {case.name.rsplit(",", 1)[0] for case in splats}
    assert {"5k @ 64 px, 1 view", "5k @ 64 px, 4 views", "50k @ 256 px, 1 view", "500k @ 512 px, 1 view"} <= sizes
    assert all(any(size in c.name and look in c.name for c in splats) for size in sizes for look in ("opaque", "faint"))
    gates = {case.name: case.gate for case in (*splats, *grids) if case.gate}
    assert gates["5k @ 64 px, 4 views, faint"] == 10 and gates["50k @ 256 px, 1 view, opaque"] == 40
    assert sum(gate == 20 for gate in gates.values()) == 3
    assert {case.op for case in steps} == {"rasterize_gaussians", "hash_encode"}


def test_blobs_are_as_opaque_as_asked():
    for opacity in (0.95, 0.1):
        logits = blob(100, opacity)["logit_opacities"]
        torch.testing.assert_close(logits.sigmoid(), torch.full((100,), opacity))


def test_the_smallest_real_case_runs_on_every_backend_there_is(capsys):
    assert run(["bench", "--only", "5k @ 64 px, 1 view, opaque", "--quick"]) == OK
    assert "reference" in capsys.readouterr().out


def test_a_name_of_no_case_is_refused(capsys):
    assert run(["bench", "--only", "zork"]) == BAD_USAGE
    assert "No case has 'zork' in its name; the groups are" in " ".join(capsys.readouterr().err.split())


def test_an_iteration_says_how_much_of_it_the_prior_takes():
    (name, request), *_ = bench._recipes()
    measured = bench.iteration(name, request, CPU, warm=1, steps=2)
    assert 0 < measured.prior_share < 1 and measured.representation == type(request.stages[0].representation).__name__
    assert measured.in_prior < measured.milliseconds
