"""Splats against gsplat's own torch functions, which need no CUDA: projection, covariance, spherical harmonics."""

from dataclasses import replace

import pytest
import torch

from cuda_ext import cpu_gaussians, gaussians_reference, native
from tests.cuda_ext.splat_scenes import SplatScene, ball

theirs = pytest.importorskip("gsplat.cuda._torch_impl", reason="pip install gsplat==1.5.3")
pytestmark = pytest.mark.skipif(not native.available() and not native.required(), reason=native.status())


def exact(scene: SplatScene) -> SplatScene:
    """In double, with rotations that are orthonormal in double: gsplat inverts poses, ours transposes them."""
    scene = replace(scene, **{k: v.double() for k, v in vars(scene).items() if isinstance(v, torch.Tensor)})
    pose = scene.pose.clone()
    left, _, right = torch.linalg.svd(pose[:, :3, :3])
    pose[:, :3, :3] = left @ right
    return replace(scene, pose=pose)


def projected_by_gsplat(scene: SplatScene) -> dict[str, torch.Tensor]:
    """Means, conics, depths and colours of all gaussians on the screen, [b, n, ...]."""
    h, w = scene.size
    view = torch.linalg.inv(scene.pose @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=scene.pose.dtype)))
    intrinsics = torch.zeros(len(scene.focal), 3, 3, dtype=scene.focal.dtype)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = scene.focal
    intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = w / 2, h / 2, 1
    covariance, _ = theirs._quat_scale_to_covar_preci(scene.quaternions, scene.log_scales.exp(), True, False)
    _, means, depths, conics, _ = theirs._fully_fused_projection(scene.means, covariance, view, intrinsics, w, h)
    offsets = scene.means - scene.pose[:, None, :3, 3]
    degree = int(scene.sh.shape[1] ** 0.5) - 1
    harmonics = scene.sh.expand(len(scene.pose), -1, -1, -1)
    colours = (theirs._spherical_harmonics(degree, offsets, harmonics) + 0.5).clamp_min(0)
    return {"mean": means, "conic": conics, "depth": depths[..., None], "colour": colours}


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_projection_is_gsplats(degree: int):
    scene = ball(200, (40, 50), views=3, degree=degree)
    scene = exact(scene)
    expected = projected_by_gsplat(scene)
    names = ("means", "log_scales", "quaternions", "logit_opacities", "sh", "features", "pose", "focal", "background")
    inputs = cpu_gaussians.Inputs(**{name: getattr(scene, name) for name in names})
    _, radius, saved = cpu_gaussians.draw(inputs, scene.size, scene.near)
    drawn = radius > 0
    assert drawn.sum() > 300
    mean, conic, _, colour, depth, _ = saved.records.split([2, 3, 1, 3, 1, 2], -1)
    for name, value in {"mean": mean, "conic": conic, "depth": depth, "colour": colour}.items():
        torch.testing.assert_close(value[drawn], expected[name][drawn], atol=1e-10, rtol=1e-9, msg=name)


@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_gradients_of_projection_are_gsplats(spread: float):
    # A wide cloud lies partly outside of 1.3 half fields of view, where the projection is held.
    scene = ball(100, (40, 50), views=1, degree=3)
    scene = replace(scene, means=spread * scene.means)
    scene = exact(scene)
    camera = gaussians_reference.Camera(
        torch.diag(torch.tensor([1.0, -1.0, -1.0]).double()) @ scene.pose[0, :3, :3].T,
        scene.pose[0, :3, 3],
        scene.focal[0],
        *scene.size,
    )
    front = (scene.means - camera.eye) @ camera.rotation[2] > 0.1
    kept = ("means", "log_scales", "quaternions", "logit_opacities", "sh", "features", "probe")
    scene = replace(scene, **{name: getattr(scene, name)[front] for name in kept})
    results = []
    for ours in (True, False):
        own = scene.with_gradients()
        if ours:
            gaussians = (own.means, own.log_scales, own.quaternions, own.logit_opacities, own.sh)
            screen = gaussians_reference.project(*gaussians, camera)
            parts = [screen.mean, screen.conic, screen.depth[:, None], screen.colour]
        else:
            parts = [part[0] for part in projected_by_gsplat(own).values()]
        rng = torch.Generator().manual_seed(2)
        weighted = [(p * torch.randn(p.shape, generator=rng, dtype=p.dtype)).sum() for p in parts]
        torch.stack(weighted).sum().backward()
        results.append([own.means.grad, own.log_scales.grad, own.quaternions.grad, own.sh.grad])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
