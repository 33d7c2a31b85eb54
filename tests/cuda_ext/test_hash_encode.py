"""The hash grid on the CPU: kernels against the plain-torch specification, and that against what one can read."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cuda_ext import native, ops
from cuda_ext.hashgrid import GridLayout

needs_native = pytest.mark.skipif(not native.available() and not native.required(), reason=native.status())
DENSE, MIXED = GridLayout((2, 4, 8), table=2**10, features=2), GridLayout((3, 8, 21, 40), table=2**9, features=4)


def inputs(
    layout: GridLayout, count: int = 300, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    points = 1.2 * torch.rand(count, 3, generator=rng, dtype=dtype) - 0.1  # some outside
    return points, torch.randn(layout.rows, layout.features, generator=rng, dtype=dtype)


def both_ways(layout: GridLayout, points: Tensor, table: Tensor, weights: Tensor | None, backend: Any) -> list[Tensor]:
    """Value, gradient of the table, gradient of the points."""
    points, table = points.clone().requires_grad_(), table.clone().requires_grad_()
    value = ops.hash_encode(points, table, layout, weights, backend=backend)
    pull = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
    return [value.detach(), *torch.autograd.grad(value, (table, points), pull)]


def assert_agrees(layout: GridLayout, points: Tensor, table: Tensor, weights: Tensor | None = None) -> None:
    mine, theirs = (both_ways(layout, points, table, weights, b) for b in ("native", "reference"))
    exact = table.dtype == torch.float64
    # In float32 a place among 40 cells is rounded to 2e-6 of a cell; slopes are 40 times as large.
    for a, b, slack in zip(mine, theirs, (5, 20, 800), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9 if exact else 1e-4, atol=slack * (1e-12 if exact else 2e-6))


# The specification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
def test_a_dense_level_is_a_grid_of_vertices(backend: Any):
    layout = GridLayout((4,), table=2**7, features=1)
    axis = torch.linspace(0, 1, 5)
    vertices = torch.cartesian_prod(axis, axis, axis).flip(1)  # x fastest
    table = torch.randn(125, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ops.hash_encode(vertices, table, layout, backend=backend), table, atol=1e-6, rtol=1e-5)
    middle = torch.tensor([[0.125, 0.125, 0.125]])
    cell = table.view(5, 5, 5)[:2, :2, :2]
    torch.testing.assert_close(ops.hash_encode(middle, table, layout, backend=backend)[0, 0], cell.mean())


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
def test_a_linear_function_has_its_own_slope(backend: Any):
    layout = GridLayout((8,), table=2**10, features=1)
    axis = torch.linspace(0, 1, 9, dtype=torch.float64)
    vertices = torch.cartesian_prod(axis, axis, axis).flip(1)
    slope = torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64)
    points = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = ops.hash_encode(points, (vertices @ slope)[:, None], layout, backend=backend)
    torch.testing.assert_close(value[:, 0], points @ slope)
    (gradient,) = torch.autograd.grad(value.sum(), points)
    torch.testing.assert_close(gradient, slope.expand(50, 3))


def test_layouts():
    assert MIXED.entries == (64, 512, 512, 512) and MIXED.rows == 1600 and MIXED.width == 16
    levels = GridLayout.geometric(levels=12, base=16, finest=2048, table=2**16, features=2).resolutions
    assert (levels[0], levels[-1], len(levels)) == (16, 2048, 12) and list(levels) == sorted(levels)
    for wrong in (((), 8, 2), ((4,), 8, 3), ((4,), 100, 2), ((4,), 1, 2), ((0, 4), 8, 2)):
        with pytest.raises(ValueError, match="must be"):
            GridLayout(*wrong)


# Kernels --------------------------------------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 64, 1000])
def test_kernels_agree_with_the_reference(features: int, dtype: torch.dtype, count: int):
    layout = GridLayout((3, 8, 21), table=2**9, features=features)
    assert_agrees(layout, *inputs(layout, count, dtype))


@needs_native
def test_many_points_and_levels_agree():
    layout = GridLayout.geometric(levels=12, base=4, finest=300, table=2**10, features=2)
    assert_agrees(layout, *inputs(layout, 20_000, torch.float64))


@needs_native
@pytest.mark.parametrize(
    ("layout", "count"),
    [(GridLayout((3, 9), table=2**8, features=1), 70_001), (GridLayout((2, 5) * 16, table=2**6, features=8), 9_001)],
    ids=["many points", "many features"],
)
def test_more_points_than_a_chunk_holds_agree(layout: GridLayout, count: int):
    assert_agrees(layout, *inputs(layout, count, torch.float64))


@needs_native
@pytest.mark.parametrize("layout", [DENSE, MIXED])
def test_levels_of_no_weight_are_left_out(layout: GridLayout):
    points, table = inputs(layout)
    weights = torch.linspace(0, 1, len(layout.resolutions))
    assert_agrees(layout, points, table, weights)
    value, gradient, _ = both_ways(layout, points, table, weights, "native")
    assert (value[:, : layout.features] == 0).all() and (gradient[: layout.entries[0]] == 0).all()
    table[: layout.entries[0]] = float("nan")  # nobody looks there
    assert both_ways(layout, points, table, weights, "native")[0].isfinite().all()


@needs_native
@pytest.mark.parametrize("layout", [DENSE, MIXED])
def test_corners_faces_and_points_outside_agree(layout: GridLayout):
    axis = torch.tensor([-3.0, -1e-6, 0.0, 0.25, 0.5, 1.0, 1.0001, 7.0])
    points = torch.cartesian_prod(axis, axis, axis)
    assert_agrees(layout, points, inputs(layout)[1])
    _, _, gradient = both_ways(layout, points, inputs(layout)[1], None, "native")
    assert (gradient[(points < 0) | (points > 1)] == 0).all()


@needs_native
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_points_that_are_no_numbers_give_zeros_and_pull_at_nothing(backend: Any, bad: float):
    points, table = inputs(MIXED, 40)
    clean = both_ways(MIXED, points[1:], table, None, backend)
    points[0, 1] = bad
    value, gradient, slope = both_ways(MIXED, points, table, None, backend)
    assert (value[0] == 0).all() and (slope[0] == 0).all()
    torch.testing.assert_close(value[1:], clean[0])
    assert gradient.isfinite().all() and slope.isfinite().all()


@needs_native
@pytest.mark.parametrize("layout", [GridLayout((2, 5), table=2**6, features=2), GridLayout((3, 7), 2**8, 1)])
def test_gradcheck(layout: GridLayout):
    rng = torch.Generator().manual_seed(3)
    cell = torch.randint(0, 35, (6, 3), generator=rng)
    points = ((cell + 0.3 + 0.4 * torch.rand(6, 3, generator=rng)) / 35).double().requires_grad_()  # off all faces
    table = torch.randn(layout.rows, layout.features, generator=rng, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda p, t: ops.hash_encode(p, t, layout, weights, backend="native"), (points, table), eps=1e-7
    )


@needs_native
@settings(max_examples=25, deadline=None)
@given(
    cells=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    table=st.sampled_from([2, 2**3, 2**6, 2**10]),
    features=st.sampled_from([1, 2, 4, 8]),
    count=st.integers(0, 70),
    seed=st.integers(0, 1000),
)
def test_any_layout_agrees(cells: list[int], table: int, features: int, count: int, seed: int):
    layout = GridLayout(tuple(cells), table, features)
    assert_agrees(layout, *inputs(layout, count, torch.float64, seed))


@needs_native
def test_bits_are_the_same_in_every_run_and_for_every_number_of_threads():
    points, table = inputs(MIXED, 30_000)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            runs.append(both_ways(MIXED, points, table, None, "native"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@needs_native
def test_opcheck():
    points, table = inputs(MIXED, 20)
    arguments = (points.requires_grad_(), table.requires_grad_(), None, list(MIXED.resolutions), MIXED.table)
    torch.library.opcheck(torch.ops.dreamkiln.hash_encode.default, arguments)
    plain = (points.detach(), table.detach(), torch.ones(4), list(MIXED.resolutions), MIXED.table)
    pull = torch.ones(20, MIXED.width)
    torch.library.opcheck(torch.ops.dreamkiln.hash_encode_backward.default, (pull, *plain, True, True))


AGREE = """
import torch
from tests.cuda_ext.test_hash_encode import MIXED, assert_agrees, inputs
from cuda_ext import native
assert_agrees(MIXED, *inputs(MIXED, 1001))
print(native.library().isa)
"""


@needs_native
def test_every_instruction_set_of_this_machine_agrees():
    names = native.library().handle.dreamkiln_instruction_sets().decode().split()
    for isa in names:
        done = subprocess.run(
            [sys.executable, "-c", AGREE], env={**os.environ, "DREAMKILN_ISA": isa}, capture_output=True, text=True,
            timeout=100, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout.strip()) == (0, isa), done.stderr


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "table", "weights", "words"),
    [
        (torch.zeros(3, 3), torch.zeros(MIXED.rows, 2), None, "table must have the shape"),
        (torch.zeros(3, 3).double(), torch.zeros(MIXED.rows, 4), None, "all inputs must be float32"),
        (torch.zeros(3, 3), torch.zeros(MIXED.rows, 4), torch.ones(2), "weights must have the shape"),
        (torch.zeros(3, 3, device="meta"), torch.zeros(MIXED.rows, 4), None, "move them to one device"),
    ],
)
def test_wrong_input_is_refused_in_words(points: Tensor, table: Tensor, weights: Tensor | None, words: str):
    with pytest.raises(ValueError, match=words):
        ops.hash_encode(points, table, MIXED, weights)
