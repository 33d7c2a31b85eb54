"""Processes that share every step of a run: each renders and judges some of the views, and all take the same step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from guidance.sharing import WHOLE, Share


@final
@dataclass(frozen=True)
class Part:
    """The views of a step that fall to one process of several; see ``guidance.sharing.Share``."""

    rank: int
    world: int
    views: int
    """Of the whole step."""

    @property
    def first(self) -> int:
        """See ``Share.first``."""
        return self.views * self.rank // self.world

    @property
    def end(self) -> int:
        """The place behind the last of them."""
        return self.views * (self.rank + 1) // self.world

    def total(self, own: int) -> int:
        """See ``Share.total``."""
        assert own == self.end - self.first, "a process has the views that fall to it"
        return self.views

    def own(self, drawn: Tensor) -> Tensor:
        """See ``Share.own``."""
        return drawn[self.first : self.end]

    def gather(self, rows: Tensor) -> Tensor:
        """See ``Share.gather``."""
        every = rows.new_zeros(self.views, *rows.shape[1:])
        every[self.first : self.end] = rows.detach()
        dist.all_reduce(every)
        return every

    def average(self, means: Sequence[Tensor]) -> None:
        """See ``Share.average``: one message for all tensors of a type."""
        weight = (self.end - self.first) / self.views
        for _, some in groupby(sorted(means, key=_kind), _kind):
            tensors = list(some)
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]) * weight
            dist.all_reduce(flat)
            for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.detach().copy_(mean.view_as(tensor))


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tensor.device}"


@dataclass(frozen=True)
class Team:
    """The processes that work on a run, and which of them this is."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and says what happens."""
        return self.rank == 0

    def share(self, views: int) -> Share:
        """What falls to this one of a step's views."""
        return WHOLE if self.world == 1 else Part(self.rank, self.world, views)

    def agreed(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """What the leader's ``stop`` says, to all of them alike; every process asks equally often."""
        if self.world == 1:
            return stop

        def asked() -> bool:
            said = torch.tensor(float(self.leads and stop()))
            dist.broadcast(said, 0)
            return bool(said)

        return asked

    def meet(self) -> None:
        """Wait until all are here."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))


ALONE = Team()
