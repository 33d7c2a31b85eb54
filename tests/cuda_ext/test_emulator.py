"""The emulator of CUDA itself: it does what a GPU does, and finds what a GPU would forgive or never report."""

import pytest
import torch
from torch import Tensor

from tests.cuda_ext.emulator import Emulator, EmulatorError, needs_compiler
from tests.cuda_ext.own_program import OwnProgram

pytestmark = needs_compiler

KERNELS = """
extern "C" __global__ void __launch_bounds__(64) mirror(float* x, int n, float factor) {
    __shared__ float shared[64];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    shared[threadIdx.x] = i < n ? x[i] * factor : 0;
    __syncthreads();
    if (i < n) x[i] = shared[63 - threadIdx.x];
}
extern "C" __global__ void collectives(int* out) {
    const int lane = threadIdx.x;
    out[lane] = __shfl_sync(~0u, lane, 31 - lane);
    out[32 + lane] = __shfl_xor_sync(~0u, lane, 5);
    out[64 + lane] = int(__ballot_sync(~0u, lane % 3 == 0));
    out[96 + lane] = __shfl_up_sync(~0u, lane, 2) + 100 * __shfl_down_sync(~0u, lane, 2);
    out[128 + lane] = __any_sync(~0u, lane == 7) + 2 * __all_sync(~0u, lane != 7);
    if (lane > 7) return;
    out[160 + lane] = __popc(__ballot_sync(~0u, 1));  // the lanes that are left
}
extern "C" __global__ void count(int* total) { atomicAdd(total, 1); }
extern "C" __global__ void no_barrier(float* x) {
    __shared__ float shared[64];
    shared[threadIdx.x] = threadIdx.x;
    x[threadIdx.x] = shared[63 - threadIdx.x];
}
extern "C" __global__ void past_the_end(float* x, int n) { if (threadIdx.x == 3) x[n] = 1; }
extern "C" __global__ void different_collectives() { threadIdx.x < 16 ? __syncwarp() : (void)__ballot_sync(~0u, 1); }
extern "C" __global__ void waits_forever() { if (threadIdx.x < 16) __syncwarp(); else __syncthreads(); }
extern "C" __global__ void partial_mask() { __syncwarp(0xffff); }
extern "C" __global__ void misaligned(float* x) { *reinterpret_cast<float4*>(x + 1) = make_float4(1, 2, 3, 4); }
extern "C" __global__ void undefined_cast(float* x, int* out) { out[0] = int(x[0]); }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> OwnProgram:
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "include").mkdir()
    (folder / "trials.cu").write_text(KERNELS)
    return OwnProgram("trials", folder=folder)


def run(program: OwnProgram, kernel: str, *arguments: Tensor | int | float, block: int = 64, **options: bool) -> None:
    Emulator(**options)(program, kernel, (2 if kernel in ("mirror", "count") else 1, 1, 1), (block, 1, 1), *arguments)


@pytest.mark.parametrize("backward", [False, True])
def test_blocks_shared_memory_and_barriers(program: OwnProgram, backward: bool) -> None:
    x = torch.arange(100.0)
    run(program, "mirror", x, 100, 2.0, backward=backward)
    first, second = torch.arange(100.0)[:64], torch.cat([torch.arange(64.0, 100.0), torch.zeros(28)])
    assert torch.equal(x, 2 * torch.cat([first.flip(0), second.flip(0)])[:100])


@pytest.mark.parametrize("backward", [False, True])
def test_warp_collectives(program: OwnProgram, backward: bool) -> None:
    out, lane = torch.zeros(168, dtype=torch.int32), torch.arange(32, dtype=torch.int32)
    run(program, "collectives", out, block=32, backward=backward)
    assert torch.equal(out[:32], 31 - lane)
    assert torch.equal(out[32:64], lane ^ 5)
    assert (out[64:96] == sum(1 << i for i in range(0, 30, 3)) + (1 << 30)).all()
    up, down = torch.where(lane < 2, lane, lane - 2), torch.where(lane > 29, lane, lane + 2)
    assert torch.equal(out[96:128], up + 100 * down)
    assert (out[128:160] == 1).all()
    assert (out[160:] == 8).all()


def test_atomics(program: OwnProgram) -> None:
    total = torch.zeros(1, dtype=torch.int32)
    run(program, "count", total)
    assert total == 128


def test_a_missing_barrier_shows_in_the_other_order(program: OwnProgram) -> None:
    results = [torch.empty(64), torch.empty(64)]
    for x, backward in zip(results, (False, True), strict=True):
        run(program, "no_barrier", x, backward=backward)
    assert not torch.equal(*results) and results[0].isnan().any()


@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        ("past_the_end", (torch.zeros(8), 8), "memory access outside"),
        ("different_collectives", (), "different collectives"),
        ("waits_forever", (), "deadlock"),
        ("partial_mask", (), "partial mask"),
        ("misaligned", (torch.zeros(8),), "misaligned"),
        ("undefined_cast", (torch.tensor([torch.nan]), torch.zeros(1, dtype=torch.int32)), "undefined"),
        ("count", (), "number of arguments"),
    ],
)
def test_faults_are_found(program: OwnProgram, kernel: str, arguments: tuple, message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        run(program, kernel, *arguments, block=32)
