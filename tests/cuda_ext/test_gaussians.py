"""Splats: compiled kernels against the plain-torch specification, the specification against formulas, and the edges."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cuda_ext import gaussians_native, native
from cuda_ext.backends import Backend
from cuda_ext.ops import GaussianImages, rasterize_gaussians
from tests.cuda_ext.splat_scenes import DIFFERENTIABLE, SplatScene, ball, look_at

pytestmark = pytest.mark.skipif(not native.available() and not native.required(), reason=native.status())
BACKENDS: tuple[Backend, ...] = ("native", "reference")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small, these are faster so, and much faster on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def doubled(scene: SplatScene) -> SplatScene:
    return replace(scene, **{name: value.double() for name, value in vars(scene).items() if isinstance(value, Tensor)})


def draw(scene: SplatScene, backend: Backend = "native") -> GaussianImages:
    return rasterize_gaussians(**vars(scene), backend=backend)


def planes(images: GaussianImages) -> Tensor:
    rest = [] if images.features is None else [images.features]
    return torch.cat([images.rgb, images.alpha, images.depth, *rest], 1)


def pulled(scene: SplatScene, backend: Backend) -> dict[str, Tensor]:
    """The planes, the radii, and the gradients of a random weighting of the planes."""
    scene = scene.with_gradients()
    images = draw(scene, backend)
    image = planes(images)
    rng = torch.Generator().manual_seed(5)
    (image * torch.randn(image.shape, generator=rng, dtype=image.dtype)).sum().backward()
    gradients = {name: getattr(scene, name).grad for name in DIFFERENTIABLE}
    return {"image": image.detach(), "radius": images.radius} | gradients


def assert_agree(scene: SplatScene, tolerance: float) -> None:
    ours, theirs = (pulled(scene, backend) for backend in BACKENDS)
    for name, expected in theirs.items():
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(
            ours[name], expected, atol=tolerance * max(scale, 1e-3), rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


# --- agreement --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("features", [0, 1, 4, 7])
def test_forms_agree_in_double(degree: int, features: int):
    scene = ball(60, (21, 34), views=2, degree=degree, features=features, seed=degree)
    assert_agree(doubled(scene), 1e-9)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (64, 64), (5, 40), (47, 9)])
def test_forms_agree_in_single(size: tuple[int, int]):
    # A pixel where rounding decides whether alpha reaches 1/255 would be off by more; these scenes have none.
    assert_agree(ball(80, size, views=3, degree=2, features=2, scale=0.12, seed=sum(size)), 2e-5)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(0, 40),
    views=st.integers(0, 3),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    scale=st.floats(0.003, 1.0),
    opacity=st.floats(-4, 6),
    seed=st.integers(0, 1000),
)
def test_forms_agree_on_random_scenes(
    n: int, views: int, size: tuple[int, int], scale: float, opacity: float, seed: int
):
    scene = ball(n, size, views, degree=1, features=1, scale=scale, opacity=opacity, seed=seed)
    assert_agree(doubled(scene), 1e-7)


def test_forms_agree_where_pixels_are_finished():
    n = 30
    scene = ball(n, (24, 24), views=1, scale=0.5, opacity=5.0)
    scene = doubled(replace(scene, means=0.3 * scene.means))
    assert_agree(scene, 1e-8)
    assert (1 - draw(scene).alpha).min() < 1e-3


def test_forms_agree_near_the_edge_of_the_field_of_view():
    # Outside 1.3 half fields of view the projection is linearised at the limit, with another gradient.
    scene = ball(40, (20, 20), views=1, scale=0.6)
    means = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([2.0, 2.0, 0.3])
    scene = replace(scene, means=means, pose=look_at(torch.tensor([0.0, 0.3, 2.0]))[None])
    assert_agree(doubled(scene), 1e-8)


@pytest.mark.parametrize("degree", [1, 3])
def test_gradcheck(degree: int):
    scene = doubled(ball(5, (9, 12), views=2, degree=degree, features=1, scale=0.3))

    def image(*values: Tensor) -> Tensor:
        return planes(draw(replace(scene, **dict(zip(DIFFERENTIABLE[:-1], values, strict=True)))))

    values = [getattr(scene, name).requires_grad_() for name in DIFFERENTIABLE[:-1]]
    assert torch.autograd.gradcheck(image, values, eps=1e-6, atol=1e-6, fast_mode=degree == 3)


def test_gradients_of_a_strided_view_and_of_one_plane():
    scene = doubled(ball(20, (16, 16), views=1, scale=0.2))
    wide = torch.randn(20, 6, dtype=torch.float64)
    wide[:, ::2] = scene.means
    results = []
    for backend in BACKENDS:
        leaf = wide.clone().requires_grad_()
        draw(replace(scene, means=leaf[:, ::2]), backend).depth.mean().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results)


# --- against formulas -------------------------------------------------------------------------------------------------


def one_gaussian(position: tuple[float, float, float] = (0.1, -0.2, 0.0)) -> SplatScene:
    scene = ball(1, (32, 40), views=1, degree=0, features=1)
    pose = torch.eye(4)
    pose[2, 3] = 3.0
    return doubled(
        replace(
            scene,
            means=torch.tensor([position]),
            log_scales=torch.full((1, 3), 0.2).log(),
            logit_opacities=torch.tensor([0.8]),
            pose=pose[None],
            focal=torch.tensor([50.0]),
        )
    )


def by_hand(scene: SplatScene, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Alpha and rgb of a single ball of a gaussian with its middle at ``mean`` in pixels, and its covariance."""
    x, y, z = float(scene.means[0, 0]), -float(scene.means[0, 1]), 3.0 - float(scene.means[0, 2])
    jacobian = torch.tensor([[1, 0, -x / z], [0, 1, -y / z]], dtype=torch.float64) * 50 / z
    covariance = 0.2**2 * jacobian @ jacobian.T + 0.3 * torch.eye(2, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(32.0).double() + 0.5, torch.arange(40.0).double() + 0.5, indexing="ij")
    offset = torch.stack([columns, rows], -1) - mean
    alpha = torch.sigmoid(scene.logit_opacities) * torch.exp(
        -0.5 * torch.einsum("hwi,ij,hwj->hw", offset, covariance.inverse(), offset)
    )
    alpha = torch.where(alpha >= 1 / 255, alpha, 0)
    colour = (0.5 + 0.28209479177387814 * scene.sh[0, 0]).clamp_min(0)
    return alpha, alpha * colour[:, None, None] + (1 - alpha) * scene.background[0][:, None, None], covariance


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_gaussian_by_hand(backend: Backend):
    scene = one_gaussian()
    middle = torch.tensor([20 + 50 * 0.1 / 3, 16 + 50 * 0.2 / 3], dtype=torch.float64, requires_grad=True)
    alpha, rgb, covariance = by_hand(scene, middle)
    scene = scene.with_gradients()
    images = draw(scene, backend)
    torch.testing.assert_close(images.alpha[0, 0], alpha.detach(), atol=1e-7, rtol=0)
    torch.testing.assert_close(images.rgb[0], rgb.detach(), atol=1e-7, rtol=0)
    torch.testing.assert_close(images.depth[0, 0], 3 * alpha.detach(), atol=3e-7, rtol=0)
    reach = math.sqrt(2 * math.log(255 * float(torch.sigmoid(scene.logit_opacities.detach()))))
    assert float(images.radius.detach()) == pytest.approx(reach * float(covariance.diagonal().max().sqrt()), rel=1e-6)
    weight = torch.linspace(-1, 1, rgb.numel()).double().view(rgb.shape)
    (rgb * weight).sum().backward()
    (images.rgb[0] * weight).sum().backward()
    assert middle.grad is not None and scene.probe.grad is not None
    expected = (middle.grad * torch.tensor([20, 16])).norm()  # in units of half the picture's sides
    torch.testing.assert_close(scene.probe.grad[0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opaque_gaussians_finish_a_pixel(backend: Backend):
    # Alpha is held to 0.99: the first leaves 1e-2; the second would leave 1e-4, which is the limit, and is not drawn.
    scene = one_gaussian((0.0, 0.0, 0.0))
    stack = {name: getattr(scene, name).repeat(3, *[1] * (getattr(scene, name).ndim - 1)) for name in DIFFERENTIABLE}
    stack["means"] = torch.tensor([[0.0, 0.0, -0.2], [0.0, 0.0, 0.0], [0.0, 0.0, 0.2]]).double()
    stack |= {"logit_opacities": torch.full((3,), 20.0).double(), "log_scales": torch.zeros(3, 3).double()}
    scene = replace(scene, **stack | {"background": scene.background}).with_gradients()
    images = draw(scene, backend)
    assert float(images.alpha[0, 0, 16, 20].detach()) == pytest.approx(0.99, abs=1e-12)
    assert float(images.depth[0, 0, 16, 20].detach()) == pytest.approx(0.99 * 2.8, abs=1e-7)
    images.alpha[0, 0, 15:17, 19:21].sum().backward()
    assert scene.logit_opacities.grad is not None and not scene.logit_opacities.grad.any()  # held: no gradient


def test_views_have_their_own_backgrounds_and_poses():
    scene = doubled(ball(30, (18, 18), views=3, degree=1))
    together = draw(scene)
    for i in range(3):
        one = slice(i, i + 1)
        view = replace(scene, pose=scene.pose[one], focal=scene.focal[one], background=scene.background[one])
        torch.testing.assert_close(draw(view).rgb, together.rgb[one], rtol=0, atol=0)


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n, views", [(0, 2), (4, 0), (0, 0)])
def test_nothing_to_draw(n: int, views: int, backend: Backend):
    result = pulled(ball(n, (10, 13), views=views, features=2), backend)
    assert result["image"].shape == (views, 7, 10, 13) and result["radius"].shape == (views, n)
    assert not result["means"].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_background_shows_through_nothing(backend: Backend):
    images = draw(ball(0, (10, 13), views=2), backend)
    assert (images.rgb == ball(0, (10, 13), views=2).background[:, :, None, None]).all() and not images.alpha.any()


def spoil(name: str, value: float | Tensor) -> Callable[[SplatScene], SplatScene]:
    def change(scene: SplatScene) -> SplatScene:
        tensor = getattr(scene, name).clone()
        tensor[3] = value
        return replace(scene, **{name: tensor})

    return change


SPOILT = {
    **{f"{name} {value}": spoil(name, value) for name in DIFFERENTIABLE[:5] for value in (math.nan, math.inf)},
    "features nan": spoil("features", math.nan),
    "scale overflows": spoil("log_scales", 400.0),
    "no quaternion": spoil("quaternions", 0.0),
    "transparent": spoil("logit_opacities", -20.0),
    "off the picture": spoil("means", 40.0),
    "behind the camera": lambda scene: spoil("means", 2 * scene.pose[0, :3, 3])(scene),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", SPOILT)
def test_gaussian_that_cannot_be_drawn(fault: str, backend: Backend, dtype: torch.dtype):
    scene = ball(8, (16, 16), views=1, degree=1, features=1, scale=0.2)
    scene = doubled(scene) if dtype == torch.float64 else scene
    kept = torch.tensor([i != 3 for i in range(8)])
    own = [name for name in DIFFERENTIABLE if name != "background"]
    without = pulled(replace(scene, **{name: getattr(scene, name)[kept] for name in own}), backend)
    result = pulled(SPOILT[fault](scene), backend)
    torch.testing.assert_close(result["image"], without["image"], rtol=0, atol=0)
    assert result["radius"][0, 3] == 0
    for name in own:
        assert not result[name][3].any(), name
        torch.testing.assert_close(result[name][kept], without[name])


def test_points_and_needles_agree():
    scene = ball(40, (30, 30), views=2)
    log_scales = scene.log_scales.clone()
    log_scales[:10], log_scales[10:20, 0], log_scales[20:25, 1] = -200.0, 3.0, -80.0
    assert_agree(doubled(replace(scene, log_scales=log_scales)), 1e-7)


def test_equal_depths_are_drawn_by_index():
    scene = one_gaussian()
    pair = {name: getattr(scene, name).repeat(2, *[1] * (getattr(scene, name).ndim - 1)) for name in DIFFERENTIABLE}
    pair |= {"background": scene.background, "sh": torch.stack([scene.sh[0], scene.sh[0] + 1])}
    assert_agree(replace(scene, **pair), 1e-9)


def test_camera_inside_the_cloud():
    scene = ball(200, (24, 24), views=1, scale=0.05)
    pose = scene.pose.clone()
    pose[:, :3, 3] = 0.0
    assert_agree(doubled(replace(scene, pose=pose, near=0.2)), 1e-7)


# --- repeatability, and how torch sees it -----------------------------------------------------------------------------


def test_bitwise_equal_over_runs_and_threads():
    scene = ball(3000, (60, 70), views=3, degree=1, features=3, scale=0.05)
    results = []
    for threads in (1, 1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(pulled(scene, "native"))
    for result in results[1:]:
        assert all(torch.equal(result[name], value) for name, value in results[0].items())


def test_opcheck():
    scene = ball(12, (10, 12), views=2, features=1).with_gradients()
    gaussians = (scene.means, scene.log_scales, scene.quaternions, scene.logit_opacities, scene.sh, scene.features)
    views = (scene.pose, scene.focal, scene.background, *scene.size, scene.near)
    torch.library.opcheck(torch.ops.dreamkiln.rasterize_gaussians.default, (*gaussians, scene.probe, *views))
    image, _, *saved = gaussians_native.rasterize(*gaussians, scene.probe, *views)
    plain = [value.detach() for value in (*gaussians, *views[:3])]
    arguments = (*plain, *views[3:], image.detach(), [s.detach() for s in saved], torch.ones_like(image))
    torch.library.opcheck(torch.ops.dreamkiln.rasterize_gaussians_backward.default, arguments)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_wrong_input_is_refused_in_words():
    scene = ball(4, (8, 8), views=1)
    refused = {
        r"sh must have 1, 4, 9 or 16 harmonics a colour, got 5": {"sh": torch.zeros(4, 5, 3)},
        r"logit_opacities is torch.float64: all inputs must be": {"logit_opacities": torch.zeros(4).double()},
        r"size is height and width": {"size": (0, 5)},
        r"near must be positive": {"near": 0.0},
        r"means is torch.float16": {"means": torch.zeros(4, 3).half()},
        r"focal is on meta, means on cpu": {"focal": torch.zeros(1, device="meta")},
    }
    for message, change in refused.items():
        with pytest.raises(ValueError, match=message):
            draw(replace(scene, **change))
    with pytest.raises(ValueError, match=r"rasterize_gaussians has no backend 'tinycudann' for this operation"):
        draw(scene, "tinycudann")
