"""Bytes of the tensors that a piece of work keeps alive, counted without having them: on the meta device.

Fused attention is taken for granted, as torch has it on CPUs and GPUs. What libraries take for themselves, such as a
GPU's context and workspaces of convolutions, is not counted.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Counting(TorchDispatchMode):
    """Counts the bytes of tensors alive that were made while it is on; ``peak`` is the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        before = {id(t.untyped_storage()) for t in tree_iter((args, kwargs or {})) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._known and id(storage) not in before:
                    self._known.add(id(storage))
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class FusedAttention(TorchFunctionMode):
    """Attention that keeps its inputs and its result, not the table of all pairs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One function of torch."""
        if func is torch.nn.functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _Attention.apply(given["query"], given["key"], given["value"])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


def peak_of(step: Callable[[], Any]) -> int:
    """Most bytes that ``step`` would keep alive at once, beyond what was there before it."""
    with FusedAttention(), Counting() as counting:
        step()
    return counting.peak


def way_back(root: Float[Tensor, ""]) -> None:
    """``root.backward()``, in which what was checkpointed is computed again in the modes that are on.

    torch's own ``backward`` puts modes like ``FusedAttention`` aside; its engine does not.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward(
        (root,), (torch.ones_like(root),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )
