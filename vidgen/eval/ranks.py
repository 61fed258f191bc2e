"""How an evaluation is shared between the processes of `accelerate launch`: who scores what, and all the results."""

import atexit
import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import distributed

Item = TypeVar("Item")


def check_launch() -> None:
    """ValueError for `accelerate launch --cpu --num_processes 2`, which starts one process only and does not say so."""
    launched_for_many = "MASTER_ADDR" in os.environ and "ACCELERATE_USE_CPU" in os.environ
    if launched_for_many and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "accelerate launch --cpu starts one process, whatever --num_processes says; use "
            "`accelerate launch --multi_gpu --num_processes 2 … --device cpu`, which also works without GPUs"
        )


def join_launch(device: torch.device) -> torch.device:
    """Join the processes of `accelerate launch`, if this is one of them; returns the device that this one computes on.

    Raises:
        ValueError: a launch of one process in place of many (`check_launch`).
    """
    check_launch()
    if "WORLD_SIZE" not in os.environ:
        return device
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
        atexit.register(distributed.destroy_process_group)  # else its threads may end the process by a signal
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def of_this_process(items: Sequence[Item]) -> Sequence[Item]:
    """The items that this process works on; every item belongs to exactly one process."""
    return items[rank() :: distributed.get_world_size()] if distributed.is_initialized() else items


def gathered(items: Sequence[Item]) -> list[Item]:
    """The items of all processes, on every process; they have to be picklable."""
    if not distributed.is_initialized():
        return list(items)
    of_ranks: list[list[Item]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(of_ranks, list(items))
    return [item for of_rank in of_ranks for item in of_rank]
