"""The CUDA hash-grid kernels, run by the emulator, against plain torch and the CPU: values, every gradient."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cuda_ext import cuda_hashgrid, native
from cuda_ext.hashgrid import GridLayout, hash_encode
from tests.cuda_ext.emulator import Emulator, needs_compiler

pytestmark = needs_compiler

EMULATOR = Emulator()


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """torch.empty gives NaNs, so that reading memory before it is written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def scattered(layout: GridLayout, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points in and around the cube, a table, and gradients of the features."""
    rng = torch.Generator().manual_seed(0)
    points = torch.rand(n, 3, generator=rng) * 1.2 - 0.1
    points[: min(n, 4)] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.5, 1.0, -0.0], [2.0, -3.0, 0.25]])[:n]
    table = torch.randn(layout.rows, layout.features, generator=rng)
    return points, table, torch.randn(n, layout.width, generator=rng)


def assert_agrees(layout: GridLayout, n: int, weights: Tensor | None = None, emulator: Emulator = EMULATOR) -> None:
    points, table, pull = scattered(layout, n)
    out = cuda_hashgrid.forward(points, table, weights, layout, emulator)
    pulled = cuda_hashgrid.backward(pull, points, table, weights, layout, True, True, emulator)
    for backend in ("reference", "native") if native.available() or native.required() else ("reference",):
        leaves = points.clone().requires_grad_(), table.clone().requires_grad_()
        expected = hash_encode(*leaves, layout, weights, backend=backend)
        expected.backward(pull)
        torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(pulled[0], leaves[1].grad, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(pulled[1], leaves[0].grad, atol=2e-3, rtol=1e-5)  # sums of slopes of some hundreds


@pytest.mark.parametrize("features", [1, 2, 4, 8])
def test_values_and_gradients_agree_with_the_reference(features: int) -> None:
    assert_agrees(GridLayout((2, 5, 9, 17, 30), 2**12, features), 300)


@pytest.mark.parametrize("architecture", [750, 900])
def test_scalar_and_vector_reductions_agree(architecture: int) -> None:
    assert_agrees(GridLayout((3, 40), 2**9, 4), 70, emulator=Emulator(architecture=architecture))


def test_a_coarse_level_that_is_hashed_stays_out_of_shared_memory() -> None:
    layout = GridLayout((4, 8), 2**6, 2)
    assert cuda_hashgrid.coarse_levels(layout) == 0
    assert_agrees(layout, 100)


def test_coarse_levels_are_those_that_fit_in_shared_memory() -> None:
    assert cuda_hashgrid.coarse_levels(GridLayout((8, 16, 17, 20), 2**19, 2)) == 2
    assert cuda_hashgrid.coarse_levels(GridLayout((4, 8), 2**19, 2)) == 2


def test_more_points_than_the_blocks_of_a_coarse_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_hashgrid, "_COARSE_BLOCKS", 2)
    assert_agrees(GridLayout((3, 6), 2**12, 2), 1300)


def test_weights_mask_levels() -> None:
    layout = GridLayout((2, 5, 30), 2**10, 2)
    weights = torch.tensor([0.0, 0.5, 0.0])
    assert_agrees(layout, 100, weights)
    points, table, pull = scattered(layout, 100)
    table[: layout.entries[0]] = torch.nan  # never read
    assert cuda_hashgrid.forward(points, table, weights, layout, EMULATOR).isfinite().all()
    table_pull, points_pull = cuda_hashgrid.backward(pull, points, table, weights, layout, True, True, EMULATOR)
    assert table_pull is not None and (table_pull[: layout.entries[0]] == 0).all()
    assert points_pull is not None and points_pull.isfinite().all()


def test_points_that_are_not_finite_give_zeros_and_get_none() -> None:
    layout = GridLayout((4, 30), 2**10, 2)
    points, table, pull = scattered(layout, 40)
    bad = torch.tensor([[torch.nan, 0.5, 0.5], [0.5, torch.inf, 0.5], [0.5, 0.5, -torch.inf]])
    both, pulls = torch.cat([bad, points]), torch.cat([torch.ones(3, layout.width), pull])
    assert (cuda_hashgrid.forward(both, table, None, layout, EMULATOR)[:3] == 0).all()
    with_bad = cuda_hashgrid.backward(pulls, both, table, None, layout, True, True, EMULATOR)
    without = cuda_hashgrid.backward(pull, points, table, None, layout, True, True, EMULATOR)
    assert with_bad[0] is not None and without[0] is not None and with_bad[1] is not None
    torch.testing.assert_close(with_bad[0], without[0])
    assert (with_bad[1][:3] == 0).all()


@pytest.mark.parametrize("n", [0, 1])
def test_few_points(n: int) -> None:
    assert_agrees(GridLayout((4, 30), 2**10, 2), n)


def test_only_what_is_wanted_is_computed() -> None:
    layout = GridLayout((4,), 2**10, 2)
    points, table, pull = scattered(layout, 5)
    assert cuda_hashgrid.backward(pull, points, table, None, layout, False, False, EMULATOR) == (None, None)


def test_a_table_that_is_not_aligned_is_copied() -> None:
    layout = GridLayout((4, 6), 2**10, 4)
    points, table, _ = scattered(layout, 20)
    shifted = torch.empty(table.numel() + 1)[1:].view(table.shape).copy_(table)
    assert shifted.data_ptr() % 16
    plain = cuda_hashgrid.forward(points, table, None, layout, EMULATOR)
    assert torch.equal(cuda_hashgrid.forward(points, shifted, None, layout, EMULATOR), plain)


def test_double_precision_is_refused() -> None:
    layout = GridLayout((4,), 2**10, 2)
    points, table, _ = scattered(layout, 5)
    with pytest.raises(ValueError, match="float32"):
        cuda_hashgrid.forward(points.double(), table.double(), None, layout, EMULATOR)
