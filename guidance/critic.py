"""What a method learns along the way: a module with its own optimiser, and the critic of the renders made of it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from guidance.contract import Condition, Prior, Views
from guidance.controls import Controls
from guidance.limiting import all_finite
from guidance.noising import add_noise
from guidance.sharing import WHOLE, Share


@dataclass(frozen=True)
class Learning:
    """How an adapter of the prior learns."""

    rank: int = 4
    """Rank of its updates."""
    rate: float = 1e-4
    """Learning rate."""
    blind: float = 0.1
    """Share of the samples that are learnt from without being told the camera."""


class Learner(nn.Module):
    """A module that is trained, and its AdamW. State and checkpoint hold both, so a resumed run goes on bit-equal."""

    steps: Int[Tensor, ""]
    skipped: Float[Tensor, ""]

    def __init__(self, module: nn.Module, rate: float) -> None:
        super().__init__()
        self.module = module
        self.optimiser = torch.optim.AdamW(module.parameters(), rate, fused=True)
        device = next(module.parameters()).device
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device=device))
        self.register_buffer("skipped", torch.zeros((), device=device))

    def descend(self, loss: Float[Tensor, ""], share: Share = WHOLE) -> None:
        """One step down ``loss``, a mean over the views of ``share``.

        What is not finite, of a weight, its gradient or its moments, changes nothing and is counted in ``skipped``.
        """
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        share.average(gradients)
        moments = [m for state in self.optimiser.state.values() for m in state.values() if m.dim()]
        bad = ~all_finite([*self.module.parameters(), *gradients, *moments])
        # Fused optimisers read this on the device, without asking the host.
        self.optimiser.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimiser.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        self.skipped += bad

    def get_extra_state(self) -> dict[str, Any]:
        """The optimiser's part of the state."""
        return self.optimiser.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the optimiser's part of a state; a copy of it, as of everything else that is loaded."""
        self.optimiser.load_state_dict(copy.deepcopy(state))


class Critic(nn.Module):
    """The score of the renders themselves: an adapter of the prior that learns them by denoising.

    It answers for the prompt without direction of view, told the camera instead (ProlificDreamer, arXiv
    2305.16213). Scenes that are optimised side by side share one. Nothing here touches the scene's graph or the prior.
    """

    def __init__(self, prior: Prior, knobs: Learning, seed: int) -> None:
        super().__init__()
        self.learner, self.blind = Learner(prior.adapter(knobs.rank, seed), knobs.rate), knobs.blind

    @property
    def adapter(self) -> nn.Module:
        """For ``Prior.predict_noise``."""
        return self.learner.module

    @torch.no_grad()
    def predict(
        self, prior: Prior, noisy: Float[Tensor, "b c i j"], t: Int[Tensor, " b"], condition: Condition
    ) -> Float[Tensor, "b c i j"]:
        """``eps_phi(z_t, t, camera, y)``, without guidance."""
        return self._noise(prior, noisy, t, condition, condition.camera)

    def train_step(
        self,
        prior: Prior,
        latents: Float[Tensor, "b c i j"],
        condition: Condition,
        rng: torch.Generator,
        shared: bool = False,
        share: Share = WHOLE,
    ) -> dict[str, Tensor]:
        """One step of ``E |eps_phi(z_t, t, camera, y) - n|^2``, t uniform over the whole schedule.

        Args:
            prior: the prior that the critic was made for.
            latents: of renders; they get no gradient.
            condition: of the same views.
            rng: a generator on the CPU.
            shared: one timestep for all views, as a multi-view prior wants.
            share: which of the step's views they are.

        Returns:
            ``critic_loss``, the mean over samples and elements, and ``critic_skipped``, the steps so far whose gradient
            was not finite and which changed nothing.
        """
        latents, count = latents.detach(), share.total(len(latents))
        t = torch.randint(len(prior.alphas_cumprod), (count,), generator=rng)
        noise = share.own(torch.randn((count, *latents.shape[1:]), generator=rng)).to(latents)
        told = share.own(torch.rand(count, generator=rng) >= self.blind).to(latents.device)
        camera = None if condition.camera is None else condition.camera * told[:, None, None]
        t = share.own(t[:1].expand(count) if shared else t).to(latents.device)
        with torch.enable_grad():
            predicted = self._noise(prior, add_noise(prior, latents, noise, t), t, condition, camera)
            loss = (predicted - noise).square().mean()
            self.learner.descend(loss, share)
        return {"critic_loss": loss.detach(), "critic_skipped": self.learner.skipped.clone()}

    def _noise(self, prior: Prior, noisy: Tensor, t: Tensor, condition: Condition, camera: Tensor | None) -> Tensor:
        text = condition.text if condition.plain is None else condition.plain
        return prior.predict_noise(noisy, t, text, camera, condition.extra, self.adapter)


# For methods whose memory is a critic ---------------------------------------------------------------------------------


@runtime_checkable
class Criticised(Protocol):
    """A method as the functions below need it."""

    @property
    def critic(self) -> Learning:
        """How the critic learns."""
        ...

    @property
    def controls(self) -> Controls:
        """Options."""
        ...


def untrained_critic(method: Criticised, prior: Prior, seed: int = 0) -> Critic:
    """``init`` of a method: a critic that has learnt nothing."""
    return Critic(prior, method.critic, seed)


def learn_renders(
    method: Criticised, state: Critic, prior: Prior, views: Views, condition: Condition, rng: torch.Generator
) -> dict[str, Tensor]:
    """``train_critic`` of a method: one step on the renders; see ``Critic.train_step`` for what it says."""
    with torch.no_grad():
        latents = prior.encode(views.images)
    shared = method.controls.shared_t or method.controls.group
    return state.train_step(prior, latents, condition, rng, shared, views.share)


class Adapted:
    """A prior as an adapter has changed it: a prior too, off the graph. The pose it is told reaches the adapter."""

    def __init__(self, prior: Prior, adapter: nn.Module) -> None:
        self._prior, self._adapter = prior, adapter
        self.alphas_cumprod, self.channels = prior.alphas_cumprod, prior.channels
        self.resolution, self.takes = prior.resolution, prior.takes - {"both"}

    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "n t d"]:
        """As the prior does."""
        return self._prior.embed(prompts)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """As the prior does."""
        return self._prior.encode(images)

    def decode(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
        """As the prior does."""
        return self._prior.decode(latents)

    def adapter(self, rank: int, seed: int) -> nn.Module:
        """As the prior does: of the prior itself."""
        return self._prior.adapter(rank, seed)

    @torch.no_grad()
    def predict_noise(
        self,
        noisy: Float[Tensor, "b c i j"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b t d"],
        pose: Float[Tensor, "b 4 4"] | None = None,
        extra: dict[str, Tensor] | None = None,
        adapter: Any = None,
    ) -> Float[Tensor, "b c i j"]:
        """The prior's answer through the adapter, or through another one."""
        return self._prior.predict_noise(noisy, t, text, pose, extra, self._adapter if adapter is None else adapter)
