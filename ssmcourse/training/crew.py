"""The processes that train one model together: one, unless torchrun started several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Crew:
    """rank: this process, from 0. world: how many there are."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Does this process write and show things?"""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same in each of them."""
        if self.world == 1:
            return values
        values = values.to(self.device)
        distributed.all_reduce(values)
        return values.cpu()


@contextmanager
def assembled(device: str) -> Iterator[Crew]:
    """The crew of this process, for as long as the block lasts."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu and not torch.cuda.is_available():
        raise ValueError("training.device: got cuda, expected cpu: torch finds no CUDA device here")
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if world == 1:
        yield Crew(0, 1, place)
        return
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Crew(rank, world, place)
    finally:
        distributed.destroy_process_group()
