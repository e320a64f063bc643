"""A checkpoint as a folder, in which every process of a sharded run has written what it holds.

``whole.pt`` is an ordinary checkpoint with empty places where tensors are sharded; ``shard-00001-of-00004.pt`` is a
dict from the paths of those places to the rows that the second of four processes holds. Rows of all shards one below
the other are the tensor. Every file names its step: a folder that is copied while training saves may come to have files
of two. All files are what ``torch.save`` makes of plain types, so that reading runs no code;
``torch.distributed.checkpoint`` has a pickle in its folders.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

WHOLE_NAME = "whole.pt"
_STEP = "global_step"


def shard_name(rank: int, count: int) -> str:
    """The file of one process."""
    return f"shard-{rank:05d}-of-{count:05d}.pt"


def files_of(checkpoint: Path) -> list[Path]:
    """The files that a checkpoint is made of: itself, or those of a folder, the whole part first.

    Whether all of them are there is for the reader to find out; none where it is another folder, or nothing.
    """
    if not os.path.isdir(checkpoint):  # unlike a Path's own, false where a name is too long
        return [checkpoint] if os.path.exists(checkpoint) else []
    shards = sorted(checkpoint.glob("shard-*-of-*.pt"))
    if not shards:
        return []
    count = int(shards[0].stem.rpartition("-")[2])
    return [checkpoint / WHOLE_NAME, *(checkpoint / shard_name(rank, count) for rank in range(count))]


def steps_of(files: Sequence[Path]) -> set[int]:
    """The steps that the files of a folder are of: one, or they do not belong together."""
    contents = (torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in files)
    return {int(content[_STEP]) for content in contents if _STEP in content}


def each_tensor(value: Any, change: Callable[[str, Tensor], Any], path: str = "") -> Any:
    """Nested dicts, lists and tuples with ``change(path, tensor)`` in place of each tensor."""
    if isinstance(value, Mapping):
        return {key: each_tensor(item, change, f"{path}/{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(each_tensor(item, change, f"{path}/{i}") for i, item in enumerate(value))
    return change(path, value) if isinstance(value, Tensor) else value


def take_apart(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What one process writes.

    Args:
        checkpoint: With sharded tensors.

    Returns:
        The content of ``whole.pt``, which is the same on every process, and of this process's shard.
    """
    rows: dict[str, Tensor] = {_STEP: torch.tensor(checkpoint[_STEP])}

    def keep(path: str, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor.cpu()
        # cloned, since a view would be saved with all that it is a view of
        rows[path] = tensor.to_local().detach().cpu().clone()
        return rows[path].new_empty(0)

    return each_tensor(checkpoint, keep), rows


def rows_of(pieces: Sequence[Tensor], rank: int, count: int) -> tuple[Tensor, torch.Size]:
    """One process's share of a tensor that others may have shared out otherwise.

    Args:
        pieces: The tensor's rows, in order.
        rank: Of the process.
        count: How many processes share it now.

    Returns:
        Its rows, as FSDP2 shares them out: equally many each, but for the last ones, which may have none. And the shape
        of the whole tensor.
    """
    rows = sum(len(piece) for piece in pieces)
    share = -(-rows // count)
    start, at, mine = rank * share, 0, []
    for piece in pieces:
        mine.append(piece[max(0, start - at) : max(0, start + share - at)])
        at += len(piece)
    return torch.cat(mine), torch.Size((rows, *pieces[0].shape[1:]))


def put_together(folder: Path, combine: Callable[[Sequence[Tensor]], Tensor] | None = None) -> dict[str, Any]:
    """An ordinary checkpoint, onto the CPU; any number of processes may have written the folder.

    Args:
        folder: Of a checkpoint.
        combine: Makes of a tensor's rows, in order and still on the disk, what goes in its place; None: the tensor.
    """
    whole, *shards = (torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in files_of(folder))

    def fill(path: str, tensor: Tensor) -> Tensor:
        if path not in shards[0]:
            return tensor
        pieces = [shard[path] for shard in shards]
        return torch.cat(pieces) if combine is None else combine(pieces)

    content: dict[str, Any] = each_tensor(whole, fill)
    return content
