"""What tests of learning methods share: renders, conditions, states that seem to have learnt, and their memory."""

from typing import Any

import torch
from torch import nn

from guidance.conditioning import Prompts
from guidance.contract import Condition, Draw, Views
from guidance.drawing import make_draw
from guidance.testing import GaussianPrior, embedding

PRIOR = GaussianPrior()


def named(method: Any) -> str:
    """For the names of tests."""
    return method if isinstance(method, str) else type(method).__name__


def different_samples() -> tuple[torch.Tensor, Condition, Draw]:
    """Four latents, a condition and a draw; samples differ in everything."""
    rng = torch.Generator().manual_seed(3)
    latents = torch.randn(4, 3, 8, 8, generator=rng, dtype=torch.float64)
    gaussians = [(2.0, 0.25), (-1.0, 0.5), (0.0, 2.0), (0.5, 0.1)]
    condition = Condition(
        text=torch.cat([embedding(g) for g in gaussians]),
        plain=torch.cat([embedding((mean - 0.3, v)) for mean, v in gaussians]),
        negative=embedding((-2.0, 0.25)).expand(4, -1, -1),
        null=embedding((0.0, 1.0)).expand(4, -1, -1),
        camera=torch.eye(4).expand(4, 4, 4),
    )
    return latents, condition, make_draw(latents, (20, 980), rng)


def some_views(prior: Any = PRIOR, value: float | None = None) -> Views:
    images = torch.rand(3, 3, prior.resolution, prior.resolution, generator=torch.Generator().manual_seed(5))
    if value is not None:
        images = torch.full_like(images, value)
    pose = torch.eye(4).repeat(3, 1, 1)
    pose[:, 2, 3] = 2.6
    return Views(images, pose, torch.ones(3, 3))


def some_condition(prior: Any = PRIOR, views: Views | None = None) -> Condition:
    return Prompts.embed(prior, "a red mug").condition(views or some_views(prior))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def knowing(state: Any, shift: float = 0.4, spread: float = -0.3) -> Any:
    """The state as if everything in it had learnt something."""
    for name, value in state.named_parameters():
        with torch.no_grad():
            if value.dtype == torch.float64:  # of a Gaussian
                value.fill_(shift if name.endswith("shift") else spread)
            else:
                value += 0.2 * torch.randn(value.shape, generator=rng(len(name)))
    return state


def memory(state: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of a state, the optimisers' among them, by name."""
    found: dict[str, torch.Tensor] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value.clone()
        elif isinstance(value, dict | list | tuple):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                collect(f"{name}/{key}", item)

    collect("", dict(state.state_dict()))
    return found


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Recorder(GaussianPrior):
    """A prior that keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []

    def predict_noise(self, noisy, t, text, pose=None, extra=None, adapter=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        graph = adapter is not None and torch.is_grad_enabled()
        self.asked.append({"t": t, "text": text, "pose": pose, "adapter": adapter, "graph": graph})
        return super().predict_noise(noisy, t, text, pose, extra, adapter)
