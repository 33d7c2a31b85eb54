"""Backends of others, through stand-ins that follow their documented conventions: no GPU is needed, nor are they.

What is tested is our side of the border: axes, intrinsics, where vertices lie, how tables are cut. The packages
themselves run on CUDA alone.
"""

import math
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from cuda_ext import backends, gaussians_reference, ops, peers
from cuda_ext.hashgrid import GridLayout
from representations.cameras import Cameras, orbit
from representations.textured_mesh import screen_positions

CPU = torch.device("cpu")


@pytest.fixture
def scene():
    rng = torch.Generator().manual_seed(0)
    n = 20
    gaussians = {
        "means": 0.4 * torch.randn(n, 3, generator=rng),
        "log_scales": torch.randn(n, 3, generator=rng) * 0.3 - 2.5,
        "quaternions": torch.randn(n, 4, generator=rng),
        "logit_opacities": torch.randn(n, generator=rng),
        "sh": torch.randn(n, 4, 3, generator=rng),
    }
    return gaussians, orbit((10, 130, 250), (-20, 5, 40), 24, 2.6, 40.0)


# gsplat ---------------------------------------------------------------------------------------------------------------


def pretend_rasterization(
    *, means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, packed, **more
):
    """gsplat's ``rasterization`` as its documentation has it, over our own reference, without a background."""
    flip = torch.tensor([1.0, -1.0, -1.0, 1.0])
    pose = torch.linalg.inv(viewmats) * flip
    focal = Ks[:, 0, 0]
    assert torch.equal(Ks[:, 1, 1], focal) and not packed
    sh, features = colors, means.new_zeros(len(means), 0)
    if more["sh_degree"] is None:
        sh, features = means.new_zeros(len(means), 1, 3), colors
    else:
        assert colors.shape[1] == (more["sh_degree"] + 1) ** 2
    arguments = (scales.log(), quats, opacities.logit(), sh, pose, focal, (height, width), torch.zeros(len(pose), 3))
    image, radius = gaussians_reference.rasterize(means, *arguments, features, means.new_zeros(len(means)), near_plane)
    planes = image.permute(0, 2, 3, 1)
    chosen = planes[..., 5:] if more["sh_degree"] is None else planes[..., [0, 1, 2, 4]]
    meta = {"radii": radius[..., None].expand(-1, -1, 2).ceil().int(), "means2d": means.new_zeros(len(pose), 1, 2)}
    return chosen, planes[..., 3:4], meta


@pytest.mark.parametrize("features", [None, 5])
def test_gsplat_is_asked_for_the_same_pictures(scene, features, monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=pretend_rasterization))
    gaussians, cameras = scene
    background = torch.rand(3, 3, generator=torch.Generator().manual_seed(1))
    more = None if features is None else torch.randn(20, features, generator=torch.Generator().manual_seed(2))
    theirs, radius = peers.gsplat_rasterize(
        **gaussians, pose=cameras.pose, focal=cameras.focal, size=cameras.size, background=background, features=more,
        probe=None, near=0.01,
    )  # fmt: skip
    ours = ops.rasterize_gaussians(
        **gaussians, pose=cameras.pose, focal=cameras.focal, size=cameras.size, background=background, features=more,
        backend="reference",
    )  # fmt: skip
    planes = [ours.rgb, ours.alpha, ours.depth, *([] if ours.features is None else [ours.features])]
    torch.testing.assert_close(theirs, torch.cat(planes, 1), atol=2e-5, rtol=1e-5)
    assert theirs.shape[1] == 5 + (features or 0)
    assert (radius >= ours.radius).all() and (radius - ours.radius < 1).all()


def test_world_to_camera_and_intrinsics_project_like_our_cameras():
    cameras = orbit((33, 200), (-10, 50), 48, 2.0, 50.0)
    cameras = Cameras(cameras.pose, cameras.focal, (48, 30))
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(3)) * 0.3
    local = torch.einsum("bij,nj->bni", peers.world_to_camera(cameras.pose), torch.cat([points, torch.ones(7, 1)], 1))
    homogeneous = torch.einsum("bij,bnj->bni", peers.intrinsics(cameras.focal, cameras.size), local[..., :3])
    x, y, depth = screen_positions(points, cameras).unbind(-1)
    torch.testing.assert_close(homogeneous[..., 0] / homogeneous[..., 2], x, atol=1e-4, rtol=0)
    torch.testing.assert_close(homogeneous[..., 1] / homogeneous[..., 2], y, atol=1e-4, rtol=0)
    torch.testing.assert_close(local[..., 2], depth)


def test_the_probe_is_filled_from_the_gradient_on_the_screen():
    means2d = torch.zeros(2, 3, 2, requires_grad=True)
    on_screen = 2 * means2d
    probe = torch.zeros(3, requires_grad=True)
    peers._fill_probe(probe, on_screen, (20, 40))
    pull = torch.tensor([[[0.3, 0.0], [0.0, 1.0], [0.0, 0.0]], [[0.3, 0.4], [1.0, 0.0], [0.0, 0.0]]])
    on_screen.backward(pull)
    assert probe.grad is not None
    expected = torch.tensor([6 + math.hypot(6, 4), 10 + 20.0, 0.0])
    torch.testing.assert_close(probe.grad, expected)


# tiny-cuda-nn ---------------------------------------------------------------------------------------------------------


class PretendEncoding(nn.Module):
    """One level of tiny-cuda-nn's hash grid: its scale, its offset, its indices."""

    def __init__(self, dimensions, settings, dtype):
        super().__init__()
        assert dimensions == 3 and settings["n_levels"] == 1 and dtype == torch.float32
        self.scale, self.features = settings["base_resolution"] - 1, settings["n_features_per_level"]
        self.resolution = math.ceil(self.scale) + 1
        padded = -(-(self.resolution**3) // 8) * 8
        self.entries = min(padded, 2 ** settings["log2_hashmap_size"])
        self.hashed = self.entries < self.resolution**3
        self.params = nn.Parameter(torch.zeros(self.entries * self.features))

    def forward(self, points):
        rows = self.params.view(self.entries, self.features)
        place = points * self.scale + 0.5
        low = place.floor().long()
        assert (low >= 0).all()
        part, total = place - low, 0.0
        for corner in range(8):
            bit = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2])
            weight = torch.where(bit.bool(), part, 1 - part).prod(-1, keepdim=True)
            x, y, z = (low + bit).unbind(-1)
            if self.hashed:
                index = (x ^ (y * 2654435761 & 0xFFFFFFFF) ^ (z * 805459861 & 0xFFFFFFFF)) % self.entries
            else:
                index = (x + self.resolution * (y + self.resolution * z)) % self.entries
            total = total + weight * rows[index]
        return total


def test_tinycudann_is_asked_for_the_same_features(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", types.SimpleNamespace(Encoding=PretendEncoding))
    peers._encoding.cache_clear()
    layout = GridLayout((3, 8, 20), table=2**10, features=2)
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(sum(layout.entries), 2, generator=rng, requires_grad=True)
    points = torch.cat([torch.rand(50, 3, generator=rng), torch.zeros(1, 3), torch.ones(1, 3)]).requires_grad_()
    weights = torch.tensor([1.0, 0.5, 2.0])
    pull = torch.randn(52, 6, generator=rng)
    results = []
    for run in (
        peers.tinycudann_hash_encode(points, table, layout, weights),
        ops.hash_encode(points, table, layout, weights, backend="reference"),
    ):
        results.append((run, *torch.autograd.grad(run, (table, points), pull)))
    peers._encoding.cache_clear()
    (theirs, their_table, their_points), (ours, our_table, our_points) = results
    torch.testing.assert_close(theirs, ours, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(their_table, our_table, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(their_points[:50], our_points[:50], atol=2e-3, rtol=1e-3)


# Which backend --------------------------------------------------------------------------------------------------------


def test_peers_are_refused_in_words_where_they_cannot_run(scene):
    gaussians, cameras = scene
    asked: list[tuple[Any, str]] = [
        ("gsplat", "not installed|cuda devices alone"),
        ("tinycudann", "no backend 'tinycudann'"),
    ]
    for backend, words in asked:
        with pytest.raises(ValueError, match=words):
            ops.rasterize_gaussians(
                **gaussians, pose=cameras.pose, focal=cameras.focal, size=cameras.size, background=torch.ones(3, 3),
                backend=backend,
            )  # fmt: skip


def test_auto_can_stand_for_another_backend_inside_a_block():
    with backends.using("reference"):
        assert backends.choose("hash_encode", "auto", CPU) == "reference"
    with backends.using("gsplat"):  # an operation that gsplat does not have keeps its own choice
        assert backends.choose("hash_encode", "auto", CPU) in ("native", "reference")
    assert backends.available("rasterize_gaussians", CPU)[-1] == "reference"
