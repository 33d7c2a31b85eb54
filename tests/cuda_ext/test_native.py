"""The compiled library: found, chosen by instruction set, and done without where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cuda_ext import backends, native

compiled = pytest.mark.skipif(not native.available() and not native.required(), reason=native.status())

AGREE = """
import torch
from cuda_ext import native, ops
from tests.cuda_ext.splat_scenes import ball
torch.set_num_threads(1)
print(native.library().isa)
scene = ball(300, (33, 50), views=2, degree=3, features=5, scale=0.1)
def run(backend):
    leaves = scene.with_gradients()
    images = ops.rasterize_gaussians(**vars(leaves), backend=backend)
    (images.rgb.square().sum() + images.depth.sum() + images.features.square().sum()).backward()
    names = ("means", "log_scales", "quaternions", "logit_opacities", "sh", "background", "features", "probe")
    return [images.rgb, images.alpha, images.depth, images.features, *(getattr(leaves, name).grad for name in names)]
for ours, theirs in zip(run("native"), run("reference"), strict=True):
    close = (ours - theirs).abs() <= 2e-5 * theirs.abs().max()
    assert close.double().mean() > 0.999, (ours - theirs).abs().max()  # a pixel may fall on the other side of 1/255
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DREAMKILN_")}
    kept |= {"DREAMKILN_LIBRARY": os.environ["DREAMKILN_LIBRARY"]} if "DREAMKILN_LIBRARY" in os.environ else {}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=root, env=kept | environment, capture_output=True, text=True, timeout=100)


def instruction_sets() -> list[str]:
    if not native.available():
        return []
    return native.library().handle.dreamkiln_instruction_sets().decode().split()


@compiled
@pytest.mark.parametrize("isa", instruction_sets() or ["none"])
def test_every_instruction_set_agrees_with_the_reference(isa: str):
    done = python(AGREE, DREAMKILN_ISA=isa)
    assert done.returncode == 0 and done.stdout.split() == [isa], done.stderr


@compiled
def test_status_names_the_instructions():
    assert native.library().isa in native.status() and str(native.library().path) in native.status()


def test_without_a_library_the_reference_runs_and_one_warning_says_why(tmp_path: Path):
    code = """
import torch
from cuda_ext import ops
from tests.cuda_ext.splat_scenes import ball
for _ in range(2):
    ops.rasterize_gaussians(**vars(ball(3, (8, 8))))
"""
    missing = str(tmp_path / "nothing.so")
    done = python(code, DREAMKILN_LIBRARY=missing)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == 1 and missing in done.stderr and "compiler" in done.stderr
    refused = python(code, DREAMKILN_LIBRARY=missing, DREAMKILN_REQUIRE_NATIVE="1")
    assert refused.returncode == 1 and "rasterize_gaussians cannot run native on cpu" in refused.stderr


@compiled
def test_unknown_instruction_set_is_refused_in_words():
    done = python("from cuda_ext import native; print(native.status())", DREAMKILN_ISA="avx1024")
    assert "DREAMKILN_ISA asks for 'avx1024'" in done.stdout and "scalar" in done.stdout


def test_backends_are_refused_in_words():
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="splash has no backend 'fast': choose one of auto, native, reference"):
        backends.choose("splash", "fast", cpu)
    with pytest.raises(ValueError, match="splash has no backend 'gsplat' for this operation"):
        backends.choose("splash", "gsplat", cpu)
    with pytest.raises(ValueError, match="kernels for cpu and cuda devices, not for meta"):
        backends.choose("splash", "native", torch.device("meta"))
    assert backends.choose("splash", "reference", cpu) == "reference"
