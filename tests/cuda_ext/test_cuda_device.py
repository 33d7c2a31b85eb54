"""The CUDA kernels on a GPU: against the CPU, in a CUDA graph, without waiting, repeatable. Skipped without a GPU.

Worth a run under ``compute-sanitizer python -m pytest tests/cuda_ext/test_cuda_device.py`` after changes to kernels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from cuda_ext.backends import Backend
from cuda_ext.hashgrid import GridLayout, hash_encode
from cuda_ext.ops import rasterize_gaussians
from tests.cuda_ext.splat_scenes import DIFFERENTIABLE, SplatScene, ball

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

LAYOUT = GridLayout.geometric(levels=6, base=8, finest=128, table=2**12, features=2)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def moved(scene: SplatScene, device: str) -> SplatScene:
    tensors = {f.name: getattr(scene, f.name) for f in fields(scene)}
    return replace(scene, **{k: v.to(device) for k, v in tensors.items() if isinstance(v, Tensor)})


def render(scene: SplatScene, backend: Backend = "native") -> Tensor:
    gaussians = (scene.means, scene.log_scales, scene.quaternions, scene.logit_opacities, scene.sh)
    rest = (scene.size, scene.background, scene.features, scene.probe, scene.near)
    images = rasterize_gaussians(*gaussians, scene.pose, scene.focal, *rest, backend=backend)
    assert images.features is not None
    return torch.cat([images.rgb, images.alpha, images.depth, images.features], 1)


def gradients(scene: SplatScene, backend: Backend = "native") -> list[Tensor]:
    leaves = scene.with_gradients()
    image = render(leaves, backend)
    image.backward(torch.linspace(-1, 1, image.numel(), device=image.device).reshape(image.shape))
    return [image.detach(), *(getattr(leaves, name).grad for name in DIFFERENTIABLE)]


@pytest.mark.parametrize(("n", "size", "features"), [(300, (33, 50), 0), (3000, (128, 200), 5)])
def test_splats_on_the_gpu_agree_with_the_cpu(n: int, size: tuple[int, int], features: int) -> None:
    scene = ball(n, size, views=3, degree=2, features=features)
    expected = gradients(scene, "reference")
    for name, gpu, cpu in zip(("image", *DIFFERENTIABLE), gradients(moved(scene, "cuda")), expected, strict=True):
        error = (gpu.cpu() - cpu).norm() / cpu.norm().clamp_min(1e-6)
        assert error < 1e-3, f"{name}: relative error {error:.1e}"


def test_splat_gradients_are_the_same_in_every_run() -> None:
    scene = moved(ball(3000, (128, 200), views=2, features=3), "cuda")
    gradients(scene)
    torch.cuda.synchronize()  # the scratch that this scene needs is known after the first run
    first = gradients(scene)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(scene), strict=True))


def test_splats_do_not_wait_for_the_gpu() -> None:
    scene = moved(ball(3000, (128, 200), views=2), "cuda")
    with no_waiting():
        for _ in range(3):
            gradients(scene)


def test_a_render_step_can_be_captured_in_a_graph() -> None:
    scene = moved(ball(500, (64, 64), views=2, features=1), "cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = gradients(scene)
    torch.cuda.synchronize()
    leaves, graph = scene.with_gradients(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        image = render(leaves)
        pull = torch.linspace(-1, 1, image.numel(), device=image.device).reshape(image.shape)
        pulled = torch.autograd.grad(image, [getattr(leaves, name) for name in DIFFERENTIABLE], pull)
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    for got, wanted in zip([image, *pulled], expected, strict=True):
        torch.testing.assert_close(got, wanted)


def hash_gradients(points: Tensor, table: Tensor, backend: Backend) -> list[Tensor]:
    points, table = points.clone().requires_grad_(), table.clone().requires_grad_()
    out = hash_encode(points, table, LAYOUT, backend=backend)
    pull = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad(out, [points, table], pull)]


def test_the_hash_grid_on_the_gpu_agrees_with_the_cpu_and_does_not_wait() -> None:
    points, table = torch.rand(5000, 3) * 1.2 - 0.1, torch.randn(LAYOUT.rows, 2)
    on_gpu = points.cuda(), table.cuda()
    with no_waiting():
        found = hash_gradients(*on_gpu, "native")
    for gpu, cpu in zip(found, hash_gradients(points, table, "reference"), strict=True):
        assert (gpu.cpu() - cpu).norm() < 1e-4 * cpu.norm()
