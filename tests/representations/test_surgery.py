"""Rows come and go; everything else about an optimisation stays."""

import pytest
import torch
from torch import nn

from representations.surgery import rearrange, replace


def stepped(value: torch.Tensor) -> tuple[nn.Parameter, torch.optim.Adam]:
    """A parameter that Adam has moved once, by gradients that tell its rows apart."""
    parameter = nn.Parameter(value.clone())
    optimiser = torch.optim.Adam([parameter], lr=0.1, fused=True)
    (parameter.square() * torch.arange(1.0, len(value) + 1)[:, None]).sum().backward()
    optimiser.step()
    return parameter, optimiser


def test_rows_and_moments_move_together():
    parameter, optimiser = stepped(torch.rand(5, 2))
    before, state = parameter.detach().clone(), {k: v.clone() for k, v in optimiser.state[parameter].items()}
    added = torch.rand(3, 2)
    rearrange({"p": parameter}, optimiser, torch.tensor([3, 1]), {"p": added})
    assert optimiser.param_groups[0]["params"][0] is parameter and parameter.grad is None
    assert torch.equal(parameter, torch.cat([before[[3, 1]], added]))
    for moment in ("exp_avg", "exp_avg_sq"):
        expected = torch.cat([state[moment][[3, 1]], torch.zeros(3, 2)])
        assert torch.equal(optimiser.state[parameter][moment], expected)
    assert torch.equal(optimiser.state[parameter]["step"], state["step"])


def test_a_kept_row_is_optimised_as_if_nothing_had_happened():
    whole, first = stepped(torch.linspace(0.1, 1, 4)[:, None])
    cut, second = stepped(torch.linspace(0.1, 1, 4)[:, None])
    rearrange({"p": cut}, second, torch.tensor([2]), {"p": torch.empty(0, 1)})
    for parameter, optimiser in ((whole, first), (cut, second)):
        optimiser.zero_grad()
        parameter.square().sum().backward()
        optimiser.step()
    assert torch.equal(whole[2:3], cut)


def test_gradients_flow_although_an_older_graph_is_still_held():
    """torch keeps a parameter's gradient shape in a node that lives as long as any graph through the parameter."""
    parameter, optimiser = stepped(torch.ones(3, 2))
    held = (parameter * 2).exp()
    rearrange({"p": parameter}, optimiser, torch.tensor([0]), {"p": torch.zeros(4, 2)})
    (parameter * 2).sum().backward()
    assert parameter.grad is not None and torch.equal(parameter.grad, torch.full((5, 2), 2.0))
    assert held.shape == (3, 2)


def test_everything_may_go():
    parameter, optimiser = stepped(torch.ones(3, 2))
    rearrange({"p": parameter}, optimiser, torch.empty(0, dtype=torch.long), {"p": torch.empty(0, 2)})
    assert parameter.shape == (0, 2) and optimiser.state[parameter]["exp_avg"].shape == (0, 2)


def test_a_parameter_without_new_rows_is_an_error():
    parameter, optimiser = stepped(torch.ones(3, 2))
    with pytest.raises(KeyError, match="p"):
        rearrange({"p": parameter}, optimiser, torch.tensor([0]), {})


def test_replacing_keeps_the_object():
    parameter = nn.Parameter(torch.ones(2))
    parameter.sum().backward()
    replace(parameter, torch.arange(5.0))
    assert torch.equal(parameter, torch.arange(5.0)) and parameter.grad is None and parameter.is_leaf
    assert parameter.dtype == torch.float32 and parameter.requires_grad
