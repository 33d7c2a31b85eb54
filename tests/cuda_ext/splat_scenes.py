"""Splats and cameras for the tests of the kernels."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class SplatScene:
    """All inputs of ``rasterize_gaussians``."""

    means: Tensor
    log_scales: Tensor
    quaternions: Tensor
    logit_opacities: Tensor
    sh: Tensor
    pose: Tensor
    focal: Tensor
    background: Tensor
    features: Tensor
    probe: Tensor
    size: tuple[int, int]
    near: float = 0.05

    def with_gradients(self) -> "SplatScene":
        """A copy whose differentiable inputs are leaves that want gradients."""
        return replace(self, **{name: getattr(self, name).clone().requires_grad_() for name in DIFFERENTIABLE})


DIFFERENTIABLE = (
    "means", "log_scales", "quaternions", "logit_opacities", "sh", "background", "features", "probe",
)  # fmt: skip


def look_at(eye: Tensor) -> Tensor:
    """Camera-to-world pose [4, 4], OpenGL axes, looking from ``eye`` at the origin."""
    back = eye / eye.norm()
    right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), back)
    right = right / right.norm()
    pose = torch.eye(4)
    pose[:3] = torch.stack([right, torch.linalg.cross(back, right), back, eye], 1)
    return pose


def ball(
    n: int,
    size: tuple[int, int],
    views: int = 2,
    degree: int = 1,
    features: int = 0,
    scale: float = 0.08,
    opacity: float = 0.0,
    seed: int = 0,
) -> SplatScene:
    """Gaussians about the origin, seen from around at a distance of 2.5."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731 -- a name for a long call
    eyes = draw(views, 3) * torch.tensor([1.0, 0.4, 1.0])
    eyes = 2.5 * eyes / eyes.norm(dim=1, keepdim=True).clamp_min(1e-3) if views else eyes
    return SplatScene(
        means=draw(n, 3) * 0.45,
        log_scales=draw(n, 3) * 0.5 + torch.tensor(scale).log(),
        quaternions=draw(n, 4),
        logit_opacities=draw(n) * 1.5 + opacity,
        sh=draw(n, (degree + 1) ** 2, 3) * 0.4,
        pose=torch.stack([look_at(eye) for eye in eyes]) if views else torch.zeros(0, 4, 4),
        focal=torch.full((views,), 1.1 * max(size)),
        background=torch.rand(views, 3, generator=rng),
        features=draw(n, features),
        probe=torch.zeros(n),
        size=size,
    )
