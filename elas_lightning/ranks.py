"""What several processes of one run tell each other, apart from gradients."""

from typing import TypeVar

import torch

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """This process's number among those of the run, and how many there are."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def of_every_rank(mine: T) -> list[T]:
    """The value of each rank, in order of ranks; a collective call where there are several."""
    _, world_size = rank_and_world_size()
    every = [mine] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(every, mine)
    return every
