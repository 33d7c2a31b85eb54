"""The CUDA kernels compile for every architecture, within their registers, and are cached; no GPU is needed."""

import os
import stat
from pathlib import Path

import pytest

from cuda_ext import compile_check, cuda
from cuda_ext.cuda import CudaError
from tests.cuda_ext.own_program import OwnProgram

GOOD = 'extern "C" __global__ void __launch_bounds__(32) twice(float* x) { x[threadIdx.x] *= FACTOR; }\n'
SPILLS = """// registers: 255
extern "C" __global__ void __launch_bounds__(1024, 2) greedy(float* x, const int* where) {
    float kept[64];
    for (int i = 0; i < 64; i++) kept[i] = x[i * 1024 + threadIdx.x];
    for (int i = 0; i < 64; i++) kept[where[i]] += kept[i];
    for (int i = 0; i < 64; i++) x[i * 1024 + threadIdx.x] = kept[i];
}
"""


@pytest.fixture(autouse=True)
def nvrtc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC, and an empty cache; skips where NVRTC is missing, fails where it must not be."""
    monkeypatch.setenv("DREAMKILN_CACHE", str(tmp_path / "cache"))
    if missing := cuda.problem():
        if os.environ.get("DREAMKILN_REQUIRE_CUDA_COMPILE") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture
def doubling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnProgram:
    """A small program of our own."""
    monkeypatch.setattr(cuda, "_SOURCES", tmp_path)
    monkeypatch.setattr(cuda, "_INCLUDES", (tmp_path / "include",))
    (tmp_path / "include").mkdir()
    (tmp_path / "doubling.cu").write_text(GOOD)
    return OwnProgram("doubling", (("FACTOR", 2),), tmp_path)


def test_every_kernel_compiles_for_every_architecture_within_its_registers(capsys: pytest.CaptureFixture[str]) -> None:
    status = compile_check.main()
    printed = capsys.readouterr()
    assert status == 0, printed.out + printed.err
    for name in ("draw_tiles", "replay_tiles", "hash_forward", "sm_120"):
        assert name in printed.out


def test_spills_fail_the_check(tmp_path: Path) -> None:
    (tmp_path / "greedy.cu").write_text(SPILLS)
    usage = compile_check.check([OwnProgram("greedy", folder=tmp_path)], 90)
    assert [u.problem for u in usage if u.memory] and "bytes of stack and spills" in str(usage[0].problem)


def test_registers_over_the_ceiling_fail_the_check(tmp_path: Path) -> None:
    (tmp_path / "doubling.cu").write_text("// registers: 2\n" + GOOD)
    usage = compile_check.check([OwnProgram("doubling", (("FACTOR", 2),), tmp_path)], 75)
    assert "2 allowed" in str(usage[0].problem)


def test_a_kernel_needs_a_ceiling() -> None:
    with pytest.raises(ValueError, match="above twice"):
        compile_check.ceilings(GOOD)


def test_a_compiled_program_is_kept(doubling: OwnProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cuda.cached_program(doubling, "sm_80")
    (kept,) = (tmp_path / "cache" / "kernels").iterdir()
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700

    def never(*_: object) -> None:
        raise AssertionError("compiled again")

    with monkeypatch.context() as patched:
        patched.setattr(cuda, "compile_program", never)
        assert cuda.cached_program(doubling, "sm_80") == first
        with pytest.raises(AssertionError, match="compiled again"):
            cuda.cached_program(OwnProgram("doubling", (("FACTOR", 3),), doubling.folder), "sm_80")
        (tmp_path / "include" / "new.h").write_text("#pragma once\n")
        with pytest.raises(AssertionError, match="compiled again"):
            cuda.cached_program(doubling, "sm_80")


def test_a_damaged_cache_is_replaced(doubling: OwnProgram, tmp_path: Path) -> None:
    first = cuda.cached_program(doubling, "sm_80")
    (kept,) = (tmp_path / "cache" / "kernels").iterdir()
    whole = kept.read_bytes()
    for damaged in (b"", whole[:40], whole[:-1] + bytes([whole[-1] ^ 1])):
        kept.write_bytes(damaged)
        assert cuda.cached_program(doubling, "sm_80") == first
        assert kept.read_bytes() == whole


def test_without_a_cache_folder_there_is_a_warning(
    doubling: OwnProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DREAMKILN_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not kept"):
        assert cuda.cached_program(doubling, "sm_80")


def test_an_error_comes_with_the_compiler_s_log(doubling: OwnProgram) -> None:
    doubling.path.write_text(GOOD.replace("FACTOR", "nothing"))
    with pytest.raises(CudaError, match=r'doubling FACTOR=2 for sm_80(.|\n)*identifier "nothing" is undefined'):
        cuda.compile_program(doubling, "sm_80")


def test_the_target_is_a_cubin_where_nvrtc_knows_the_gpu_and_ptx_beyond() -> None:
    assert cuda.target((9, 0)) == "sm_90"
    newest = max(cuda._nvrtc()[1])
    assert cuda.target((99, 0)) == f"compute_{newest}"
    with pytest.raises(CudaError, match=r"compute capability 3\.5"):
        cuda.target((3, 5))


def test_without_cuda_core_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(cuda.importlib, "import_module", missing)
    cuda._nvrtc.cache_clear()
    try:
        assert "pip install 'dreamkiln[cuda13]'" in str(cuda.problem())
    finally:
        cuda._nvrtc.cache_clear()
