"""Numbers that are not finite: noticed in the very step, kept out of everything, and called by their names."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.limiting import all_finite

PATIENCE = 3
"""Steps in a row that come to nothing before a run goes back to its last checkpoint."""


class NonFiniteError(FloatingPointError):
    """Something stopped being numbers; the message names the step and the tensors."""


class Guard:
    """Masks, on the device and in the very step, an update of anything that is not finite, and counts them.

    Looked at are the loss, every parameter, its gradient and its moments: what any of them would spoil does not happen.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, device: torch.device, skipped: int | Tensor = 0):
        """Watch over ``optimiser``.

        Args:
            device: of its parameters.
            skipped: steps that came to nothing before.
        """
        self._optimiser = optimiser
        self.skipped = torch.as_tensor(skipped, dtype=torch.float32).to(device)
        self._in_a_row = torch.zeros((), device=device)
        self._critics_in_a_row = torch.zeros((), device=device)
        self._critics: Tensor | None = None
        self._since_read = 0

    def check(self, loss: Float[Tensor, ""], resting: bool = False) -> None:
        """Tell the optimiser whether to step; fused optimisers read ``found_inf`` without asking the host.

        A ``resting`` step changes nothing either, and is not counted: its method wants it so.
        """
        self._optimiser.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
        if resting:
            self._optimiser.found_inf = torch.ones_like(self.skipped)  # pyright: ignore[reportAttributeAccessIssue]
            return
        bad = ~all_finite([loss.detach(), *(tensor for _, tensor in _touched(self._optimiser))])
        self.skipped = self.skipped + bad
        self._in_a_row = (self._in_a_row + 1) * bad
        self._optimiser.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]

    def note_critics(self, learnt: Mapping[str, Tensor]) -> None:
        """See whether what a method learns came to nothing in this step: its own counts of skipped steps grew."""
        counts = [count for name, count in learnt.items() if name.endswith("_skipped")]
        if counts:
            skipped = torch.stack(counts).sum()
            grew = torch.zeros_like(skipped, dtype=torch.bool) if self._critics is None else skipped > self._critics
            self._critics, self._critics_in_a_row = skipped, (self._critics_in_a_row + 1) * grew

    def is_stuck(self) -> bool:
        """Whether ``PATIENCE`` steps in a row came to nothing; on a GPU the count is read every few steps only."""
        self._since_read += 1
        if self._in_a_row.device.type != "cpu" and self._since_read < PATIENCE:
            return False
        self._since_read = 0
        return bool(torch.maximum(self._in_a_row, self._critics_in_a_row) >= PATIENCE)


def unsound(
    representation: nn.Module, optimiser: torch.optim.Optimizer, guidance_state: nn.Module, gradients: bool = True
) -> list[str]:
    """Names of whatever is not finite: parameters, moments and what the method has learnt; gradients if asked for."""
    names = {parameter: name for name, parameter in representation.named_parameters()}
    named = [
        *((f"{what} {names[p]}".strip(), tensor) for p, what, tensor in _all_of(optimiser, gradients)),
        *representation.named_buffers(),
        *((f"{name} of the method's memory", tensor) for name, tensor in _leaves(guidance_state.state_dict())),
    ]
    return list(dict.fromkeys(name for name, tensor in named if not _finite(tensor)))


def refuse_unsound(representation: nn.Module) -> None:
    """Refuse to make anything of a representation that is not finite.

    Raises:
        NonFiniteError: with the names of its tensors.
    """
    wrong = [name for name, tensor in _leaves(representation.state_dict()) if not _finite(tensor)]
    if wrong:
        raise NonFiniteError(f"There are numbers that are not finite in {', '.join(wrong)}; no asset is made of them.")


def _touched(optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Whatever a step of the optimiser reads."""
    return ((what, tensor) for _, what, tensor in _all_of(optimiser))


def _all_of(optimiser: torch.optim.Optimizer, gradients: bool = True) -> Iterator[tuple[nn.Parameter, str, Tensor]]:
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            yield parameter, "", parameter.detach()
            if gradients and parameter.grad is not None:
                yield parameter, "the gradient of", parameter.grad
            for name, moment in optimiser.state.get(parameter, {}).items():
                if isinstance(moment, Tensor) and moment.dim():
                    yield parameter, f"{name} of", moment


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a tree of dicts and lists, and where they are."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{path}.{i}")


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
