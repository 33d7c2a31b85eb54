"""The CUDA splat kernels, run by the emulator, against plain torch and the CPU: pictures, every gradient."""

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cuda_ext import cuda_gaussians, gaussians_native, gaussians_reference, native
from cuda_ext.cpu_gaussians import Gradients, Inputs
from cuda_ext.cuda_gaussians import Room, Saved, Settings
from tests.cuda_ext.emulator import Emulator, needs_compiler
from tests.cuda_ext.splat_scenes import DIFFERENTIABLE, SplatScene, ball

pytestmark = needs_compiler

EMULATOR = Emulator()


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """torch.empty gives NaNs, so that reading scratch before it is written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def room(slots: float = 100.0, bins: float = 1.5, least: int = 1) -> Room:
    return Room({"slots": slots, "bins": bins}, least)


def inputs_of(scene: SplatScene) -> Inputs:
    return Inputs(**{field.name: getattr(scene, field.name).detach() for field in fields(Inputs)})


def cuda_draw(
    scene: SplatScene, bins: bool | None = None, emulator: Emulator = EMULATOR, space: Room | None = None
) -> tuple[Tensor, Saved]:
    return cuda_gaussians.draw(inputs_of(scene), Settings(scene.size, scene.near, bins), emulator, space or room())


def cuda_replay(
    scene: SplatScene, saved: Saved, gradient: Tensor, emulator: Emulator = EMULATOR, space: Room | None = None
) -> Gradients:
    settings = Settings(scene.size, scene.near)
    return cuda_gaussians.replay(inputs_of(scene), settings, saved, gradient, emulator, space or room())


def reference(scene: SplatScene, gradient: Tensor | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    leaves = scene.with_gradients()
    gaussians = (leaves.means, leaves.log_scales, leaves.quaternions, leaves.logit_opacities, leaves.sh)
    rest = (leaves.size, leaves.background, leaves.features, leaves.probe, leaves.near)
    image, radius = gaussians_reference.rasterize(*gaussians, leaves.pose, leaves.focal, *rest)
    if gradient is None:
        return image.detach(), radius, {}
    image.backward(gradient)
    zero = {name: torch.zeros_like(getattr(leaves, name)) for name in DIFFERENTIABLE}
    return (
        image.detach(),
        radius,
        {n: z if getattr(leaves, n).grad is None else getattr(leaves, n).grad for n, z in zero.items()},
    )


def assert_agrees(
    scene: SplatScene, bins: bool | None = None, tolerance: float = 2e-4, space: Room | None = None
) -> None:
    radius, saved = cuda_draw(scene, bins, space=space)
    gradient = torch.randn(saved.image.shape, generator=torch.Generator().manual_seed(1))
    expected, expected_radius, expected_gradients = reference(scene, gradient)
    torch.testing.assert_close(saved.image, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(radius, expected_radius, atol=1e-3, rtol=1e-4)
    gradients = cuda_replay(scene, saved, gradient, space=space)
    for name, value in expected_gradients.items():
        error = (getattr(gradients, name) - value).norm() / value.norm().clamp_min(1e-6)
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(("degree", "features"), [(0, 0), (1, 3), (2, 6), (3, 1)])
def test_pictures_and_gradients_agree_with_the_reference(degree: int, features: int) -> None:
    assert_agrees(ball(60, (21, 30), views=2, degree=degree, features=features))


@pytest.mark.skipif(not native.available() and not native.required(), reason=native.status())
def test_the_operators_for_cuda_do_what_those_for_the_cpu_do(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = SimpleNamespace(**vars(cuda_gaussians))
    emulated.draw = partial(cuda_gaussians.draw, launch=EMULATOR, room=room())
    emulated.replay = partial(cuda_gaussians.replay, launch=EMULATOR, room=room())
    monkeypatch.setattr(gaussians_native, "cuda_gaussians", emulated)
    scene = ball(200, (40, 56), views=3, degree=2, features=3)
    gaussians = (scene.means, scene.log_scales, scene.quaternions, scene.logit_opacities, scene.sh, scene.features)
    views = (scene.pose, scene.focal, scene.background, *scene.size, scene.near)
    pulls = []
    for draw, backward in (
        (gaussians_native._cpu_draw, gaussians_native._cpu_backward),
        (gaussians_native._cuda_draw, gaussians_native._cuda_backward),
    ):
        image, radius, *saved = draw(*gaussians, scene.probe, *views)
        gradient = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
        pulls.append([image, radius, *backward(*gaussians, *views, image, saved, gradient)])
    for cpu, gpu in zip(*pulls, strict=True):
        assert (gpu - cpu).norm() < 1e-4 * cpu.norm()


def test_an_opaque_blob_agrees() -> None:
    assert_agrees(ball(400, (24, 24), views=1, scale=0.2, opacity=4.0), tolerance=1e-3)


def test_bins_change_nothing() -> None:
    scene = ball(160, (72, 80), views=2, features=2)
    scan, binned = cuda_draw(scene, bins=False)[1], cuda_draw(scene, bins=True)[1]
    assert len(binned.bin_ranks) and torch.equal(scan.image, binned.image)
    gradient = torch.randn_like(scan.image)
    a, b = cuda_replay(scene, scan, gradient), cuda_replay(scene, binned, gradient)
    assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))
    assert_agrees(scene, bins=True)


@pytest.mark.parametrize("backward", [False, True])
def test_bins_of_many_gaussians_and_bins_that_overflow(backward: bool) -> None:
    scene, emulator = ball(700, (72, 80), views=2, scale=0.04), Emulator(backward)
    full = cuda_draw(scene, bins=False)[1]
    binned = cuda_draw(scene, bins=True, emulator=emulator, space=room(bins=100.0))[1]
    assert torch.equal(binned.image, full.image)
    needed = int(binned.bin_ends[-1])
    part = cuda_draw(scene, bins=True, emulator=emulator, space=room(bins=0.5 * needed / 1400))[1]
    assert 0 < (part.bin_ends > len(part.bin_ranks)).sum() < len(part.bin_ends)
    assert torch.equal(part.image, full.image)


@pytest.mark.parametrize("slots", [0.0, 1.5])
def test_slots_that_overflow_go_through_atomics(slots: float) -> None:
    scene = ball(80, (24, 40), views=2, features=5)
    assert int(cuda_draw(scene)[1].ends[-1]) > 1.5 * 160
    assert_agrees(scene, space=room(slots=slots))


def test_scratch_grows_to_what_was_needed() -> None:
    scene, space = ball(80, (24, 40), views=2), room(slots=0.1)
    where = (torch.device("cpu"), scene.size)
    assert space.rows("slots", where, 160, 10**6) == 16
    _, saved = cuda_draw(scene, space=space)
    cuda_replay(scene, saved, torch.ones_like(saved.image), space=space)
    assert space.rows("slots", where, 160, 10**6) == pytest.approx(1.25 * int(saved.ends[-1]), abs=1)
    assert space.rows("slots", where, 320, 10**6) == pytest.approx(2.5 * int(saved.ends[-1]), abs=1)
    assert space.rows("slots", where, 160, 100) == 100


def test_the_order_of_threads_changes_no_bit() -> None:
    scene = ball(150, (72, 72), views=2, features=3)
    gradient = None
    results = []
    for emulator in (Emulator(), Emulator(backward=True), Emulator(architecture=750)):
        radius, saved = cuda_draw(scene, bins=True, emulator=emulator)
        gradient = torch.randn_like(saved.image) if gradient is None else gradient
        gradients = cuda_replay(scene, saved, gradient, emulator=emulator)
        results.append([radius, saved.image, *vars(gradients).values()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_cannot_be_drawn_is_left_out_with_zero_gradients() -> None:
    scene = ball(40, (24, 24), views=2, features=2)
    bad = 9
    scene.means[0, 1] = torch.nan
    scene.log_scales[1, 2] = torch.inf
    scene.quaternions[2] = 0
    scene.logit_opacities[3] = torch.nan
    scene.sh[4, 0, 0] = torch.inf
    scene.features[5, 1] = torch.nan
    scene.log_scales[6] = 300.0
    scene.means[7] = torch.tensor([1e30, 0.0, 0.0])
    scene.logit_opacities[8] = -20.0
    radius, saved = cuda_draw(scene)
    assert (radius[:, :bad] == 0).all() and (radius[:, bad:] > 0).any()
    rest = replace(scene, **{name: getattr(scene, name)[bad:] for name in DIFFERENTIABLE if name != "background"})
    assert torch.equal(saved.image, cuda_draw(rest)[1].image)
    gradients = vars(cuda_replay(scene, saved, torch.randn_like(saved.image)))
    for name, value in gradients.items():
        assert value.isfinite().all(), name
        assert name == "background" or (value[:bad] == 0).all(), name


def test_behind_the_camera_and_off_the_picture() -> None:
    scene = ball(60, (24, 24), views=1)
    eye = scene.pose[0, :3, 3]
    scene.means[:10] += 2 * eye
    scene.means[10:20] += 3 * scene.pose[0, :3, 0]
    scene.means[20] = eye
    assert_agrees(scene)


@pytest.mark.parametrize(("n", "views"), [(0, 2), (5, 0), (0, 0), (1, 1)])
def test_little_or_nothing(n: int, views: int) -> None:
    scene = ball(n, (9, 17), views=views, features=1, scale=0.3)
    radius, saved = cuda_draw(scene)
    assert radius.shape == (views, n) and saved.image.shape == (views, 6, 9, 17)
    if views:
        assert_agrees(scene)
    if not n and views:
        assert torch.equal(saved.image[:, :3], scene.background[:, :, None, None].expand(-1, -1, 9, 17))
