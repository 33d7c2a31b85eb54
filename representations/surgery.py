"""Rows of trainable clouds that come and go while an optimiser holds on to them."""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor, nn


@torch.no_grad()
def rearrange(
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer | None,
    kept: Int[Tensor, " k"],
    added: Mapping[str, Tensor],
) -> None:
    """Make every parameter its rows ``kept``, in that order, followed by the rows ``added`` under its name.

    The parameters stay the objects they were, so groups and optimiser need no rebuilding. Moments (every tensor of the
    optimiser's state with a row for each of the parameter's) go along with the kept rows and start at zero for added
    ones. Gradients are dropped, since they belong to rows that may be gone.

    Raises:
        KeyError: a parameter has no entry in ``added``.
    """
    for name, parameter in parameters.items():
        count, new = len(parameter), added[name]
        state = {} if optimiser is None else optimiser.state.get(parameter, {})
        for key, moment in state.items():
            if isinstance(moment, Tensor) and moment.dim() and len(moment) == count:
                state[key] = torch.cat([moment[kept], moment.new_zeros(len(new), *moment.shape[1:])])
        replace(parameter, torch.cat([parameter[kept], new.to(parameter)]))


def replace(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter another value, which may have another number of rows; its gradient is dropped."""
    parameter.grad = None
    # As long as any earlier graph lives, the parameter keeps a node that remembers the shape its gradient must have.
    # Only a change of type makes torch forget that node, so the parameter is of another type for a moment.
    parameter.data = parameter.data.new_empty(0, dtype=torch.half)
    parameter.data = value.contiguous()
